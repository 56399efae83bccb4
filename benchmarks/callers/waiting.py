"""The CPU time of threads that wait for calls: `python -m benchmarks.callers.waiting`.

After a call, its threads wait for the next one: they spin first, then sleep. OpenMP decides how
long they spin, by OMP_WAIT_POLICY and GOMP_SPINCOUNT. Each setting is measured in processes of
its own, in turn: the CPU time, in percent of a processor, of a process that is idle after one
call, and of one that makes 10 or 100 calls per second; and the median time of a call in a
sequence without pauses. `--json FILE` writes all rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import embag
from benchmarks import machine
from benchmarks.child import ROOT

SETTINGS: dict[str, dict[str, str]] = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "default": {},
    "OMP_WAIT_POLICY=active": {"OMP_WAIT_POLICY": "active"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=infinite": {"GOMP_SPINCOUNT": "infinite"},
}
QUICK = ("default", "OMP_WAIT_POLICY=passive")
RATES = (0, 10, 100)
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
N_BAGS, BAG_SIZE, N_ROWS, DIM = 1500, 40, 200_000, 64


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.callers.waiting", description=__doc__
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each rate")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    arguments = parser.parse_args()
    n_rounds, seconds = (1, 0.1) if arguments.quick else (arguments.rounds, arguments.seconds)

    results = machine.facts()
    rounds: dict[str, list[dict[str, float]]] = {
        setting: [] for setting in (QUICK if arguments.quick else SETTINGS)
    }
    for _ in range(n_rounds):
        for setting, figures in rounds.items():
            figures.append(_measure(setting, seconds))
    results["settings"] = rounds
    columns = list(rounds["default"][0])
    print("| setting |", " | ".join(columns), "|")
    print("|---|" + "--:|" * len(columns))
    for setting, figures in rounds.items():
        medians = [statistics.median(one[column] for one in figures) for column in columns]
        print(f"| {setting} |", " | ".join(f"{median:.3g}" for median in medians), "|")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def _measure(setting: str, seconds: float) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.callers.waiting", "one", str(seconds)],
        cwd=ROOT,
        env=environment | SETTINGS[setting],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    figures: dict[str, float] = json.loads(run.stdout)
    return figures


def one(seconds: float) -> dict[str, float]:
    """Measure in this process."""
    rng = np.random.default_rng(0)
    table = embag.aligned_copy(rng.random((N_ROWS, DIM), dtype=np.float32))
    ids = rng.integers(0, N_ROWS, (N_BAGS, BAG_SIZE))
    result = embag.embedding_bag(ids, table, mode="sum")
    reference = table[ids[:10]].sum(axis=1, dtype=np.float64)
    np.testing.assert_allclose(result[:10], reference, rtol=1e-5)

    def call() -> float:
        start = time.perf_counter()
        embag.embedding_bag(ids, table, mode="sum")
        return time.perf_counter() - start

    figures = {}
    for rate in RATES:
        call()
        cpu, start, n_calls = time.process_time(), time.perf_counter(), 0
        while n_calls < rate * seconds:
            call()
            n_calls += 1
            time.sleep(max(0.0, start + n_calls / rate - time.perf_counter()))
        time.sleep(max(0.0, start + seconds - time.perf_counter()))
        share = (time.process_time() - cpu) / (time.perf_counter() - start)
        figures[f"CPU at {rate} calls/s, %" if rate else "CPU idle, %"] = 100 * share
    figures["a call, ms"] = 1e3 * statistics.median(call() for _ in range(200))
    return figures


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        print(json.dumps(one(float(sys.argv[2]))))
    else:
        main()
