"""Results to Markdown tables: `python -m benchmarks.operations.table RESULTS... PAGE`.

There is a table for each group of workloads. It replaces the text between its markers in the
page, if the results have workloads of that group. `NAME=RESULTS.json` names the processor.
Results of several processors stand side by side, and each has a table of its own below.
`--check` changes nothing and fails if it would. No figure is typed by hand.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.operations.workloads import GROUPS


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
        "1024 bags of 40 unless stated otherwise.",
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
        "D = 64 and 512 bags of 40 unless stated otherwise; torch's sparse gradients are "
        "coalesced, except in the last column.",
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
        "1024 bags of 40 unless stated otherwise.",
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
        "X is CSR and, like W, float32, with 1024 rows of 40 entries unless stated otherwise.",
        ("scipy",),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operations.table", description=__doc__
    )
    parser.add_argument("results", nargs="+", help="[NAME=]JSON from benchmarks.run")
    parser.add_argument("page", type=Path, help="a file with the markers")
    parser.add_argument("--check", action="store_true", help="fail if a table differs")
    arguments = parser.parse_args()

    everything = [read(result) for result in arguments.results]
    old = new = arguments.page.read_text()
    for group, table in TABLES.items():
        measured = [results for results in everything if workloads_of(group, results)]
        if measured:
            new = insert(new, table.marker, render(group, measured))
    if not arguments.check:
        arguments.page.write_text(new)
    elif new != old:
        sys.exit(f"{arguments.page} does not match {' '.join(arguments.results)}")


def read(argument: str) -> dict[str, Any]:
    """Return results, with the name of their processor."""
    name, _, path = argument.rpartition("=")
    results: dict[str, Any] = json.loads(Path(path).read_text())
    results["name"] = name
    return results


def workloads_of(group: str, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the workloads of a group that the results have."""
    return [w for w in results["workloads"] if w["name"] in GROUPS[group]]


def processor(results: dict[str, Any]) -> str:
    """Return the name of a processor as the system has it, and as the results were named."""
    model: str = results["machine"]["processor"]
    return f"{model} ({results['name']})" if results["name"] else model


def insert(page: str, marker: str, text: str) -> str:
    """Return the page with a text between its markers."""
    start, end = f"<!-- {marker}: start -->", f"<!-- {marker}: end -->"
    if page.count(start) != 1 or page.count(end) != 1:
        sys.exit(f"the page must hold each of these once: {start} {end}")
    head, _, rest = page.partition(start)
    return f"{head}{start}\n{text}\n{end}{rest.partition(end)[2]}"


def render(group: str, measured: list[dict[str, Any]]) -> str:
    """Return the tables of a group: one for each processor, after one of all their ratios."""
    table = TABLES[group]
    details = [_details(table, workloads_of(group, results), results) for results in measured]
    if len(measured) == 1:
        return details[0]
    parts = [_side_by_side(group, measured)]
    for results, detail in zip(measured, details, strict=True):
        parts.append(f"**{processor(results)}**\n\n{detail}")
    return "\n\n".join(parts)


def _side_by_side(group: str, measured: list[dict[str, Any]]) -> str:
    """Return one ratio of each workload on each processor: the first column of ratios."""
    table = TABLES[group]
    ratio = next(column for column in table.columns if column[2].startswith("times "))
    figures = [{w["title"]: w["contenders"] for w in workloads_of(group, r)} for r in measured]
    titles = dict.fromkeys(title for of_one in figures for title in of_one)
    lines = _heading([f"{table.first_column}: {ratio[0]}", *map(processor, measured)])
    for title in titles:
        cells = [_cell(of_one.get(title, {}), *ratio[1:]) for of_one in figures]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _details(table: Table, workloads: list[dict[str, Any]], results: dict[str, Any]) -> str:
    """Return all figures of a group on one processor, and how they were measured."""
    machine, versions, settings = results["machine"], results["versions"], results["settings"]
    n_threads = settings["threads"]
    lines = _heading([table.first_column, *(heading for heading, *_ in table.columns)])
    for workload in workloads:
        figures = workload["contenders"]
        cells = [_cell(figures, *column) for _, *column in table.columns]
        lines.append(f"| {workload['title']} | {' | '.join(cells)} |")
    peers = [f"{p} {versions[p]}" if versions.get(p) else f"{p} not installed" for p in table.peers]
    lines += [
        "",
        f"{processor(results)}, {n_threads} thread{'s' if n_threads > 1 else ''} of "
        f"{machine['cores']} cores, level {versions['level']}; {versions['compiler']}, "
        f"NumPy {versions['numpy']}, {', '.join(peers)}; {results['date']}. Medians of "
        f"{settings['rounds']} rounds. {table.usual}",
    ]
    if settings["quick"]:
        lines += ["", "**A smoke run: these figures mean nothing.**"]
    return "\n".join(lines)


def _heading(names: list[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" + "|--:" * (len(names) - 1) + "|"]


def _cell(figures: dict[str, Any], contender: str, figure: str, form: str) -> str:
    value = figures.get(contender, {}).get(figure)
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()
