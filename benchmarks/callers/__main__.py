"""Concurrent calls of many Python threads: `python -m benchmarks.callers`, from the root.

A number of Python threads call `embedding_bag` in a loop, in a process for each of three ways:

shared    as embag does: concurrent calls share the threads of the process
apart     each call uses as many threads as it would alone
serial    each call has `num_threads=1`

The callers call without pauses, or "paced": at random times, such that the calls would keep the
processors busy for half of the time. With `--threads N`, embag acts as if there were N
processors. That shows the cost of teams that compete for processors, but not the speedup of
teams that do not.

The three ways take turns. Each reports the calls per second, the median and the 99th percentile
of their times, the CPU time per call, and the final number of threads of the process. `--json
FILE` writes all rounds.

`--burners N` measures something else: calls beside N processes that keep processors busy, from
embag with several settings and from torch (busy.py).
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
from benchmarks.callers import busy
from benchmarks.child import ROOT
from embag._process import _teams, threads

DIM, N_ROWS, BAG_SIZE = 64, 200_000, 40
# Bags per call: about 0.5 ms and 6 ms on one thread.
SHORT, LONG = 1500, 15_000
LOADS = {"short": [SHORT], "long": [LONG], "mixed": [SHORT] * 9 + [LONG]}
WAYS = ("shared", "apart", "serial")
CALLERS = (1, 8, 40)
PACED = "paced "
BUSY = 0.5  # the share of processor time that paced calls use


class Uncounted(set[object]):
    """A replacement for the set of calls in flight that always seems empty."""

    def __len__(self) -> int:
        return 0


class PretendedTeams:
    """A replacement for the module `_teams` that reports another number of processors."""

    def __init__(self, n: int):
        self.n_processors = self.openmp_threads = lambda: n

    def __getattr__(self, name: str) -> Any:
        return getattr(_teams, name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.callers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="per round")
    parser.add_argument("--threads", type=int, default=0, help="act as if on so many processors")
    parser.add_argument("--burners", type=int, default=0, help="measure beside so many processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    arguments = parser.parse_args()
    n_rounds, seconds = (1, 0.2) if arguments.quick else (arguments.rounds, arguments.seconds)

    results = machine.facts()
    results["settings"] = {"rounds": n_rounds, "seconds": seconds, "threads": arguments.threads}
    if arguments.burners:
        results["settings"]["burners"] = arguments.burners
        results |= busy.measure(arguments.burners, n_rounds, seconds, arguments.quick)
    else:
        results["loads"] = _measure_ways(n_rounds, seconds, arguments)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def _measure_ways(
    n_rounds: int, seconds: float, arguments: argparse.Namespace
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Measure the three ways under each load, in turn; return all rounds."""
    loads_found = {}
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
            loads_found[f"{n_callers} callers, {load}"] = rounds
            for way in WAYS:
                show(n_callers, load, way, rounds[way])
    return loads_found


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


class Calls:
    """The calls of a load: a table, and batches of ids with their expected results."""

    def __init__(self, load: str, way: str) -> None:
        rng = np.random.default_rng(0)
        self.table = embag.aligned_copy(rng.random((N_ROWS, DIM), dtype=np.float32))
        self.batches = {
            n_bags: [rng.integers(0, N_ROWS, (n_bags, BAG_SIZE)) for _ in range(4)]
            for n_bags in (SHORT, LONG)
        }
        self.sizes = LOADS[load.removeprefix(PACED)]
        self.num_threads = 1 if way == "serial" else None
        self.expected = {
            n_bags: embag.embedding_bag(ids[0], self.table, mode="sum", num_threads=1)
            for n_bags, ids in self.batches.items()
        }
        for n_bags, result in self.expected.items():
            reference = self.table[self.batches[n_bags][0][:10]].sum(axis=1, dtype=np.float64)
            np.testing.assert_allclose(result[:10], reference, rtol=1e-5)

    def make(self, n_bags: int, number: int) -> np.ndarray[Any, Any]:
        """Make a call with one of the batches of this size."""
        ids = self.batches[n_bags][number % 4]
        return embag.embedding_bag(ids, self.table, mode="sum", num_threads=self.num_threads)

    def are_right(self) -> bool:
        return all(np.array_equal(self.make(n, 0), self.expected[n]) for n in set(self.sizes))

    def serial_seconds(self) -> float:
        """Return the mean time of a call on one thread."""
        start = time.perf_counter()
        for n_bags in self.sizes * 2:
            embag.embedding_bag(self.batches[n_bags][1], self.table, mode="sum", num_threads=1)
        return (time.perf_counter() - start) / len(self.sizes) / 2


class Caller(threading.Thread):
    """A Python thread that makes calls until it is stopped, `pause` seconds apart on average."""

    def __init__(
        self,
        number: int,
        calls: Calls,
        pause: float,
        started: threading.Barrier,
        stopped: threading.Event,
    ) -> None:
        super().__init__()
        self.number, self.calls, self.pause = number, calls, pause
        self.started, self.stopped = started, stopped
        self.times: list[float] = []
        self.is_right = False

    def run(self) -> None:
        rng = np.random.default_rng(self.number)
        order = rng.permutation(np.resize(self.calls.sizes, 10))
        self.is_right = self.calls.are_right()
        self.started.wait()
        k, due = self.number, time.perf_counter()
        while True:
            # If the previous call was slow, the time of this one includes the wait since `due`.
            due = due + rng.exponential(self.pause) if self.pause else time.perf_counter()
            if self.stopped.wait(max(0.0, due - time.perf_counter())):
                return
            self.calls.make(int(order[k % 10]), k)
            self.times.append(time.perf_counter() - due)
            k += 1


def one(n_callers: int, load: str, way: str, seconds: float, n_threads: int) -> dict[str, float]:
    """Measure in this process."""
    if n_threads:
        threads._teams = PretendedTeams(n_threads)
    if way == "apart":
        threads._in_flight = Uncounted()
    calls = Calls(load, way)
    pause = 0.0
    if load.startswith(PACED):
        n_processors = len(os.sched_getaffinity(0))
        pause = n_callers * calls.serial_seconds() / (BUSY * n_processors)
    started, stopped = threading.Barrier(n_callers + 1), threading.Event()
    callers = [Caller(i, calls, pause, started, stopped) for i in range(n_callers)]
    for caller in callers:
        caller.start()
    started.wait()
    cpu, start = time.process_time(), time.perf_counter()
    time.sleep(seconds)
    n_alive = len(os.listdir("/proc/self/task"))
    stopped.set()
    for caller in callers:
        caller.join()
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert all(caller.is_right for caller in callers)
    times = np.concatenate([caller.times for caller in callers]) * 1e3
    return {
        "calls/s": len(times) / elapsed,
        "p50 ms": float(np.median(times)),
        "p99 ms": float(np.percentile(times, 99)),
        "CPU ms": cpu / len(times) * 1e3,
        "threads": n_alive,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        print(json.dumps(one(*json.loads(sys.argv[2]))))
    else:
        main()
