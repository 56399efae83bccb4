"""Sizes beyond 2**31 and 4 GiB, and what cannot be allocated.

Memory that is only read takes none: `aligned_empty` gives the system's zeros, in huge pages.
So tables of many gigabytes are cheap here, and billions of indices take only time (marked
slow).
"""

import os
import sys
import textwrap

import numpy as np
import pytest
from processes import run_python

import embag

ml_dtypes = pytest.importorskip("ml_dtypes")

pytestmark = pytest.mark.skipif(
    sys.maxsize < 2**33 or sys.platform == "win32", reason="memory counts before it is used"
)

ABOVE = 2**31 + 5


def zeros(shape, dtype):
    """Return an array that takes memory only where it is written to."""
    try:
        return embag.aligned_empty(shape, dtype)
    except MemoryError:
        pytest.skip("this system does not lend so much memory")


def large_table(shape, dtype=np.float32):
    """Return a table of zeros whose first and last rows, and those around 2**31, are not."""
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
        for mode in ("sum", "mean", "max"):
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


LIMITED = """
    import mmap, resource, sys
    import numpy as np
    import embag
    from embag import _threads

    _threads.ENTRIES_PER_THREAD = 1
    rng = np.random.default_rng(0)
    table = rng.standard_normal((20_000, 64)).astype(np.float32)
    turned = np.asfortranarray(table)
    ids = rng.integers(0, 20_000, 300_000)
    narrow, offsets = ids.astype("i2"), np.arange(0, 300_000, 10)
    grad = np.ones((30_000, 64), np.float32)
    weights = np.ones(300_000)
    winners = embag.embedding_bag(ids, table, offsets, mode="max", return_max_indices=True)[1]
    small = embag.quantize(table)
    ebc = embag.EmbeddingBagCollection(
        dict(t=table, q=small), [embag.Feature("a", "t"), embag.Feature("b", "q", "mean")]
    )
    rows = embag.embedding_bag_backward(grad, ids, table, offsets, sparse=True).weight
    path = sys.argv[1] + "/table.npy"
    embag.save_table(path, table)
    bag, backward = embag.embedding_bag, embag.embedding_bag_backward
    CALLS = dict(
        plain=lambda t: bag(ids, table, offsets, num_threads=t),
        turned=lambda t: bag(ids, turned, offsets, num_threads=t),
        narrow=lambda t: bag(narrow, table, offsets, num_threads=t),
        weighted=lambda t: bag(ids, table, offsets, mode="sum", per_sample_weights=weights),
        rounded=lambda t: bag(ids, table, offsets, out_dtype="f2", num_threads=t),
        winners=lambda t: bag(ids, small, offsets, mode="max", return_max_indices=True)[0],
        max_norm=lambda t: bag(ids, table, offsets, max_norm=1e9, num_threads=t),
        dense=lambda t: backward(grad, ids, table, offsets, num_threads=t).weight,
        of_freq=lambda t: backward(
            grad, ids, table, offsets, scale_grad_by_freq=True, num_threads=t).weight,
        sparse=lambda t: backward(
            grad, ids, table, offsets, sparse=True, mode="sum", num_threads=t).weight.values,
        of_weights=lambda t: backward(
            grad, ids, table, offsets, mode="sum", sparse=True, per_sample_weights=weights,
            num_threads=t).per_sample_weights,
        of_max=lambda t: backward(
            grad, ids, table, offsets, mode="max", max_indices=winners, num_threads=t).weight,
        to_dense=lambda t: rows.to_dense(),
        flat=lambda t: ebc(np.tile(ids, 2), np.arange(0, 600_001, 10), num_threads=t),
        named=lambda t: ebc(dict(a=(ids, offsets), b=ids.reshape(-1, 10)), num_threads=t),
        quantize=lambda t: embag.quantize(table, 4, num_threads=t).packed,
        quantize_turned=lambda t: embag.quantize(turned, 4, num_threads=t).packed,
        dequantize=lambda t: small.dequantize(num_threads=t),
        error=lambda t: np.array(small.error(table)),
        copy=lambda t: embag.aligned_copy(table),
        load=lambda t: embag.load_table(path, "copy", num_threads=t),
    )

    def limit(n_bytes):
        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, resource.RLIM_INFINITY))

    def size():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * mmap.PAGESIZE

    for name, call in CALLS.items():
        for n_threads in (1, 2):
            expected = call(n_threads)
            n_failed = 0
            for step in range(0, 125):
                try:
                    limit(size() + (step << 21))
                    try:
                        result = call(n_threads)
                    finally:
                        limit(resource.RLIM_INFINITY)
                except MemoryError:
                    n_failed += 1
                    continue
                assert np.array_equal(result, expected), name
                break
            else:
                raise SystemExit(f"{name}: 250 MB are not enough")
            print(name, n_threads, n_failed)
            assert np.array_equal(call(n_threads), expected), name
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
@pytest.mark.skipif(
    "san.so" in os.environ.get("LD_PRELOAD", ""), reason="sanitizers take all addresses"
)
def test_every_allocation_may_fail(tmp_path):
    # A little more memory at each call: so what is allocated first fails first.
    result = run_python(
        *("-W", "ignore", "-X", "faulthandler", "-c", textwrap.dedent(LIMITED), tmp_path),
        timeout=300,
        # What is freed goes back to the system, and is not there at the next call.
        MALLOC_MMAP_THRESHOLD_="65536",
    )
    failed = [int(line.split()[2]) for line in result.stdout.splitlines()]
    assert sum(n > 0 for n in failed) > len(failed) // 2, result.stdout
