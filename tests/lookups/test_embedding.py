"""Rows without bags: `embedding` and `embedding_backward`."""

import re

import numpy as np
import pytest

import embag
from embag._kernels import strategies
from embag._kernels.dispatch import kernels

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((20, 5)).astype(np.float32)
TABLE[3] = [-0.0, np.nan, np.inf, -np.inf, 1e-45]


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4), (0,), (2, 0), (1, 1, 1, 2)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_rows_of_any_shape(shape, dtype, level):
    ids = np.asarray(RNG.integers(0, 20, shape)).astype(dtype)
    found = embag.embedding(ids, TABLE)
    assert found.shape == (*shape, 5)
    assert found.tobytes() == TABLE[ids].tobytes()


def test_rows_keep_their_bits(level):
    assert embag.embedding(3, TABLE).tobytes() == TABLE[3].tobytes()
    half = TABLE.astype(np.float16)
    assert embag.embedding([3, 1], half).tobytes() == half[[3, 1]].astype(np.float32).tobytes()
    found = embag.embedding([3, 1], half, out_dtype=np.float16)
    assert found.tobytes() == half[[3, 1]].tobytes()
    quantized = embag.quantize(np.nan_to_num(TABLE, posinf=9, neginf=-9))
    assert embag.embedding([3, 1], quantized).tobytes() == quantized.dequantize()[[3, 1]].tobytes()


WIDTHS = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33, 63, 64, 65, 100, 128, 163, 200, 257, 300, 513]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_copies_of_all_widths(dtype, level, eager_threads):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    for dim in WIDTHS:
        bits = RNG.integers(0, 256, (70, dim * np.dtype(dtype).itemsize), np.uint8)
        table = bits.view(dtype)  # NaN of all kinds, -0.0, subnormals
        spread = np.zeros((70, dim + 3), dtype)
        spread[:, 1:-2] = table
        ids = RNG.integers(0, 70, 203)
        expected = table.view(np.uint8)[ids].tobytes()
        for index_dtype, n_threads in (np.int32, 1), (np.int64, 1), (np.int64, 3):
            given = ids.astype(index_dtype)
            for rows in (table, spread[:, 1:-2], table[::-1].copy()[::-1]):
                options = {"out_dtype": dtype, "num_threads": n_threads}
                found = embag.embedding(given, rows, **options)
                assert found.dtype == dtype
                assert found.tobytes() == expected, (dim, n_threads)
                out = np.full((203, dim), 7, dtype)
                embag.embedding(given, rows, out=out, **options)
                assert out.tobytes() == expected, (dim, n_threads)


@pytest.mark.parametrize("strategy", ["none", "L1:1", "L1:16", "L1:64:16", "L2:64:64", "L2:7:3"])
def test_prefetching_changes_no_bits(strategy, level):
    used = strategies.kernels  # of the level under test
    used.pin_strategy(strategies.parse(strategy))
    try:
        for dim in (5, 64, 700):
            table = RNG.standard_normal((50, dim)).astype(np.float32)
            for n in (0, 1, 2, 63, 64, 65, 200):
                ids = RNG.integers(0, 50, n)
                assert embag.embedding(ids, table).tobytes() == table[ids].tobytes()
    finally:
        used.pin_strategy(None)


@pytest.mark.parametrize("dim", [3, 64, 700])
def test_ids_out_of_range_among_others(dim, level, eager_threads):
    table = RNG.standard_normal((50, dim)).astype(np.float32)
    ids = RNG.integers(0, 50, (40, 5))
    ids[::3, 1] = [50, -1, 2**40, -(2**60), 49] * 2 + [99] * 4
    bad = (ids < 0) | (ids >= 50)
    inside = np.where(bad, 0, ids)
    zeros, replaced = table[inside], table[np.where(bad, 47, ids)]
    zeros[bad] = 0
    quantized = embag.quantize(table)
    for n_threads in (1, 3):
        options = {"num_threads": n_threads}
        found = embag.embedding(ids, table, invalid="skip", **options)
        assert found.tobytes() == zeros.tobytes()
        found = embag.embedding(ids, table, invalid=-3, **options)
        assert found.tobytes() == replaced.tobytes()
        found = embag.embedding(ids, quantized, invalid=47, **options)
        expected = quantized.dequantize()[np.where(bad, 47, ids)]
        assert found.tobytes() == expected.tobytes()
        out = np.full((40, 5, dim), 7, np.float32)
        with pytest.raises(IndexError, match=r"^input\[0, 1\] = 50 is out of range"):
            embag.embedding(ids, table, out=out, **options)
        assert (out == 7).all()
        with pytest.raises(IndexError, match=r"^input\[0, 1\] = 50 is out of range"):
            embag.embedding(ids, table, **options)


def test_results_rounded_to_another_dtype(level):
    ids = RNG.integers(0, 20, (3, 2))
    table = np.nan_to_num(TABLE)
    with np.errstate(over="ignore"):
        expected = table.astype(np.float16)[ids]
    found = embag.embedding(ids, table, out_dtype=np.float16)
    assert found.tobytes() == expected.tobytes()
    out = np.empty((3, 2, 5), np.float16)
    assert embag.embedding(ids, table, out=out, out_dtype=np.float16) is out
    assert out.tobytes() == expected.tobytes()


def test_ids_with_many_axes():
    ids = np.array(3)[(None,) * 30]
    assert embag.embedding(ids, TABLE).shape == (*ids.shape, 5)


def test_a_large_gather_chooses_how_to_prefetch():
    table = np.ones((300, 600), np.float32)
    ids = RNG.integers(0, 300, 20_000)
    kernels.forget_strategies()
    try:
        for _ in range(3):
            assert embag.embedding(ids, table, num_threads=1).all()
        assert [choice.work for choice in strategies.choices()] == [
            "copy, float32 rows of up to 4096 bytes, tables of 512 KiB to 16 MiB, one thread"
        ]
    finally:
        kernels.forget_strategies()


def test_lists_are_arrays():
    assert embag.embedding([[0, 2], [2, 1]], TABLE).tobytes() == TABLE[[[0, 2], [2, 1]]].tobytes()


def test_options():
    assert not embag.embedding([20, -1], TABLE, invalid="skip").any()
    assert embag.embedding([[20], [1]], TABLE, invalid=-1).tobytes() == TABLE[[19, 1]].tobytes()
    assert embag.embedding([2], TABLE, padding_idx=2).tobytes() == TABLE[2].tobytes()
    out = np.empty((2, 1, 5), np.float32)
    assert embag.embedding([[4], [5]], TABLE, out=out) is out
    assert out.tobytes() == TABLE[[4, 5]].tobytes()
    table = np.full((3, 4), 2, np.float32)
    found = embag.embedding([1], table, max_norm=1.0)
    assert found.tobytes() == table[1].tobytes()
    assert abs(np.linalg.norm(found) - 1) < 1e-6
    assert (table[[0, 2]] == 2).all()


def test_tables_that_are_copied():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    for dtype in (np.float32, np.float64, np.float16, bfloat16):
        table = np.asfortranarray(RNG.standard_normal((20, 5)).astype(dtype))
        expected = table[[3, 1]].astype(np.float64 if dtype == np.float64 else np.float32)
        np.testing.assert_array_equal(embag.embedding([3, 1], table), expected, strict=True)
    column = np.zeros((5, 20), np.float32)
    with pytest.raises(ValueError, match="out must share no memory with weight, got an overlap"):
        embag.embedding([1], column.T, out=column.reshape(-1, 5)[:1])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_out_is_written_only_if_all_ids_are_good(dtype):
    out = np.full((2, 5), 7, np.float32)
    with pytest.raises(IndexError, match=re.escape("input[1] = 20 is out of range")):
        embag.embedding(np.array([4, 20], dtype), TABLE, out=out)
    assert (out == 7).all()
    embag.embedding(np.array([4, 19], dtype), TABLE, out=out)
    assert out.tobytes() == TABLE[[4, 19]].tobytes()


def test_each_bad_id_is_found():
    # In tables of this size, rows are prefetched in bursts.
    table = np.ones((300_000, 16), np.float32)
    ids = np.random.default_rng(1).integers(0, len(table), 300)
    for at in (0, 3, 100, 200, 296, 299):
        bad = ids.copy()
        bad[at] = -1
        with pytest.raises(IndexError, match=re.escape(f"input[{at}] = -1 is out of range")):
            embag.embedding(bad, table)


def test_a_long_call_on_one_thread():
    table = np.arange(80, dtype=np.float32).reshape(10, 8)
    ids = np.arange(1_000_000) % 10
    assert embag.embedding(ids, table, num_threads=1).tobytes() == table[ids].tobytes()


def test_outputs_in_the_memory_of_inputs():
    message = "out must share no memory with {}, got an overlap"
    memory = np.zeros(40, np.uint8)
    ids = memory[:16].view(np.int64)
    table = np.ones((3, 5), np.float32)
    with pytest.raises(ValueError, match=message.format("input")):
        embag.embedding(ids, table, out=memory.view(np.float32).reshape(2, 5))
    with pytest.raises(ValueError, match=message.format("weight")):
        embag.embedding([1], table, out=table[2:])
    scales = np.ones(3, np.float32)
    table = embag.QuantizedTable.from_int8(np.ones((3, 1), np.int8), scales)
    with pytest.raises(ValueError, match=message.format("weight")):
        embag.embedding([1], table, out=scales[:1].reshape(1, 1))


def test_outputs_of_another_layout():
    with pytest.raises(ValueError, match="out must be C-contiguous and aligned, got strides"):
        embag.embedding([1], TABLE, out=np.zeros((1, 5), np.float32)[:, ::-1])


def test_tables_without_columns():
    table = np.zeros((3, 0), np.float32)
    out = np.empty((2, 2, 0), np.float32)
    assert embag.embedding([[0, 1], [2, 0]], table, out=out) is out
    assert embag.embedding(1, table).shape == (0,)
    assert embag.embedding_backward(out, [[0, 1], [2, 0]], table).shape == (3, 0)


@pytest.mark.parametrize("sparse", [False, True])
def test_gradient(sparse):
    ids = np.array([[1, 4, 1], [0, 4, 2]])
    grad = RNG.standard_normal((2, 3, 5))
    table = TABLE.astype(np.float64)
    expected = np.zeros_like(table)
    np.add.at(expected, ids, grad)
    expected[2] = 0
    found = embag.embedding_backward(grad, ids, table, padding_idx=2, sparse=sparse)
    np.testing.assert_allclose(found.to_dense() if sparse else found, expected)
    if sparse:
        assert found.indices.tolist() == [0, 1, 4]
    found = embag.embedding_backward(grad, ids, table, scale_grad_by_freq=True)
    np.testing.assert_allclose(found[[1, 4]], expected[[1, 4]] / 2)
    found = embag.embedding_backward(grad, np.where(ids == 4, 99, ids), table, invalid="skip")
    assert not found[4].any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: embag.embedding([[1], [20]], TABLE), IndexError,
         "input[1, 0] = 20 is out of range for a table of 20 rows"),
        (lambda: embag.embedding(-1, TABLE), IndexError,
         "input = -1 is out of range for a table of 20 rows"),
        (lambda: embag.embedding([[1], [2, 3]], TABLE), TypeError,
         "input must be an array of integers, got a ragged input; flatten it, or use "
         "embedding_bag to reduce its lists"),
        (lambda: embag.embedding([1.5], TABLE), TypeError,
         "input must be integers, got dtype float64"),
        (lambda: embag.embedding([1], TABLE, padding_idx=20), ValueError,
         "padding_idx must name one of weight's 20 rows, got 20"),
        (lambda: embag.embedding([1], TABLE, out=np.empty((1, 4), np.float32)), ValueError,
         "out must have shape (1, 5), got (1, 4)"),
        (lambda: embag.embedding_backward(np.ones((1, 4)), [1], TABLE), ValueError,
         "grad_output must have shape (1, 5), got (1, 4)"),
        (lambda: embag.embedding_backward(np.ones((2, 5)), [1, 20], TABLE), IndexError,
         "input[1] = 20 is out of range for a table of 20 rows"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


def test_ragged_columns_are_refused_before_their_library_reads_them():
    # pyarrow trusts the offsets, and reading these ends the process.
    pa = pytest.importorskip("pyarrow")
    items = pa.array([1, 2, 3])
    offsets = pa.py_buffer(np.array([0, 2**31 - 1, 3], np.int32))
    entries = pa.StructArray.from_arrays([items, pa.array([1.0, 2, 3])], ["key", "value"])
    kind = pa.map_(pa.int64(), pa.float64())
    column = pa.Array.from_buffers(kind, 2, [None, offsets], children=[entries])
    table = np.ones((9, 2), np.float32)
    ebc = embag.EmbeddingBagCollection({"t": table}, [embag.Feature("a", "t", mode="none")])
    for call in (lambda: embag.embedding(column, table), lambda: ebc({"a": column})):
        with pytest.raises((TypeError, ValueError), match="must be"):
            call()
    assert embag.embedding(items, table).shape == (3, 2)
    for call in (
        lambda: embag.embedding_bag([1, 2, 3], table, column),
        lambda: embag.embedding_bag([1, 2], table, lengths=column),
        lambda: embag.embedding_bag([1, 2], table, segment_ids=column),
        lambda: embag.embedding_bag([1, 2], table, [0], per_sample_weights=column),
        lambda: embag.RemappedTable(table, column),
        lambda: embag.RemappedTable(table, [0, 1], column),
    ):
        with pytest.raises((TypeError, ValueError), match="must"):
            call()


def test_rows_with_a_scale(level):
    q, scales = np.array([[1, 2], [3, 4], [5, 6]], np.int8), np.array([1, 10, 100], np.float32)
    table = embag.QuantizedTable.from_int8(q, scales)
    for ids in (np.array([2, 0, 1]), [2, 0, 1]):
        assert embag.embedding(ids, table).tolist() == [[500, 600], [1, 2], [30, 40]]
