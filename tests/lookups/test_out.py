"""`out` receives the result and is returned."""

import numpy as np
import pytest

import embag

TABLE = np.random.default_rng(0).random((30, 70), dtype=np.float32)
INPUT = np.random.default_rng(1).integers(0, 30, 50)
OFFSETS = np.array([0, 4, 4, 30])


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
def test_out_is_filled_and_returned(mode, level, eager_threads):
    expected = embag.embedding_bag(INPUT, TABLE, OFFSETS, mode=mode)
    for n_threads in (1, 3):
        out = np.full((4, 70), np.nan, np.float32)
        result = embag.embedding_bag(
            INPUT, TABLE, OFFSETS, mode=mode, out=out, num_threads=n_threads
        )
        assert result is out
        np.testing.assert_array_equal(out, expected)


def test_out_with_max_indices(level):
    out = np.empty((4, 70), np.float32)
    result, rows = embag.embedding_bag(
        INPUT, TABLE, OFFSETS, mode="max", out=out, return_max_indices=True
    )
    assert result is out
    assert rows.shape == (4, 70)


def test_out_may_be_part_of_a_larger_array(level):
    features = np.zeros((3, 4, 70), np.float32)
    embag.embedding_bag(INPUT, TABLE, OFFSETS, mode="sum", out=features[1])
    np.testing.assert_array_equal(
        features[1], embag.embedding_bag(INPUT, TABLE, OFFSETS, mode="sum")
    )
    assert not features[0].any()
    assert not features[2].any()


def test_empty_out(level):
    out = np.empty((0, 70), np.float32)
    assert embag.embedding_bag([], TABLE, [], out=out) is out
