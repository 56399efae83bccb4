"""Charts of the published results: `python -m benchmarks.charts`, from the root.

For each processor: speed by width and by encoding, time against the number of ids, bags, tables
and threads, and the latency of a service; and the error of each encoding. The charts are files of
`docs/charts`. `docs/benchmarks.md` shows them between its markers, each with its numbers in a
table that opens with a click. `--check` changes nothing and fails if it would.

As in picture.py, an SVG follows the reader's light or dark mode. Lines differ in their marks, too,
so they can be told apart without colours.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import published
from benchmarks.operations.table import PAGE, insert
from benchmarks.picture import LIGHT, head, text

WIDTH, HEIGHT = 480, 358
LEFT, RIGHT, TOP, BOTTOM = 72, 476, 112, 314  # of the area of a chart of lines
LABELS, BAR, GAP, TRACK = 132, 13, 12, 300  # of a chart of bars
MARKS = ("circle", "square", "triangle", "diamond")
WIDTHS = ("sum-d32-2m", "sum-d64-2m", "sum-d100-2m", "sum-d128-2m", "sum-d256-2m")
ENCODINGS = {
    "float32, D = 64": "sum-d64-2m",
    "float16, D = 64": "float16-d64-2m",
    "bfloat16, D = 64": "bfloat16-d64-2m",
    "8 bits, D = 64": "int8-d64-2m",
    "float32, D = 128": "sum-d128-2m",
    "float16, D = 128": "float16-d128-2m",
    "bfloat16, D = 128": "bfloat16-d128-2m",
    "4 bits, D = 128": "int4-d128-2m",
    "2 bits, D = 128": "int2-d128-2m",
}
SHOWN = ("embag", "torch", "zentorch", "limit")
# Each library has its colour in all charts; others take those that are left.
COLOURS = {"embag": 0, "torch": 1, "zentorch": 2, "numpy": 3}


@dataclass
class Chart:
    """A chart of lines, or of bars if its x are names."""

    title: str
    note: str
    x_label: str
    y_label: str
    series: dict[str, dict[Any, float]]  # y by x
    log: bool = True  # of both axes; else y begins with 0, and x are evenly spaced
    numbers: str = ""  # a table, if not that of the series

    def table(self) -> str:
        """Return the numbers as a Markdown table."""
        if self.numbers:
            return self.numbers
        xs = list(dict.fromkeys(x for points in self.series.values() for x in points))
        lines = [
            f"| {self.x_label} | {' | '.join(self.series)} |",
            "|---|" + "--:|" * len(self.series),
        ]
        for x in xs:
            cells = [_number(points[x]) if x in points else "" for points in self.series.values()]
            lines.append(f"| {_name(x)} | {' | '.join(cells)} |")
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.charts", description=__doc__)
    parser.add_argument("page", type=Path, nargs="?", default=PAGE, help="a file with markers")
    parser.add_argument("--results", type=Path, default=published.FOLDER, help="the folder")
    parser.add_argument("--check", action="store_true", help="fail if a chart differs")
    arguments = parser.parse_args()
    page = arguments.page.read_text()
    folder = arguments.page.parent / "charts"
    folder.mkdir(exist_ok=True)
    for marker, charts in find_charts(arguments.results).items():
        parts = []
        for name, (chart, source) in charts.items():
            if not chart.series:
                continue
            file = folder / f"{name}.svg"
            draw = draw_bars if marker == "encoding plots" else draw_lines
            published.update(file, draw(chart), arguments.check)
            parts.append(
                f"![{chart.title}: {chart.note}](charts/{file.name})\n\n"
                f"<details><summary>The numbers: {chart.y_label}</summary>\n\n{chart.table()}\n\n"
                f"From [{source}](../benchmarks/results/{source}).\n\n</details>"
            )
        page = insert(page, marker, "\n\n".join(parts))
    published.update(arguments.page, page, arguments.check)


def find_charts(folder: Path) -> dict[str, dict[str, tuple[Chart, str]]]:
    """Return the charts by marker and name, each with the file that it is drawn from."""
    found: dict[str, dict[str, tuple[Chart, str]]] = {
        f"{kind} plots": {} for kind in ("width", "encoding", "curve", "latency", "error")
    }
    for processor in published.find_all(folder):
        key, workloads = processor.key, {}
        for group in ("forward", "inference"):
            workloads |= processor.groups.get(group, {})
        source = f"forward-{key}.json"
        found["width plots"][f"width-{key}"] = widths(processor.name, workloads), source
        source = f"inference-{key}.json"
        found["encoding plots"][f"encoding-{key}"] = encodings(processor.name, workloads), source
    for path in sorted(folder.glob("curves-*.json")):
        results = json.loads(path.read_text())
        for name, curve in results["curves"].items():
            chart = of_curve(name, curve, details(results))
            found["curve plots"][path.stem.replace("curves", name)] = chart, path.name
    for path in sorted(folder.glob("latency-*.json")):
        results = json.loads(path.read_text())
        found["latency plots"][path.stem] = latency(results), path.name
    path = folder / "errors.json"
    if path.exists():
        found["error plots"]["errors"] = errors(json.loads(path.read_text())), path.name
    return found


def details(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return f"{machine['name']}, {results['date']}, load {machine['load']:.1f}"


def widths(name: str, workloads: dict[str, Any]) -> Chart:
    chosen = [workloads[width] for width in WIDTHS if width in workloads]
    return Chart(
        "Speed by width: sums of 1024 bags of 40 rows, a table of 2 M rows",
        f"{name}, one thread",
        "columns of the table",
        "GB of rows per second",
        {
            who: {w["dim"]: w["contenders"][who]["GB/s"] for w in chosen if who in w["contenders"]}
            for who in SHOWN
            if any(who in w["contenders"] for w in chosen)
        },
        log=False,
    )


def encodings(name: str, workloads: dict[str, Any]) -> Chart:
    rows = {label: workloads[one] for label, one in ENCODINGS.items() if one in workloads}
    return Chart(
        "Time by encoding: ns per row, sums of 40 rows, 2 M rows; shorter is faster",
        f"{name}, one thread",
        "encoding",
        "ns per row",
        {
            who: {
                label: w["contenders"][who]["ns per row"]
                for label, w in rows.items()
                if who in w["contenders"]
            }
            for who in SHOWN
            if any(who in w["contenders"] for w in rows.values())
        },
    )


def of_curve(name: str, curve: dict[str, Any], note: str) -> Chart:
    series: dict[str, dict[Any, float]] = {}
    for point in curve["points"]:
        for who, seconds in point["seconds"].items():
            series.setdefault(who, {})[point["x"]] = statistics.median(seconds) * 1e6
    return Chart(
        f"Time against the number of {name}: {curve['title']}",
        f"{note}; one thread" if name != "threads" else note,
        f"number of {name}",
        "us per call",
        series,
        log=name != "threads",
    )


def latency(results: dict[str, Any]) -> Chart:
    series = {
        f"{line['service']}, {line['connections']} connection{'s'[: line['connections'] - 1]}": {
            f"p{percentile}": ms for percentile, ms in line["ms"].items()
        }
        for line in results["latency"]
    }
    return Chart(
        "Latency of a service: examples/serving, 26 tables of 8 bits",
        details(results),
        "percentile",
        "ms per request",
        series,
    )


def errors(results: dict[str, Any]) -> Chart:
    quantized: dict[str, dict[Any, float]] = {}
    floats: dict[str, dict[Any, float]] = {}
    rows = ["| table | encoding | bits | entry | mean of 20 |", "|---|---|--:|--:|--:|"]
    for table, lines in results["tables"].items():
        for line in lines:
            name, bits, error = line["encoding"], line["bits"], line["entry"] * 100
            rows.append(f"| {table} | {name} | {bits} | {error:.2g} % | {line['mean of 20']:.2%} |")
            if name[0].isdigit():
                quantized.setdefault(f"quantized, {table}", {})[bits] = error
            elif table == "random numbers" and name in ("float8_e4m3fn", "float16"):
                floats[name] = {bits: error}
    series = {who: dict(sorted(points.items())) for who, points in (quantized | floats).items()}
    return Chart(
        "Error against bits: RMS error of an entry / RMS entry",
        "float formats: random numbers",
        "bits of an entry",
        "error, %",
        series,
        numbers="\n".join(rows),
    )


def draw_lines(chart: Chart) -> str:
    """Return the SVG of a chart of lines, with a legend above."""
    values = [y for points in chart.series.values() for y in points.values()]
    xs = list(dict.fromkeys(x for points in chart.series.values() for x in points))
    numbers = all(isinstance(x, (int, float)) for x in xs)
    if numbers:
        xs.sort()
    low, high = min(values), max(values)
    if chart.log:
        low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
        ticks = [10.0**i for i in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    else:
        step = next(s for s in (1, 2, 5, 10, 20, 50, *range(100, 10**6, 100)) if high / s <= 5)
        ticks = [float(step * i) for i in range(math.ceil(high / step) + 1)]
        low, high = 0, ticks[-1]
    share = _log_share(low, high) if chart.log else lambda y: (y - low) / (high - low)
    along = _log_share(xs[0], xs[-1]) if chart.log and numbers else _even(xs)

    def x_of(x: Any) -> float:
        return LEFT + 18 + (RIGHT - LEFT - 36) * along(x)

    def y_of(y: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * share(y)

    lines = [text(0, TOP - 10, chart.y_label)]
    for tick in ticks:
        y = y_of(tick)
        lines.append(f'<line class="tick" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(text(LEFT - 6, round(y + 4, 1), _number(tick), anchor="end"))
    shown = xs if len(xs) <= 9 else xs[::2]
    lines += [text(round(x_of(x), 1), BOTTOM + 18, _name(x), anchor="middle") for x in shown]
    lines.append(text((LEFT + RIGHT) / 2, BOTTOM + 37, chart.x_label, anchor="middle"))
    colours = _colours_of(chart)
    for i, (who, points) in enumerate(chart.series.items()):
        at = [(x_of(x), y_of(y)) for x, y in points.items()]
        kind = "limit" if who == "limit" else f"s{colours[who]}"
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        lines.append(f'<polyline class="line {kind}" points="{path}"/>')
        if who != "limit":
            lines += [_mark(MARKS[i % len(MARKS)], colours[who], x, y) for x, y in at]
    return _frame(chart, HEIGHT, lines)


def draw_bars(chart: Chart) -> str:
    """Return the SVG of a chart of bars: a group for each x; the limit is a line across it."""
    bars = {who: points for who, points in chart.series.items() if who != "limit"}
    limit = chart.series.get("limit", {})
    xs = list(dict.fromkeys(x for points in bars.values() for x in points))
    longest = max(y for points in chart.series.values() for y in points.values())
    colours = _colours_of(chart)
    lines, top = [], TOP - 18.0
    for x in xs:
        own = [(colours[who], points[x]) for who, points in bars.items() if x in points]
        middle = top + len(own) * BAR / 2
        lines.append(text(LABELS - 8, middle + 4, x, "", "end"))
        for row, (i, y) in enumerate(own):
            width, at = TRACK * y / longest, top + row * BAR
            lines.append(
                f'<rect class="p{i}" x="{LABELS}" y="{at:g}" width="{width:.1f}" '
                f'height="{BAR - 1}"/>'
            )
            lines.append(text(round(LABELS + width + 5, 1), at + 11, f"{y:.1f}"))
        if x in limit:
            at = LABELS + TRACK * limit[x] / longest
            lines.append(
                f'<line class="line limit" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 3:g}" '
                f'y2="{top + len(own) * BAR + 2:g}"/>'
            )
        top += len(own) * BAR + GAP
    return _frame(chart, top, lines, ("square",))


def _frame(chart: Chart, height: float, lines: list[str], marks: tuple[str, ...] = MARKS) -> str:
    """Return the SVG with title and legend. What is below moves down if the legend has two rows."""
    colours = _colours_of(chart)
    title, _, rest = chart.title.partition(": ")
    legend, x, y = [], 4.0, 72
    for i, name in enumerate(chart.series):
        width = 38 + 7.2 * len(name)
        if x + width > WIDTH:
            x, y = 4.0, y + 20
        if name == "limit":
            legend.append(f'<path class="line limit" d="M{x - 4:g},{y}h18"/>')
        else:
            legend.append(_mark(marks[i % len(marks)], colours[name], x + 4, y))
        legend.append(text(x + 18, y + 4, name, ""))
        x += width
    return "\n".join(
        [
            *head(title, height + y - 72, WIDTH),
            text(0, 36, rest),
            text(0, 53, chart.note),
            *legend,
            f'<g transform="translate(0 {y - 72})">',
            *lines,
            "</g></svg>",
            "",
        ]
    )


def _colours_of(chart: Chart) -> dict[str, int]:
    """Return the colour of each line, by the name of its library or in its order."""
    libraries = {who: who.split(",")[0] for who in chart.series}
    known = [COLOURS[library] for library in libraries.values() if library in COLOURS]
    left = iter([i for i in range(len(LIGHT)) if i not in known] * len(libraries))
    return {
        who: COLOURS[library] if library in COLOURS else next(left)
        for who, library in libraries.items()
        if who != "limit"
    }


def _mark(shape: str, colour: int, x: float, y: float) -> str:
    if shape == "circle":
        return f'<circle class="p{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    if shape == "square":
        return f'<rect class="p{colour}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    corners = {
        "triangle": [(x, y - 5.5), (x + 5, y + 4), (x - 5, y + 4)],
        "diamond": [(x, y - 5.5), (x + 5.5, y), (x, y + 5.5), (x - 5.5, y)],
    }[shape]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return f'<polygon class="p{colour}" points="{points}"/>'


def _log_share(low: float, high: float) -> Callable[[float], float]:
    span = math.log(high / low) or 1.0
    return lambda x: math.log(x / low) / span


def _even(xs: list[Any]) -> Callable[[Any], float]:
    return lambda x: xs.index(x) / max(1, len(xs) - 1)


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _name(x: Any) -> str:
    return f"{x:,}" if isinstance(x, int) else str(x)


if __name__ == "__main__":
    main()
