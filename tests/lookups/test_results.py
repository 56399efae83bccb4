"""The bits of the reference: every case, reduction, level, dtype and number of threads."""

import numpy as np
import pytest
import reference
from cases import (
    CASES,
    CONVERTED_INTEGERS,
    REDUCTIONS,
    SWAPPED,
    assert_same_bits,
    call_arguments,
)

import embag


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reference_bits(case, dtype, reduction, level, eager_threads):
    (input, table, offsets), options = call_arguments(case, reduction, dtype)
    expected, rows = reference.embedding_bag(input, table, offsets, **options)
    for index_dtype in (np.int32, np.int64):
        (input, table, offsets), options = call_arguments(case, reduction, dtype, index_dtype)
        for n_threads in (1, 2, 3, 8):
            message = f"{index_dtype.__name__}, {n_threads} threads"
            result = embag.embedding_bag(input, table, offsets, num_threads=n_threads, **options)
            assert_same_bits(result, expected, message)
            if reduction == "max":
                result, max_indices = embag.embedding_bag(
                    input, table, offsets, num_threads=n_threads, return_max_indices=True, **options
                )
                assert_same_bits(result, expected, message)
                assert max_indices.dtype == np.int64
                np.testing.assert_array_equal(max_indices, rows, message)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_offsets_of_another_integer_dtype_than_input(reduction, level):
    case = next(case for case in CASES if case.name == "ragged")
    expected = None
    for index_dtype in (np.int32, np.int64):
        for offset_dtype in (np.int32, np.int64):
            arguments, options = call_arguments(
                case, reduction, np.float32, index_dtype, offset_dtype
            )
            result = embag.embedding_bag(*arguments, **options)
            expected = result if expected is None else expected
            assert_same_bits(result, expected)


@pytest.mark.parametrize("dtype", CONVERTED_INTEGERS)
def test_other_integer_dtypes_are_converted(dtype):
    weight = np.arange(20, dtype=np.float32).reshape(10, 2)
    expected = embag.embedding_bag([1, 9, 3], weight, [0, 1], mode="sum")
    input, offsets = np.array([1, 9, 3], dtype), np.array([0, 1], dtype)
    assert_same_bits(embag.embedding_bag(input, weight, offsets, mode="sum"), expected)


def test_bursts_of_prefetches_change_no_bits(level, eager_threads):
    # Above 16 MiB the kernels prefetch rows in bursts, a separate path through the loops.
    rng = np.random.default_rng(3)
    for n_rows, dim in ((70_000, 64), (9_000, 500), (1_100_000, 4)):
        table = rng.random((n_rows, dim), dtype=np.float32)
        lengths = np.concatenate([rng.geometric(0.03, 100) - 1, [0, 500, 1]])
        input = rng.integers(0, n_rows, lengths.sum())
        offsets = np.cumsum(lengths) - lengths
        for mode in ("sum", "mean", "sqrtn", "max", "min"):
            expected, rows = reference.embedding_bag(input, table, offsets, mode=mode)
            for n_threads in (1, 3):
                result = embag.embedding_bag(
                    input, table, offsets, mode=mode, num_threads=n_threads
                )
                assert_same_bits(result, expected, f"{n_rows} x {dim}, {mode}, {n_threads}")
            if mode in ("max", "min"):
                _, max_indices = embag.embedding_bag(
                    input, table, offsets, mode=mode, return_max_indices=True
                )
                np.testing.assert_array_equal(max_indices, rows)
        options = {"mode": "sum", "per_sample_weights": rng.random(len(input), np.float32)}
        options["padding_idx"] = int(input[5])
        expected, _ = reference.embedding_bag(input, table, offsets, **options)
        assert_same_bits(embag.embedding_bag(input, table, offsets, **options), expected)
        singles = input[:300].reshape(300, 1)
        expected, _ = reference.embedding_bag(singles, table, mode="sum")
        assert_same_bits(embag.embedding_bag(singles, table, mode="sum"), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_special_values(dtype, level):
    specials = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, np.finfo(dtype).tiny / 4]
    rng = np.random.default_rng(0)
    table = rng.choice(np.array(specials, dtype), (40, 37))
    input = rng.integers(0, 40, 300)
    offsets = np.arange(0, 300, 3)
    with np.errstate(invalid="ignore"):
        for mode in ("sum", "mean", "sqrtn", "max", "min"):
            expected, rows = reference.embedding_bag(input, table, offsets, mode=mode)
            assert_same_bits(embag.embedding_bag(input, table, offsets, mode=mode), expected)
            if mode in ("max", "min"):
                _, max_indices = embag.embedding_bag(
                    input, table, offsets, mode=mode, return_max_indices=True
                )
                np.testing.assert_array_equal(max_indices, rows)


def test_sums_start_at_positive_zero(level):
    negative_zero = np.full((2, 5), -0.0, np.float32)
    result = embag.embedding_bag([0, 1], negative_zero, [0], mode="sum")
    assert not np.signbit(result).any()


def test_padding_rows_may_hold_nan(level):
    table = np.ones((3, 40), np.float32)
    table[1] = np.nan
    for mode in ("sum", "mean", "sqrtn", "max", "min"):
        result = embag.embedding_bag([1, 0, 1, 1], table, [0, 2], mode=mode, padding_idx=1)
        np.testing.assert_array_equal(result, [[1] * 40, [0] * 40])
    result = embag.embedding_bag(
        [1, 0], table, [0], mode="sum", padding_idx=1, per_sample_weights=[np.inf, 2]
    )
    np.testing.assert_array_equal(result, [[2] * 40])


def test_sample_weights_are_computed_in_the_tables_dtype(level):
    table = np.random.default_rng(0).random((10, 20), dtype=np.float32)
    weights = np.array([0.1, 0.7, 1 / 3])
    expected = embag.embedding_bag(
        [1, 2, 3], table, [0], mode="sum", per_sample_weights=weights.astype(np.float32)
    )
    for given in (
        weights,
        weights.tolist(),
        weights.astype(f"{SWAPPED}f8"),
        np.repeat(weights, 2)[::2],
    ):
        result = embag.embedding_bag([1, 2, 3], table, [0], mode="sum", per_sample_weights=given)
        assert_same_bits(result, expected)
    halves = embag.embedding_bag(
        [1, 2], table, [0], mode="sum", per_sample_weights=np.array([2, 3], np.int8)
    )
    assert_same_bits(
        halves,
        embag.embedding_bag([1, 2], table, [0], mode="sum", per_sample_weights=[2.0, 3.0]),
    )


def test_the_mean_is_a_true_division(level):
    table = np.random.default_rng(0).random((9, 64), dtype=np.float32)
    for n in (3, 5, 7, 9):
        total = embag.embedding_bag(np.arange(n), table, [0], mode="sum")
        mean = embag.embedding_bag(np.arange(n), table, [0], mode="mean")
        assert_same_bits(mean, total / np.float32(n))


@pytest.mark.parametrize("include_last_offset", [False, True])
def test_large_calls_that_get_one_thread(include_last_offset, level):
    table = np.arange(64, dtype=np.float32).reshape(8, 8)
    input, offsets = np.arange(40_000) % 8, np.arange(0, 40_001, 100)
    expected = table.sum(0, dtype=np.float64) * 100 / 8
    with embag.num_threads(1):
        result = embag.embedding_bag(
            input, table, offsets, mode="sum", include_last_offset=include_last_offset
        )
    assert result.shape == (401 - include_last_offset, 8)
    assert not result[400:].any()
    # Each bag has the ids 0 to 7 twelve times, and four of them once more.
    assert np.array_equal(result[:400:2] + result[1:400:2], np.tile(2 * expected, (200, 1)))
