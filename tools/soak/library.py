"""Load on the library, in one process: `python -m tools.soak.library SECONDS`.

All entries of tables are integers, so that sums are exact in every encoding, and NumPy computes
the expected results. One thread swaps the tables of a collection in turn. The states of the
collection are numbered. A result must be that of one state, at least as new as the last one
that was complete when the call started. The results are printed as JSON.
"""

import itertools
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import embag
from tools.soak import harness
from tools.soak.harness import Job, Timer, WrongResultError

N_TABLES, N_ROWS, DIM = 26, 2000, 32
MODES = ("sum", "mean", "max")
ENCODINGS = ("float32", "float16", "8 bits", "4 bits")
N_VALUES = 7  # different contents of a table, in rotation; float16 can hold the entries of 7
STEP = 256  # the difference between the entries of successive contents
INVALID = (-1, -(2**62), N_ROWS + 2, 2**31, 2**40)  # ids out of range for every table
CHILD_SECONDS = 30  # the time limit for the calls of a forked child


def make_table(number: int, version: int) -> Any:
    """Return a table after `version` swaps; it has 0, 1 or 2 rows more than the first."""
    encoding = ENCODINGS[number % len(ENCODINGS)]
    pattern = make_pattern(number)
    floats = np.concatenate([pattern, pattern[: version % 3]]) + np.float32(STEP * value(version))
    match encoding:
        case "float16":
            return floats.astype(np.float16)
        case "8 bits" | "4 bits":
            return embag.quantize(floats, bits=int(encoding[0]))
    return floats


def make_pattern(number: int) -> np.ndarray:
    """Return entries that quantization keeps exactly: each row has the minimum and the maximum."""
    top = 15 if ENCODINGS[number % len(ENCODINGS)] == "4 bits" else 255
    pattern = np.random.default_rng(number).integers(0, top + 1, (N_ROWS, DIM))
    pattern[:, 0], pattern[:, -1] = 0, top
    return pattern.astype(np.float32)


def value(version: int) -> int:
    return version % N_VALUES


class Request:
    """Ids for some features, one in a hundred out of range, and the expected result."""

    def __init__(self, seed: int, tables: list[int], n_bags: int, most_ids: int) -> None:
        rng = np.random.default_rng(seed)
        lengths, ids, self.n_invalid, parts = [], [], np.zeros(len(tables), np.int64), []
        for i, table in enumerate(tables):
            n = rng.integers(0, most_ids + 1, n_bags)
            values = rng.integers(0, N_ROWS, n.sum())
            is_invalid = rng.random(len(values)) < 0.01
            values[is_invalid] = rng.choice(INVALID, is_invalid.sum())
            self.n_invalid[i] = is_invalid.sum()
            lengths.append(n)
            ids.append(values)
            parts.append(reduce_bags(make_pattern(table), values, n, MODES[i % 3]))
        self.ids = np.concatenate(ids)
        self.offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        self.named = {
            f"feature_{i}": (values, np.cumsum(n) - n)
            for i, (values, n) in enumerate(zip(ids, lengths, strict=True))
        }
        self.sums, self.steps, self.divisors = map(np.hstack, zip(*parts, strict=True))

    def expected(self, versions: list[int]) -> np.ndarray:
        """Return the expected result for tables after these numbers of swaps."""
        steps = np.repeat([np.float32(STEP * value(version)) for version in versions], DIM)
        return (self.sums + self.steps * steps) / self.divisors


def reduce_bags(
    pattern: np.ndarray, ids: np.ndarray, lengths: np.ndarray, mode: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sums or maxima of bags, how often they include STEP, and their divisors."""
    shape = (len(lengths), DIM)
    sums, steps, divisors = (make(shape, np.float32) for make in (np.zeros, np.zeros, np.ones))
    for bag, part in enumerate(np.split(ids, np.cumsum(lengths)[:-1])):
        rows = pattern[part[(part >= 0) & (part < N_ROWS)]]
        if len(rows):
            sums[bag] = rows.max(axis=0) if mode == "max" else rows.sum(axis=0)
            steps[bag] = 1 if mode == "max" else len(rows)
            divisors[bag] = len(rows) if mode == "mean" else 1
    return sums, steps, divisors


class Tables:
    """A collection whose tables one thread replaces in turn while others call it."""

    def __init__(self) -> None:
        self.ebc = embag.EmbeddingBagCollection(
            {f"table_{i}": make_table(i, 0) for i in range(N_TABLES)},
            [embag.Feature(f"feature_{i}", f"table_{i}", MODES[i % 3]) for i in range(N_TABLES)],
            invalid="skip",
        )
        self.n_begun = self.n_complete = 0  # swaps
        self.n_sent: list[np.ndarray] = []  # ids out of range, for each job by feature

    def swap(self, timer: Timer) -> None:
        number, version = self.n_begun % N_TABLES, self.n_begun // N_TABLES + 1
        table = make_table(number, version)
        self.n_begun += 1
        with timer:
            self.ebc.replace(f"table_{number}", table)
        self.n_complete += 1

    def job(self, kind: str, requests: list[Request], call: Callable[[Any, Request], Any]) -> Job:
        """Return a job that makes these requests in turn, by `call(collection, request)`."""
        n_sent = np.zeros(N_TABLES, np.int64)
        self.n_sent.append(n_sent)
        turn = itertools.cycle(requests)

        def work(timer: Timer) -> None:
            request = next(turn)
            oldest = self.n_complete
            with timer:
                result = call(self.ebc, request)
            n_sent[:] += request.n_invalid
            self.check(result, request, range(oldest, self.n_begun + 1))

        return Job(kind, work)

    def check(self, result: np.ndarray, request: Request, states: range) -> None:
        for n_swaps in states:
            versions = [(n_swaps - i + N_TABLES - 1) // N_TABLES for i in range(N_TABLES)]
            if np.array_equal(result, request.expected(versions)):
                return
        raise WrongResultError(f"not that of a state of the tables, {states[0]} to {states[-1]}")

    def problems(self) -> list[str]:
        seen, sent = list(self.ebc.n_invalid.values()), sum(self.n_sent).tolist()
        return [] if seen == sent else [f"ids out of range: {sent} sent, {seen} counted"]


def end_to_end(ebc: Any, request: Request) -> np.ndarray:
    return ebc(request.ids, request.offsets)


def by_name(ebc: Any, request: Request) -> np.ndarray:
    return ebc(request.named)


def one_table(number: int, n_bags: int, most_ids: int) -> Callable[..., None]:
    """Return work on a table that is not swapped: all three modes in turn."""
    table = make_table(number, 0)
    cases = []
    for i, mode in enumerate(MODES):
        # The mode of the i-th feature of a request is the i-th mode.
        request = Request(number, [number] * (i + 1), n_bags, most_ids)
        ids, offsets = request.named[f"feature_{i}"]
        expected = request.expected([0] * (i + 1))[:, i * DIM :]
        cases.append((mode, ids, offsets, expected, request.n_invalid[i]))
    turn = itertools.cycle(cases)

    def work(timer: Timer, num_threads: int | None = None) -> None:
        mode, ids, offsets, expected, n_expected = next(turn)
        with timer:
            result, n_invalid = embag.embedding_bag(
                *(ids, table, offsets),
                mode=mode,
                num_threads=num_threads,
                invalid="skip",
                return_n_invalid=True,
            )
        if not np.array_equal(result, expected):
            raise WrongResultError(f"{mode} of table {number}")
        if n_invalid != n_expected:
            raise WrongResultError(f"{n_invalid} ids out of range, not {n_expected}")

    return work


def gradients(seed: int) -> Callable[[Timer], None]:
    """Return work on gradients of a sum: sparse with a step, and dense, in turn."""
    rng = np.random.default_rng(seed)
    table = make_table(0, 0)
    ids = rng.integers(0, N_ROWS, 4000)
    offsets = np.arange(0, 4000, 20)
    grad_output = rng.integers(-9, 9, (200, DIM)).astype(np.float32)
    expected = np.zeros_like(table)
    np.add.at(expected, ids, np.repeat(grad_output, 20, axis=0))
    sparse = itertools.cycle([True, False])

    def work(timer: Timer) -> None:
        is_sparse = next(sparse)
        result = np.zeros_like(table)
        with timer:
            grad = embag.embedding_bag_backward(
                grad_output, ids, table, offsets, mode="sum", sparse=is_sparse
            ).weight
            if is_sparse:
                grad.add_to(result)
        if not np.array_equal(result if is_sparse else grad, expected):
            raise WrongResultError("sparse" if is_sparse else "dense")

    return work


def bad_arguments() -> Callable[[Timer], None]:
    """Return work on calls that must raise, in turn."""
    table = make_table(0, 0)
    ebc = embag.EmbeddingBagCollection({"t": table}, [embag.Feature("f", "t")])
    many = np.arange(50_000) % N_ROWS  # enough for several threads
    many[40_000] = N_ROWS
    bags = np.arange(0, 50_000, 50)
    bag = partial(embag.embedding_bag, mode="sum")
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: bag([1, -1], table, [0]), IndexError, "input[1] = -1 is out of range"),
        (lambda: bag(many, table, bags), IndexError, "input[40000] = 2000 is out of range"),
        (lambda: bag([1, 2], table, [0, 3]), ValueError, "offsets must not exceed"),
        (lambda: bag([1, 2], table, []), ValueError, "offsets"),
        (lambda: ebc({"f": [[2**40]]}), IndexError, "feature 'f': ids[0, 0] = 1099511627776"),
        (lambda: ebc(many, np.append(bags, 50_000)), IndexError, "values[40000] = 2000 is out"),
        (lambda: ebc([1, 2], [0, 2, 1]), ValueError, "offsets"),
        (lambda: ebc.replace("t", table[:, 1:]), ValueError, "table must have 32 columns"),
    ]
    turn = itertools.cycle(cases)

    def work(timer: Timer) -> None:
        call, kind, message = next(turn)
        try:
            with timer:
                call()
        except kind as error:
            if message not in str(error):
                raise
        else:
            raise WrongResultError(f"no {kind.__name__} with {message!r}")

    return work


def short_lived_thread(work: Callable[..., None]) -> Callable[[Timer], None]:
    """Return the same work in a new thread for each call, which leaves its OpenMP team behind."""
    failed: list[BaseException] = []

    def call(timer: Timer) -> None:
        try:
            work(timer, num_threads=2)
        except Exception as error:
            failed.append(error)

    def start(timer: Timer) -> None:
        thread = threading.Thread(target=call, args=(timer,))
        thread.start()
        thread.join()
        if failed:
            raise failed.pop()

    return start


def fork(calls: list[Job]) -> Callable[[Timer], None]:
    """Return work that forks a child, which runs these jobs; an error of the child is raised.

    The fork may happen during a call or a swap of any other thread.
    """
    context = multiprocessing.get_context("fork")

    def child(sender: Any) -> None:
        try:
            for job in calls:
                job.work(Timer())
            sender.send("")
        except BaseException as error:
            sender.send(f"{type(error).__name__}: {error}")

    def work(timer: Timer) -> None:
        receiver, sender = context.Pipe(duplex=False)
        with timer:
            process = context.Process(target=child, args=(sender,), daemon=True)
            process.start()
            sender.close()
            try:
                answer = receiver.recv() if receiver.poll(CHILD_SECONDS) else "it hangs"
            except EOFError:
                answer = "it died"
        process.kill()
        process.join()
        receiver.close()
        if answer:
            raise RuntimeError(f"in the child: {answer}; exit status {process.exitcode}")

    return work


def make_jobs(tables: Tables) -> list[Job]:
    features = list(range(N_TABLES))
    small = [Request(seed, features, 1, 8) for seed in range(50)]
    large = [Request(seed, features, 64, 8) for seed in range(8)]
    parallel = one_table(0, 300, 40)
    in_child = [
        tables.job("a request", small, end_to_end),
        tables.job("a batch", large, end_to_end),
        Job("bags", partial(parallel, num_threads=2)),
        Job("bags in a new thread", short_lived_thread(parallel)),
    ]
    return [
        *(Job("one bag", one_table(0, 1, 40)) for _ in range(2)),
        *(tables.job("request of 26 tables, end to end", small, end_to_end) for _ in range(3)),
        *(tables.job("request of 26 tables, by name", small, by_name) for _ in range(2)),
        *(tables.job("batch of 64 requests", large, end_to_end) for _ in range(2)),
        *(Job("bags of a quantized table", one_table(n, 300, 40)) for n in (2, 3)),
        Job("bags of a float16 table", one_table(1, 300, 40)),
        *(Job("gradient and step", gradients(seed)) for seed in range(2)),
        Job("call in a new thread", short_lived_thread(parallel), pause=0.01),
        Job("call that must raise", bad_arguments()),
        Job("swap of a table", tables.swap, pause=0.02),
        Job("fork, and calls in the child", fork(in_child), pause=1),
    ]


def run(seconds: float) -> dict[str, Any]:
    tables = Tables()
    jobs = make_jobs(tables)
    results = harness.run(jobs, seconds, {"library": os.getpid()})
    results["problems"] += tables.problems()
    # Each Python thread has at most one team: those of the jobs, the main thread, a thread that a
    # job has started, and one to spare.
    bound = (len(jobs) + 3) * embag.get_num_threads()
    most = results["processes"]["library"]["threads"][1]
    if most > bound:
        results["problems"].append(f"{most} threads ran, more than {bound}")
    results["numbers"] = {"ids out of range": int(sum(tables.n_sent).sum())}
    return results


if __name__ == "__main__":
    print(json.dumps(run(float(sys.argv[1]))), flush=True)
    os._exit(0)  # a thread that hangs would keep the process alive
