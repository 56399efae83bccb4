"""Many Python threads call at once."""

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
