"""Tables of every layout: strided, read-only, memory-mapped, Fortran, misaligned."""

import tracemalloc

import numpy as np
import pytest
from cases import SWAPPED

import embag

ROWS, DIM = 60, 37
INPUT = np.random.default_rng(1).integers(0, ROWS, 200)
OFFSETS = np.arange(0, 200, 9)


def dense(dtype):
    return np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(dtype)


def every_second_row(table):
    spaced = np.zeros((2 * ROWS, DIM), table.dtype)
    spaced[::2] = table
    return spaced[::2]


def column_slice(table):
    wide = np.zeros((ROWS, DIM + 20), table.dtype)
    wide[:, 7 : DIM + 7] = table
    return wide[:, 7 : DIM + 7]


def backwards(table):
    return table[::-1].copy()[::-1]


def structured_field(table):
    records = np.zeros(ROWS, [("id", np.int64), ("vector", table.dtype, DIM)])
    records["vector"] = table
    return records["vector"]


def misaligned(table):
    memory = np.zeros(table.nbytes + 1, np.uint8)
    view = memory[1:].view(table.dtype).reshape(table.shape)
    view[...] = table
    return view


IN_PLACE = [every_second_row, column_slice, backwards, structured_field]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", [*IN_PLACE, np.asfortranarray, misaligned])
def test_any_layout_gives_the_same_bits(layout, dtype, level, eager_threads):
    table = dense(dtype)
    view = layout(table)
    np.testing.assert_array_equal(view, table)
    for mode in ("sum", "mean", "sqrtn", "max", "min"):
        for n_threads in (1, 3):
            np.testing.assert_array_equal(
                embag.embedding_bag(INPUT, view, OFFSETS, mode=mode, num_threads=n_threads),
                embag.embedding_bag(INPUT, table, OFFSETS, mode=mode),
            )


@pytest.mark.parametrize("layout", IN_PLACE)
def test_tables_with_adjacent_columns_are_not_copied(layout):
    table = layout(np.zeros((ROWS, DIM), np.float32))
    large = np.lib.stride_tricks.as_strided(table, table.shape, table.strides)
    embag.embedding_bag(INPUT, large, OFFSETS)
    tracemalloc.start()
    embag.embedding_bag(INPUT, large, OFFSETS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(OFFSETS) * DIM * 4 + 3000 < table.size * 4 + 3000


def test_memory_maps(tmp_path, level):
    table = dense(np.float32)
    np.save(tmp_path / "table.npy", table)
    mapped = np.load(tmp_path / "table.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    result = embag.embedding_bag(INPUT, mapped, OFFSETS)
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, embag.embedding_bag(INPUT, table, OFFSETS))


def test_zero_stride_rows(level):
    row = np.arange(5, dtype=np.float32)
    table = np.broadcast_to(row, (1000, 5))
    np.testing.assert_array_equal(embag.embedding_bag([999, 0], table, [0], mode="sum")[0], 2 * row)


def test_one_column_and_one_row_of_any_stride(level):
    column = np.zeros((10, 8), np.float32)[:, 3:4]
    column[:, 0] = np.arange(10)
    assert embag.embedding_bag([9, 5], column, [0], mode="sum").tolist() == [[14]]
    row = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))[1:2]
    assert embag.embedding_bag([0, 0], row, [0], mode="sum").tolist() == [[8, 10, 12, 14]]


def test_strided_and_byteswapped_indices(level):
    table = dense(np.float32)
    expected = embag.embedding_bag(INPUT, table, OFFSETS)
    spaced = np.repeat(INPUT, 3)[::3]
    np.testing.assert_array_equal(embag.embedding_bag(spaced, table, OFFSETS), expected)
    np.testing.assert_array_equal(
        embag.embedding_bag(INPUT.astype(f"{SWAPPED}i8"), table, np.repeat(OFFSETS, 2)[::2]),
        expected,
    )
    square = INPUT[:196].reshape(14, 14)
    np.testing.assert_array_equal(
        embag.embedding_bag(square.T, table), embag.embedding_bag(square.T.copy(), table)
    )


def test_a_short_row_after_a_page_that_may_not_be_read(level):
    # The last row ends where a mapping ends: a read beyond it would crash the process.
    mmap = pytest.importorskip("mmap")
    for dim in (1, 3, 17, 33, 64, 100, 257):
        n_rows = mmap.PAGESIZE // 4 // dim
        pages = mmap.mmap(-1, mmap.PAGESIZE)
        table = np.frombuffer(pages, np.float32)[-n_rows * dim :].reshape(n_rows, dim)
        for mode in ("sum", "max"):
            assert not embag.embedding_bag([n_rows - 1, 0], table, [0, 1], mode=mode).any()
