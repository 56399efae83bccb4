"""Results to a Markdown table: `python -m benchmarks.pipeline.table RESULTS.json PAGE`.

It replaces the text between the markers of the page. No figure is typed by hand.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.operations.table import insert
from benchmarks.pipeline.contenders import CONTENDERS

HEADINGS = (
    *("contender", "rows", "rows per second", "peak memory, MB", "start, s"),
    *("read", "pool", "write", "`embag pool` is times as fast", "the same, start left out"),
)
PACKAGES = ("numpy", "pyarrow", "torch", "polars", "duckdb")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pipeline.table", description=__doc__
    )
    parser.add_argument("results", type=Path, help="JSON from benchmarks.pipeline")
    parser.add_argument("readme", type=Path, help="a file with the markers")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    page = insert(arguments.readme.read_text(), "pipeline table", render(results))
    arguments.readme.write_text(page)


def render(results: dict[str, Any]) -> str:
    machine, versions, settings = results["machine"], results["versions"], results["settings"]
    lines = [f"| {' | '.join(HEADINGS)} |", "|---" + "|--:" * (len(HEADINGS) - 1) + "|"]
    for file in results["files"].values():
        for name, figures in file.items():
            lines.append(f"| {CONTENDERS[name].title} | {' | '.join(_cells(figures))} |")
    lines.append("")
    for one in results["targets"]:
        verdict = "met" if one["met"] else "**missed**"
        lines.append(
            f"- {one['target']:g} times as fast as {one['of']} end to end: {verdict}, "
            f"{one['times']:.2f} times ({CONTENDERS[one['best']].title})."
        )
    packages = ", ".join(f"{package} {versions[package]}" for package in PACKAGES)
    lines += [
        "",
        f"Lists of 0 to 50 int64 ids, table of {settings['items']:,} rows, D = 64, float32; "
        f"{machine['processor']}, {machine['cores']} cores, level {versions['level']}; "
        f"{packages}; {results['date']}. Medians of {settings['rounds']} rounds; read, pool and "
        "write are seconds for a million rows, in threads while the others were at work; "
        '"times as fast" is the median of the ratios of neighbouring runs.',
    ]
    return "\n".join(lines)


def _cells(figures: dict[str, Any]) -> list[str]:
    millions = figures["rows"] / 1e6
    parts = figures["parts, s"]
    return [
        f"{figures['rows']:,}",
        f"{figures['rows/s']:,.0f}",
        f"{figures['peak bytes'] / 1e6:,.0f}",
        f"{figures['start, s']:.2f}",
        *(f"{parts[p] / millions:.2f}" if p in parts else "" for p in ("read", "pool", "write")),
        *(f"{figures[t]:.2f}" if t in figures else "" for t in ("times", "times after the start")),
    ]


if __name__ == "__main__":
    main()
