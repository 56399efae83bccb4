"""Saving and loading tables that have a map, or scales of their own."""

import json

import numpy as np
import pytest
from cases import EIGHT_BITS, low_precision_table

import embag
from embag import QuantizedTable, RemappedTable

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
Q = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)


def tables():
    yield RemappedTable(ROWS)
    yield RemappedTable(ROWS, first_id=9)
    yield RemappedTable(ROWS, [3, -1, 0, 0, 1])
    yield RemappedTable(ROWS.astype(np.float64), np.array([3, -1], np.int32), [0.1, 2], 7)
    yield RemappedTable(embag.quantize(ROWS), [1, -1], [2, 3])
    yield QuantizedTable.from_int8(Q, 0.5)
    yield QuantizedTable.from_int8(Q, [1, 2, 3, 0.1])
    yield RemappedTable(QuantizedTable.from_int8(Q, [1, 2, 3, 0.1]), [2, 3, -1], [1, 2, 3])
    yield RemappedTable(ROWS[:0], [-1, -1])


def values_of(table):
    ids = np.arange(getattr(table, "first_id", 0), getattr(table, "first_id", 0) + len(table))
    return embag.embedding(ids, table)


def assert_equal(found, table):
    assert type(found) is type(table)
    assert found.shape == table.shape
    assert values_of(found).tobytes() == values_of(table).tobytes()
    inner = getattr(found, "table", found)
    assert type(inner) is type(getattr(table, "table", table))
    assert repr(found) == repr(table)


@pytest.mark.parametrize("memory", ["map", "copy"])
def test_what_is_saved_is_loaded(memory, tmp_path):
    path = tmp_path / "table.safetensors"
    for table in tables():
        for name in (None, "items.weight"):
            embag.save_table(path, table, name=name)
            assert_equal(embag.load_table(path, memory), table)
            assert_equal(embag.load_table(path, memory, name=name or "weight"), table)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("kind", EIGHT_BITS)
def test_arrays_of_8_bits(kind, suffix, tmp_path):
    table = low_precision_table(kind, 9, 5)
    path = tmp_path / f"table{suffix}"
    embag.save_table(path, table)
    for memory in ("map", "copy"):
        found = embag.load_table(path, memory)
        assert found.dtype == table.dtype
        assert found.tobytes() == table.tobytes()


def test_the_package_of_the_format_reads_the_tensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "table.safetensors"
    embag.save_table(path, RemappedTable(ROWS, [3, -1], [1.0, 2.0], first_id=5), name="t")
    tensors = safetensors.load_file(path)
    assert {name: array.tolist() for name, array in tensors.items()} == {
        "t": ROWS.tolist(),
        "t.index_map": [3, -1],
        "t.scales": [1, 2],
    }


def test_a_npy_file_holds_one_array(tmp_path):
    for table in tables():
        with pytest.raises(ValueError, match=r"path must end in \.safetensors for a table with a"):
            embag.save_table(tmp_path / "table.npy", table)
    assert not list(tmp_path.iterdir())


def test_a_map_that_has_become_bad_is_not_saved(tmp_path):
    path, index_map = tmp_path / "table.safetensors", np.arange(4)
    table = RemappedTable(ROWS, index_map)
    embag.save_table(path, table)
    saved = path.read_bytes()
    index_map[1] = -5
    with pytest.raises(ValueError, match=r"index_map must hold rows .* got index_map\[1\] = -5"):
        embag.save_table(path, table)
    assert path.read_bytes() == saved


def test_they_are_not_quantized(tmp_path):
    for table in tables():
        with pytest.raises(ValueError, match="bits must be None for a quantized table"):
            embag.save_table(tmp_path / "table.safetensors", table, bits=8)


def change(path, edit):
    """Rewrite the header of a file."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])


def parts_of(first_id, *arrays):
    text = json.dumps({"first_id": first_id, "arrays": arrays})
    return lambda header: header["__metadata__"].update({"embag.weight.parts": text})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (parts_of(0, "index_map", "scales", "others"), "first_id and arrays, got others"),
        (parts_of(0, "scales", "scales"), "first_id and arrays, got others"),
        (parts_of(None, "index_map"), "first_id and arrays, got others"),
        (parts_of("0", "index_map"), "first_id and arrays, got others"),
        (parts_of(-1, "index_map", "scales"), "first_id must be at least 0"),
        (parts_of(0, "index_map", "row_scales"), "row_scales' must be 1-D of F32, got None"),
        (parts_of(0, "scales"), r"scales must have shape \(4,\)"),
        (lambda header: header["weight.index_map"].update(dtype="F64"), "must be 1-D of I32"),
        (lambda header: header["weight.index_map"].update(shape=[2, 1]), "must be 1-D of I32 or"),
        (lambda header: header["weight.index_map"].update(shape=[1]), "must span 8 bytes, got 16"),
        (lambda header: header.update(weight=dict(header["weight"], shape=[1, 12])), "index_map"),
    ],
)  # fmt: skip
def test_bad_parts(edit, message, tmp_path):
    path = tmp_path / "table.safetensors"
    embag.save_table(path, RemappedTable(ROWS, [3, -1], [1.0, 2.0]))
    change(path, edit)
    for memory in ("map", "copy"):
        with pytest.raises(ValueError, match=message):
            embag.load_table(path, memory, name="weight")


def test_scales_of_rows_that_have_scales_are_refused(tmp_path):
    path = tmp_path / "table.safetensors"
    embag.save_table(path, QuantizedTable.from_int8(Q, 0.5))
    packing = json.dumps({"bits": 4, "dim": 0, "layout": "tbe"})

    def edit(header):
        header["weight"]["dtype"] = "U8"
        header["__metadata__"]["embag.weight"] = packing

    change(path, edit)
    with pytest.raises(ValueError, match=r"row_scales must be left out|packed must have rows"):
        embag.load_table(path, name="weight")


def test_a_map_out_of_range_is_refused(tmp_path):
    path = tmp_path / "table.safetensors"
    embag.save_table(path, RemappedTable(ROWS, [3, -1, 2]))
    data = bytearray(path.read_bytes())
    data[-8:] = (4).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"index_map must hold rows .* got index_map\[2\] = 4"):
        embag.load_table(path)
