"""Concurrent calls from many Python threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

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


def test_concurrent_gradients_do_not_disturb_each_other(eager_threads):
    batches = [batch(seed) for seed in range(8)]
    grad_output = np.random.default_rng(1).random((100, 64), dtype=np.float32)
    options = [
        {"sparse": True},
        {"sparse": True, "mode": "sum", "scale_grad_by_freq": True},
        {"mode": "max"},
        {},
    ]

    def gradient(i, n_threads):
        input, offsets = batches[i % 8]
        grad = embag.embedding_bag_backward(
            grad_output, input, TABLE, offsets, num_threads=n_threads, **options[i % 4]
        ).weight
        return grad.to_dense() if isinstance(grad, embag.SparseRows) else grad

    def step(i, n_threads):
        table = np.zeros_like(TABLE)
        rows = embag.SparseRows(np.arange(0, 5000, 2), TABLE[::2], TABLE.shape)
        rows.add_to(table, 1 + i % 4, num_threads=n_threads)
        return table

    expected = [(gradient(i, 1), step(i, 1)) for i in range(8)]

    def work(i):
        return i % 8, gradient(i, 1 + i % 3), step(i, 1 + i % 3)

    with ThreadPoolExecutor(8) as pool:
        for i, grad, table in pool.map(work, range(80)):
            np.testing.assert_array_equal(grad, expected[i][0])
            np.testing.assert_array_equal(table, expected[i][1])


def test_many_threads_may_call_one_collection(eager_threads):
    tables = {"wide": TABLE, "half": TABLE[:, :30].astype(np.float16), "q": embag.quantize(TABLE)}
    modes = ["sum", "mean", "sqrtn", "max", "min"]
    ebc = embag.EmbeddingBagCollection(
        tables,
        [embag.Feature(f"{i}", name, modes[i % 3]) for i, name in enumerate([*tables] * 4)],
    )
    batches = []
    for seed in range(8):
        lengths = np.random.default_rng(seed).integers(0, 9, 12 * (1 + seed * 3))
        ids = np.random.default_rng(seed).integers(0, 5000, lengths.sum())
        batches.append((ids, np.concatenate([[0], np.cumsum(lengths)])))
    expected = [ebc(*batch, num_threads=1) for batch in batches]

    def work(i):
        ids, offsets = batches[i % 8]
        if i % 5 == 0:
            broken = ids.copy()
            broken[-1] = 5000
            with pytest.raises(IndexError, match=rf"values\[{len(ids) - 1}\] = 5000 is out"):
                ebc(broken, offsets, num_threads=1 + i % 3)
        given = ids.tolist() if i % 7 == 0 else ids
        out = np.empty_like(expected[i % 8]) if i % 4 == 0 else None
        return i % 8, ebc(given, offsets, out=out, num_threads=1 + i % 3)

    with ThreadPoolExecutor(12) as pool:
        for i, result in pool.map(work, range(400)):
            np.testing.assert_array_equal(result, expected[i])
