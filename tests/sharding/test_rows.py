"""Some rows of a table as a table of their own: the same bits, in the same encoding."""

import pickle

import numpy as np
import pytest
from cases import EIGHT_BITS, NARROW_FLOATS, QUANTIZED, assert_same_bits, low_precision_table

import embag
from embag import QuantizedTable, RemappedTable
from embag.ray._rows import copy_table, cut_block, join_rows, take_rows

N_ROWS, DIM = 12, 5


def symmetric(scales):
    integers = np.random.default_rng(0).integers(-127, 128, (N_ROWS, DIM), np.int8)
    return QuantizedTable.from_int8(integers, scales)


def float8():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rows = low_precision_table("float32", N_ROWS, DIM).astype(ml_dtypes.float8_e4m3fn)
    return QuantizedTable.from_float8(rows, np.linspace(1, 2, N_ROWS, dtype=np.float32))


KINDS = {
    kind: lambda kind=kind: low_precision_table(kind, N_ROWS, DIM)
    for kind in ["float32", "float64", *NARROW_FLOATS, *EIGHT_BITS, *QUANTIZED]
}
KINDS |= {
    "one scale": lambda: symmetric(np.float32(0.5)),
    "a scale each row": lambda: symmetric(np.linspace(1, 2, N_ROWS, dtype=np.float32)),
    "float8 with scales": float8,
    "by columns": lambda: np.asfortranarray(low_precision_table("float32", N_ROWS, DIM)),
}


def decode(table):
    return embag.embedding(np.arange(table.shape[0]), table)


def same_encoding(first, second):
    if not isinstance(first, QuantizedTable):
        return type(second) is np.ndarray and first.dtype == second.dtype
    one_scale = first.scales is None or second.scales is None
    return (
        (first.bits, first.dim, first.layout) == (second.bits, second.dim, second.layout)
        and first.packed.dtype == second.packed.dtype
        and (not one_scale or first.scales is second.scales)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_encoding(kind):
    table = KINDS[kind]()
    rows = decode(table)
    for start, stop in ((0, N_ROWS), (3, 8), (N_ROWS - 1, N_ROWS), (0, 0), (N_ROWS, N_ROWS)):
        for is_copied in (False, True):
            block = cut_block(table, start, stop, is_copied)
            assert block.shape == (stop - start, DIM)
            assert same_encoding(table, block)
            assert_same_bits(decode(block), rows[start:stop])
            assert np.shares_memory(memory(block), memory(table)) <= (not is_copied)
            assert_same_bits(decode(pickle.loads(pickle.dumps(block, 5))), rows[start:stop])
    for chosen in ([], [0], [3, 3, 11, 0]):
        taken = take_rows(table, np.array(chosen, np.int64))
        assert same_encoding(table, taken)
        assert_same_bits(decode(taken), rows[chosen])
    parts = [take_rows(table, np.array(part, np.int64)) for part in ([1, 2], [], [11], [0, 0])]
    for n in range(1, 5):
        joined = join_rows(parts[:n])
        assert_same_bits(decode(joined), rows[[1, 2, 11, 0, 0][: [2, 2, 3, 5][n - 1]]])


def memory(table):
    return table if isinstance(table, np.ndarray) else table.packed


@pytest.mark.parametrize("kind", ["float32", "fused8", "tbe4", "one scale", "a scale each row"])
def test_remapped_tables_are_copied_whole(kind):
    rows = KINDS[kind]()
    table = RemappedTable(rows, [3, -1, 0], [1.0, 2.0, 0.5], first_id=9)
    copy = copy_table(table)
    assert type(copy) is RemappedTable
    assert (copy.first_id, copy.shape) == (9, (3, DIM))
    assert not np.shares_memory(memory(copy.table), memory(rows))
    ids = np.array([[9, 10, 11]])
    options = {"mode": "sum", "return_n_valid": True}
    for found, expected in zip(
        embag.embedding_bag(ids, copy, **options),
        embag.embedding_bag(ids, table, **options),
        strict=True,
    ):
        assert_same_bits(found, expected)


def test_a_mapped_file_is_cut_in_place(tmp_path):
    np.save(tmp_path / "table.npy", low_precision_table("float32", N_ROWS, DIM))
    table = np.load(tmp_path / "table.npy", mmap_mode="r")
    assert np.shares_memory(cut_block(table, 2, 5, False), table)
    block = cut_block(table, 2, 5, True)
    assert block.flags.writeable
    assert_same_bits(block, np.array(table[2:5]))
