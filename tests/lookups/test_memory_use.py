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
    # A long call takes the general way, even on one thread: that is 2 kB of Python objects.
    assert large < small + 3000 < 6000


def peak_of_collection(n_indices, n_bags, n_features, n_threads, with_out, by_name):
    ebc = embag.EmbeddingBagCollection(
        {"t": TABLE}, [embag.Feature(str(i), "t") for i in range(n_features)]
    )
    values = np.zeros(n_features * n_indices, np.int64)
    bounds = np.linspace(0, n_indices, n_bags + 1).astype(np.int32)
    offsets = np.linspace(0, len(values), n_features * n_bags + 1).astype(np.int32)
    weights = np.ones(len(values), np.float32)
    out = np.empty((n_bags, ebc.dim), np.float32) if with_out else None
    arguments = values, offsets, weights
    if by_name:
        parts = {str(i): (values[:n_indices], bounds) for i in range(n_features)}
        arguments = parts, None, {str(i): weights[:n_indices] for i in range(n_features)}
    tracemalloc.start()
    result = ebc(*arguments, include_last_offset=by_name, out=out, num_threads=n_threads)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - (0 if with_out else result.nbytes)


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("n_threads", [1, 4])
def test_peak_of_a_collection_grows_with_its_features_alone(
    by_name, with_out, n_threads, eager_threads
):
    def peak(n_indices, n_bags, n_features=3):
        return peak_of_collection(n_indices, n_bags, n_features, n_threads, with_out, by_name)

    peak(100, 10)
    small = peak(1_000, 10)
    assert peak(300_000, 3_000) < small + 1000 < 8000
    assert peak(1_000, 10, 26) < small + 26 * 1500
