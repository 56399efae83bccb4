"""Sizes beyond 2**31 and 4 GiB, and failing allocations.

Memory that is only read is free: `aligned_empty` maps zeros of the system. So tables of many
gigabytes are cheap here, and billions of ids only take time (marked slow).
"""

import os
import sys

import numpy as np
import pytest
from processes import SCRIPTS, run_python

import embag

ml_dtypes = pytest.importorskip("ml_dtypes")

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        sys.maxsize < 2**33 or sys.platform == "win32",
        reason="the system counts memory before it is used",
    ),
]

ABOVE = 2**31 + 5


def zeros(shape, dtype):
    """Return an array that takes memory only where it is written."""
    try:
        return embag.aligned_empty(shape, dtype)
    except MemoryError:
        pytest.skip("this system does not overcommit so much memory")


def large_table(shape, dtype=np.float32):
    """Return a table of zeros, except its first and last rows and those around 2**31."""
    table = zeros(shape, dtype)
    assert table.size > 2**31 or table.nbytes > 2**32
    n_rows, dim = shape
    rows = [0, 1, 2**31 // dim - 1, 2**31 // dim, 2**32 // dim // table.itemsize, n_rows - 1]
    for i, row in enumerate(rows):
        table[row] = i + 1 + np.arange(dim) % 7
    return table, np.array(sorted(set(rows)))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(2**25 + 3, 65), (ABOVE, 1)])
def test_tables_of_more_than_two_billion_entries(shape, dtype, level):
    table, rows = large_table(shape, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    few = table[rows].astype(np.float64 if dtype == "float64" else np.float32)
    for index_dtype in [np.int64, np.int32] if shape[0] < 2**31 else [np.int64]:
        ids = np.concatenate([rows, rows[::-1]]).astype(index_dtype)
        same = np.concatenate([np.arange(len(rows)), np.arange(len(rows))[::-1]])
        for mode in ("sum", "mean", "sqrtn", "max", "min"):
            for options in ({}, {"padding_idx": -1}):
                expected = embag.embedding_bag(same, few, [0, 3], mode=mode, **options)
                result = embag.embedding_bag(ids, table, [0, 3], mode=mode, **options)
                np.testing.assert_array_equal(result, expected)
        with pytest.raises(IndexError, match=rf"= {shape[0]} is out of range"):
            embag.embedding_bag([0, shape[0]], table, [0])


@pytest.mark.parametrize(("bits", "dim"), [(8, 64), (4, 64), (2, 250)])
def test_quantized_tables_of_more_than_four_gigabytes(bits, dim, level):
    n_bytes = embag.quantized.row_bytes(bits, dim)
    packed = zeros((2**32 // n_bytes + 1000, n_bytes), np.uint8)
    rows = np.array([0, 2**31 // n_bytes, len(packed) - 500, len(packed) - 1])
    packed[rows] = embag.quantize(
        np.random.default_rng(0).random((4, dim), np.float32), bits
    ).packed
    table = embag.QuantizedTable.from_packed(packed, bits, dim)
    few = embag.QuantizedTable.from_packed(packed[rows], bits, dim)
    expected = embag.embedding_bag(np.arange(4), few, [0, 1], mode="sum")
    np.testing.assert_array_equal(embag.embedding_bag(rows, table, [0, 1], mode="sum"), expected)
    np.testing.assert_array_equal(table.dequantize(rows), few.dequantize())
    ebc = embag.EmbeddingBagCollection({"t": table}, [embag.Feature("f", "t")])
    np.testing.assert_array_equal(ebc(rows, [0, 1, 4]), expected)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("scale_grad_by_freq", [False, True])
def test_gradients_of_a_table_of_more_than_two_billion_rows(mode, scale_grad_by_freq, level):
    table, rows = large_table((ABOVE, 1))
    few = table[rows]
    ids, same = rows[[0, 3, 3, -1, -2]], np.array([0, 3, 3, len(rows) - 1, len(rows) - 2])
    options = {"mode": mode, "scale_grad_by_freq": scale_grad_by_freq}
    if mode == "sum":
        options["per_sample_weights"] = np.arange(5, dtype=np.float32)
    call = np.array([[1], [2]], np.float32), ids, table, [0, 2]
    expected = embag.embedding_bag_backward(call[0], same, few, [0, 2], **options)
    sparse = embag.embedding_bag_backward(*call, sparse=True, **options)
    np.testing.assert_array_equal(sparse.weight.to_dense()[rows], expected.weight)
    np.testing.assert_array_equal(sparse.weight.indices, np.unique(ids))
    np.testing.assert_array_equal(sparse.per_sample_weights, expected.per_sample_weights)
    dense = embag.embedding_bag_backward(*call, **options)
    assert dense.weight.shape == table.shape
    np.testing.assert_array_equal(dense.weight[rows], expected.weight)
    sparse.weight.add_to(table, 2)
    np.testing.assert_array_equal(table[rows], few + 2 * expected.weight)


def test_more_than_two_billion_bags_of_no_columns():
    table = np.zeros((5, 0), np.float32)
    ids = np.zeros((ABOVE, 0), np.int64)
    assert embag.embedding_bag(ids, table).shape == (ABOVE, 0)
    with pytest.raises(MemoryError):
        embag.embedding_bag(np.zeros((2**55, 0), np.int64), np.zeros((5, 64), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_more_than_two_billion_indices(dtype):
    ids = zeros((ABOVE,), dtype)
    ids[2**31], ids[-1] = 2, 1
    table = np.array([[0], [1], [10]], np.float32)
    offsets = np.array([0, 7, 2**31, ABOVE - 1])
    for options in ({"mode": "sum"}, {"mode": "max"}, {"mode": "mean", "padding_idx": 0}):
        result = embag.embedding_bag(ids, table, offsets, **options)
        assert result.tolist() == [[0], [0], [10], [1]]
    ids[2**31 + 1] = 3
    with pytest.raises(IndexError, match=r"^input\[2147483649\] = 3 .* \(bag 2\)$"):
        embag.embedding_bag(ids, table, offsets)
    with pytest.raises(ValueError, match=rf"exceed the {ABOVE} entries"):
        embag.embedding_bag(ids, table, [0, 2**32])


@pytest.mark.slow
def test_a_gradient_of_more_than_two_billion_indices():
    ids = zeros((1, ABOVE), np.int32)
    ids[0, 2**31 :] = 2
    table = np.zeros((3, 1), np.float32)
    grads = embag.embedding_bag_backward([[1.0]], ids, table, mode="sum", padding_idx=0)
    assert grads.weight.tolist() == [[0], [0], [5]]


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
@pytest.mark.skipif(
    "san.so" in os.environ.get("LD_PRELOAD", ""), reason="sanitizers take all addresses"
)
def test_every_allocation_may_fail(tmp_path):
    script = SCRIPTS / "limit_memory.py"
    result = run_python(
        *("-W", "ignore", "-X", "faulthandler", script, tmp_path),
        timeout=300,
        # Freed memory goes back to the system, and the next call must allocate it again.
        MALLOC_MMAP_THRESHOLD_="65536",
    )
    failed = [int(line.split(", ")[2]) for line in result.stdout.splitlines()]
    assert sum(n > 0 for n in failed) > len(failed) // 2, result.stdout
