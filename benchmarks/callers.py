"""Many Python threads call at once: `python -m benchmarks.callers`, from the root.

Each of so many threads calls `embedding_bag` again and again, in a process of its own:

shared    as embag is: calls at the same time share the process's threads
apart     each call gets what it would get alone
serial    each call with `num_threads=1`

The callers call without a pause, or, "paced", at random moments, so often that the calls would
keep the processors busy for half of the time. `--threads N` has embag believe that there are N
processors: what teams of that many cost where they get in each other's way; how much faster
they are where they do not, it does not tell.

The three take turns. For each: calls a second, the median and the 99th percentile of their
times, the CPU time of a call, and the threads that the process has at last. `--json FILE`
writes all rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import embag
from benchmarks import machine
from benchmarks.worker import ROOT
from embag import _teams, _threads

DIM, N_ROWS, BAG_SIZE = 64, 200_000, 40
# Bags of a call: about 0.5 ms and 6 ms on one thread.
SHORT, LONG = 1500, 15_000
LOADS = {"short": [SHORT], "long": [LONG], "mixed": [SHORT] * 9 + [LONG]}
WAYS = ("shared", "apart", "serial")
CALLERS = (1, 8, 40)
PACED = "paced "
BUSY = 0.5  # the share of the processors' time that paced calls take


class Uncounted(set[object]):
    """In the place of the calls in flight: there seem to be none."""

    def __len__(self) -> int:
        return 0


class Pretended:
    """In the place of `embag._teams`: another number of processors."""

    def __init__(self, n: int):
        self.n_processors = self.openmp_threads = lambda: n

    def __getattr__(self, name: str) -> Any:
        return getattr(_teams, name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.callers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    parser.add_argument("--threads", type=int, default=0, help="as if of so many processors")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    arguments = parser.parse_args()
    n_rounds, seconds = (1, 0.2) if arguments.quick else (arguments.rounds, arguments.seconds)

    results = machine.facts()
    results["settings"] = {"rounds": n_rounds, "seconds": seconds, "threads": arguments.threads}
    results["loads"] = {}
    print("| callers | call | way | calls/s | p50, ms | p99, ms | CPU ms a call | threads |")
    print("|--:|---|---|--:|--:|--:|--:|--:|")
    for n_callers in [8] if arguments.quick else CALLERS:
        loads = ["mixed"] if arguments.quick else [*LOADS, *(PACED + load for load in LOADS)]
        for load in loads:
            rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(n_rounds):
                for way in WAYS:
                    figures = _measure(n_callers, load, way, seconds, arguments.threads)
                    rounds[way].append(figures)
            results["loads"][f"{n_callers} callers, {load}"] = rounds
            for way in WAYS:
                show(n_callers, load, way, rounds[way])
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def show(n_callers: int, load: str, way: str, rounds: list[dict[str, float]]) -> None:
    median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    print(
        f"| {n_callers} | {load} | {way} | {median['calls/s']:.0f} | {median['p50 ms']:.2f} "
        f"| {median['p99 ms']:.2f} | {median['CPU ms']:.2f} | {median['threads']:.0f} |",
        flush=True,
    )


def _measure(
    n_callers: int, load: str, way: str, seconds: float, n_threads: int
) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.callers", "one"]
    run = subprocess.run(
        [*command, json.dumps([n_callers, load, way, seconds, n_threads])],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    figures: dict[str, float] = json.loads(run.stdout)
    return figures


def one(n_callers: int, load: str, way: str, seconds: float, n_threads: int) -> dict[str, float]:
    """Measure in this process."""
    if n_threads:
        _threads._teams = Pretended(n_threads)
    if way == "apart":
        _threads._in_flight = Uncounted()
    rng = np.random.default_rng(0)
    table = embag.aligned_copy(rng.random((N_ROWS, DIM), dtype=np.float32))
    num_threads = 1 if way == "serial" else None
    batches = {
        n_bags: [rng.integers(0, N_ROWS, (n_bags, BAG_SIZE)) for _ in range(4)]
        for n_bags in (SHORT, LONG)
    }

    def call(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return embag.embedding_bag(ids, table, mode="sum", num_threads=num_threads)

    expected = {
        n_bags: embag.embedding_bag(ids[0], table, mode="sum", num_threads=1)
        for n_bags, ids in batches.items()
    }
    for n_bags, result in expected.items():
        reference = table[batches[n_bags][0][:10]].sum(axis=1, dtype=np.float64)
        np.testing.assert_allclose(result[:10], reference, rtol=1e-5)

    load_name = load.removeprefix(PACED)
    start = time.perf_counter()
    for n_bags in LOADS[load_name] * 2:
        embag.embedding_bag(batches[n_bags][1], table, mode="sum", num_threads=1)
    seconds_of_call = (time.perf_counter() - start) / len(LOADS[load_name]) / 2
    n_processors = len(os.sched_getaffinity(0))
    pause = n_callers * seconds_of_call / (BUSY * n_processors) if load != load_name else 0.0

    times: list[list[float]] = [[] for _ in range(n_callers)]
    wrong: list[int] = []
    started = threading.Barrier(n_callers + 1)
    stopped = threading.Event()

    def caller(i: int) -> None:
        rng = np.random.default_rng(i)
        order = rng.permutation(np.resize(LOADS[load_name], 10))
        if not all((call(batches[n][0]) == expected[n]).all() for n in set(order.tolist())):
            wrong.append(i)
        started.wait()
        k, due = i, time.perf_counter()
        while True:
            # A call that is late because the one before took long has waited since it was due.
            due = due + rng.exponential(pause) if pause else time.perf_counter()
            if stopped.wait(max(0.0, due - time.perf_counter())):
                return
            call(batches[int(order[k % 10])][k % 4])
            times[i].append(time.perf_counter() - due)
            k += 1

    threads = [threading.Thread(target=caller, args=[i]) for i in range(n_callers)]
    for thread in threads:
        thread.start()
    started.wait()
    cpu, start = time.process_time(), time.perf_counter()
    time.sleep(seconds)
    n_alive = len(os.listdir("/proc/self/task"))
    stopped.set()
    for thread in threads:
        thread.join()
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert not wrong
    all_times = np.concatenate(times) * 1e3
    return {
        "calls/s": len(all_times) / elapsed,
        "p50 ms": float(np.median(all_times)),
        "p99 ms": float(np.percentile(all_times, 99)),
        "CPU ms": cpu / len(all_times) * 1e3,
        "threads": n_alive,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        print(json.dumps(one(*json.loads(sys.argv[2]))))
    else:
        main()
