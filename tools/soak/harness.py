"""Run jobs repeatedly, each in a thread of its own, and measure them.

The statistics have a fixed size, because the memory of the process is measured, too: a histogram
of the times of calls, in steps of 5 %, for each interval of 30 s.
"""

import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import psutil

INTERVAL_SECONDS = 30
HANG_SECONDS = 60  # the longest time between calls of a kind, and of a call after the end
WARM_UP = 0.2  # the share of the run in which memory may grow
BUCKETS = 1e-6 * 1.05 ** np.arange(400)  # seconds; the last is 5 minutes
MOST_MESSAGES = 3  # of a thread


class WrongResultError(Exception):
    """A result differs from the expected one."""


class Timer:
    """A context manager around the part of a job that is timed."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self.n_values = 0  # compared by `check_equal`

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.start


def check_equal(timer: Timer, result: Any, expected: Any, what: str) -> None:
    """Raise unless arrays are equal; count their values."""
    if not np.array_equal(result, expected):
        raise WrongResultError(what)
    timer.n_values += np.size(expected)


class Job(NamedTuple):
    """One kind of work. `work` raises if anything is wrong; its exceptions are reported."""

    kind: str
    work: Callable[[Timer], None]
    pause: float = 0.0  # seconds before each call of `work`


class Pauses:
    """The last time and the longest pause of a kind of work, over all its threads."""

    def __init__(self, start: float) -> None:
        self.last, self.longest = start, 0.0

    def end(self, now: float) -> None:
        self.longest = max(self.longest, now - self.last)
        self.last = now


class Worker(threading.Thread):
    """A thread that repeats a job until the end of the run."""

    def __init__(
        self, job: Job, pauses: Pauses, start: float, end: float, n_intervals: int
    ) -> None:
        super().__init__(name=job.kind, daemon=True)
        self.job, self.pauses, self.start_time, self.end_time = job, pauses, start, end
        self.counts = np.zeros((n_intervals, len(BUCKETS)), np.int64)
        self.n_errors = self.n_wrong = self.n_values = 0
        self.messages: list[str] = []

    def run(self) -> None:
        n_intervals = len(self.counts)
        while True:
            time.sleep(self.job.pause)
            timer = Timer()
            if (now := time.perf_counter()) >= self.end_time:
                return
            try:
                self.job.work(timer)
            except WrongResultError as error:
                self.n_wrong += 1
                self.report(f"a wrong result: {error}")
            except Exception:
                self.n_errors += 1
                self.report(traceback.format_exc(limit=-2))
            self.n_values += timer.n_values
            if timer.seconds is not None:  # otherwise there was nothing to do
                self.pauses.end(time.perf_counter())
                share = (now - self.start_time) / (self.end_time - self.start_time)
                bucket = min(np.searchsorted(BUCKETS, timer.seconds), len(BUCKETS) - 1)
                self.counts[int(share * n_intervals), bucket] += 1

    def report(self, message: str) -> None:
        if len(self.messages) < MOST_MESSAGES:
            self.messages.append(f"{self.name}: {message}")


def run(jobs: list[Job], seconds: float, watched: dict[str, int]) -> dict[str, Any]:
    """Run all jobs concurrently for `seconds`; watch the processes whose ids are in `watched`."""
    start = time.perf_counter()
    n_intervals = max(1, round(seconds / INTERVAL_SECONDS))
    pauses = {job.kind: Pauses(start) for job in jobs}
    workers = [Worker(job, pauses[job.kind], start, start + seconds, n_intervals) for job in jobs]
    for worker in workers:
        worker.start()
    memory = watch({name: psutil.Process(pid) for name, pid in watched.items()}, start, seconds)
    messages = []
    for worker in workers:
        worker.join(max(0, start + seconds + HANG_SECONDS - time.perf_counter()))
        if worker.is_alive():
            frame = sys._current_frames()[worker.ident]
            where = "".join(traceback.format_stack(frame, limit=3))
            messages.append(f"{worker.name}: hangs, here:\n{where}")
    messages += [message for worker in workers for message in worker.messages]
    for pause in pauses.values():
        pause.end(max(pause.last, start + seconds))
    return {
        "seconds": seconds,
        "kinds": summarize(workers, seconds / n_intervals),
        "processes": memory,
        "problems": messages,
        "numbers": {"values compared": sum(worker.n_values for worker in workers)},
    }


def watch(
    processes: dict[str, psutil.Process], start: float, seconds: float
) -> dict[str, dict[str, Any]]:
    """Sample the memory, threads and open files of processes until the end of the run."""
    n_samples = min(600, max(50, round(seconds)))  # one per second in a run of ten minutes
    samples = {name: np.zeros((n_samples, 4)) for name in processes}
    pss: dict[str, list[float]] = {name: [] for name in processes}
    warm = int(WARM_UP * n_samples)
    for i in range(n_samples):
        time.sleep(max(0, start + seconds * (i + 1) / n_samples - time.perf_counter()))
        for name, process in processes.items():
            resident = process.memory_info().rss / 1e6
            samples[name][i] = (
                *(time.perf_counter() - start, resident),
                *(process.num_threads(), process.num_fds()),
            )
            if i in (0, warm, n_samples - 1):
                pss[name].append(process.memory_full_info().pss / 1e6)
    results = {}
    for name, values in samples.items():
        seen, resident, threads, files = values[warm:].T
        # A line fitted to each measure: its rise from the warm-up to the end.
        growth, of_threads, of_files = np.polyfit(seen, values[warm:, 1:], 1)[0] * np.ptp(seen)
        results[name] = {
            "RSS, MB": [values[i, 1] for i in (0, warm, -1)],
            "PSS, MB": pss[name],
            "growth, MB": growth,
            "growth, MB per hour": growth / np.ptp(seen) * 3600,
            "threads": [int(threads[0]), int(threads.max())],
            "growth, threads": of_threads,
            "open files": [int(files[0]), int(files.max())],
            "growth, open files": of_files,
            "RSS over time, MB": [float(part.mean()) for part in np.array_split(values[:, 1], 30)],
        }
    return results


def summarize(workers: list[Worker], interval: float) -> dict[str, dict[str, Any]]:
    """Return the figures of each kind of work, over all its threads."""
    kinds = defaultdict(list)
    for worker in workers:
        kinds[worker.job.kind].append(worker)
    results = {}
    for kind, group in kinds.items():
        counts = sum(worker.counts for worker in group)
        weights = counts.sum(axis=0)
        quantiles = [None] * 3
        if weights.any():
            quantiles = np.quantile(
                BUCKETS * 1e6, [0.5, 0.99, 0.999], method="inverted_cdf", weights=weights
            ).tolist()
        results[kind] = {
            "threads": len(group),
            "calls": int(counts.sum()),
            "longest pause, s": group[0].pauses.longest,
            "per second": (counts.sum(axis=1) / interval).tolist(),
            "p50, us": quantiles[0],
            "p99, us": quantiles[1],
            "p99.9, us": quantiles[2],
            "errors": sum(worker.n_errors for worker in group),
            "wrong results": sum(worker.n_wrong for worker in group),
        }
    return results
