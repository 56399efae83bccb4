"""Published results to Markdown tables: `python -m benchmarks.operations.table`, from the root.

There is a table for each group of workloads. It replaces the text between its markers in
`docs/benchmarks.md`. Results of several processors stand side by side, and each has a table of
its own below. `--check` changes nothing and fails if it would. No figure is typed by hand.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import published

PAGE = Path("docs/benchmarks.md")


@dataclass(frozen=True)
class Table:
    marker: str
    first_column: str
    columns: tuple[tuple[str, str, str, str], ...]  # heading, contender, figure, format
    usual: str  # what workloads do not say in their titles
    peers: tuple[str, ...] = ("torch",)


TIMES_TORCH = ("times torch", ".2f")
AGAIN = ("embag beside itself", "embag", "times again", ".2f")
OF_LIMITS = (
    ("of the gather limit", "embag", "share of limit", ".0%"),
    ("of the best pinned candidate", "embag", "share of pinned", ".0%"),
    AGAIN,
)
TABLES = {
    "forward": Table(
        "benchmark table",
        "workload",
        (
            ("embag, ns per row", "embag", "ns per row", ".1f"),
            ("torch, ns per row", "torch", "ns per row", ".1f"),
            ("zentorch, ns per row", "zentorch", "ns per row", ".1f"),
            ("times as fast as torch", "embag", "times torch", ".2f"),
            ("as zentorch", "embag", "times zentorch", ".2f"),
            *OF_LIMITS,
            ("table as NumPy allocates it: times as fast as torch", "embag-numpy", *TIMES_TORCH),
            ("of its gather limit", "embag-numpy", "share of limit-numpy", ".0%"),
        ),
        "1024 bags of 40 unless stated otherwise.",
        ("torch", "zentorch"),
    ),
    "gradients": Table(
        "gradient table",
        "backward pass",
        (
            ("embag, ns per index", "embag", "ns per row", ".1f"),
            ("torch, ns per index", "torch", "ns per row", ".1f"),
            ("times as fast as torch", "embag", "times torch", ".2f"),
            ("the same, torch not coalescing", "embag", "times torch-uncoalesced", ".2f"),
            AGAIN,
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
            ("zentorch, ns per row", "zentorch", "ns per row", ".1f"),
            ("FBGEMM, ns per row", "fbgemm", "ns per row", ".1f"),
            ("times as fast as torch", "embag", "times torch", ".2f"),
            ("as zentorch", "embag", "times zentorch", ".2f"),
            ("as FBGEMM", "embag", "times fbgemm", ".2f"),
            *OF_LIMITS,
        ),
        "1024 bags of 40 unless stated otherwise.",
        ("torch", "zentorch", "fbgemm-gpu-cpu"),
    ),
    "matrices": Table(
        "matrix table",
        "sparse matrix times dense",
        (
            ("embag, ns per entry", "embag", "ns per row", ".1f"),
            ("SciPy, ns per entry", "scipy", "ns per row", ".1f"),
            ("times as fast as SciPy", "embag", "times scipy", ".2f"),
            ("the same, W as NumPy allocates it", "embag-numpy", "times scipy", ".2f"),
            *OF_LIMITS,
        ),
        "X is CSR and, like W, float32, with 1024 rows of 40 entries unless stated otherwise.",
        ("scipy",),
    ),
}
TABLES["gathers"] = Table(
    "gather table",
    "rows without bags",
    (
        ("embag, ns per row", "embag", "ns per row", ".1f"),
        ("NumPy, ns per row", "numpy", "ns per row", ".1f"),
        ("torch, ns per row", "torch", "ns per row", ".1f"),
        ("zentorch, ns per row", "zentorch", "ns per row", ".1f"),
        ("times as fast as NumPy", "embag", "times numpy", ".2f"),
        ("as torch", "embag", "times torch", ".2f"),
        ("as zentorch", "embag", "times zentorch", ".2f"),
        ("of the best pinned candidate", "embag", "share of pinned", ".0%"),
        AGAIN,
    ),
    "float32, and a new result for each call, unless stated otherwise. NumPy is `np.take`, with "
    '`mode="clip"` where it has `out`.',
    ("torch", "zentorch", "numpy"),
)
TABLES["training"] = Table(
    "training table",
    "training step",
    (
        ("embag, ns per index", "embag", "ns per row", ".1f"),
        ("torch, ns per index", "torch", "ns per row", ".1f"),
        ("FBGEMM, ns per index", "fbgemm", "ns per row", ".1f"),
        ("times as fast as torch", "embag", "times torch", ".2f"),
        ("as FBGEMM", "embag", "times fbgemm", ".2f"),
        ("as backward and `step`", "embag", "times two-calls", ".2f"),
        ("as on one thread", "embag", "times one-thread", ".2f"),
        ("of the limit", "embag", "share of limit", ".0%"),
        AGAIN,
    ),
    "float32, D = 64, 1 M rows, 512 bags of 40 and one thread unless stated otherwise.",
    ("torch", "fbgemm-gpu-cpu"),
)
TABLES["threads"] = replace(
    TABLES["inference"], marker="thread table", first_column="on two threads"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operations.table", description=__doc__
    )
    parser.add_argument("page", type=Path, nargs="?", default=PAGE, help="a file with the markers")
    parser.add_argument("--results", type=Path, default=published.FOLDER, help="the folder")
    parser.add_argument("--check", action="store_true", help="fail if a table differs")
    arguments = parser.parse_args()

    page = arguments.page.read_text()
    for group, table in TABLES.items():
        measured = list(published.find(group, arguments.results))
        if measured:
            page = insert(page, table.marker, render(group, measured))
    published.update(arguments.page, page, arguments.check)


def insert(page: str, marker: str, text: str) -> str:
    """Return the page with a text between its markers."""
    start, end = f"<!-- {marker}: start -->", f"<!-- {marker}: end -->"
    if page.count(start) != 1 or page.count(end) != 1:
        sys.exit(f"the page must hold each of these once: {start} {end}")
    head, _, rest = page.partition(start)
    return f"{head}{start}\n{text}\n{end}{rest.partition(end)[2]}"


def render(group: str, measured: list[dict[str, Any]]) -> str:
    """Return the tables of a group: one for each processor, after one that compares them."""
    table = TABLES[group]
    details = [_details(table, results) for results in measured]
    if len(measured) == 1:
        return details[0]
    parts = [_side_by_side(table, measured)]
    for results, detail in zip(measured, details, strict=True):
        parts.append(f"**{results['machine']['name']}**\n\n{detail}")
    return "\n\n".join(parts)


def _side_by_side(table: Table, measured: list[dict[str, Any]]) -> str:
    """Return how many times as fast as its best peer embag is, on each processor."""
    best = [{w["title"]: published.best_peer(w) for w in r["workloads"]} for r in measured]
    heading = f"{table.first_column}: times as fast as the best peer"
    lines = _heading([heading, *(results["machine"]["name"] for results in measured)])
    for title in dict.fromkeys(title for of_one in best for title in of_one):
        found = [of_one.get(title) for of_one in best]
        cells = ["" if one is None else f"{one[1]:.2f} ({one[0]})" for one in found]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _details(table: Table, results: dict[str, Any]) -> str:
    """Return all figures of a group on one processor, and how they were measured."""
    machine, versions, settings = results["machine"], results["versions"], results["settings"]
    workloads = results["workloads"]
    n_threads = min(workload.get("n_threads", 1) for workload in workloads)
    columns = [
        (heading, *column)
        for heading, *column in table.columns
        if any(_cell(workload["contenders"], *column) for workload in workloads)
    ]
    lines = _heading([table.first_column, *(heading for heading, *_ in columns)])
    for workload in workloads:
        cells = [_cell(workload["contenders"], *column) for _, *column in columns]
        lines.append(f"| {workload['title']} | {' | '.join(cells)} |")
    peers = [f"{peer} {versions[peer]}" for peer in table.peers if versions.get(peer)]
    lines += [
        "",
        f"{machine['name']}, {n_threads} thread{'s' if n_threads > 1 else ''} of "
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
