"""float16, bfloat16 and quantized tables, and results in other dtypes: the reference's bits."""

import functools
import itertools
import mmap
import tracemalloc
import warnings

import numpy as np
import pytest
import reference
from cases import (
    CASES,
    EIGHT_BITS,
    NARROW_FLOATS,
    QUANTIZED,
    REDUCTIONS,
    SWAPPED,
    assert_same_bits,
    dtype_of,
    low_precision_table,
    pack,
    ragged,
)

import embag
from embag import QuantizedTable, _call

KINDS = [*NARROW_FLOATS, *EIGHT_BITS, *QUANTIZED]
OUT_DTYPES = ["float32", "float16", "bfloat16"]

ROWS, DIM = 60, 37
INPUT = np.random.default_rng(1).integers(0, ROWS, 200)
OFFSETS = np.arange(0, 200, 9)


def define(input, table, offsets, **options):
    """Return the result and the winning rows of the reference."""
    if isinstance(table, QuantizedTable):
        return reference.quantized_embedding_bag(input, table, offsets, **options)
    with np.errstate(all="ignore"):
        return reference.embedding_bag(input, table.astype(np.float32), offsets, **options)


def options_of(case, reduction):
    options = dict(case.options, mode="sum" if reduction == "weighted" else reduction)
    if reduction == "weighted":
        options["per_sample_weights"] = case.sample_weights()
    return options


@functools.cache
def defined(kind, reduction):
    """Return (case, table, options, result, winning rows) of each case."""
    calls = []
    for case in CASES:
        table = low_precision_table(kind, case.n_rows, case.dim)
        options = options_of(case, reduction)
        calls.append((case, table, options, *define(case.input, table, case.offsets, **options)))
    return calls


def rounded(result, dtype):
    with np.errstate(all="ignore"):
        return result.astype(dtype)


def decoded(table):
    """Return the entries as float32."""
    if isinstance(table, QuantizedTable):
        q, scale, bias = reference.unpack(table.packed, table.bits, table.dim, table.layout)
        with np.errstate(all="ignore"):
            return scale[:, None] * q + bias[:, None]
    return rounded(table, np.float32)


# --- Every case -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reference_bits(kind, reduction, level, eager_threads):
    for case, table, options, expected, _ in defined(kind, reduction):
        for index_dtype, offset_dtype, n_threads in (
            (np.int64, np.int64, 1),
            (np.int32, np.int32, 3),
            (np.int32, np.int64, 3),
            (np.int64, np.int32, 1),
        ):
            input, offsets = case.input.astype(index_dtype), case.offsets
            if offsets is not None:
                offsets = offsets.astype(offset_dtype)
            result = embag.embedding_bag(input, table, offsets, num_threads=n_threads, **options)
            message = f"{case.name}, {index_dtype.__name__}, {n_threads} threads"
            assert_same_bits(result, expected, message)


@pytest.mark.parametrize("kind", KINDS)
def test_max_indices(kind, level, eager_threads):
    for case, table, options, expected, rows in defined(kind, "max"):
        for out_dtype, n_threads in (("float32", 1), ("float32", 3), ("float16", 3)):
            result, max_indices = embag.embedding_bag(
                case.input, table, case.offsets, return_max_indices=True,
                out_dtype=out_dtype, num_threads=n_threads, **options,
            )  # fmt: skip
            assert_same_bits(result, rounded(expected, out_dtype), case.name)
            assert max_indices.dtype == np.int64
            np.testing.assert_array_equal(max_indices, rows, case.name)


@pytest.mark.parametrize("kind", [*KINDS, "float32"])
@pytest.mark.parametrize("out_dtype", OUT_DTYPES)
def test_results_in_another_dtype_are_rounded(kind, out_dtype, level, eager_threads):
    dtype = dtype_of(out_dtype)
    # Factors that make results subnormal, normal or infinite in float16. Rounding does not
    # depend on the case, so the cases take these in turn.
    ways = [("mean", 1), ("max", 1), ("sum", 1), ("sum", 1e-6), ("sum", 1e5)]
    for case, (reduction, scale) in zip(CASES, itertools.cycle(ways), strict=False):
        table = low_precision_table(kind, case.n_rows, case.dim)
        options = options_of(case, reduction)
        if scale != 1:
            options["per_sample_weights"] = np.full(case.input.shape, scale)
        call = functools.partial(embag.embedding_bag, case.input, table, case.offsets)
        expected = rounded(call(**options), dtype)
        result = call(out_dtype=dtype, num_threads=3, **options)
        assert_same_bits(result, expected, case.name)
        out = np.full(expected.shape, 7, dtype)
        result = call(out_dtype=dtype, num_threads=1, out=out, **options)
        assert result is out
        assert_same_bits(out, expected, case.name)


def test_float64_results_of_float64_tables():
    table = np.random.default_rng(0).random((5, 3))
    result = embag.embedding_bag([1, 2], table, [0], out_dtype="float64")
    assert_same_bits(result, embag.embedding_bag([1, 2], table, [0]))


# --- Long bags, wide rows, large tables -----------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_runs_of_biases_and_blocks_of_columns(kind, reduction, level, eager_threads):
    for dim, table, options, expected in long_bags(kind, reduction):
        input, offsets = LONG
        for n_threads in (1, 3):
            result = embag.embedding_bag(input, table, offsets, num_threads=n_threads, **options)
            assert_same_bits(result, expected, f"dim {dim}, {n_threads} threads")


LONG = ragged([31, 32, 33, 0, 63, 64, 65, 96, 1, 97, 130], 6, seed=3)


@functools.cache
def long_bags(kind, reduction):
    input, offsets = LONG
    calls = []
    for dim, padding_idx in ((3, None), (37, 2), (300, 2), (600, -1), (1030, 0)):
        table = low_precision_table(kind, 6, dim)
        options = {"mode": "sum" if reduction == "weighted" else reduction}
        options["padding_idx"] = padding_idx
        if reduction == "weighted":
            options["per_sample_weights"] = np.random.default_rng(dim).standard_normal(len(input))
        calls.append((dim, table, options, define(input, table, offsets, **options)[0]))
    return calls


@functools.cache
def huge_bag(kind, dim):
    input, offsets = ragged([2, 900, 1], 40, seed=5)
    table = low_precision_table(kind, 40, dim)
    options = {"mode": "sum", "padding_idx": 3}
    return input, table, offsets, options, define(input, table, offsets, **options)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_huge_bag_is_split_by_columns(kind, level, eager_threads):
    for dim in (17, 129, 530):
        input, table, offsets, options, expected = huge_bag(kind, dim)
        for n_threads in (2, 3, 8):
            result = embag.embedding_bag(input, table, offsets, num_threads=n_threads, **options)
            assert_same_bits(result, expected, f"dim {dim}, {n_threads} threads")


@pytest.mark.parametrize("kind", KINDS)
def test_bursts_of_prefetches_change_no_bits(kind, level, eager_threads):
    # Rows are prefetched in tables above 512 KiB, and in bursts above 16 MiB: separate paths
    # through the loops. The large table repeats a small one, which the reference reads.
    n_small = 1000
    input, offsets = ragged([*np.random.default_rng(0).geometric(0.05, 60), 0, 300, 1], n_small)
    for dim, total_bytes in ((24, 1 << 20), (24, 17 << 20), (530, 17 << 20)):
        small = low_precision_table(kind, n_small, dim)
        rows = small.packed if isinstance(small, QuantizedTable) else small
        n_copies = total_bytes // rows.nbytes + 1
        large = np.tile(rows, (n_copies, 1))
        if isinstance(small, QuantizedTable):
            large = QuantizedTable.from_packed(large, small.bits, dim, small.layout)
        places = input + n_small * np.random.default_rng(1).integers(0, n_copies, len(input))
        for mode in ("sum", "max"):
            expected = embag.embedding_bag(input, small, offsets, mode=mode)
            if dim == 24:
                assert_same_bits(expected, define(input, small, offsets, mode=mode)[0])
            for n_threads in (1, 3):
                result = embag.embedding_bag(
                    places, large, offsets, mode=mode, num_threads=n_threads
                )
                assert_same_bits(result, expected, f"{dim}, {mode}, {n_threads} threads")


# --- Values ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NARROW_FLOATS)
def test_all_65536_values_are_decoded(kind, level):
    dtype = dtype_of(kind)
    values = np.arange(65536).astype(np.uint16).view(dtype)
    exact = rounded(values, np.float32)
    assert np.isnan(exact).sum() == {"float16": 2046, "bfloat16": 254}[kind]
    for dim in (1, 2, 7, 8, 16, 24, 37, 64, 100, 256, 600):
        n_rows = -(-65536 // dim)
        table = np.resize(values, (n_rows, dim))
        entries = np.resize(exact, (n_rows, dim))
        singles = np.arange(n_rows)[:, None]
        assert_same_bits(embag.embedding_bag(singles, table, mode="max"), entries, f"dim {dim}")
        # Sums start at +0.0.
        totals = np.where(entries == 0, np.float32(0), entries)
        assert_same_bits(embag.embedding_bag(singles, table, mode="sum"), totals, f"dim {dim}")
        # And back: each value is its own nearest.
        result = embag.embedding_bag(singles, table, mode="max", out_dtype=dtype)
        assert_same_bits(result, table, f"dim {dim}")


@pytest.mark.parametrize("kind", QUANTIZED)
def test_all_bytes_are_decoded(kind, level):
    layout, bits = kind[:-1], int(kind[-1])
    for dim in (1, 2, 3, 5, 16, 37, 64, 130, 257):
        n_bytes = -(-dim * bits // 8)
        entries = np.resize(np.arange(256).astype(np.uint8), (-(-256 // n_bytes), n_bytes))
        n_rows = len(entries)
        dtype = np.float32 if kind == "fused8" else np.float16
        factors = np.tile(np.array([1, 0], dtype).view(np.uint8), (n_rows, 1))
        parts = [entries, factors] if layout == "fused" else [factors, entries]
        table = QuantizedTable.from_packed(np.hstack(parts), bits, dim, layout)
        # The lowest bits come first.
        each = np.unpackbits(entries, axis=1, bitorder="little").reshape(n_rows, -1, bits)
        integers = (each * (1 << np.arange(bits))).sum(axis=2)[:, :dim].astype(np.float32)
        for mode in ("sum", "mean", "max"):
            result = embag.embedding_bag(np.arange(n_rows)[:, None], table, mode=mode)
            assert_same_bits(result, integers, f"dim {dim}, {mode}")


def near_each(dtype):
    """Return floats at, next to, between and beyond all values of a narrower dtype."""
    finite = rounded(np.arange(65536).astype(np.uint16).view(dtype), np.float32)
    finite = np.unique(finite[np.isfinite(finite)]).astype(np.float64)
    beyond = finite[-1] + (finite[-1] - finite[-2])  # the next value, if there were one
    grid = np.concatenate([[-beyond], finite, [beyond]])
    middles = rounded((grid[:-1] + grid[1:]) / 2, np.float32)
    with np.errstate(over="ignore"):  # the next value of bfloat16 is not a float32
        floats = np.concatenate([grid.astype(np.float32), middles])
        near = [np.nextafter(floats, np.float32(sign * np.inf)) for sign in (-1, 1)]
    bits = [0, 1, 2, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF]
    bits += np.random.default_rng(0).integers(0, 2**31, 20_000).tolist()
    special = np.array(bits, np.uint32).view(np.float32)
    return np.concatenate([floats, *near, special, -special])


@pytest.mark.parametrize("out_dtype", NARROW_FLOATS)
def test_each_rounding_is_to_nearest_ties_to_even(out_dtype, level):
    dtype = dtype_of(out_dtype)
    values = near_each(dtype)
    expected = rounded(np.where(values == 0, np.float32(0), values), dtype)  # 0.0 + -0.0
    assert np.isinf(expected).sum() > 4 < np.isnan(expected).sum()
    singles = np.zeros((len(values), 1), np.int64)
    # In the kernels: a float16 table of ones and a quantized one, whose 0 times inf is NaN.
    finite = np.isfinite(values)
    for dim in (1, 8, 19):
        options = {"mode": "sum", "per_sample_weights": values[:, None], "out_dtype": dtype}
        result = embag.embedding_bag(singles, np.ones((1, dim), np.float16), **options)
        assert_same_bits(result[:, 0], expected, f"dim {dim}")
        assert (result.view(np.uint16) == result[:, :1].view(np.uint16)).all()
        table = pack(np.ones((1, dim)), [1], [0], 8, "tbe")
        other = embag.embedding_bag(singles, table, **options)
        assert (result.view(np.uint16) == other.view(np.uint16))[finite].all()
        assert np.isnan(other[~finite]).all()
    # In NumPy: a float32 table.
    singles = np.arange(len(values))[:, None]
    result = embag.embedding_bag(singles, values[:, None], mode="sum", out_dtype=dtype)
    assert_same_bits(result[:, 0], expected)


def test_rounding_in_columns_of_a_wide_row(level):
    # Different values next to each other test the vector code of each position in a block.
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = near_each(np.float16)
    for dim in (37, 256, 600):
        rows = np.resize(values, (-(-len(values) // dim), dim))
        table = rounded(rows, ml_dtypes.bfloat16)
        singles = np.arange(len(table))[:, None]
        for dtype in (np.float16, ml_dtypes.bfloat16):
            result = embag.embedding_bag(singles, table, mode="max", out_dtype=dtype)
            assert_same_bits(result, rounded(rounded(table, np.float32), dtype), f"dim {dim}")


@pytest.mark.parametrize("kind", ["fused8", "tbe8", "fused4", "tbe2"])
def test_additions_of_products_are_fused(kind, level):
    # Products halfway between floats, or next to halfway, plus numbers far below and close to
    # them: if a result were rounded twice, or a product by itself, many would differ.
    rng = np.random.default_rng(0)
    layout, bits = kind[:-1], int(kind[-1])
    n = 500
    q = rng.integers(1, 2**bits, (2 * n, 33))
    q[:n] = 1
    scale = rng.integers(-(2**24), 2**24, 2 * n) * 2.0 ** rng.integers(-4, 4, 2 * n)
    scale[:n] = rng.choice([2.0**-100, -(2.0**-100), 2.0**-149, 0], n)
    scale[: n // 2] = -scale[n : n + n // 2] * rng.choice([1, 3, 1 + 2**-20, 2**24], n // 2)
    # Scales of 24 bits are given as weights if those of the table are float16.
    table = pack(q, np.ones(2 * n), np.zeros(2 * n), bits, layout)
    input = np.stack([np.arange(n), n + np.arange(n)], axis=1)
    options = {"mode": "sum", "per_sample_weights": scale[input]}
    expected, _ = define(input, table, None, **options)
    assert_same_bits(embag.embedding_bag(input, table, **options), expected)
    if kind == "fused8":
        table = pack(q, scale, np.zeros(2 * n), bits, layout)
        assert_same_bits(embag.embedding_bag(input, table, mode="sum"), expected)
    # The test would detect a product that is rounded by itself.
    first, second = (np.float32(scale)[input[:, i], None] * q[input[:, i]] for i in (0, 1))
    assert ((np.float32(first) + np.float32(second)) != expected).mean() > (bits > 2) * 0.1


@pytest.mark.parametrize("kind", QUANTIZED)
def test_special_scales_and_biases_follow_the_arithmetic(kind, level, eager_threads):
    layout, bits = kind[:-1], int(kind[-1])
    specials = [np.nan, np.inf, -np.inf, 0, -0.0, 1, -1, 6e-8, 65504]
    if kind == "fused8":
        specials += [3e38, -3e38, 1e-45]
    pairs = np.array(list(itertools.product(specials, specials)))
    rng = np.random.default_rng(0)
    q = rng.integers(0, 2**bits, (len(pairs), 37))
    q[:, :5] = 0  # 0 * inf
    table = pack(q, *pairs.T, bits, layout)
    pick = rng.integers(0, len(pairs), 300)
    for input, offsets in (
        (np.arange(len(pairs)), np.arange(len(pairs))),
        (pick, np.arange(0, 300, 2)),
    ):
        weights = rng.choice([0, np.inf, np.nan, 1, -2, 1e30], len(input))
        for options in (
            {"mode": "sum"},
            {"mode": "mean"},
            {"mode": "max"},
            {"mode": "sum", "per_sample_weights": weights},
        ):
            expected, _ = define(input, table, offsets, **options)
            result = embag.embedding_bag(input, table, offsets, num_threads=3, **options)
            assert_same_bits(result, expected, options["mode"])


@pytest.mark.parametrize("kind", NARROW_FLOATS)
def test_special_values(kind, level):
    dtype = dtype_of(kind)
    specials = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 6e-8, 6e4]).astype(dtype)
    rng = np.random.default_rng(0)
    table = rng.choice(specials, (40, 37))
    input, offsets = rng.integers(0, 40, 300), np.arange(0, 300, 3)
    for mode in ("sum", "mean", "max"):
        expected, rows = define(input, table, offsets, mode=mode)
        result = embag.embedding_bag(input, table, offsets, mode=mode)
        assert_same_bits(result, expected, mode)
    _, max_indices = embag.embedding_bag(input, table, offsets, mode="max", return_max_indices=True)
    np.testing.assert_array_equal(max_indices, rows)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("int8", "uint8")])
def test_padding_rows_may_hold_nan(kind, level):
    table = low_precision_table(kind, 4, 37)
    rows = table.packed if isinstance(table, QuantizedTable) else table.view(f"u{table.itemsize}")
    plain = embag.embedding_bag([0, 2], table, [0, 1, 1], mode="sum")
    rows[1] = 0xFF if rows.itemsize == 1 else 0xFFFF
    assert np.isnan(decoded(table)[1]).all()
    for mode in ("sum", "mean", "max"):
        result = embag.embedding_bag([1, 0, 1, 1, 2], table, [0, 3, 4], mode=mode, padding_idx=-3)
        if mode == "max":
            assert_same_bits(result, define([0, 2], table, np.array([0, 1, 1]), mode=mode)[0])
        else:
            assert_same_bits(result, plain)
    result = embag.embedding_bag(
        [1, 0, 2], table, [0, 2, 2], mode="sum", padding_idx=1, per_sample_weights=[np.nan, 1, 1]
    )
    assert_same_bits(result, plain)


@pytest.mark.parametrize("kind", [*KINDS, "float32"])
def test_overflow_and_nan_raise_nothing(kind, level):
    # Overflow, underflow and NaN are results, whatever np.errstate says.
    pytest.importorskip("ml_dtypes")
    weights = np.array([3e38, 1e-38, 1e-42, np.inf, np.nan, 1], np.float32)
    table = low_precision_table(kind, 6, 37)
    if kind in NARROW_FLOATS:
        table.view(np.uint16)[5] = {"float16": 0x7C01, "bfloat16": 0x7F81}[kind]  # a signalling NaN
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for out_dtype in OUT_DTYPES:
            options = {"out_dtype": dtype_of(out_dtype)}
            call = functools.partial(embag.embedding_bag, np.arange(6)[:, None], table, **options)
            result = call(mode="sum", per_sample_weights=weights[:, None])
            assert np.isnan(result[4]).all()
            assert not np.isfinite(result[3]).any()
            call(mode="max")
            call(mode="mean")
            if kind in NARROW_FLOATS or kind == "float32":
                call(mode="max", return_max_indices=True)


# --- Layouts --------------------------------------------------------------------------


def every_second_row(rows):
    spaced = np.zeros((2 * len(rows), rows.shape[1]), rows.dtype)
    spaced[::2] = rows
    return spaced[::2]


def row_slice(rows):
    return np.concatenate([rows[:3], rows, rows[:2]])[3:-2]


def column_slice(rows):
    wide = np.zeros((len(rows), rows.shape[1] + 20), rows.dtype)
    wide[:, 7 : rows.shape[1] + 7] = rows
    return wide[:, 7 : rows.shape[1] + 7]


def backwards(rows):
    return rows[::-1].copy()[::-1]


def read_only(rows):
    rows.flags.writeable = False
    return rows


def misaligned(rows):
    memory = np.zeros(rows.nbytes + 1, np.uint8)
    view = memory[1:].view(rows.dtype).reshape(rows.shape)
    view[...] = rows
    return view


def subclass(rows):
    return np.ma.masked_array(rows, mask=rows == rows[0, 0])


IN_PLACE = [every_second_row, row_slice, column_slice, backwards, read_only]


def with_layout(table, layout):
    """Return the same table in another layout."""
    if isinstance(table, QuantizedTable):
        return QuantizedTable.from_packed(
            layout(table.packed.copy()), table.bits, table.dim, table.layout
        )
    return layout(table.copy())


@pytest.mark.parametrize("kind", KINDS)
def test_any_layout_gives_the_same_bits(kind, level, eager_threads):
    table = low_precision_table(kind, ROWS, DIM)
    layouts = [*IN_PLACE, misaligned, subclass]
    if kind in NARROW_FLOATS:
        layouts.append(np.asfortranarray)
    for reduction in ("sum", "max"):
        expected = embag.embedding_bag(INPUT, table, OFFSETS, mode=reduction)
        assert_same_bits(expected, define(INPUT, table, OFFSETS, mode=reduction)[0])
        for layout in layouts:
            view = with_layout(table, layout)
            for n_threads in (1, 3):
                result = embag.embedding_bag(
                    INPUT, view, OFFSETS, mode=reduction, num_threads=n_threads
                )
                assert type(result) is np.ndarray
                assert_same_bits(result, expected, layout.__name__)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_with_adjacent_columns_are_not_copied(kind):
    table = low_precision_table(kind, 3000, DIM)
    embag.embedding_bag(INPUT, table, OFFSETS)
    for layout in [*IN_PLACE, *([misaligned] if kind in QUANTIZED else [])]:
        view = with_layout(table, layout)
        tracemalloc.start()
        embag.embedding_bag(INPUT, view, OFFSETS)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < len(OFFSETS) * DIM * 4 + 5000 < 3000 * DIM // 4, layout.__name__


@pytest.mark.parametrize("kind", KINDS)
def test_memory_maps(kind, tmp_path, level):
    table = low_precision_table(kind, ROWS, DIM)
    rows = table.packed if isinstance(table, QuantizedTable) else table
    rows.tofile(tmp_path / "table")
    mapped = np.memmap(tmp_path / "table", rows.dtype, "r", shape=rows.shape)
    if isinstance(table, QuantizedTable):
        mapped = QuantizedTable.from_packed(mapped, table.bits, table.dim, table.layout)
    result = embag.embedding_bag(INPUT, mapped, OFFSETS)
    assert type(result) is np.ndarray
    assert_same_bits(result, embag.embedding_bag(INPUT, table, OFFSETS))


@pytest.mark.parametrize("kind", KINDS)
def test_zero_stride_rows(kind, level):
    table = low_precision_table(kind, 1, 37)
    repeated = with_layout(table, lambda rows: np.broadcast_to(rows, (1000, rows.shape[1])))
    result = embag.embedding_bag([999, 5], repeated, [0], mode="sum")
    assert_same_bits(result, embag.embedding_bag([0, 0], table, [0], mode="sum"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_byte_outside_a_row_is_read(kind, level, eager_threads):
    # The table fills the last bytes of a page, then the first bytes of another. A read of the
    # pages around it would end the process.
    page = mmap.PAGESIZE
    memory = guarded_page()
    if memory is None:
        pytest.skip("no mprotect")
    for dim in (1, 2, 3, 7, 9, 17, 31, 33, 64, 65, 100, 130, 257, 300, 513, 700):
        table = low_precision_table(kind, max(1, min(40, page // (2 * dim + 10))), dim)
        rows = table.packed if isinstance(table, QuantizedTable) else table
        for start in (page - rows.nbytes, 0):
            place = memory[start : start + rows.nbytes].view(rows.dtype).reshape(rows.shape)
            place[...] = rows
            view = with_layout(table, lambda _, place=place: place)
            input = np.tile(np.arange(len(rows))[::-1], 2)
            for mode in ("sum", "max"):
                result = embag.embedding_bag(input, view, [0, 1, 3], mode=mode, num_threads=3)
                expected = embag.embedding_bag(input, table, [0, 1, 3], mode=mode)
                assert_same_bits(result, expected, f"dim {dim}, {mode}")


@functools.cache
def guarded_page():
    """Return the bytes of a page between two unreadable pages."""
    try:
        import ctypes  # noqa: PLC0415

        mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    pages = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    memory = np.frombuffer(pages, np.uint8)
    mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start in (0, 2 * mmap.PAGESIZE):
        if mprotect(memory.ctypes.data + start, mmap.PAGESIZE, 0) != 0:
            return None
    return memory[mmap.PAGESIZE : 2 * mmap.PAGESIZE]


# --- Other options --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_computed_in_float32(kind, level):
    table = low_precision_table(kind, 10, 37)
    weights = np.array([0.1, 0.7, 1 / 3])
    call = functools.partial(embag.embedding_bag, [1, 2, 3], table, [0], mode="sum")
    expected = call(per_sample_weights=weights.astype(np.float32))
    for given in (
        weights,
        weights.tolist(),
        weights.astype(f"{SWAPPED}f8"),
        np.repeat(weights, 2)[::2],
    ):
        assert_same_bits(call(per_sample_weights=given), expected)
    narrow = weights.astype(np.float16)
    assert_same_bits(
        call(per_sample_weights=narrow), call(per_sample_weights=narrow.astype(np.float32))
    )


def test_max_norm_and_another_dtype_of_results():
    table = np.random.default_rng(0).standard_normal((10, 7)).astype(np.float32)
    for layout in (np.ascontiguousarray, np.asfortranarray):
        first, second = layout(table.copy()), layout(table.copy())
        expected = embag.embedding_bag([1, 1, 5], first, [0], 0.5, mode="sum")
        result = embag.embedding_bag([1, 1, 5], second, [0], 0.5, mode="sum", out_dtype="float16")
        assert_same_bits(result, expected.astype(np.float16))
        np.testing.assert_array_equal(first, second)
        assert (first != table).any()


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_float32(kind, level, eager_threads):
    table = low_precision_table(kind, ROWS, DIM)
    expected = embag.embedding_bag(INPUT, table, OFFSETS)
    layers = np.full((3, *expected.shape), 7, np.float32)
    result = embag.embedding_bag(INPUT, table, OFFSETS, out=layers[1], num_threads=3)
    assert result.base is layers
    assert_same_bits(layers[1], expected)
    assert (layers[::2] == 7).all()
    out = np.empty((0, DIM), np.float32)
    assert embag.embedding_bag([], table, [], out=out) is out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("out_dtype", NARROW_FLOATS)
def test_no_byte_outside_out_is_written(kind, out_dtype, level, eager_threads):
    dtype = dtype_of(out_dtype)
    for dim in (1, 2, 3, 5, 9, 37, 65, 130, 257, 600):
        table = low_precision_table(kind, ROWS, dim)
        memory = np.full(40 + len(OFFSETS) * dim, 7, dtype)
        out = memory[20:-20].reshape(len(OFFSETS), dim)
        embag.embedding_bag(INPUT, table, OFFSETS, out=out, out_dtype=dtype, num_threads=3)
        assert (memory[:20] == 7).all()
        assert (memory[-20:] == 7).all()
        assert_same_bits(out, embag.embedding_bag(INPUT, table, OFFSETS, out_dtype=dtype))


# --- Errors ---------------------------------------------------------------------------


def refuse(error, message, *args, **options):
    with pytest.raises(error) as caught:
        embag.embedding_bag(*args, **options)
    assert type(caught.value) is error
    assert str(caught.value) == message


@pytest.mark.parametrize("kind", KINDS)
def test_bad_positions_are_named_and_nothing_is_written(kind, level, eager_threads):
    table = low_precision_table(kind, 10, 37)
    beyond = "is out of range for a table of 10 rows"
    bad = [
        ([1, 10, 3, -1], [0, 1], IndexError, f"input[1] = 10 {beyond} (bag 1)"),
        ([1, 2, 3, -1], [0, 1, 1], IndexError, f"input[3] = -1 {beyond} (bag 2)"),
        ([2**62, 0], [0, 1], IndexError, f"input[0] = {2**62} {beyond} (bag 0)"),
        ([[1, 2], [3, 99]], None, IndexError, f"input[1, 1] = 99 {beyond} (bag 1)"),
        (
            [1, 2],
            [0, 3],
            ValueError,
            "offsets must not exceed the 2 entries of input, got offsets[1] = 3",
        ),
        ([1, 2], [1], ValueError, "offsets must start at 0, got offsets[0] = 1"),
        (
            [1, 2],
            [0, 2, 1],
            ValueError,
            "offsets must not decrease, got offsets[2] = 1 after offsets[1] = 2",
        ),
        ([1, 2], [], ValueError, "offsets must have at least 1 entry where input has 2, got 0"),
        ([1, 2], None, ValueError, "offsets must be given where input is 1-D, got None"),
    ]
    modes = [{"mode": mode} for mode in ("sum", "mean", "max")]
    for (input, offsets, error, message), options in itertools.product(bad, modes):
        for n_threads in (1, 3):
            options["num_threads"] = n_threads
            refuse(error, message, input, table, offsets, **options)
            n_bags = len(input if offsets is None else offsets)
            for out_dtype in ("float32", "float16"):
                out = np.full((n_bags, 37), 7, out_dtype)
                refuse(
                    error, message, input, table, offsets, out=out, out_dtype=out_dtype, **options
                )
                assert (out == 7).all()
    for options in ({"return_max_indices": True}, {"out_dtype": "float16"}):
        input, offsets, error, message = bad[0]
        refuse(error, message, input, table, offsets, mode="max", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_positions_of_no_columns_and_no_rows(kind, level):
    message = "input[0] = 3 is out of range for a table of {} rows (bag 0)"
    refuse(IndexError, message.format(2), [3], low_precision_table(kind, 2, 0), [0])
    refuse(IndexError, message.format(0), [3], low_precision_table(kind, 0, 5), [0])


def type_name(table):
    return f"a {table.dtype}" if isinstance(table, np.ndarray) else "a QuantizedTable"


@pytest.mark.parametrize("kind", KINDS)
def test_errors(kind):
    table = low_precision_table(kind, 10, 4)
    call = functools.partial(refuse, input=[1, 2], weight=table, offsets=[0])
    call(
        ValueError,
        "max_norm must be None where weight is not float32 or float64, "
        f"got {type_name(table)} table",
        max_norm=1.0,
    )
    rule = "out_dtype must be float32, float16 or bfloat16 for a table that is summed in float32"
    for given, seen in (
        (np.float64, "float64"),
        ("int8", "int8"),
        (f"{SWAPPED}f2", f"{SWAPPED}f2"),
        (f"{SWAPPED}f4", f"{SWAPPED}f4"),
        (bool, "bool"),
        ("no dtype", "'no dtype'"),
        (3, "3"),
    ):
        call(TypeError, f"{rule}, got {seen}", out_dtype=given)
    must = "out must have the result's dtype"
    call(TypeError, f"{must} float32, got float16", out=np.zeros((1, 4), np.float16))
    call(
        TypeError,
        f"{must} float16, got float32",
        out=np.zeros((1, 4), np.float32),
        out_dtype=np.float16,
    )
    call(
        TypeError,
        f"{must} float16, got uint16",
        out=np.zeros((1, 4), np.uint16),
        out_dtype=np.float16,
    )
    call(ValueError, "out must have shape (1, 4), got (1, 5)", out=np.zeros((1, 5), np.float32))
    call(
        ValueError,
        "out must be C-contiguous and aligned, got strides (16, 4)",
        out=np.zeros((1, 8), np.float16)[:, ::2],
        out_dtype=np.float16,
    )
    call(
        ValueError,
        "per_sample_weights must be None where mode is 'min', got list",
        per_sample_weights=[1, 1],
        mode="min",
    )
    call(ValueError, "padding_idx must name one of weight's 10 rows, got 10", padding_idx=10)
    call(
        ValueError,
        "return_max_indices must be False where mode is 'mean', got True",
        return_max_indices=True,
    )


def test_out_must_not_share_memory_with_the_table():
    message = "out must share no memory with weight, got an overlap"
    memory = np.zeros(400, np.float32)
    out = memory[2:6].reshape(1, 4)
    table = memory.view(np.float16).reshape(200, 4)
    refuse(ValueError, message, [1], table, [0], out=out)
    table = QuantizedTable.from_packed(memory.view(np.uint8)[:1200].reshape(100, 12), 8, 4)
    refuse(ValueError, message, [1], table, [0], out=out)
    refuse(
        ValueError, message, [1], table, [0],
        out=memory.view(np.float16)[4:8].reshape(1, 4), out_dtype=np.float16,
    )  # fmt: skip


def test_tables_of_other_byte_orders_are_refused():
    kinds = (
        "weight must be float32, float64, float16, bfloat16, int8, uint8, float8_e4m3fn or "
        "float8_e5m2 in native byte order, or a QuantizedTable"
    )
    refuse(TypeError, f"{kinds}, got {SWAPPED}f2", [0], np.zeros((2, 3), f"{SWAPPED}f2"), [0])
    refuse(TypeError, f"{kinds}, got uint16", [0], np.zeros((2, 3), np.uint16), [0])
    refuse(TypeError, f"{kinds}, got |V2", [0], np.zeros((2, 3), "V2"), [0])
    ml_dtypes = pytest.importorskip("ml_dtypes")
    narrower = np.zeros((2, 3), ml_dtypes.float8_e4m3b11fnuz)
    refuse(TypeError, f"{kinds}, got float8_e4m3b11fnuz", [0], narrower, [0])


NO_GRADIENTS = [kind for kind in KINDS if kind not in ("float16", "bfloat16")]


@pytest.mark.parametrize("kind", NO_GRADIENTS)
def test_tables_of_integers_have_no_gradients(kind):
    table = low_precision_table(kind, 10, 4)
    grad = np.zeros((1, 4), np.float32)
    with pytest.raises(TypeError) as caught:
        embag.embedding_bag_backward(grad, [1, 2], table, [0], mode="sum")
    if isinstance(table, np.ndarray):
        kinds = "float32, float64, float16 or bfloat16 in native byte order"
        message = f"weight must be {kinds}, got {kind}"
    else:
        message = "weight must be a numpy.ndarray, got QuantizedTable"
    assert str(caught.value) == message


@pytest.mark.parametrize("kind", QUANTIZED)
def test_rows_of_a_changed_layout_are_not_read(kind, level):
    # NumPy deprecates such changes. As long as they work, they must not cause a wild read.
    def change(**attributes):
        table = low_precision_table(kind, 10, 17)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for name, value in attributes.items():
                    setattr(table.packed, name, value)
        except AttributeError:
            pytest.skip("NumPy has no way to do it")
        return table

    n_bytes = low_precision_table(kind, 1, 17).nbytes
    changes = [{"shape": (10 * n_bytes, 1)}, {"shape": (10 * n_bytes,)}, {"dtype": np.int8}]
    if kind.startswith("fused"):  # longer rows are valid in the other layout
        changes.append({"shape": (1, 10 * n_bytes)})
    for attributes in changes:
        for mode in ("sum", "max"):
            refuse(
                RuntimeError,
                "arrays must not change during the call, got a change of layout",
                [0, 0], change(**attributes), [0], mode=mode,
            )  # fmt: skip


def test_a_masked_out_is_written_as_its_data():
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    for options in ({"mode": "sum"}, {"mode": "max", "return_max_indices": True}):
        for table in (weight, weight.astype(np.float16)):
            out = np.ma.masked_array(np.full((1, 2), 9, np.float16), [[True, False]])
            out.harden_mask()
            embag.embedding_bag([1, 2], table, [0], out=out, out_dtype=np.float16, **options)
            expected = [6, 8] if options["mode"] == "sum" else [4, 5]
            np.testing.assert_array_equal(np.ma.getdata(out), [expected])
            assert out.mask.tolist() == [[True, False]]


@pytest.mark.parametrize("options", [{}, {"return_max_indices": True}])
def test_an_unfinished_result_is_not_returned(options, monkeypatch):
    # Another thread may write a bad id between the check and the kernel.
    weight = np.ones((3, 2), np.float32)
    kernels = _call.kernels

    class Interrupted:
        def __getattr__(self, name):
            return getattr(kernels, name)

        @staticmethod
        def reduce_bags(*arguments):
            return False

    for table in (weight, weight.astype(np.float16)):
        out = np.full((1, 2), 7, np.float16)
        with monkeypatch.context() as patch:
            patch.setattr(_call, "kernels", Interrupted())
            with pytest.raises(RuntimeError, match=r"^arrays must not change during the call"):
                embag.embedding_bag(
                    [0, 1], table, [0], mode="max", out=out, out_dtype=np.float16, **options
                )
        np.testing.assert_array_equal(out, np.full((1, 2), 7, np.float16))
