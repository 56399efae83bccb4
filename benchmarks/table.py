"""Results to Markdown tables: `python -m benchmarks.table RESULTS.json README.md`.

There is a table for each group of workloads. Those that the results have workloads of
replace what stands between their markers in the README. `--check` changes nothing and
fails if it would. No figure is typed by hand.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workloads import GROUPS


@dataclass(frozen=True)
class Table:
    marker: str
    first_column: str
    columns: tuple[tuple[str, str, str, str], ...]  # heading, contender, figure, format
    usual: str  # what workloads do not say in their titles
    peers: tuple[str, ...] = ("torch",)


TABLES = {
    "forward": Table(
        "benchmark table",
        "workload",
        (
            ("embag, ns per row", "embag", "ns per row", ".1f"),
            ("torch, ns per row", "torch", "ns per row", ".1f"),
            ("times as fast as torch", "embag", "times torch", ".2f"),
            ("the same, table as NumPy allocates it", "embag-numpy", "times torch", ".2f"),
            ("of the gather limit", "embag", "share of limit", ".0%"),
        ),
        "1024 bags of 40 where nothing else is said.",
    ),
    "gradients": Table(
        "gradient table",
        "backward pass",
        (
            ("embag, ns per index", "embag", "ns per row", ".1f"),
            ("torch, ns per index", "torch", "ns per row", ".1f"),
            ("times as fast as torch", "embag", "times torch", ".2f"),
            ("the same, torch not coalescing", "embag", "times torch-uncoalesced", ".2f"),
        ),
        "D = 64 and 512 bags of 40 where nothing else is said; torch's sparse gradients are "
        "coalesced, but for the last column.",
    ),
    "inference": Table(
        "inference table",
        "inference",
        (
            ("bytes of a row", "embag", "bytes per row", "d"),
            ("embag, ns per row", "embag", "ns per row", ".1f"),
            ("torch, ns per row", "torch", "ns per row", ".1f"),
            ("FBGEMM, ns per row", "fbgemm", "ns per row", ".1f"),
            ("times as fast as torch", "embag", "times torch", ".2f"),
            ("as FBGEMM", "embag", "times fbgemm", ".2f"),
            ("of the gather limit", "embag", "share of limit", ".0%"),
        ),
        "1024 bags of 40 where nothing else is said.",
        ("torch", "fbgemm-gpu-cpu"),
    ),
    "matrices": Table(
        "matrix table",
        "sparse matrix times dense",
        (
            ("embag, ns per entry", "embag", "ns per row", ".1f"),
            ("SciPy, ns per entry", "scipy", "ns per row", ".1f"),
            ("times as fast as SciPy", "embag", "times scipy", ".2f"),
            ("the same, W as NumPy allocates it", "embag-numpy", "times scipy", ".2f"),
            ("of the gather limit", "embag", "share of limit", ".0%"),
        ),
        "X is CSR, float32 as W, with 1024 rows of 40 entries where nothing else is said.",
        ("scipy",),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("results", type=Path, help="JSON from benchmarks.run")
    parser.add_argument("readme", type=Path, help="a file with the markers")
    parser.add_argument("--check", action="store_true", help="fail if a table is another")
    arguments = parser.parse_args()

    results = json.loads(arguments.results.read_text())
    old = new = arguments.readme.read_text()
    for group, table in TABLES.items():
        workloads = [w for w in results["workloads"] if w["name"] in GROUPS[group]]
        if not workloads:
            continue
        new = insert(new, table.marker, render(table, workloads, results))
    if not arguments.check:
        arguments.readme.write_text(new)
    elif new != old:
        sys.exit(f"{arguments.readme} is not what {arguments.results} says")


def insert(page: str, marker: str, text: str) -> str:
    """Return the page with a text between its markers, in the place of what was there."""
    start, end = f"<!-- {marker}: start -->", f"<!-- {marker}: end -->"
    if page.count(start) != 1 or page.count(end) != 1:
        sys.exit(f"the page must hold each of these once: {start} {end}")
    head, _, rest = page.partition(start)
    return f"{head}{start}\n{text}\n{end}{rest.partition(end)[2]}"


def render(table: Table, workloads: list[dict[str, Any]], results: dict[str, Any]) -> str:
    machine, versions, settings = results["machine"], results["versions"], results["settings"]
    n_threads = settings["threads"]
    headings = [table.first_column, *(heading for heading, *_ in table.columns)]
    lines = [f"| {' | '.join(headings)} |", "|---" + "|--:" * len(table.columns) + "|"]
    for workload in workloads:
        figures = workload["contenders"]
        cells = [_cell(figures, *column) for _, *column in table.columns]
        lines.append(f"| {workload['title']} | {' | '.join(cells)} |")
    peers = [f"{p} {versions[p]}" if versions.get(p) else f"{p} not installed" for p in table.peers]
    lines += [
        "",
        f"{machine['processor']}, {n_threads} thread{'s' if n_threads > 1 else ''} of "
        f"{machine['cores']} cores, level {versions['level']}; {versions['compiler']}, "
        f"NumPy {versions['numpy']}, {', '.join(peers)}; {results['date']}. Medians of "
        f'{settings["rounds"]} rounds; "times as fast" is the median of the ratios of '
        f"neighbouring rounds. {table.usual}",
    ]
    if settings["quick"]:
        lines += ["", "**A smoke run: these figures mean nothing.**"]
    return "\n".join(lines)


def _cell(figures: dict[str, Any], contender: str, figure: str, form: str) -> str:
    value = figures.get(contender, {}).get(figure)
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()
