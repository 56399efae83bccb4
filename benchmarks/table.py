"""Results to a Markdown table: `python -m benchmarks.table RESULTS.json README.md`.

The table replaces what stands between the two markers in the README. `--check` changes
nothing and fails if it would. No figure is typed by hand.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

START = "<!-- benchmark table: start -->"
END = "<!-- benchmark table: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("results", type=Path, help="JSON from benchmarks.run")
    parser.add_argument("readme", type=Path, help="a file with the two markers")
    parser.add_argument("--check", action="store_true", help="fail if the table is another")
    arguments = parser.parse_args()

    old = arguments.readme.read_text()
    if old.count(START) != 1 or old.count(END) != 1:
        sys.exit(f"{arguments.readme} must hold each of these once: {START} {END}")
    head, _, rest = old.partition(START)
    tail = rest.partition(END)[2]
    table = render(json.loads(arguments.results.read_text()))
    new = f"{head}{START}\n{table}\n{END}{tail}"
    if not arguments.check:
        arguments.readme.write_text(new)
    elif new != old:
        sys.exit(f"{arguments.readme} is not what {arguments.results} says")


def render(results: dict[str, Any]) -> str:
    machine, versions, settings = results["machine"], results["versions"], results["settings"]
    n_threads = settings["threads"]
    lines = [
        "| workload | embag, ns per row | torch, ns per row | times as fast as torch "
        "| the same, table as NumPy allocates it | of the gather limit |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for workload in results["workloads"]:
        figures = workload["contenders"]
        cells = (
            _cell(figures, "embag", "ns per row", ".1f"),
            _cell(figures, "torch", "ns per row", ".1f"),
            _cell(figures, "embag", "times torch", ".2f"),
            _cell(figures, "embag-numpy", "times torch", ".2f"),
            _cell(figures, "embag", "share of limit", ".0%"),
        )
        lines.append(f"| {workload['title']} | {' | '.join(cells)} |")
    torch = f"torch {versions['torch']}" if versions["torch"] else "torch not installed"
    lines += [
        "",
        f"{machine['processor']}, {n_threads} thread{'s' if n_threads > 1 else ''} of "
        f"{machine['cores']} cores, level {versions['level']}; {versions['compiler']}, "
        f"NumPy {versions['numpy']}, {torch}; {results['date']}. Medians of "
        f'{settings["rounds"]} rounds; "times as fast" is the median of the ratios of '
        "neighbouring rounds. 1024 bags of 40 where nothing else is said.",
    ]
    if settings["quick"]:
        lines += ["", "**A smoke run: these figures mean nothing.**"]
    return "\n".join(lines)


def _cell(figures: dict[str, Any], contender: str, figure: str, form: str) -> str:
    value = figures.get(contender, {}).get(figure)
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()
