"""Interrupt calls at any time: one may end first, and nothing is left broken or behind.

Run as ``interrupt_calls.py SCENARIO``; a scenario is a function below.
"""

import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback

import numpy as np

import embag
from embag._process import threads


class Interrupts:
    """Sends SIGINT at random times; it raises only while `call` runs a function."""

    def __init__(self, mean):
        self.mean, self.armed, self.stop, self.n = mean, False, False, 0
        signal.signal(signal.SIGINT, self.handle)
        self.thread = threading.Thread(target=self.send)

    def handle(self, *_):
        if self.armed:
            self.armed = False
            self.n += 1
            raise KeyboardInterrupt

    def send(self):
        rng = random.Random(0)
        while not self.stop:
            time.sleep(rng.expovariate(1 / self.mean))
            os.kill(os.getpid(), signal.SIGINT)

    def call(self, function):
        """Return the result of a function, or None if it was interrupted."""
        try:
            self.armed = True
            result = function()
            self.armed = False
            return result
        except KeyboardInterrupt:
            return None

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop = True
        self.thread.join()


def long_calls():
    """Interrupt calls of a second or more; memory that is only read takes none."""
    table = np.arange(24, dtype=np.float32).reshape(3, 8)
    ids = embag.aligned_empty((1, 2**26), np.int32)
    sent = []
    # A process that a shell has put in the background ignores SIGINT by default.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    for n_threads in (1, 2):
        timer = threading.Timer(0.1, interrupt)
        try:
            timer.start()
            embag.embedding_bag(
                ids, table, mode="max", return_max_indices=True, num_threads=n_threads
            )
            time.sleep(10)
            raise SystemExit("no KeyboardInterrupt")
        except KeyboardInterrupt:
            assert len(sent) == n_threads
        timer.join()
        for _ in range(3):
            result = embag.embedding_bag(ids[:, :300_000], table, mode="sum")
            assert result.tolist() == [[300_000 * v for v in range(8)]]


def between_regions():
    """Interrupt calls of each kind within a kernel; a step is made and counted, or neither."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    n = 2**22
    rng = np.random.default_rng(0)
    ids, offsets = rng.integers(0, 1000, n), np.arange(0, n, 8)
    table = rng.standard_normal((1000, 64)).astype(np.float32)
    grad = np.ones((len(offsets), 64), np.float32)
    out = np.empty((len(offsets), 64), np.float32)
    weights = np.ones(n, np.float32)
    winners = np.zeros(out.shape, np.int64)
    packed = embag.quantize(table)
    ebc = embag.EmbeddingBagCollection({"t": table}, [embag.Feature(name, "t") for name in "ab"])
    trained = np.zeros_like(table)
    optimizer = embag.optim.SGD(trained, 1.0)

    def look_up(table, **options):
        return lambda t: embag.embedding_bag(ids, table, offsets, num_threads=t, **options)

    def backward(**options):
        return lambda t: embag.embedding_bag_backward(
            grad, ids, table, offsets, num_threads=t, **options
        )

    calls = {
        "lookup": look_up(table, mode="sum"),
        "lookup into out": look_up(table, mode="sum", out=out),
        "packed rows": look_up(packed, mode="max"),
        "gather": lambda t: embag.embedding(ids, table, num_threads=t),
        "collection": lambda t: ebc({"a": (ids, offsets), "b": (ids, offsets)}, num_threads=t),
        "dense gradient": backward(mode="sum"),
        "dense gradient of max": backward(mode="max", max_indices=winners),
        "sparse gradient": backward(mode="mean", sparse=True),
        "gradient of weights": backward(mode="sum", per_sample_weights=weights, sparse=True),
        "step": lambda t: optimizer.update(grad, ids, offsets, mode="sum", num_threads=t),
    }
    out[:] = 0
    for name, call in calls.items():
        for n_threads in (1, 2):
            interrupt_within_kernel(f"{name}, {n_threads} threads", lambda: call(n_threads))  # noqa: B023
            assert np.ptp(trained[0]) == 0
            assert (trained.sum(0, dtype="f8") == -n * optimizer.n_steps).all(), (
                "a step was made in part"
            )
    right = embag.embedding_bag(ids[:800], table, offsets[:100], mode="sum")
    assert np.array_equal(calls["lookup"](2)[:100], right)


def interrupt_within_kernel(name, call):
    """Call, and send SIGINT ever later, until the exception comes out of a kernel."""
    for attempt in range(400):
        started = threading.Event()

        def send(delay=attempt % 20 * 0.0005 + attempt // 20 * 0.01, started=started):
            started.wait()
            time.sleep(delay)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            started.set()
            call()
            thread.join()
            time.sleep(10)
            raise SystemExit("no KeyboardInterrupt")
        except KeyboardInterrupt as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
        thread.join()
        if last.filename.endswith((".pxi", ".pyx")):
            return
    raise SystemExit(f"{name}: never interrupted within a kernel: {last}")


def short_calls():
    threads.ENTRIES_PER_THREAD = 1
    calls = [call for n_threads in (1, 2) for call in calls_of_each_kind(n_threads)]
    expected = [np.array(call()) for call in calls]
    n_started = threading.active_count()
    n_whole = 0
    with Interrupts(0.0004) as interrupts:
        # An interrupted call may have ended first; most are not interrupted.
        while interrupts.n < 500 or n_whole < 2000:
            for call, right in zip(calls, expected, strict=True):
                result = interrupts.call(call)
                if result is not None:
                    n_whole += 1
                    assert np.array_equal(result, right)
    assert threading.active_count() == n_started
    for call, right in zip(calls, expected, strict=True):
        assert np.array_equal(call(), right)


def calls_of_each_kind(n_threads):
    team = {"num_threads": n_threads}
    rng = np.random.default_rng(0)
    table = rng.standard_normal((300, 33)).astype(np.float32)
    ids, offsets = rng.integers(0, 300, 500), np.arange(0, 500, 10)
    weights = np.ones(500, np.float32)
    small = embag.quantize(table)
    ebc = embag.EmbeddingBagCollection(
        {"t": table, "q": small}, [embag.Feature("a", "t"), embag.Feature("b", "q", "max")]
    )
    grad = np.ones((50, 33), np.float32)
    out = np.zeros((50, 33), np.float32)
    layer = embag.EmbeddingBag.from_pretrained(table, mode="sum", sparse=True)
    weighted = {"mode": "sum", "per_sample_weights": weights}
    return [
        lambda: embag.embedding_bag(ids, table, offsets, **team),
        lambda: embag.embedding_bag(ids, table, offsets, mode="sum", out=out, **team),
        lambda: embag.embedding_bag(ids, small, offsets, out_dtype="f2", **team),
        lambda: embag.embedding_bag_backward(grad, ids, table, offsets, **weighted, **team)[0],
        lambda: layer.backward(grad, ids, offsets, **team).weight.to_dense(),  # noqa: PLW0108
        lambda: ebc({"a": (ids, offsets), "b": ids.reshape(50, 10)}, **team),
        lambda: ebc(np.tile(ids, 2), np.arange(0, 1001, 10), **team),
        lambda: embag.quantize(table, 4, **team).packed,
        lambda: small.dequantize(**team),
        lambda: embag.aligned_copy(table),
    ]


def files():
    rng = np.random.default_rng(0)
    tables = [rng.standard_normal((400, 16)).astype(np.float32) for _ in range(2)]
    packed = [embag.quantize(table).packed for table in tables]
    n_saved = 0
    with tempfile.TemporaryDirectory() as folder, Interrupts(0.0006) as interrupts:
        for suffix in (".npy", ".safetensors"):
            embag.save_table(f"{folder}/t{suffix}", tables[0])
            embag.save_table(f"{folder}/q{suffix}", tables[0], bits=8)
        names = sorted(os.listdir(folder))
        while interrupts.n < 200 or n_saved < 400:
            for name in names:
                path, bits = f"{folder}/{name}", 8 if name[0] == "q" else None
                table = tables[n_saved % 2]
                interrupts.call(lambda: embag.save_table(path, table, bits=bits))  # noqa: B023
                n_saved += 1
                assert sorted(os.listdir(folder)) == names, os.listdir(folder)
                interrupts.call(lambda: embag.load_table(path, "copy"))  # noqa: B023
                # The file holds the old table or the new one, whole.
                held = embag.load_table(path)
                held = held if bits is None else held.packed
                candidates = tables if bits is None else packed
                assert any(np.array_equal(held, table) for table in candidates)


def steps():
    """Interrupt steps: each is made and counted, or neither, and the next one is possible."""
    threads.ENTRIES_PER_THREAD = 1
    tables = [np.zeros((64, 16), np.float32) for _ in range(2)]
    one, two = (embag.optim.SGD(table, 1) for table in tables)
    ebc = embag.EmbeddingBagCollection(
        {"a": tables[0], "b": tables[1]}, [embag.Feature(name, name) for name in "ab"]
    )
    ids = np.arange(64).reshape(64, 1)
    grad = np.ones((64, 16), np.float32)
    both = np.ones((64, 32), np.float32)
    named, optimizers = {"a": ids, "b": ids}, {"a": one, "b": two}
    calls = [
        call
        for n in (1, 2)
        for call in (
            lambda n=n: one.step(grad, num_threads=n),
            lambda n=n: two.update(grad, ids, mode="sum", num_threads=n),
            lambda n=n: ebc.update(both, named, optimizers=optimizers, num_threads=n),
            one.state_dict,
        )
    ]
    n_calls = 0
    with Interrupts(0.0004) as interrupts:
        while interrupts.n < 500 or n_calls < 5000:
            for call in calls:
                interrupts.call(call)
                n_calls += 1
                for optimizer, table in zip((one, two), tables, strict=True):
                    assert (table == -optimizer.n_steps).all(), "a step was not counted"
    for call in calls:
        call()
    assert min(one.n_steps, two.n_steps) > 1000


if __name__ == "__main__":
    (scenario,) = sys.argv[1:]
    globals()[scenario]()
