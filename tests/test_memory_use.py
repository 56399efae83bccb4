"""A call allocates its output, and nothing else that grows with the input."""

import tracemalloc

import numpy as np
import pytest

import embag

TABLE = np.zeros((100, 64), np.float32)


def peak_beside_output(n_indices, n_bags, n_threads, **options):
    input = np.zeros(n_indices, np.int64)
    offsets = np.linspace(0, n_indices, n_bags, endpoint=False).astype(np.int32)
    tracemalloc.start()
    result = embag.embedding_bag(input, TABLE, offsets, num_threads=n_threads, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - result.nbytes


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("n_threads", [1, 4])
def test_peak_does_not_grow_with_the_input(mode, n_threads, eager_threads):
    peak_beside_output(100, 10, n_threads, mode=mode)
    small = peak_beside_output(1_000, 10, n_threads, mode=mode)
    large = peak_beside_output(1_000_000, 10_000, n_threads, mode=mode)
    assert large < small + 1000 < 5000
