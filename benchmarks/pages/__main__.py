"""Tables larger than half of the memory: `python -m benchmarks.pages`, from the root.

Two files are written: rows of float32 and of 8 bits, D = 64, each one eighth larger than half of
the memory. Ids are random. Before each figure the file's pages are removed from the page cache
(`posix_fadvise`), none, a half or all of the rows of the lookups are read, and `mincore` verifies
the share that is in memory.

    cold, half      one call for ids that were never looked up before
    warm            the median of 100 calls for the same ids, after 20 more (5 of `embag pool`)

"on" is embag as it is. "off" is embag without prefetching pages. They take turns, each in a
process of its own and with the same ids; the table has the median of the ratios of a round.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.child import ROOT
from benchmarks.pages import files
from benchmarks.pages.one import STATES, WORK

THREADS = {"embedding_bag": (1, 2), "collection": (1, 2), "requests": (1,), "embag pool": (1, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run with small tables")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_800, help="looked up for each figure")
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--kinds", nargs="+", choices=files.KINDS, default=list(files.KINDS))
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.rows = 1, 520

    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = machine.facts() | {"pages": files.facts(Path(folder))}
        n_bytes = 8 << 20 if arguments.quick else results["pages"]["memory, bytes"] * 9 // 16
        results["settings"] = {
            "quick": arguments.quick,
            "rounds": arguments.rounds,
            "rows": arguments.rows,
            "table, bytes": n_bytes,
        }
        results["lookups"] = []
        print("| rows | lookups | threads | in memory | off, ns | on, ns | times |", flush=True)
        print("|---|---|--:|---|--:|--:|--:|")
        paths = {kind: Path(folder, f"{kind}.npy") for kind in arguments.kinds}
        for kind, path in paths.items():
            files.make(kind, path, n_bytes)
        for kind, path in paths.items():
            for work in arguments.work:
                for n_threads in THREADS[work]:
                    for state in STATES:
                        one = _measure(arguments, path, work, state, n_threads)
                        one = {"rows": kind, "work": work, "threads": n_threads} | one
                        results["lookups"].append(one)
                        print("|", " | ".join(map(_text, one.values())), "|", flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _measure(
    arguments: argparse.Namespace, path: Path, work: str, state: str, n_threads: int
) -> dict[str, Any]:
    off: list[float] = []
    on: list[float] = []
    for seed in range(arguments.rounds):
        for times, is_on in ((off, False), (on, True)):
            options = {
                "path": str(path),
                "work": work,
                "state": state,
                "n_threads": n_threads,
                "n_rows": arguments.rows,
                "seed": seed,
                "is_on": is_on,
                "is_small": arguments.quick,
            }
            command = [sys.executable, "-m", "benchmarks.pages.one", json.dumps(options)]
            run = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            times.append(float(run.stdout.rpartition(":")[2]))
    return {
        "in memory": state,
        "off": statistics.median(off),
        "on": statistics.median(on),
        "times": statistics.median(a / b for a, b in zip(off, on, strict=True)),
    }


if __name__ == "__main__":
    main()
