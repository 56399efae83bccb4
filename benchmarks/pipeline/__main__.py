"""Pool a Parquet file with each contender: `python -m benchmarks.pipeline --json FILE`.

Each contender is a process of its own. Its time from start to end and its peak memory are
measured. The contenders run in turn (A B A B), and each is compared with `embag pool` on the
same file in the same round. Before the first round, each result is checked, and each contender
pools a file of a thousand rows, which measures its start and the loading of the table.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.child import ROOT
from benchmarks.pipeline.contenders import CONTENDERS, PYTHON, Contender
from benchmarks.run import median_ratio

# `embag pool` must be so many times as fast, end to end, as the fastest of these.
TARGETS = {
    "polars or DuckDB": (("polars", "polars-batches", "duckdb", "duckdb-batches"), 5),
    "a NumPy loop": (("numpy", "numpy-take"), 50),
    "torch": (("torch-serial", "torch-threads"), 1.2),
}
BASELINE = "embag"


def main() -> None:
    arguments = parse_arguments()
    wanted = {name: CONTENDERS[name] for name in arguments.contenders}
    missing = {name: contender.missing() for name, contender in wanted.items()}
    missing = {name: reason for name, reason in missing.items() if reason}
    for name, reason in missing.items():
        print(f"without {name}: {reason}")
    contenders = {name: c for name, c in wanted.items() if name not in missing}

    results = machine.facts()
    results["missing"] = missing
    sizes = {"rows": arguments.rows, "part": arguments.part, "items": arguments.items}
    results["settings"] = sizes | {"rounds": arguments.rounds}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        make_files(folder, sizes)
        results["bytes"] = {file.name: file.stat().st_size for file in folder.iterdir()}
        results["files"] = {
            "events": measure(folder, "events", arguments.rows, contenders, arguments.rounds),
            "part": measure(folder, "part", arguments.part, contenders, arguments.rounds),
        }
    results["targets"] = judge(results["files"])
    for target in results["targets"]:
        print(target)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the file")
    parser.add_argument(
        "--part", type=int, default=1_000_000, help="rows of the file for slow contenders"
    )
    parser.add_argument("--items", type=int, default=1_000_000, help="rows of the table")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="needs 7 GB; default: the folder for temporary files"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    return parser.parse_args()


def make_files(folder: Path, sizes: dict[str, int]) -> None:
    needed, free = 600 * (sizes["rows"] + sizes["items"]), shutil.disk_usage(folder).free
    if free < needed:
        sys.exit(f"--folder must have {needed:,} bytes free, got {free:,} in {folder}")
    options = [f"--{name}={size}" for name, size in sizes.items()]
    command = [*PYTHON, "benchmarks.pipeline.data", str(folder), *options]
    subprocess.run(command, cwd=ROOT, check=True)


def measure(
    folder: Path, file: str, n_rows: int, contenders: dict[str, Contender], n_rounds: int
) -> dict[str, Any]:
    """Measure the contenders for this file, and the baseline."""
    contenders = {n: c for n, c in contenders.items() if c.file == file or n == BASELINE}
    rows = folder / f"{file}.parquet"
    starts, runs = {}, {}
    for name, contender in contenders.items():
        run(contender, rows, check=True)  # brings its modules and its table into the page cache
        starts[name] = run(contender, folder / "start.parquet")["seconds"]
        runs[name] = []
    for _ in range(n_rounds):
        for name, contender in contenders.items():
            runs[name].append(run(contender, rows))
            print(f"{file} {name}: {runs[name][-1]}", flush=True)
    return {name: summarize(name, n_rows, runs, starts) for name in runs}


def run(contender: Contender, events: Path, check: bool = False) -> dict[str, Any]:
    """Pool a file with a contender; return its seconds, its memory and its parts."""
    with tempfile.TemporaryDirectory(dir=events.parent) as folder:
        out = Path(folder) / "out.parquet"
        os.sync()  # so that earlier writes to the disk are finished
        start = time.perf_counter()
        process = subprocess.Popen(
            contender.command(events, out), cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{contender.title} failed with status {process.returncode}")
        if check:
            command = [*PYTHON, "benchmarks.pipeline.check", str(events), str(out)]
            subprocess.run(command, cwd=ROOT, check=True)
        return {
            "seconds": seconds,
            "CPU seconds": usage.ru_utime + usage.ru_stime,
            "peak bytes": usage.ru_maxrss * 1024,
            "parts": contender.parts(output),
        }


def summarize(
    name: str, n_rows: int, runs: dict[str, list[dict[str, Any]]], starts: dict[str, float]
) -> dict[str, Any]:
    def seconds(name: str, without_start: bool = False) -> list[float]:
        return [one["seconds"] - without_start * starts[name] for one in runs[name]]

    figures = {
        "rows": n_rows,
        "rows/s": n_rows / statistics.median(seconds(name)),
        "rows/s after the start": n_rows / statistics.median(seconds(name, True)),
        "start, s": starts[name],
        "peak bytes": statistics.median(one["peak bytes"] for one in runs[name]),
        "parts, s": {
            part: statistics.median(one["parts"][part] for one in runs[name])
            for part in runs[name][0]["parts"]
        },
        "runs": runs[name],
    }
    if BASELINE in runs:
        figures["times"] = median_ratio(seconds(name), seconds(BASELINE))
        figures["times after the start"] = median_ratio(
            seconds(name, True), seconds(BASELINE, True)
        )
    return figures


def judge(files: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare each target with the fastest of its contenders."""
    figures = {name: one for file in files.values() for name, one in file.items()}
    verdicts = []
    for title, (names, target) in TARGETS.items():
        times = {name: figures[name]["times"] for name in names if "times" in figures.get(name, {})}
        if times:
            best = min(times, key=times.__getitem__)
            met = times[best] >= target
            verdicts.append(
                {"of": title, "target": target, "best": best, "times": times[best], "met": met}
            )
    return verdicts


if __name__ == "__main__":
    main()
