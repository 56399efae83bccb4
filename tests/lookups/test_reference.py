"""The reference against literals computed by hand."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import reference

from embag import QuantizedTable

WEIGHT = np.array([[1, -1], [2, 8], [4, 4], [8, 2]], np.float32)
INPUT = np.array([1, 2, 3, 0, 3])
OFFSETS = np.array([0, 2, 2])


def pooled(**options):
    return reference.embedding_bag(INPUT, WEIGHT.copy(), OFFSETS, **options)[0].tolist()


def test_sum():
    assert pooled(mode="sum") == [[6, 12], [0, 0], [17, 3]]


def test_mean():
    assert pooled(mode="mean") == [[3, 6], [0, 0], np.float32([17 / 3, 1]).tolist()]


def test_max_and_its_rows():
    out, rows = reference.embedding_bag(INPUT, WEIGHT, OFFSETS, mode="max")
    assert out.tolist() == [[4, 8], [0, 0], [8, 2]]
    assert rows.tolist() == [[2, 1], [-1, -1], [3, 3]]


def test_weights():
    weights = np.array([2, 0.5, 1, -1, 0.25])
    assert pooled(mode="sum", per_sample_weights=weights) == [[6, 18], [0, 0], [9, 3.5]]


def test_padding_is_not_in_the_divisor():
    assert pooled(mode="mean", padding_idx=3) == [[3, 6], [0, 0], [1, -1]]
    assert pooled(mode="mean", padding_idx=-1) == pooled(mode="mean", padding_idx=3)


def test_two_d():
    out, _ = reference.embedding_bag(np.array([[0, 1], [3, 3]]), WEIGHT, mode="sum")
    assert out.tolist() == [[3, 7], [16, 4]]


def test_short_last_offset_skips_the_tail():
    out, _ = reference.embedding_bag(
        np.array([0, 1, 99]), WEIGHT, np.array([0, 2]), mode="sum", include_last_offset=True
    )
    assert out.tolist() == [[3, 7]]


def test_nan_wins_the_maximum_and_the_first_of_equals_stays():
    weight = np.array([[1, 5], [np.nan, 5], [2, 3]], np.float32)
    out, rows = reference.embedding_bag(np.array([0, 1, 2]), weight, np.array([0]), mode="max")
    np.testing.assert_array_equal(out, [[np.nan, 5]])
    assert rows.tolist() == [[1, 0]]


def test_max_norm_scales_each_row_once():
    weight = np.array([[3, 4], [0.3, 0.4], [30, 40]], np.float64)
    out, _ = reference.embedding_bag(
        np.array([0, 0, 1]), weight, np.array([0]), max_norm=1.0, mode="sum"
    )
    np.testing.assert_allclose(weight, [[0.6, 0.8], [0.3, 0.4], [30, 40]], rtol=1e-7)
    np.testing.assert_allclose(out, [[1.5, 2.0]], rtol=1e-7)


# --- Quantized tables -----------------------------------------------------------------

# 2.0 and -1.0; 0.5 and 4.0; as float32 and as float16, lowest byte first.
FLOAT_FACTORS = [[0, 0, 0, 64, 0, 0, 128, 191], [0, 0, 0, 63, 0, 0, 128, 64]]
HALF_FACTORS = [[0, 64, 0, 188], [0, 56, 0, 68]]


def packed_table(bits, dim, layout, entries, n_extra=0):
    factors = FLOAT_FACTORS if (layout, bits) == ("fused", 8) else HALF_FACTORS
    parts = [entries, factors] if layout == "fused" else [factors, entries]
    extra = np.full((2, n_extra), 255)
    packed = np.hstack([*parts, extra]).astype(np.uint8)
    return QuantizedTable.from_packed(packed, bits, dim, layout)


@pytest.mark.parametrize("layout", ["fused", "tbe"])
@pytest.mark.parametrize(
    ("bits", "dim", "entries", "integers"),
    [
        (8, 3, [[0, 7, 255], [1, 2, 3]], [[0, 7, 255], [1, 2, 3]]),
        # 0x21: the lower half, 1, comes first. The upper half of 0xf3 is unused.
        (4, 3, [[0x21, 0xF3], [0x0F, 0x00]], [[1, 2, 3], [15, 0, 0]]),
        # 0b11_10_01_00 is 0, 1, 2, 3.
        (2, 5, [[0b11100100, 0b11111101], [0b00000011, 2]], [[0, 1, 2, 3, 1], [3, 0, 0, 0, 2]]),
    ],
)
def test_packed_rows(bits, dim, entries, integers, layout):
    n_extra = 5 if layout == "tbe" else 0
    table = packed_table(bits, dim, layout, entries, n_extra)
    q, scale, bias = reference.unpack(table.packed, bits, dim, layout)
    assert q.tolist() == integers
    assert scale.tolist() == [2, 0.5]
    assert bias.tolist() == [-1, 4]


def quantized(**options):
    # Row 0 is 2 * [0, 7] - 1 = [-1, 13], row 1 is 0.5 * [6, 1] + 4 = [7, 4.5].
    table = packed_table(8, 2, "fused", [[0, 7], [6, 1]])
    input, offsets = np.array([0, 1, 1, 0]), np.array([0, 3, 3])
    out, rows = reference.quantized_embedding_bag(input, table, offsets, **options)
    return out.tolist(), rows.tolist()


def test_quantized_reductions():
    no_rows = [[-1, -1]] * 3
    assert quantized(mode="sum") == ([[13, 22], [0, 0], [-1, 13]], no_rows)
    assert quantized(mode="sum", per_sample_weights=np.array([2, 0.5, -1, 3])) == (
        [[-5.5, 23.75], [0, 0], [-3, 39]],
        no_rows,
    )
    thirds = np.float32([13 / 3, 22 / 3]).tolist()
    assert quantized(mode="mean") == ([thirds, [0, 0], [-1, 13]], no_rows)
    assert quantized(mode="mean", padding_idx=0) == ([[7, 4.5], [0, 0], [0, 0]], no_rows)
    assert quantized(mode="max") == (
        [[7, 13], [0, 0], [-1, 13]],
        [[1, 0], [-1, -1], [0, 0]],
    )


def test_biases_are_summed_separately_for_32_positions():
    # Row 0 is 0.5, which is lost when added to the 2**24 of row 1: floats there are 2 apart.
    rows = np.zeros((3, 1 + 8), np.uint8)
    rows[1, 0] = 1
    rows[:, 1:].view(np.float32)[...] = [[1, 0.5], [2**24, 0], [np.nan, np.nan]]
    table = QuantizedTable.from_packed(rows, 8, 1)

    def excess(*input, **options):
        out, _ = reference.quantized_embedding_bag(
            np.array(input), table, np.array([0]), mode="sum", **options
        )
        return int(out[0, 0]) - 2**24

    assert excess(1, 0, 0) == 0  # 1: halfway, to even
    assert excess(1, 0, 0, 0) == excess(0, 0, 0, 1) == 2  # 1.5
    assert excess(1, *[0] * 31) == 16  # 15.5
    assert excess(1, *[0] * 31, 0, 0) == 16  # 16; 1 more is halfway, and rounds to even
    assert excess(1, *[0] * 31, 0, 0, 0) == 18  # 16 and 1.5; all 17 at once would give 16
    # Padding counts as a position: here the 32 positions end among the zeros.
    assert excess(1, *[2] * 29, 0, 0, 0, 0, padding_idx=2) == 0
    assert excess(1, *[2] * 28, 0, 0, 0, 0, padding_idx=2) == 2
    # The same holds for a bag that starts at another position.
    out, _ = reference.quantized_embedding_bag(
        np.array([0, 0, 1, *[0] * 34]), table, np.array([0, 2]), mode="sum"
    )
    assert out.tolist() == [[1], [2**24 + 18]]


def test_fused_multiply_add_rounds_once():
    def fma(q, scale, c):
        arrays = np.array([q], np.float32), np.float32(scale), np.array([c], np.float32)
        with np.errstate(all="ignore"):
            return float(reference.fma(*arrays)[0])

    # 97 * 172961 = 2**24 + 1, halfway between two floats: the addend decides, however small.
    # A first rounding to float64 would lose it.
    assert fma(97, 172961, 0) == 2**24
    assert fma(97, 172961, 2.0**-100) == 2**24 + 2
    assert fma(97, 172961, -(2.0**-100)) == 2**24
    assert fma(97, -172961, -(2.0**-149)) == -(2**24) - 2
    # The product is not rounded by itself.
    assert fma(97, 172961, -(2**24)) == 1
    assert np.isnan(fma(0, np.inf, 1))
    assert fma(255, 3e38, 0) == np.inf
    assert fma(255, 3e38, -np.inf) == -np.inf
    assert fma(2, 2.0**127, -(2.0**127)) == 2.0**127
    assert not np.signbit(fma(0, -1, 0))


def test_fused_multiply_add_against_fractions():
    rng = np.random.default_rng(0)
    # Scales of a few bits make many sums halfway or close to it.
    scales = rng.integers(-(2**12), 2**12, 12) * np.exp2(rng.integers(-30, 3, 12))
    addends = np.concatenate([scales * 8191, scales * 2.0**24, [0, 2.0**-149, -(2.0**-60), 1, -3]])
    for scale, c in itertools.product(np.float32(scales), np.float32(addends)):
        q = np.array([0, 1, 2, 3, 7, 100, 170, 254, 255], np.float32)
        result = reference.fma(q, scale, np.full_like(q, c))
        for value, entry in zip(result, q, strict=True):
            exact = Fraction(float(entry)) * Fraction(float(scale)) + Fraction(float(c))
            assert value == nearest_float(exact)


def nearest_float(exact):
    """Return the float32 nearest to a fraction, and of two equally near ones the even one."""
    guess = np.float32(float(exact))
    near = [
        np.nextafter(guess, np.float32(-np.inf)),
        guess,
        np.nextafter(guess, np.float32(np.inf)),
    ]
    return min(near, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.uint32)) & 1))


# --- Backward -------------------------------------------------------------------------

GRAD = np.array([[1, 10], [2, 20], [6, 60]], np.float32)  # of the bags [1, 2], [], [3, 0, 3]


def gradients(grad=GRAD, **options):
    return reference.embedding_bag_backward(grad, INPUT, WEIGHT, OFFSETS, **options)


def test_gradient_of_a_sum():
    assert gradients(mode="sum")[0].tolist() == [[6, 60], [1, 10], [1, 10], [12, 120]]


def test_gradient_of_a_mean_skips_padding():
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
    grad, _ = reference.embedding_bag_backward(
        np.array([[7, 8]], np.float32), np.array([0, 1, 2]), weight, np.array([0]), mode="max"
    )
    assert grad.tolist() == [[0, 8], [7, 0], [0, 0]]


def test_gradients_of_a_short_last_offset_skip_the_tail():
    grad, of_weights = reference.embedding_bag_backward(
        np.array([[1, 2]], np.float32), np.array([0, 1, 1]), WEIGHT, np.array([0, 2]),
        mode="sum", per_sample_weights=np.ones(3), include_last_offset=True,
    )  # fmt: skip
    assert grad.tolist() == [[1, 2], [1, 2], [0, 0], [0, 0]]
    assert of_weights.tolist() == [-1, 18, 0]


def test_dot_products_are_summed_in_lanes():
    x = np.arange(1, 20, dtype=np.float64)
    assert reference.dot(x, np.ones(19)) == 190
    # 1 is lost when added to 1e20 in lane 0, but not in another lane.
    big = np.zeros(33)
    big[[0, 16, 32]] = 1e20, 1, -1e20
    assert reference.dot(big, np.ones(33)) == 0
    big[[1, 16]] = 1, 0
    assert reference.dot(big, np.ones(33)) == 1
