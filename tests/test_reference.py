"""The oracle against literals computed by hand."""

import numpy as np

from embag import _reference

WEIGHT = np.array([[1, -1], [2, 8], [4, 4], [8, 2]], np.float32)
INPUT = np.array([1, 2, 3, 0, 3])
OFFSETS = np.array([0, 2, 2])


def pooled(**options):
    return _reference.embedding_bag(INPUT, WEIGHT.copy(), OFFSETS, **options)[0].tolist()


def test_sum():
    assert pooled(mode="sum") == [[6, 12], [0, 0], [17, 3]]


def test_mean():
    assert pooled(mode="mean") == [[3, 6], [0, 0], np.float32([17 / 3, 1]).tolist()]


def test_max_and_its_rows():
    out, rows = _reference.embedding_bag(INPUT, WEIGHT, OFFSETS, mode="max")
    assert out.tolist() == [[4, 8], [0, 0], [8, 2]]
    assert rows.tolist() == [[2, 1], [-1, -1], [3, 3]]


def test_weights():
    weights = np.array([2, 0.5, 1, -1, 0.25])
    assert pooled(mode="sum", per_sample_weights=weights) == [[6, 18], [0, 0], [9, 3.5]]


def test_padding_is_left_out_of_the_divisor():
    assert pooled(mode="mean", padding_idx=3) == [[3, 6], [0, 0], [1, -1]]
    assert pooled(mode="mean", padding_idx=-1) == pooled(mode="mean", padding_idx=3)


def test_two_d():
    out, _ = _reference.embedding_bag(np.array([[0, 1], [3, 3]]), WEIGHT, mode="sum")
    assert out.tolist() == [[3, 7], [16, 4]]


def test_short_last_offset_leaves_the_tail_out():
    out, _ = _reference.embedding_bag(
        np.array([0, 1, 99]), WEIGHT, np.array([0, 2]), mode="sum", include_last_offset=True
    )
    assert out.tolist() == [[3, 7]]


def test_nan_wins_the_maximum_and_the_first_of_equals_stays():
    weight = np.array([[1, 5], [np.nan, 5], [2, 3]], np.float32)
    out, rows = _reference.embedding_bag(np.array([0, 1, 2]), weight, np.array([0]), mode="max")
    np.testing.assert_array_equal(out, [[np.nan, 5]])
    assert rows.tolist() == [[1, 0]]


def test_max_norm_scales_each_row_once():
    weight = np.array([[3, 4], [0.3, 0.4], [30, 40]], np.float64)
    out, _ = _reference.embedding_bag(
        np.array([0, 0, 1]), weight, np.array([0]), max_norm=1.0, mode="sum"
    )
    np.testing.assert_allclose(weight, [[0.6, 0.8], [0.3, 0.4], [30, 40]], rtol=1e-7)
    np.testing.assert_allclose(out, [[1.5, 2.0]], rtol=1e-7)
