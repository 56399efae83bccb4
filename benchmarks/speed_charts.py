"""A bar chart for each processor: `python -m benchmarks.speed_charts`, from the root.

For each workload of the published results, the speed of embag divided by that of the fastest other
library, on a logarithmic scale. The charts are `docs/speed-KEY.svg`, and `docs/benchmarks.md` shows
them. `--check` changes nothing and fails if it would.
"""

import argparse
import math
from pathlib import Path

from benchmarks import published
from benchmarks.operations.table import PAGE, insert
from benchmarks.picture import head, text

HEADINGS = {
    "forward": "Lookups",
    "inference": "Inference",
    "gradients": "Gradients",
    "gathers": "Rows without bags",
    "matrices": "Sparse matrices",
    "threads": "On two threads",
    "training": "Training steps",
}
ONE, DECADE, END = 460, 150, 690  # x of a ratio of 1 and of the longest bar; pixels for 10 times
TOP, BAR, ROW, HEADING = 54, 11, 17, 26  # above the rows; of a bar, a row, and a heading
TICKS = (0.5, 1, 2, 5, 10, 20)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed_charts", description=__doc__)
    parser.add_argument("page", type=Path, nargs="?", default=PAGE, help="a file with a marker")
    parser.add_argument("--results", type=Path, default=published.FOLDER, help="the folder")
    parser.add_argument("--check", action="store_true", help="fail if a chart differs")
    arguments = parser.parse_args()
    images = []
    for processor in published.find_all(arguments.results):
        chart = arguments.page.with_name(f"speed-{processor.key}.svg")
        published.update(chart, draw(processor), arguments.check)
        images.append(f"![{title_of(processor)}]({chart.name})")
    page = insert(arguments.page.read_text(), "charts", "\n\n".join(images))
    published.update(arguments.page, page, arguments.check)


def title_of(processor: published.Processor) -> str:
    return f"{processor.name}: speed beside the fastest other library (log scale)"


def draw(processor: published.Processor) -> str:
    """Return the chart of a processor."""
    lines, y = [], TOP
    for group, workloads in processor.groups.items():
        y += HEADING
        lines.append(text(0, y - 8, HEADINGS[group], "ratio"))
        for workload in workloads.values():
            best = published.best_peer(workload)
            if best:
                lines += _row(y, workload["title"], *best)
                y += ROW
    ticks = [
        line
        for ratio in TICKS
        for line in (
            text(_x(ratio), TOP - 10, f"{ratio:g}", anchor="middle"),
            f'<line class="tick" x1="{_x(ratio):.1f}" x2="{_x(ratio):.1f}" y1="{TOP}" y2="{y}"/>',
        )
    ]
    return "\n".join([*head(title_of(processor), y + 8), *ticks, *lines, "</svg>", ""])


def _row(top: float, title: str, peer: str, ratio: float) -> list[str]:
    """Return a bar from 1 to the ratio, to the left if embag is slower."""
    end = min(_x(ratio), END)
    width, kind = abs(end - ONE), "p0" if ratio >= 1 else "p1"
    return [
        text(0, top + BAR - 1, title.replace("`", "")),
        f'<rect class="{kind}" x="{min(end, ONE):.1f}" y="{top:g}" width="{width:.1f}" '
        f'height="{BAR}"/>',
        text(max(end, ONE) + 5, top + BAR - 1, f"{ratio:.2f} {peer}"),
    ]


def _x(ratio: float) -> float:
    return ONE + DECADE * math.log10(ratio)


if __name__ == "__main__":
    main()
