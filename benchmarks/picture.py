"""The README's picture of speed: `python -m benchmarks.picture`, from the root.

For some workloads, the time of embag as a share of torch's, from the published results. Each
processor has a bar of its own. `--check` changes nothing and fails if it would.

The SVG is written directly: no fonts are embedded, the background is transparent, and its
colours follow the reader's light or dark mode. The colours of the bars are Okabe and Ito's,
which colour-blind readers can tell apart.
"""

import argparse
from html import escape
from pathlib import Path
from typing import Any

from benchmarks import published

# Workloads by name, with labels that a reader understands without the tables.
ROWS = {
    "one-bag": "one bag of 20 rows, a whole call",
    "sum-d64-10k": "sum, table in cache",
    "sum-d64-2m": "sum, table in memory",
    "int8-d64-2m": "sum, 8-bit table in memory",
    "float64-d64-1m": "sum, float64 table in memory",
    "max-d64-1m": "max, table in memory",
    "26-tables-request": "26 tables, one request",
    "dense-sum-d64-10k": "gradient, dense",
    "sparse-sum-d64-1m": "gradient, sparse",
    "step-d64-1m": "gradient and step, sparse",
}

PICTURE = Path("docs/speed.svg")
WIDTH, LABELS, TRACK = 780, 236, 340  # of the picture, of the labels, of the longest bar
COLUMNS = (628, 682, 780)  # where the figures end: torch's, embag's, their ratio
TOP, BAR, GAP, BOTTOM = 58, 14, 12, 26  # above the rows; of a bar; between rows; below them
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
DARK = ("#56b4e9", "#e69f00", "#2fc79a", "#e3a3c5")

TITLE = "Time of embag as a share of torch's, on one thread: shorter is faster"
STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif;
         fill: #1f2328 }
  .title, .ratio { font-weight: 600 }
  .note { fill: #59636e; font-size: 12px }
  .torch { fill: #d8dee4 }
  .tick { stroke: #d8dee4 }
  .limit { stroke: #59636e; stroke-dasharray: 5 4 }
  .line { fill: none; stroke-width: 2 }
"""
DARK_STYLE = """
    text { fill: #f0f6fc }
    .note { fill: #9198a1 }
    .torch { fill: #3d444d }
    .tick { stroke: #3d444d }
    .limit { stroke: #9198a1 }
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture", description=__doc__)
    parser.add_argument("picture", type=Path, nargs="?", default=PICTURE, help="the SVG to write")
    parser.add_argument("--results", type=Path, default=published.FOLDER, help="the folder")
    parser.add_argument("--check", action="store_true", help="fail if the picture differs")
    arguments = parser.parse_args()
    picture = draw(published.find_all(arguments.results))
    published.update(arguments.picture, picture, arguments.check)


def draw(results: list[published.Processor]) -> str:
    """Return the picture of all results."""
    processors = {
        one.name: {
            w["name"]: w["contenders"] for group in one.groups.values() for w in group.values()
        }
        for one in results
    }
    ratios = [_times(contenders, name) for contenders in processors.values() for name in ROWS]
    torch_bar = TRACK * min([1, *filter(None, ratios)])
    row_height = len(processors) * BAR + GAP
    height = TOP + len(ROWS) * row_height + BOTTOM
    lines = [
        *head(TITLE, height),
        text(LABELS, 44, "0"),
        text(LABELS + torch_bar - 4, 44, "torch = 100 %", anchor="end"),
        *(
            text(x, 44, heading, anchor="end")
            for x, heading in zip(COLUMNS, ("torch", "embag", "times as fast"), strict=True)
        ),
    ]
    for row, (name, label) in enumerate(ROWS.items()):
        top = TOP + row * row_height
        height_of_bars = len(processors) * BAR
        lines.append(_bar("torch", top, height_of_bars, torch_bar))
        lines.append(text(LABELS - 12, top + height_of_bars / 2 + 5, label, "", "end"))
        for i, contenders in enumerate(processors.values()):
            if _times(contenders, name) is not None:
                lines += _ratio(contenders[name], i, top + i * BAR, torch_bar)
    at = float(LABELS)
    for i, name in enumerate(processors):
        lines.append(f'<rect class="p{i}" x="{at:g}" y="{height - 15}" width="12" height="10"/>')
        lines.append(text(at + 18, height - 6, name))
        at += 40 + 7 * len(name)
    lines.append(text(WIDTH, height - 6, "torch, embag: ns per row", anchor="end"))
    return "\n".join([*lines, "</svg>", ""])


def _times(contenders: dict[str, Any], name: str) -> float | None:
    """Return how many times as fast as torch embag is; None if one was not measured."""
    times: float | None = contenders.get(name, {}).get("embag", {}).get("times torch")
    return times


def _ratio(figures: dict[str, Any], i: int, top: float, torch_bar: float) -> list[str]:
    """Return the bar of one processor, and its figures behind it."""
    times = figures["embag"]["times torch"]
    figures_shown = (_ns(figures["torch"]), _ns(figures["embag"]), f"{times:.1f}")
    return [
        _bar(f"p{i}", top, BAR, torch_bar / times),
        *(
            text(x, top + BAR - 3, shown, kind, "end")
            for x, shown, kind in zip(
                COLUMNS, figures_shown, ("note", "note", "ratio"), strict=True
            )
        ),
    ]


def _ns(figures: dict[str, Any]) -> str:
    ns = figures["ns per row"]
    return f"{ns:.0f}" if ns >= 100 else f"{ns:.1f}"


def _bar(kind: str, top: float, height: float, width: float) -> str:
    return (
        f'<rect class="{kind}" x="{LABELS}" y="{top:g}" width="{width:.1f}" height="{height:g}"/>'
    )


def head(title: str, height: float, width: float = WIDTH) -> list[str]:
    """Return the first lines of an SVG of this size: its title and its styles."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-labelledby="title">',
        f'<title id="title">{escape(title, quote=False)}</title>',
        f"<style>{STYLE}{_colours(LIGHT, '  ')}  @media (prefers-color-scheme: dark) {{"
        f"{DARK_STYLE}{_colours(DARK, '    ')}  }}\n</style>",
        text(0, 18, title, "title"),
    ]


def text(x: float, y: float, words: str, kind: str = "note", anchor: str = "start") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text{kind} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def _colours(colours: tuple[str, ...], indent: str) -> str:
    return "".join(
        f"{indent}.p{i} {{ fill: {colour} }} .s{i} {{ stroke: {colour} }}\n"
        for i, colour in enumerate(colours)
    )


if __name__ == "__main__":
    main()
