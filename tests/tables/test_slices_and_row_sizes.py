"""The length and the slices of a `QuantizedTable`, and the warning about larger rows."""

import numpy as np
import pytest

import embag
from embag import QuantizedTable
from embag.quantized import row_bytes

FORMATS = [(8, "fused"), (4, "fused"), (2, "fused"), (8, "tbe"), (4, "tbe"), (2, "tbe")]
SLICES = [
    slice(None),
    slice(2, 5),
    slice(-3, None),
    slice(5, 2),
    slice(0, 100),
    slice(None, None, 3),
    slice(None, None, -1),
    slice(8, 1, -2),
]


def table_of(n_rows, bits=8, layout="fused", dim=5):
    rng = np.random.default_rng(n_rows)
    packed = rng.integers(0, 60, (n_rows, row_bytes(bits, dim, layout)), np.uint8)
    return QuantizedTable.from_packed(packed, bits, dim, layout)


# --- Length ---------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [0, 1, 7])
def test_length_is_the_number_of_rows(n_rows):
    table = table_of(n_rows)
    assert len(table) == n_rows == table.shape[0]


# --- Slices ---------------------------------------------------------------


@pytest.mark.parametrize("rows", SLICES, ids=str)
@pytest.mark.parametrize(("bits", "layout"), FORMATS)
def test_a_slice_has_the_selected_rows(bits, layout, rows):
    table = table_of(10, bits, layout)
    some = table[rows]
    assert type(some) is QuantizedTable
    assert (some.bits, some.dim, some.layout) == (table.bits, table.dim, table.layout)
    assert len(some) == len(range(10)[rows])
    assert some.dequantize().tobytes() == table.dequantize()[rows].tobytes()


@pytest.mark.parametrize("rows", SLICES, ids=str)
def test_a_lookup_in_a_slice_equals_one_in_the_table(rows):
    table = table_of(10)
    some = table[rows]
    ids = np.arange(len(some))
    expected = embag.embedding_bag(np.arange(10)[rows], table, [0], mode="sum")
    assert embag.embedding_bag(ids, some, [0], mode="sum").tobytes() == expected.tobytes()
    with pytest.raises(IndexError, match="out of range for a table of"):
        embag.embedding_bag([len(some)], some, [0])


def test_a_slice_shares_the_memory_of_its_table():
    table = table_of(10)
    assert np.shares_memory(table[2:5].packed, table.packed)


def test_a_slice_of_padded_rows_keeps_the_padding():
    packed = np.random.default_rng(0).integers(0, 60, (6, 16), np.uint8)
    table = QuantizedTable.from_packed(packed, 8, 5, "tbe")
    assert table[1:4].packed.tobytes() == packed[1:4].tobytes()


@pytest.mark.parametrize(
    ("rows", "seen"), [(3, "3"), (-1, "-1"), ([1, 2], "list"), ((slice(2), 0), "tuple")]
)
def test_other_keys_are_refused(rows, seen):
    with pytest.raises(TypeError) as error:
        table_of(10)[rows]
    assert str(error.value) == f"rows must be a slice, got {seen}: see dequantize(rows)"


# --- Sizes of rows -----------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "bits", "dim", "n_bytes"),
    [
        ("float32", 8, 1, 9),
        ("float32", 8, 2, 10),
        ("float32", 4, 1, 5),
        ("float32", 2, 1, 5),
        ("float64", 8, 1, 9),
        ("float16", 8, 7, 15),
        ("float16", 4, 2, 5),
    ],
)
def test_larger_rows_cause_a_warning(dtype, bits, dim, n_bytes):
    weight = np.ones((3, dim), dtype)
    message = (
        f"a row of {dim} entries takes {n_bytes} bytes at {bits} bits, "
        f"more than the {weight.itemsize * dim} of {dtype}"
    )
    with pytest.warns(UserWarning, match="a row of") as seen:
        table = embag.quantize(weight, bits)
    assert [str(warning.message) for warning in seen] == [message]
    assert seen[0].filename == __file__
    assert (table.dequantize() == weight).all()


@pytest.mark.parametrize(
    ("dtype", "bits", "dim"),
    [
        ("float32", 8, 3),  # 11 bytes of 12
        ("float32", 4, 2),
        ("float64", 8, 2),
        ("float64", 4, 1),
        ("float16", 8, 8),  # 16 of 16
        ("float16", 4, 3),
        ("float32", 8, 0),  # without entries
    ],
)
@pytest.mark.filterwarnings("error:a row of:UserWarning")
def test_rows_that_are_not_larger_cause_no_warning(dtype, bits, dim):
    embag.quantize(np.ones((3, dim), dtype), bits)
