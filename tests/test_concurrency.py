"""Many Python threads call at once, and arrays change under a call."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import embag

TABLE = np.random.default_rng(0).random((5000, 64), dtype=np.float32)


def batch(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 60, 100)
    return rng.integers(0, 5000, lengths.sum()), np.cumsum(lengths) - lengths


def test_concurrent_calls_do_not_disturb_each_other():
    batches = [batch(seed) for seed in range(16)]
    expected = [embag.embedding_bag(input, TABLE, offsets) for input, offsets in batches]

    def work(i):
        input, offsets = batches[i % 16]
        return i % 16, embag.embedding_bag(input, TABLE, offsets, num_threads=1 + i % 3)

    with ThreadPoolExecutor(12) as pool:
        for i, result in pool.map(work, range(600)):
            np.testing.assert_array_equal(result, expected[i])


def test_arrays_that_change_under_a_call_never_cause_a_wild_read(level, eager_threads):
    input, offsets = batch(0)
    input, offsets = input.copy(), offsets.copy()
    good_input, good_offsets = input.copy(), offsets.copy()
    stop = threading.Event()

    def scribble():
        rng = np.random.default_rng(1)
        values = [2**62, -1, -(2**63), 5000, 2**31]
        while not stop.is_set():
            k, b = rng.integers(len(input)), rng.integers(len(offsets))
            input[k], offsets[b] = rng.choice(values), rng.choice(values)
            time.sleep(0)
            input[k], offsets[b] = good_input[k], good_offsets[b]

    scribbler = threading.Thread(target=scribble)
    scribbler.start()
    outcomes = set()
    deadline = time.monotonic() + 0.7
    try:
        while time.monotonic() < deadline:
            for mode in ("sum", "max"):
                try:
                    embag.embedding_bag(input, TABLE, offsets, mode=mode, num_threads=2)
                    outcomes.add("result")
                except (IndexError, ValueError, RuntimeError) as error:
                    outcomes.add(type(error).__name__)
    finally:
        stop.set()
        scribbler.join()
    assert len(outcomes) > 1
