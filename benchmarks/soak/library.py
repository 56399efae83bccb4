"""Load on the library, in one process: `python -m benchmarks.soak.library SECONDS`.

All entries of tables are whole numbers, so that sums are exact in every encoding and NumPy
tells what each result must be. One thread swaps the tables of a collection, in turn: its
states are numbered, and a result must be that of one state, no older than the last one that
was complete when the call began. What is found is printed as JSON.
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
from benchmarks.soak import harness
from benchmarks.soak.harness import Job, Timer, WrongResultError

N_TABLES, N_ROWS, DIM = 26, 2000, 32
MODES = ("sum", "mean", "max")
ENCODINGS = ("float32", "float16", "8 bits", "4 bits")
N_VALUES = 7  # tables of as many contents follow one another; float16 has room for 7
STEP = 256  # between their entries
INVALID = (-1, -(2**62), N_ROWS + 2, 2**31, 2**40)  # rows of no table here
CHILD_SECONDS = 30  # for a forked child's calls


def make_table(number: int, version: int) -> Any:
    """Return a table as it is after so many swaps: as many rows more, of 3."""
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
    """Return entries that quantization keeps: each row has the least and the greatest."""
    top = 15 if ENCODINGS[number % len(ENCODINGS)] == "4 bits" else 255
    pattern = np.random.default_rng(number).integers(0, top + 1, (N_ROWS, DIM))
    pattern[:, 0], pattern[:, -1] = 0, top
    return pattern.astype(np.float32)


def value(version: int) -> int:
    return version % N_VALUES


class Request:
    """Ids for some features, a few of them no rows, and what their result must be."""

    def __init__(self, seed: int, tables: list[int], n_bags: int, most_ids: int) -> None:
        rng = np.random.default_rng(seed)
        lengths, ids, self.n_invalid, parts = [], [], np.zeros(len(tables), np.int64), []
        for i, table in enumerate(tables):
            n = rng.integers(0, most_ids + 1, n_bags)
            values = rng.integers(0, N_ROWS, n.sum())
            spoilt = rng.random(len(values)) < 0.01
            values[spoilt] = rng.choice(INVALID, spoilt.sum())
            self.n_invalid[i] = spoilt.sum()
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
        """Return the result, with each feature's table as it is after so many swaps."""
        steps = np.repeat([np.float32(STEP * value(version)) for version in versions], DIM)
        return (self.sums + self.steps * steps) / self.divisors


def reduce_bags(
    pattern: np.ndarray, ids: np.ndarray, lengths: np.ndarray, mode: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sums (or maxima), how often STEP is in them, and what they are divided by."""
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
    """A collection whose tables one thread replaces in turn while others call."""

    def __init__(self) -> None:
        self.ebc = embag.EmbeddingBagCollection(
            {f"table_{i}": make_table(i, 0) for i in range(N_TABLES)},
            [embag.Feature(f"feature_{i}", f"table_{i}", MODES[i % 3]) for i in range(N_TABLES)],
            invalid="skip",
        )
        self.n_begun = self.n_complete = 0  # swaps
        self.put: list[np.ndarray] = []  # ids that are no rows, for each thread by feature

    def swap(self, timer: Timer) -> None:
        number, version = self.n_begun % N_TABLES, self.n_begun // N_TABLES + 1
        table = make_table(number, version)
        self.n_begun += 1
        with timer:
            self.ebc.replace(f"table_{number}", table)
        self.n_complete += 1

    def job(self, kind: str, requests: list[Request], call: Callable[[Any, Request], Any]) -> Job:
        """Return a job that makes these requests in turn by `call(collection, request)`."""
        put = np.zeros(N_TABLES, np.int64)
        self.put.append(put)
        turn = itertools.cycle(requests)

        def work(timer: Timer) -> None:
            request = next(turn)
            oldest = self.n_complete
            with timer:
                result = call(self.ebc, request)
            put[:] += request.n_invalid
            self.check(result, request, range(oldest, self.n_begun + 1))

        return Job(kind, work)

    def check(self, result: np.ndarray, request: Request, states: range) -> None:
        for n_swaps in states:
            versions = [(n_swaps - i + N_TABLES - 1) // N_TABLES for i in range(N_TABLES)]
            if np.array_equal(result, request.expected(versions)):
                return
        raise WrongResultError(f"that of no state of the tables from {states[0]} to {states[-1]}")

    def problems(self) -> list[str]:
        seen, put = list(self.ebc.n_invalid.values()), sum(self.put).tolist()
        return [] if seen == put else [f"ids that are no rows: {put} put in, {seen} counted"]


def end_to_end(ebc: Any, request: Request) -> np.ndarray:
    return ebc(request.ids, request.offsets)


def by_name(ebc: Any, request: Request) -> np.ndarray:
    return ebc(request.named)


def one_table(number: int, n_bags: int, most_ids: int) -> Callable[..., None]:
    """Return work on one table, which is not swapped: all three modes in turn."""
    table = make_table(number, 0)
    cases = []
    for i, mode in enumerate(MODES):
        # The mode of a request's feature is that of its place.
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
            raise WrongResultError(f"{n_invalid} ids that are no rows, not {n_expected}")

    return work


def gradients(seed: int) -> Callable[[Timer], None]:
    """Return the gradient of a sum, sparse and dense in turn, and a step with it."""
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
    """Return calls that must raise, in turn."""
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
    """Return the same work in a new thread each time, which leaves its OpenMP team behind."""
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
    """Return work that forks; the child does these jobs, and all is well or it is an error.

    The fork may come in the middle of a call or a swap of any other thread.
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
    # Each Python thread has at most a team: the jobs', the main one, one of a job, one spare.
    bound = (len(jobs) + 3) * embag.get_num_threads()
    most = results["processes"]["library"]["threads"][1]
    if most > bound:
        results["problems"].append(f"{most} threads ran, more than {bound}")
    results["numbers"] = {"ids that are no rows": int(sum(tables.put).sum())}
    return results


if __name__ == "__main__":
    print(json.dumps(run(float(sys.argv[1]))), flush=True)
    os._exit(0)  # a thread that hangs would keep the process
