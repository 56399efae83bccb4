"""Algebraic laws of the lookup, on inputs drawn by hypothesis."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import reference
from cases import NARROW_FLOATS, QUANTIZED, dtype_of, pack
from hypothesis import given, settings
from hypothesis import strategies as st

import embag
from embag._process import threads

settings.register_profile("embag", deadline=None, derandomize=True, max_examples=150)
settings.load_profile("embag")


@st.composite
def calls(draw, dtype=np.float64, max_value=100):
    n_rows = draw(st.integers(1, 12))
    dim = draw(st.integers(1, 70) | st.sampled_from([130, 300]))
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    elements = st.integers(-max_value, max_value)
    table = draw(hnp.arrays(np.int64, (n_rows, dim), elements=elements)).astype(dtype)
    input = draw(hnp.arrays(np.int64, sum(lengths), elements=st.integers(0, n_rows - 1)))
    return input, table, np.cumsum(lengths) - lengths


modes = st.sampled_from(["sum", "mean", "sqrtn", "max", "min"])


@pytest.fixture(autouse=True, scope="module")
def _eager_threads():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "ENTRIES_PER_THREAD", 1)
        patch.setattr(threads, "_N_MACHINE", 64)
        yield


def bag(input, table, offsets, **options):
    n_threads = 1 + len(input) % 4
    return embag.embedding_bag(input, table, offsets, num_threads=n_threads, **options)


@given(calls(), modes, st.integers(0, 11))
def test_equals_the_definition(call, mode, padding):
    input, table, offsets = call
    padding_idx = padding if padding < len(table) else None
    expected, rows = reference.embedding_bag(
        input, table, offsets, mode=mode, padding_idx=padding_idx
    )
    np.testing.assert_array_equal(
        bag(input, table, offsets, mode=mode, padding_idx=padding_idx), expected
    )
    if mode == "max":
        result = bag(
            input, table, offsets, mode="max", padding_idx=padding_idx, return_max_indices=True
        )
        np.testing.assert_array_equal(result[1], rows)


@given(calls(), st.integers(-5, 5))
def test_sums_are_linear_in_the_table(call, factor):
    # Integers are added exactly, so the law holds to the bit.
    input, table, offsets = call
    other = table[::-1].copy()
    np.testing.assert_array_equal(
        bag(input, factor * table + other, offsets, mode="sum"),
        factor * bag(input, table, offsets, mode="sum") + bag(input, other, offsets, mode="sum"),
    )


@given(calls(), st.data())
def test_sums_are_linear_in_the_weights(call, data):
    input, table, offsets = call
    integers = st.integers(-9, 9)
    w1, w2 = (data.draw(hnp.arrays(np.int64, input.shape, elements=integers)) for _ in range(2))
    pooled = [
        bag(input, table, offsets, mode="sum", per_sample_weights=w) for w in (w1, w2, w1 + w2)
    ]
    np.testing.assert_array_equal(pooled[0] + pooled[1], pooled[2])
    np.testing.assert_array_equal(
        bag(input, table, offsets, mode="sum", per_sample_weights=np.ones_like(input)),
        bag(input, table, offsets, mode="sum"),
    )


@given(calls(), modes, st.randoms(use_true_random=False))
def test_permuting_bags_permutes_rows(call, mode, random):
    input, table, offsets = call
    bags = np.split(input, offsets[1:])
    order = list(range(len(bags)))
    random.shuffle(order)
    shuffled = [bags[i] for i in order]
    lengths = np.array([len(b) for b in shuffled])
    np.testing.assert_array_equal(
        bag(np.concatenate(shuffled), table, np.cumsum(lengths) - lengths, mode=mode),
        bag(input, table, offsets, mode=mode)[order],
    )


@given(calls(), modes)
def test_two_calls_are_one_call_of_both(call, mode):
    input, table, offsets = call
    twice = bag(
        np.concatenate([input, input]),
        table,
        np.concatenate([offsets, offsets + len(input)]),
        mode=mode,
    )
    once = bag(input, table, offsets, mode=mode)
    np.testing.assert_array_equal(twice, np.concatenate([once, once]))


@given(calls())
def test_mean_is_sum_over_count(call):
    input, table, offsets = call
    counts = np.diff(np.append(offsets, len(input)))
    np.testing.assert_array_equal(
        bag(input, table, offsets, mode="mean"),
        bag(input, table, offsets, mode="sum") / np.maximum(counts, 1)[:, None],
    )


@given(calls(), modes)
def test_padding_equals_absence(call, mode):
    input, table, offsets = call
    keep = input != 0
    kept = np.concatenate([[0], np.cumsum(keep)])
    np.testing.assert_array_equal(
        bag(input, table, offsets, mode=mode, padding_idx=0),
        bag(input[keep], table, kept[offsets], mode=mode),
    )


@given(calls(), modes)
def test_include_last_offset_is_equivalent(call, mode):
    input, table, offsets = call
    np.testing.assert_array_equal(
        bag(input, table, np.append(offsets, len(input)), mode=mode, include_last_offset=True),
        bag(input, table, offsets, mode=mode),
    )


@given(calls())
def test_max_indices_point_at_the_maxima(call):
    input, table, offsets = call
    out, rows = bag(input, table, offsets, mode="max", return_max_indices=True)
    filled = rows >= 0
    columns = np.broadcast_to(np.arange(table.shape[1]), rows.shape)
    np.testing.assert_array_equal(out[filled], table[rows[filled], columns[filled]])
    assert not out[~filled].any()


# --- Low-precision tables -------------------------------------------------------------


@st.composite
def quantized_calls(draw):
    kind = draw(st.sampled_from(QUANTIZED))
    layout, bits = kind[:-1], int(kind[-1])
    n_rows, dim = draw(st.integers(1, 12)), draw(st.integers(1, 70) | st.sampled_from([130, 300]))
    lengths = draw(st.lists(st.integers(0, 9) | st.integers(30, 70), min_size=1, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    q = rng.integers(0, 2**bits, (n_rows, dim))
    # Values of float16, so that the table holds exactly these numbers in each layout.
    factors = np.float16(rng.standard_normal((2, n_rows)) * 2.0 ** rng.integers(-8, 8, (2, 1)))
    scale, bias = factors.astype(np.float64)
    weights = None
    if draw(st.booleans()):
        weights = rng.standard_normal(sum(lengths)).astype(np.float32)
    input = rng.integers(0, n_rows, sum(lengths))
    offsets = np.cumsum(lengths) - lengths
    return input, pack(q, scale, bias, bits, layout), offsets, weights, (q, scale, bias)


def in_float64(input, offsets, entries, weights):
    """Return the sums of bags in float64."""
    rows = entries[input] if weights is None else entries[input] * weights[:, None]
    bags = np.split(rows, offsets[1:])
    return np.array([rows.sum(axis=0) for rows in bags])


@given(quantized_calls(), st.booleans())
def test_quantized_sums_are_near_the_sums_of_decoded_entries(call, mean):
    input, table, offsets, weights, (q, scale, bias) = call
    mean = mean and weights is None
    exact = in_float64(input, offsets, scale[:, None] * q + bias[:, None], weights)
    magnitude = in_float64(
        input,
        offsets,
        np.abs(scale)[:, None] * q + np.abs(bias)[:, None],
        None if weights is None else np.abs(weights),
    )
    n = np.diff(np.append(offsets, len(input)))[:, None]
    # Each rounding of a number adds half an eps of its magnitude: the product with a weight,
    # n additions, at most 32 biases of its run, n / 32 + 1 runs, and the mean.
    roundings = 1 + n + np.minimum(n, 32) + n // 32 + 1 + 1
    eps = np.finfo(np.float32).eps
    bound = roundings * (eps / 2) * (1 + 1e-4) * magnitude
    if mean:
        exact, bound = exact / np.maximum(n, 1), bound / np.maximum(n, 1)
    result = bag(input, table, offsets, mode="mean" if mean else "sum", per_sample_weights=weights)
    assert (np.abs(result - exact) <= bound).all()


@given(quantized_calls(), modes)
def test_quantized_calls_equal_the_definition(call, mode):
    input, table, offsets, weights, _ = call
    options = {"mode": mode, "padding_idx": len(input) % len(table.packed)}
    if mode == "sum":
        options["per_sample_weights"] = weights
    expected, _ = reference.quantized_embedding_bag(input, table, offsets, **options)
    np.testing.assert_array_equal(bag(input, table, offsets, **options), expected)


@given(quantized_calls(), modes)
def test_permuting_quantized_bags_permutes_rows(call, mode):
    # Runs of positions are counted from the start of each bag.
    input, table, offsets, _, _ = call
    bags = np.split(input, offsets[1:])[::-1]
    lengths = np.array([len(b) for b in bags])
    np.testing.assert_array_equal(
        bag(np.concatenate(bags), table, np.cumsum(lengths) - lengths, mode=mode),
        bag(input, table, offsets, mode=mode)[::-1],
    )


@given(calls(np.float32), modes, st.sampled_from(NARROW_FLOATS))
def test_narrow_floats_are_summed_as_their_float32(call, mode, name):
    input, table, offsets = call
    narrow = table.astype(dtype_of(name))
    np.testing.assert_array_equal(
        bag(input, narrow, offsets, mode=mode),
        bag(input, narrow.astype(np.float32), offsets, mode=mode),
    )
