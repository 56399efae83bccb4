"""Render results as Markdown: `python -m tools.soak.page RESULTS.json docs/soak.md`.

The text replaces that between the markers of the page. With `--check` the page is not changed,
and the command fails if it is out of date.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.operations.table import insert

MARKER = "soak"
WORK = ("work", "threads", "calls", "per second", "least, most", "over time")
WORK += ("p50, ms", "p99, ms", "p99.9, ms", "errors", "wrong results")
PROCESSES = ("process", "RSS, MB: at the start, warm, at the end", "PSS, MB", "over time")
PROCESSES += ("growth, MB", "per hour", "threads: warm, most", "open files: warm, most")
BARS = "▁▂▃▄▅▆▇█"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.soak.page", description=__doc__)
    parser.add_argument("results", type=Path, help="JSON from tools.soak")
    parser.add_argument("page", type=Path, help="a file with the markers")
    parser.add_argument("--check", action="store_true", help="fail if the page is out of date")
    arguments = parser.parse_args()
    text = render(json.loads(arguments.results.read_text()))
    if not arguments.check:
        write(arguments.page, text)
    elif insert(arguments.page.read_text(), MARKER, text) != arguments.page.read_text():
        sys.exit(f"{arguments.page} must have the results of {arguments.results}, got others")


def write(page: Path, text: str) -> None:
    page.write_text(insert(page.read_text(), MARKER, text))


def render(results: dict[str, Any]) -> str:
    machine, versions, parts = results["machine"], results["versions"], results["parts"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("uvicorn", "fastapi"))
    kinds = {kind: v for part in parts.values() for kind, v in part["kinds"].items()}
    processes = {name: v for part in parts.values() for name, v in part["processes"].items()}
    numbers = [f"{name}: {n:,} {what}" for name, part in parts.items()
               for what, n in part["numbers"].items()]  # fmt: skip
    bounds = [f"{n} {growth.removeprefix('growth, ')}" for growth, n in results["bounds"].items()]
    return "\n".join(
        [
            f"`python -m tools.soak --minutes {results['minutes']:g}`: "
            f"{machine['processor']}, {machine['cores']} cores, load {machine['load']:.1f} "
            f"before; {machine['system']}, Python {versions['python']}, "
            f"NumPy {versions['numpy']}, {packages}, embag {versions['embag']}, "
            f"level {versions['level']}, {versions['compiler']}; {results['date']}.",
            "",
            *table(WORK, (work_row(kind, figures) for kind, figures in kinds.items())),
            "",
            *table(PROCESSES, (process_row(name, figures) for name, figures in processes.items())),
            "",
            f"{'; '.join(numbers)}. A process may grow by {', '.join(bounds)}.",
            "",
            "**Problems**: " + ("none." if not results["problems"] else ""),
            *(f"- {' '.join(problem.split())}" for problem in results["problems"]),
        ]
    )


def table(headings: tuple[str, ...], rows: Iterable[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(headings)} |", "|---" + "|--:" * (len(headings) - 1) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def work_row(kind: str, figures: dict[str, Any]) -> list[str]:
    rates = figures["per second"]
    return [
        kind,
        str(figures["threads"]),
        f"{figures['calls']:,}",
        f"{np.median(rates):,.4g}",
        f"{min(rates):,.4g}, {max(rates):,.4g}",
        sparkline(rates),
        *(milliseconds(figures[name]) for name in ("p50, us", "p99, us", "p99.9, us")),
        str(figures["errors"]),
        str(figures["wrong results"]),
    ]


def milliseconds(us: float | None) -> str:
    return "" if us is None else f"{us / 1e3:.3g}"


def process_row(name: str, figures: dict[str, Any]) -> list[str]:
    return [
        name,
        *(", ".join(f"{mb:.0f}" for mb in figures[key]) for key in ("RSS, MB", "PSS, MB")),
        sparkline(figures["RSS over time, MB"]),
        f"{figures['growth, MB']:.1f}",
        f"{figures['growth, MB per hour']:.1f}",
        ", ".join(map(str, figures["threads"])),
        ", ".join(map(str, figures["open files"])),
    ]


def sparkline(values: list[float]) -> str:
    """Draw values as bars, from 0 to the maximum."""
    top = max(values) or 1
    return "".join(BARS[round(max(0, v) / top * (len(BARS) - 1))] for v in values)


if __name__ == "__main__":
    main()
