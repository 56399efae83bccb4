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


# --- Backward -----------------------------------------------------------------

GRAD = np.array([[1, 10], [2, 20], [6, 60]], np.float32)  # of the bags [1, 2], [], [3, 0, 3]


def gradients(grad=GRAD, **options):
    return _reference.embedding_bag_backward(grad, INPUT, WEIGHT, OFFSETS, **options)


def test_gradient_of_a_sum():
    assert gradients(mode="sum")[0].tolist() == [[6, 60], [1, 10], [1, 10], [12, 120]]


def test_gradient_of_a_mean_leaves_padding_out():
    assert gradients(mode="mean")[0].tolist() == [[2, 20], [0.5, 5], [0.5, 5], [4, 40]]
    padded = gradients(mode="mean", padding_idx=3)[0]
    assert padded.tolist() == [[6, 60], [0.5, 5], [0.5, 5], [0, 0]]


def test_gradients_of_a_weighted_sum():
    weights = np.array([2, 0.5, 1, -1, 0.25])
    grad, of_weights = gradients(mode="sum", per_sample_weights=weights)
    assert grad.tolist() == [[-6, -60], [2, 20], [0.5, 5], [7.5, 75]]
    # Rows 1 and 2 with [1, 10]; rows 3, 0 and 3 with [6, 60].
    assert of_weights.tolist() == [82, 44, 168, -54, 168]


def test_gradient_scaled_by_frequency():
    grad = gradients(mode="sum", scale_grad_by_freq=True)[0]
    assert grad.tolist() == [[6, 60], [1, 10], [1, 10], [6, 60]]


def test_gradient_of_a_maximum():
    # [1, 2]: rows 2 and 1 win. [3, 0, 3]: row 3 wins both, the first time it occurs.
    assert gradients(mode="max")[0].tolist() == [[0, 0], [0, 10], [1, 0], [6, 60]]


def test_gradient_of_a_maximum_with_a_nan_and_with_a_tie():
    weight = np.array([[1, 5], [np.nan, 5], [2, 3]], np.float32)
    grad, _ = _reference.embedding_bag_backward(
        np.array([[7, 8]], np.float32), np.array([0, 1, 2]), weight, np.array([0]), mode="max"
    )
    assert grad.tolist() == [[0, 8], [7, 0], [0, 0]]


def test_gradients_of_a_short_last_offset_leave_the_tail_out():
    grad, of_weights = _reference.embedding_bag_backward(
        np.array([[1, 2]], np.float32), np.array([0, 1, 1]), WEIGHT, np.array([0, 2]),
        mode="sum", per_sample_weights=np.ones(3), include_last_offset=True,
    )  # fmt: skip
    assert grad.tolist() == [[1, 2], [1, 2], [0, 0], [0, 0]]
    assert of_weights.tolist() == [-1, 18, 0]


def test_dot_products_are_summed_in_lanes():
    x = np.arange(1, 20, dtype=np.float64)
    assert _reference.dot(x, np.ones(19)) == 190
    # 1 is lost beside 1e20 in lane 0, but not in a lane of its own.
    big = np.zeros(33)
    big[[0, 16, 32]] = 1e20, 1, -1e20
    assert _reference.dot(big, np.ones(33)) == 0
    big[[1, 16]] = 1, 0
    assert _reference.dot(big, np.ones(33)) == 1
