"""Calls on a machine that other programs keep busy: `python -m benchmarks.callers --burners N`.

A burner is a process that does nothing but use a processor; N of them keep N processors busy.
Services of embag and of torch, each a process with a table of its own, are called in turn, by
one, 8 and 40 Python threads without pauses: with 40,960 rows, and with one bag of 20. Both are
measured beside burners and without. Then one thread calls each service while the machine is
idle, busy, and idle again: the mean of each second shows how soon a library adapts.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from benchmarks.child import Child
from benchmarks.operations.contenders import CONTENDERS
from benchmarks.operations.workloads import assert_result, get_workload, make_batches

WORKLOAD = "sum-d64-2m"
CALLERS = (1, 8, 40)
CALLS = ("large", "small")
STATES = ("idle", "busy")
PHASES = ("idle", "busy", "idle")
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "EMBAG_THREADS")
BURNER = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
BACK = 1.1  # all threads are back when calls take at most this many times as long as before
WARM_UP = 1.0  # seconds, after which embag has chosen how to prefetch
STEP = 0.25  # seconds over which calls are averaged for that


class Setting(NamedTuple):
    library: str
    n_threads: int | None = None  # all by default
    variables: dict[str, str] = {}  # noqa: RUF012  # of the environment


SETTINGS = {
    "embag": Setting("embag"),
    "embag, one thread": Setting("embag", 1),
    "embag, EMBAG_THREADS=fixed": Setting("embag", None, {"EMBAG_THREADS": "fixed"}),
    "embag, OMP_WAIT_POLICY=passive": Setting("embag", None, {"OMP_WAIT_POLICY": "passive"}),
    "torch": Setting("torch"),
    "torch, one thread": Setting("torch", 1),
}


class Service(Child):
    """A process that makes calls when it is asked to; the constructor returns when it is ready."""

    def __init__(self, setting: str, quick: bool):
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        super().__init__(
            f"the service of {setting}",
            "benchmarks.callers.busy",
            [setting, str(int(quick))],
            kept | SETTINGS[setting].variables,
        )
        self.answer()

    def begin(self, n_callers: int, call: str, seconds: float) -> None:
        self.ask(json.dumps([n_callers, call, seconds]))

    def end(self) -> "Calls":
        return Calls(*map(np.array, self.answer()))


class Calls(NamedTuple):
    """When calls ended, by the clock of the system, and the seconds that they took."""

    ended: Any
    took: Any

    def mean(self, start: float, stop: float) -> float:
        """Return the mean ms of the calls that ended in an interval; NaN if none did."""
        took = self.took[(self.ended >= start) & (self.ended < stop)]
        return 1e3 * float(took.mean()) if len(took) else float("nan")

    def figures(self, seconds: float) -> dict[str, float]:
        ms = 1e3 * self.took
        return {
            "calls/s": len(ms) / seconds,
            "mean ms": float(ms.mean()),
            "p50 ms": float(np.median(ms)),
            "p99 ms": float(np.percentile(ms, 99)),
        }


@contextmanager
def burners(n: int) -> Iterator[None]:
    """Keep processors busy. A burner ends with this process."""
    processes = [subprocess.Popen([sys.executable, "-c", BURNER]) for _ in range(n)]
    try:
        time.sleep(0.3)  # they start
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(n_burners: int, n_rounds: int, seconds: float, quick: bool) -> dict[str, Any]:
    """Measure all settings; return the figures of all rounds."""
    names = [n for n, one in SETTINGS.items() if not CONTENDERS["forward"][one.library].missing()]
    loads = list(itertools.product(STATES, [1] if quick else CALLERS, CALLS))
    with ExitStack() as stack:
        services = {}
        for name in names:
            services[name] = Service(name, quick)
            stack.callback(services[name].close)
        print("| machine | callers | call | setting | calls/s | mean, ms | p50, ms | p99, ms |")
        print("|---|--:|---|---|--:|--:|--:|--:|")
        found = {
            f"{state}, {n_callers} callers, {call}": {name: [] for name in names}
            for state, n_callers, call in loads
        }
        for _, (state, n_callers, call) in itertools.product(range(n_rounds), loads):
            of_one = found[f"{state}, {n_callers} callers, {call}"]
            with burners(n_burners if state == "busy" else 0):
                for name, service in services.items():
                    service.begin(n_callers, call, seconds)
                    of_one[name].append(service.end().figures(seconds))
        for load, of_one in found.items():
            for name, rounds in of_one.items():
                show(load, name, rounds)
        phase = 0.5 if quick else 5.0
        phases = {name: [] for name in names}
        for _ in range(n_rounds):
            for name, service in services.items():
                phases[name].append(_measure_phases(service, n_burners, phase))
    show_phases(phases)
    return {"loads": found, "phases": phases}


def show(load: str, name: str, rounds: list[dict[str, float]]) -> None:
    medians = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    state, callers, call = load.split(", ")
    print(
        f"| {state} | {callers.split()[0]} | {call} | {name} | {medians['calls/s']:.0f} "
        f"| {medians['mean ms']:.3f} | {medians['p50 ms']:.3f} | {medians['p99 ms']:.3f} |",
        flush=True,
    )


def _measure_phases(service: Service, n_burners: int, phase: float) -> dict[str, Any]:
    """Return the mean ms of a large call in each second, or part of a shorter phase."""
    starts = []
    service.begin(1, "large", len(PHASES) * (phase + 0.5))
    for state in PHASES:
        with burners(n_burners if state == "busy" else 0):
            starts.append(time.perf_counter())
            time.sleep(phase)
    calls = service.end()
    step = min(1.0, phase)
    means = [
        [calls.mean(start + at, start + at + step) for at in np.arange(0, phase, step)]
        for start in starts
    ]
    before = statistics.median(means[0])
    late = np.arange(0, phase, STEP)
    is_back = [calls.mean(starts[2] + t, starts[2] + t + STEP) <= BACK * before for t in late]
    back = float(late[is_back.index(True)]) if True in is_back else None
    return {"mean ms": means, "back after s": back}


def show_phases(phases: dict[str, list[dict[str, Any]]]) -> None:
    """Print the mean of a call in each second: medians of the rounds."""
    medians = {
        name: np.median([one["mean ms"] for one in rounds], axis=0)
        for name, rounds in phases.items()
    }
    print(f"\n| mean ms of a call in each second | {' | '.join(medians)} |")
    print("|---" + "|--:" * len(medians) + "|")
    n_seconds = len(next(iter(medians.values()))[0])
    for i, second in itertools.product(range(len(PHASES)), range(n_seconds)):
        cells = " | ".join(f"{means[i][second]:.2f}" for means in medians.values())
        print(f"| {PHASES[i]}, {second + 1} | {cells} |")
    for name, rounds in phases.items():
        alone = "torch, one thread" if name.startswith("torch") else "embag, one thread"
        most = np.nanmax(medians[name][1] / medians[alone][1])
        back = [one["back after s"] for one in rounds]
        print(
            f"{name}: in the worst busy second {most:.2f} times what one thread took; as fast as "
            f"before {back} s after the burners ended",
            flush=True,
        )


def serve(setting: str, quick: bool) -> None:
    """Run in the service."""
    library, n_threads, _ = SETTINGS[setting]
    large = get_workload(WORKLOAD, quick)
    small = replace(large, n_bags=1, bag_size=20)
    n_threads = n_threads or len(os.sched_getaffinity(0))
    contender = CONTENDERS["forward"][library](large, n_threads)
    calls = {}
    for call, workload in zip(CALLS, (large, small), strict=True):
        batches = make_batches(workload)
        calls[call] = [contender.convert(batch) for batch in batches]
        result = contender.run(calls[call][:1])
        assert_result(workload, contender.table, batches[0], np.asarray(result))
        warm = time.monotonic() + WARM_UP
        while time.monotonic() < warm:
            contender.run(calls[call])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        n_callers, call, seconds = json.loads(line)
        print(json.dumps(_make_calls(contender, calls[call], n_callers, seconds)), flush=True)


def _make_calls(contender: Any, calls: list[Any], n_callers: int, seconds: float) -> Any:
    """Make calls with this many threads; return when each ended, and how long it took."""
    ended: list[float] = []
    took: list[float] = []
    stop = time.perf_counter() + seconds

    def call(number: int) -> None:
        end = 0.0
        for one in itertools.cycle(calls[number % len(calls) :] + calls[: number % len(calls)]):
            if end > stop:
                return
            start = time.perf_counter()
            contender.run([one])
            end = time.perf_counter()
            ended.append(end)
            took.append(end - start)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(n_callers)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return ended, took


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2] == "1")
