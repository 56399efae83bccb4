"""Results to Markdown tables: `python -m benchmarks.sharded.table RESULTS.json PAGE`.

It replaces the text between the markers of the page: the measured times, and what clusters hold
and answer, computed from them (estimate.py). `--check` changes nothing and fails if it would. No
figure is typed by hand.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import published
from benchmarks.operations.table import insert
from benchmarks.sharded import estimate


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharded.table", description=__doc__)
    parser.add_argument("results", type=Path, help="JSON from benchmarks.sharded")
    parser.add_argument("page", type=Path, help="a file with the markers")
    parser.add_argument("--check", action="store_true", help="fail if the tables differ")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    page = insert(arguments.page.read_text(), "calls table", render_calls(results))
    page = insert(page, "parts table", render_parts(results))
    page = insert(page, "clusters table", render_clusters(results))
    published.update(arguments.page, page, arguments.check)


def render_calls(results: dict[str, Any]) -> str:
    head = ("batch, tables", "local", "sharded", "p99", "split, merge", "in shards", "Ray")
    lines = [
        f"| {' | '.join(head)} | sent | received | sent with calls |",
        "|---|" + "--:|" * 9,
    ]
    both = zip(results["default"]["calls"], results["sent with calls"]["calls"], strict=True)
    for one, inlined in both:
        own = one["split"] + one["merge"]
        rest = max(0.0, one["call"] - own - one["shards"])
        cells = [
            *map(_ms, (one["local"], one["call"], one["p99"], own, one["shards"])),
            f"{_ms(rest)} ({100 * rest / one['call']:.0f} %)",
            *map(_kb, (one["sent"], one["received"])),
            _ms(inlined["call"]),
        ]
        lines.append(f"| {one['batch']}, {one['way']} | {' | '.join(cells)} |")
    machine, settings = results["machine"], results["settings"]
    lines += [
        "",
        f"Milliseconds, medians of {settings['rounds']} rounds of {settings['calls']} calls; kB of "
        f"all requests and of all replies. Three shards on three nodes of Ray, all on one machine: "
        f"{machine['name']}, {machine['cores']} cores, load {machine['load']:.1f} at the start, "
        f"ray {results['versions']['ray']}; {results['date']}. An empty call of the three actors "
        f"takes {_ms(results['default']['empty call'])} ms.",
    ]
    if settings["quick"]:
        lines += ["", "**A smoke run: these figures mean nothing.**"]
    return "\n".join(lines)


def render_parts(results: dict[str, Any]) -> str:
    lines = [
        "| tables | local | split | merge | both, of local |",
        "|---|--:|--:|--:|--:|",
    ]
    for one in results["many shards"]:
        both = one["split"] + one["merge"]
        cells = [_ms(one["local"]), _ms(one["split"]), _ms(one["merge"])]
        lines.append(f"| {one['way']} | {' | '.join(cells)} | {100 * both / one['local']:.0f} % |")
    return "\n".join(lines)


def render_clusters(results: dict[str, Any]) -> str:
    costs = estimate.costs_of(results["sent with calls"]["calls"])
    lines = [
        "| tables | bytes | nodes | batch | a call | requests/s of a client | "
        "clients for a million/s | shards a node | network |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for case in estimate.CASES:
        found = estimate.estimate(case, costs)
        cells = [
            f"{case.n_bytes / 1e12:.1f} TB",
            f"{found.n_nodes}",
            f"{case.batch}",
            f"{_ms(found.seconds)} ms",
            f"{found.requests_per_client:,.0f}",
            f"{found.n_clients:,}",
            f"{found.shards_per_node:,}",
            f"{found.network_bytes / 1e9:.1f} GB/s",
        ]
        lines.append(f"| {case.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _kb(n_bytes: int) -> str:
    return f"{n_bytes / 1000:,.1f}"


if __name__ == "__main__":
    main()
