"""Results to a Markdown table: `python -m benchmarks.pages.table RESULTS.json PAGE`.

It replaces the text between the markers of the page. `--check` changes nothing and fails if it
would. No figure is typed by hand.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import published
from benchmarks.operations.table import insert

STATES = {"cold": "none in memory", "half": "half", "warm": "all"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages.table", description=__doc__)
    parser.add_argument("results", type=Path, help="JSON from benchmarks.pages")
    parser.add_argument("page", type=Path, help="a file with the markers")
    parser.add_argument("--check", action="store_true", help="fail if the table differs")
    arguments = parser.parse_args()
    table = render(json.loads(arguments.results.read_text()))
    page = insert(arguments.page.read_text(), "pages table", table)
    published.update(arguments.page, page, arguments.check)


def render(results: dict[str, Any]) -> str:
    machine, system, settings = results["machine"], results["pages"], results["settings"]
    lines = [
        f"| rows, lookups, threads | {' | '.join(STATES.values())} |",
        "|---|--:|--:|--:|",
    ]
    rows: dict[str, dict[str, str]] = {}
    for one in results["lookups"]:
        threads = f"{one['threads']} thread{'s' if one['threads'] > 1 else ''}"
        title = f"{one['rows']}, {one['work']}, {threads}"
        rows.setdefault(title, {})[one["in memory"]] = _cell(one)
    lines += [f"| {title} | {' | '.join(cells.values())} |" for title, cells in rows.items()]
    lines += [
        "",
        "Time per row without and with prefetching of pages, and their ratio. Tables of "
        f"{settings['table, bytes'] / 1e9:.1f} GB, D = 64, {settings['rows']:,} random rows, bags "
        f"of 20; {machine['processor']}, {machine['cores']} cores, load {machine['load']:.1f} at "
        f"the start, {system['memory, bytes'] / 1e9:.0f} GB of memory; Linux {system['kernel']}, "
        f"{system['file system']}, read-ahead {system['read-ahead, KiB']} KiB; {results['date']}. "
        f"Medians of {settings['rounds']} rounds.",
    ]
    if settings["quick"]:
        lines += ["", "**A smoke run: these figures mean nothing.**"]
    return "\n".join(lines)


def _cell(one: dict[str, Any]) -> str:
    if one["off"] < 1000:
        return f"{one['off']:.1f}, {one['on']:.1f} ns: {one['times']:.2f}"
    return f"{one['off'] / 1e3:.1f}, {one['on'] / 1e3:.1f} us: {one['times']:.1f}"


if __name__ == "__main__":
    main()
