"""Gradients: the bits of the reference, for any threads, level and layout."""

import functools
import tracemalloc

import numpy as np
import pytest
import reference
from cases import CASES, REDUCTIONS, SWAPPED, assert_same_bits, call_arguments

import embag

THREADS = (1, 2, 3, 8)
backward = embag.embedding_bag_backward


def n_bags_of(case):
    include_last_offset = case.options.get("include_last_offset", False)
    return len(reference.bags_of(case.input, case.offsets, include_last_offset))


@functools.cache
def expected_of(name, reduction, dtype, scale):
    """Return a gradient of the output of a case, and the gradients of the reference."""
    case = next(case for case in CASES if case.name == name)
    arguments, options = call_arguments(case, reduction, dtype)
    grad_output = np.random.default_rng(2).standard_normal((n_bags_of(case), case.dim))
    grad_output = grad_output.astype(dtype)
    grads = reference.embedding_bag_backward(
        grad_output, *arguments, scale_grad_by_freq=scale, **options
    )
    return grad_output, *grads


def occurring_rows(case):
    """Return the rows in any bag except padding, sorted, each once."""
    n = case.input.size
    if case.options.get("include_last_offset"):
        n = case.offsets[-1]
    rows = np.unique(case.input.reshape(-1)[:n])
    padding = case.options.get("padding_idx")
    return rows if padding is None else rows[rows != padding % case.n_rows]


def added_in_order(rows, grad_output, bags, n_rows, factors=None):
    """Add the gradients of each row position by position: the reference for large inputs."""
    total = np.zeros((n_rows, grad_output.shape[1]), grad_output.dtype)
    given = grad_output[bags]
    np.add.at(total, rows, given if factors is None else factors[:, None] * given)
    return total


def check_case(case, reduction, dtype, index_dtype, n_threads, scale, sparse):
    grad_output, *expected = expected_of(case.name, reduction, dtype, scale)
    arguments, options = call_arguments(case, reduction, dtype, index_dtype)
    message = f"{index_dtype.__name__}, {n_threads} threads, scaled: {scale}, sparse: {sparse}"
    weight, sample = backward(
        grad_output,
        *arguments,
        scale_grad_by_freq=scale,
        sparse=sparse,
        num_threads=n_threads,
        **options,
    )
    if sparse:
        np.testing.assert_array_equal(weight.indices, occurring_rows(case), message)
        weight = weight.to_dense()
    assert_same_bits(weight, expected[0], message)
    if reduction == "weighted":
        assert_same_bits(sample, expected[1], message)
    else:
        assert sample is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reference_bits(case, dtype, reduction, level, eager_threads):
    for index_dtype in (np.int32, np.int64):
        for n_threads in THREADS:
            check_case(case, reduction, dtype, index_dtype, n_threads, False, False)
            if reduction != "max":
                check_case(case, reduction, dtype, index_dtype, n_threads, True, True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("reduction", ["sum", "weighted", "mean"])
def test_sparse_without_scaling_and_scaled_without_sparse(case, reduction, level, eager_threads):
    for n_threads in (1, 3):
        check_case(case, reduction, np.float32, np.int64, n_threads, False, True)
        check_case(case, reduction, np.float32, np.int64, n_threads, True, False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_max_indices_replace_the_search(case, dtype, level, eager_threads):
    grad_output, expected, _ = expected_of(case.name, "max", dtype, False)
    for index_dtype in (np.int32, np.int64):
        (input, table, offsets), options = call_arguments(case, "max", dtype, index_dtype)
        _, rows = embag.embedding_bag(input, table, offsets, return_max_indices=True, **options)
        for n_threads in THREADS:
            result, _ = backward(
                grad_output,
                input,
                np.full_like(table, np.nan),  # not read
                offsets,
                max_indices=rows,
                num_threads=n_threads,
                **options,
            )
            assert_same_bits(result, expected, f"{n_threads} threads")


def test_max_indices_are_trusted(level, eager_threads):
    # Any rows are allowed, even rows in no bag; -1 and padding get no gradient.
    rng = np.random.default_rng(0)
    for dim in (1, 16, 70):
        rows = rng.integers(-1, 9, (50, dim))
        grad_output = rng.standard_normal((50, dim))
        expected = np.zeros((9, dim))
        taken = (rows != -1) & (rows != 4)
        columns = np.broadcast_to(np.arange(dim), rows.shape)
        np.add.at(expected, (rows[taken], columns[taken]), grad_output[taken])
        for given in (rows, rows.astype(np.int32), rows.astype(np.int8), rows.tolist()):
            for n_threads in THREADS:
                result, _ = backward(
                    grad_output,
                    np.zeros((50, 2), int),
                    np.zeros((9, dim)),
                    mode="max",
                    padding_idx=4,
                    max_indices=given,
                    num_threads=n_threads,
                )
                assert_same_bits(result, expected)


@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("offset_dtype", [np.int32, np.int64])
def test_offsets_of_another_integer_dtype_than_input(index_dtype, offset_dtype, level):
    case = next(case for case in CASES if case.name == "ragged")
    grad_output, *expected = expected_of(case.name, "weighted", np.float32, False)
    arguments, options = call_arguments(case, "weighted", np.float32, index_dtype, offset_dtype)
    for result, right in zip(backward(grad_output, *arguments, **options), expected, strict=True):
        assert_same_bits(result, right)


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.uint32, np.uint64, f"{SWAPPED}i4", f"{SWAPPED}i8"]
)
def test_other_integer_dtypes_and_lists_are_converted(dtype):
    weight = np.arange(20, dtype=np.float32).reshape(10, 2)
    grad_output = np.array([[1, 2], [3, 4]], np.float32)
    options = {"mode": "sum", "per_sample_weights": [2.0, 3.0, 5.0]}
    expected = np.zeros((10, 2), np.float32)
    expected[[1, 9, 3]] = [[2, 4], [9, 12], [15, 20]]
    for given in ((np.array([1, 9, 3], dtype), np.array([0, 1], dtype)), ([1, 9, 3], [0, 1])):
        result = backward(grad_output, given[0], weight, given[1], **options)
        assert_same_bits(result.weight, expected)
        assert result.per_sample_weights.tolist() == [8, 130, 46]


def test_two_d_inputs_of_any_layout(level):
    rng = np.random.default_rng(0)
    weight, grad_output = rng.standard_normal((9, 20)), rng.standard_normal((7, 20))
    input, factors = rng.integers(0, 9, (7, 5)), rng.standard_normal((7, 5))
    expected = reference.embedding_bag_backward(
        grad_output, input, weight, mode="sum", per_sample_weights=factors
    )
    for given in (input, np.asfortranarray(input), np.repeat(input, 2, axis=1)[:, ::2]):
        for include_last_offset in (False, True):  # concerns offsets, which a 2-D input has not
            result = backward(
                grad_output,
                given,
                weight,
                mode="sum",
                per_sample_weights=np.asfortranarray(factors),
                include_last_offset=include_last_offset,
            )
            assert_same_bits(result.weight, expected[0])
            assert_same_bits(result.per_sample_weights, expected[1])


# --- Values ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_special_values(dtype, reduction, level, eager_threads):
    specials = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, np.finfo(dtype).tiny / 4]
    rng = np.random.default_rng(0)
    table, grad_output, factors = (
        rng.choice(np.array(specials, dtype), shape) for shape in ((40, 37), (100, 37), 300)
    )
    input, offsets = rng.integers(0, 40, 300), np.arange(0, 300, 3)
    options = {"mode": "sum" if reduction == "weighted" else reduction, "padding_idx": 6}
    if reduction == "weighted":
        options["per_sample_weights"] = factors
    ways = [(False, False), (False, True), (True, False), (True, True)]
    for scale, sparse in ways[: 1 if reduction == "max" else 4]:
        with np.errstate(invalid="ignore"):
            expected = reference.embedding_bag_backward(
                grad_output, input, table, offsets, scale_grad_by_freq=scale, **options
            )
        for n_threads in (1, 3):
            result = backward(
                grad_output,
                input,
                table,
                offsets,
                scale_grad_by_freq=scale,
                sparse=sparse,
                num_threads=n_threads,
                **options,
            )
            weight = result.weight.to_dense() if sparse else result.weight
            assert_same_bits(weight, expected[0])
            if reduction == "weighted":
                assert_same_bits(result.per_sample_weights, expected[1])


def test_sums_start_at_positive_zero(level):
    negative_zero = np.full((2, 5), -0.0, np.float32)
    for options in (
        {"mode": "sum"},
        {"mode": "mean"},
        {"mode": "max"},
        {"mode": "sum", "sparse": True},
        {"mode": "sum", "sparse": True, "scale_grad_by_freq": True},
    ):
        # Row 0 occurs once, row 1 twice, row 2 never.
        weight, _ = backward(
            negative_zero, [0, 1, 1], np.ones((3, 5), np.float32), [0, 2], **options
        )
        weight = weight.to_dense() if options.get("sparse") else weight
        assert not np.signbit(weight).any()
    result = backward(
        negative_zero, [[0], [1]], -negative_zero, mode="sum", per_sample_weights=[[1.0], [1.0]]
    )
    assert not np.signbit(result.weight).any()
    assert not np.signbit(result.per_sample_weights).any()


def test_the_gradient_of_a_mean_is_a_true_division(level):
    # It is divided by the number of entries that are not padding, then added.
    grad_output = np.random.default_rng(0).random((1, 64), np.float32)
    for n in (3, 5, 7, 9):
        input = [*range(n), 9, 9]
        result = backward(grad_output, input, np.ones((10, 64), np.float32), [0], padding_idx=-1)
        for row in result.weight[:n]:
            assert_same_bits(row[None], grad_output / np.float32(n))
        assert not result.weight[n:].any()


def test_gradients_of_padding_and_empty_bags_may_be_nan(level):
    grad_output = np.array([[np.nan] * 3, [1, 2, 3], [np.nan] * 3])
    for mode in ("sum", "mean", "max"):
        result = backward(
            grad_output, [1, 1, 0], np.ones((2, 3)), [0, 2, 3], mode=mode, padding_idx=1
        )
        assert result.weight.tolist() == [[1, 2, 3], [0, 0, 0]]
    result = backward(
        grad_output,
        [1, 1, 0, 1],
        np.array([[1, 1, 1], [np.nan] * 3]),
        [0, 2, 4],
        mode="sum",
        padding_idx=1,
        per_sample_weights=[np.nan, np.inf, 2, np.nan],
    )
    assert result.weight.tolist() == [[2, 4, 6], [0, 0, 0]]
    assert result.per_sample_weights.tolist() == [0, 0, 6, 0]


def test_positions_after_the_last_offset_get_no_gradient(level, eager_threads):
    input = np.array([1, 2, 1, 3, 999, -5])
    for n_threads in THREADS:
        result = backward(
            np.ones((2, 3)),
            input,
            np.full((5, 3), 2.0),
            [0, 1, 3],
            mode="sum",
            include_last_offset=True,
            per_sample_weights=[1, 2, 3, np.nan, np.nan, np.nan],
            num_threads=n_threads,
        )
        assert result.weight[:, 0].tolist() == [0, 4, 2, 0, 0]
        assert result.per_sample_weights.tolist() == [6, 6, 6, 0, 0, 0]


def test_rows_in_no_bag_get_zeros(level, eager_threads):
    # Whatever the memory held before, and however few rows they are.
    rng = np.random.default_rng(0)
    for n_used, n_rows in ((290, 300), (151, 300), (150, 300), (149, 300), (1, 1), (1, 2)):
        rows = np.sort(rng.choice(n_rows, n_used, replace=False))
        expected = np.zeros((n_rows, 600), np.float32)
        expected[rows] = 1
        for n_threads in THREADS:
            dirt = np.full_like(expected, np.nan)
            del dirt  # the next allocation reuses its memory
            result = backward(
                np.ones((n_used, 600), np.float32),
                rng.permuted(rows)[:, None],
                expected,
                mode="sum",
                num_threads=n_threads,
            )
            assert_same_bits(result.weight, expected)


# --- Choice of gradients --------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("scale_grad_by_freq", [False, True])
def test_wrt_names_the_gradient_to_compute(sparse, scale_grad_by_freq, level):
    case = next(case for case in CASES if case.name == "two_d_padded")
    grad_output, *expected = expected_of(case.name, "weighted", np.float32, scale_grad_by_freq)
    (input, table, _), options = call_arguments(case, "weighted", np.float32)
    options |= {"sparse": sparse, "scale_grad_by_freq": scale_grad_by_freq}
    rows = backward(grad_output, input, np.full_like(table, np.nan), wrt="weight", **options)
    assert rows.per_sample_weights is None
    assert_same_bits(rows.weight.to_dense() if sparse else rows.weight, expected[0])
    factors = backward(grad_output, input, table, wrt="per_sample_weights", **options)
    assert factors.weight is None
    assert_same_bits(factors.per_sample_weights, expected[1])
    for mode in ("sum", "mean", "max"):
        result = backward(grad_output, input, table, mode=mode, wrt="weight")
        assert_same_bits(result.weight, backward(grad_output, input, table, mode=mode).weight)


def test_the_result_is_a_named_tuple():
    result = backward(np.ones((1, 2)), [[0]], np.ones((1, 2)))
    assert isinstance(result, embag.EmbeddingBagGrads)
    assert result._fields == ("weight", "per_sample_weights")


# --- Layouts --------------------------------------------------------------------------


def misaligned(array):
    memory = np.empty(array.nbytes + 1, np.uint8)[1:]
    copy = memory.view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def field_of_records(array):
    records = np.zeros(len(array), [("id", "i4"), ("row", array.dtype, array.shape[1])])
    records["row"] = array
    return records["row"]


LAYOUTS = {
    "rows_apart": lambda a: np.repeat(a, 3, axis=0)[::3],
    "rows_reversed": lambda a: a[::-1].copy()[::-1],
    "columns_of_a_wider_array": lambda a: np.hstack([a, a, a])[:, a.shape[1] : 2 * a.shape[1]],
    "columns_apart": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "columns_reversed": lambda a: a[:, ::-1].copy()[:, ::-1],
    "both_reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "fortran": np.asfortranarray,
    "misaligned": misaligned,
    "read_only": read_only,
    "field": field_of_records,
    "another_byte_order": lambda a: a.astype(a.dtype.newbyteorder()),
    "subclass": lambda a: a.view(np.matrix),
}


@pytest.mark.parametrize("layout", [*LAYOUTS, "list"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_grad_output_of_any_layout(layout, reduction, level):
    case = next(case for case in CASES if case.name == "dim_33")
    grad_output, *expected = expected_of(case.name, reduction, np.float32, False)
    arguments, options = call_arguments(case, reduction, np.float32)
    given = grad_output.tolist() if layout == "list" else LAYOUTS[layout](grad_output)
    for n_threads in (1, 2):
        result = backward(given, *arguments, num_threads=n_threads, **options)
        assert type(result.weight) is np.ndarray
        assert_same_bits(result.weight, expected[0])
        if reduction == "weighted":
            assert_same_bits(result.per_sample_weights, expected[1])


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "another_byte_order"])
@pytest.mark.parametrize("reduction", ["weighted", "max"])
def test_weight_of_any_layout(layout, reduction, level):
    case = next(case for case in CASES if case.name == "dim_33")
    grad_output, *expected = expected_of(case.name, reduction, np.float64, False)
    (input, table, offsets), options = call_arguments(case, reduction, np.float64)
    result = backward(grad_output, input, LAYOUTS[layout](table), offsets, **options)
    assert type(result.weight) is np.ndarray
    assert_same_bits(result.weight, expected[0])
    if reduction == "weighted":
        assert_same_bits(result.per_sample_weights, expected[1])


BROADCASTS = {
    "a_row": lambda n, dim: np.broadcast_to(np.linspace(-1, 1, dim, dtype=np.float32), (n, dim)),
    "a_row_of_integers": lambda n, dim: np.broadcast_to(np.arange(dim, dtype=np.int8), (n, dim)),
    "a_row_with_its_columns_apart": lambda n, dim: np.broadcast_to(
        np.linspace(-1, 1, 2 * dim)[::2], (n, dim)
    ),
    "a_column": lambda n, dim: np.broadcast_to(np.linspace(-1, 1, n)[:, None], (n, dim)),
    "a_number": lambda n, dim: np.broadcast_to(np.float32(0.7), (n, dim)),
}


@pytest.mark.parametrize("kind", BROADCASTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_broadcast_grad_output(kind, reduction, level, eager_threads):
    names = ("one_bag", "ragged", "two_d_padded", "two_d_no_bags", "no_columns", "dim_1")
    for case in (case for case in CASES if case.name in names):
        arguments, options = call_arguments(case, reduction, np.float32)
        given = BROADCASTS[kind](n_bags_of(case), case.dim)
        full = np.ascontiguousarray(given, np.float32)
        for n_threads in (1, 3):
            result = backward(given, *arguments, num_threads=n_threads, **options)
            expected = backward(full, *arguments, num_threads=n_threads, **options)
            assert_same_bits(result.weight, expected.weight)
            if reduction == "weighted":
                assert_same_bits(result.per_sample_weights, expected.per_sample_weights)


@pytest.mark.parametrize("given", ["f2", "f4", "f8", "g", "i1", "u2", "i8", "?", f"{SWAPPED}f4"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_grad_output_is_cast_to_the_tables_dtype(given, dtype, level):
    rng = np.random.default_rng(0)
    # Some processors cast negative numbers to unsigned integers with a warning.
    grad_output = abs(rng.standard_normal((4, 20)) * 30).astype(given)
    arguments = rng.integers(0, 6, (4, 3)), rng.standard_normal((6, 20)).astype(dtype)
    for mode in ("sum", "mean", "max"):
        result = backward(grad_output, *arguments, mode=mode)
        expected = reference.embedding_bag_backward(
            grad_output.astype(dtype), *arguments, mode=mode
        )
        assert_same_bits(result.weight, expected[0])


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_masked_array_is_read_as_its_data(mode, level):
    data = np.array([[4.0, 8.0], [2.0, 6.0]])
    masked = np.ma.masked_array(data, mask=[[True, False], [False, True]])
    arguments = np.array([[0, 1], [1, 2]]), np.ones((3, 2))
    result, expected = (backward(given, *arguments, mode=mode) for given in (masked, data))
    assert type(result.weight) is np.ndarray
    assert_same_bits(result.weight, expected.weight)


# --- Sizes ----------------------------------------------------------------------------


def hot_row(n, n_rows, rng):
    return np.where(rng.random(n) < 0.5, 7, rng.integers(0, n_rows, n))


IDS = {
    "one_row_alone": lambda n, n_rows, rng: np.full(n, n_rows // 2),
    "a_hot_row": hot_row,
    "zipf": lambda n, n_rows, rng: np.minimum(rng.zipf(1.2, n), n_rows) - 1,
    "each_once": lambda n, n_rows, rng: rng.permutation(n_rows)[:n],
}


@pytest.mark.parametrize("distribution", IDS)
@pytest.mark.parametrize("dim", [1, 16, 70, 700])
def test_rows_of_any_popularity(distribution, dim, level, eager_threads):
    rng = np.random.default_rng(0)
    n_rows, n = 5_000, 200_000 // (dim + 40)
    input = IDS[distribution](n, n_rows, rng)
    offsets = np.sort(rng.integers(0, n, n // 5))
    offsets[0] = 0
    bags = np.searchsorted(offsets, np.arange(n), side="right") - 1
    grad_output = rng.standard_normal((len(offsets), dim)).astype(np.float32)
    factors = rng.standard_normal(n).astype(np.float32)
    counts = np.bincount(input, minlength=n_rows)
    weight = np.broadcast_to(np.float32(0), (n_rows, dim))
    for sample in (None, factors):
        total = added_in_order(input, grad_output, bags, n_rows, sample)
        scaled = total / np.maximum(counts, 1).astype(np.float32)[:, None]
        for expected, scale, sparse in (
            (total, False, False),
            (total, False, True),
            (scaled, True, True),
        ):
            for n_threads in THREADS:
                result = backward(
                    grad_output,
                    input,
                    weight,
                    offsets,
                    mode="sum",
                    sparse=sparse,
                    wrt="weight",
                    per_sample_weights=sample,
                    scale_grad_by_freq=scale,
                    num_threads=n_threads,
                ).weight
                if sparse:
                    np.testing.assert_array_equal(result.indices, np.flatnonzero(counts))
                    assert_same_bits(result.values, expected[result.indices])
                else:
                    assert_same_bits(result, expected, f"{n_threads} threads")


@pytest.mark.parametrize(("n_bags", "dim"), [(70_000, 64), (9_000, 500), (1_100_000, 4)])
def test_bursts_of_prefetches_of_grad_output_change_no_bits(n_bags, dim, level, eager_threads):
    # Above 16 MiB the kernels prefetch rows in bursts, a separate path through the loops.
    rng = np.random.default_rng(3)
    grad_output = rng.random((n_bags, dim), dtype=np.float32)
    assert grad_output.nbytes > 16 << 20
    n = 8_000
    bags = np.sort(rng.integers(0, n_bags, n))
    offsets = np.searchsorted(bags, np.arange(n_bags))
    input = hot_row(n, 2000, rng)
    factors = rng.random(n, np.float32)
    for sample in (None, factors):
        expected = added_in_order(input, grad_output, bags, 2000, sample)
        for n_threads in (1, 3):
            for sparse in (False, True):
                weight, _ = backward(
                    grad_output,
                    input,
                    np.broadcast_to(np.float32(0), (2000, dim)),
                    offsets,
                    mode="sum",
                    sparse=sparse,
                    per_sample_weights=sample,
                    wrt="weight",
                    num_threads=n_threads,
                )
                weight = weight.to_dense() if sparse else weight
                assert_same_bits(weight, expected, f"{n_threads} threads, sparse: {sparse}")


def test_dot_products_with_a_large_table(level, eager_threads):
    rng = np.random.default_rng(3)
    table = rng.random((70_000, 64), dtype=np.float32)
    lengths = np.concatenate([rng.geometric(0.03, 50) - 1, [0, 500, 1]])
    input = rng.integers(0, 70_000, lengths.sum())
    offsets = np.cumsum(lengths) - lengths
    grad_output = rng.random((len(lengths), 64), dtype=np.float32)
    bags = np.repeat(np.arange(len(lengths)), lengths)
    # Add the columns lane by lane, then fold the lanes in halves.
    lanes = np.zeros((len(input), 16), np.float32)
    for start in range(0, 64, 16):
        columns = slice(start, start + 16)
        lanes = lanes + grad_output[bags, columns] * table[input, columns]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    for n_threads in THREADS:
        result = backward(
            grad_output,
            input,
            table,
            offsets,
            mode="sum",
            per_sample_weights=np.ones(len(input)),
            wrt="per_sample_weights",
            num_threads=n_threads,
        )
        assert_same_bits(result.per_sample_weights, lanes[:, 0])


# --- Unread values, time and memory ---------------------------------------------------

HUGE = np.broadcast_to(np.float32(0), (2**40, 4))  # 16 TiB, of which no page is used


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_unused_values_of_the_table_are_not_read(reduction, level):
    case = next(case for case in CASES if case.name == "ragged")
    grad_output, expected, _ = expected_of(case.name, reduction, np.float32, False)
    (input, table, offsets), options = call_arguments(case, reduction, np.float32)
    if reduction == "max":
        _, rows = embag.embedding_bag(input, table, offsets, return_max_indices=True, **options)
        options["max_indices"] = rows
    for weight in (np.full_like(table, np.nan), np.broadcast_to(np.float32(0), table.shape)):
        result = backward(grad_output, input, weight, offsets, wrt="weight", **options)
        assert_same_bits(result.weight, expected)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_the_cost_of_a_sparse_gradient_does_not_grow_with_the_table(
    n_threads, level, eager_threads
):
    input = np.array([2**40 - 1, 5, 2**39, 5, 7])
    grad_output = np.array([[1, 2, 3, 4], [10, 20, 30, 40]], np.float32)
    for mode, last in (("sum", [10, 20, 30, 40]), ("mean", [5, 10, 15, 20])):
        tracemalloc.start()
        result = backward(
            grad_output,
            input,
            HUGE,
            [0, 3],
            mode=mode,
            sparse=True,
            padding_idx=2**40 - 1,
            num_threads=n_threads,
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20_000  # a few small arrays
        assert result.weight.indices.tolist() == [5, 7, 2**39]
        assert result.weight.shape == (2**40, 4)
        assert result.weight.values[1].tolist() == last


def test_a_dense_gradient_too_large_for_memory_is_a_memory_error():
    # More than 47 bits of addresses: no system provides that.
    for n_rows, dtype in ((2**48, np.float32), (2**56, np.float64)):
        weight = np.broadcast_to(dtype(0), (n_rows, 4))
        for mode in ("sum", "mean", "max"):
            with pytest.raises(MemoryError):
                backward(np.ones((1, 4)), [3], weight, [0], mode=mode, wrt="weight")


def test_padding_that_does_not_occur_in_a_table_of_very_many_rows():
    # Rows and positions together need more than 64 bits.
    weight = np.broadcast_to(np.float32(0), (2**52, 4))
    result = backward(
        np.ones((1, 4)), np.arange(5000), weight, [0], mode="sum", sparse=True, padding_idx=-1
    )
    assert result.weight.indices.tolist() == list(range(5000))


@pytest.mark.parametrize("n_threads", [1, 4])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_memory_is_as_documented(n_threads, weighted, sparse, eager_threads):
    # Besides the result: 16 bytes per position (24 with weights), and 16 per occurring row.
    # grad_output adds nothing, since it is not copied.
    n, n_rows, dim = 200_000, 1_000, 64
    input = np.random.default_rng(0).integers(0, n_rows, n)
    offsets = np.arange(0, n, 2, dtype=np.int32)
    grad_output = np.broadcast_to(np.ones(dim, np.float32), (len(offsets), dim))
    factors = np.ones(n, np.float32) if weighted else None
    tracemalloc.start()
    result = backward(
        grad_output,
        input,
        np.broadcast_to(np.float32(0), (n_rows, dim)),
        offsets,
        mode="sum",
        sparse=sparse,
        per_sample_weights=factors,
        wrt="weight",
        num_threads=n_threads,
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    allowed = (24 if weighted else 16) * n + 16 * n_rows + result.weight.nbytes
    assert peak < allowed + 20_000
