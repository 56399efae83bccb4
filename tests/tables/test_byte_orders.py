"""Files in both byte orders: .npy files say which they have, .safetensors are little-endian."""

import re

import numpy as np
import pytest
from cases import low_precision_table

import embag
from embag import tables

KINDS = ["float16", "float32", "float64", "fused8", "fused4", "fused2", "tbe8", "tbe4", "tbe2"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def save(path, table):
    """Save a table, and return the array in the file: floats or records."""
    embag.save_table(path.with_suffix(".npy"), table)
    return np.load(path.with_suffix(".npy"))


def bytes_of(table):
    return getattr(table, "packed", table).tobytes()


@every_kind
@pytest.mark.parametrize("block", [1, 8 << 20])
def test_npy_files_in_the_other_order(kind, block, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_BLOCK", block)
    table = low_precision_table(kind, 7, 5)
    path = tmp_path / "table.npy"
    array = save(path, table)
    swapped = array.astype(array.dtype.newbyteorder("S"))
    np.save(path, swapped)
    assert bytes_of(embag.load_table(path, "copy")) == bytes_of(table)
    with tables.open_table(path) as (file, place):
        rows = np.concatenate(list(tables.read_rows(file, place)))
    assert rows.tobytes() == bytes_of(table)
    order = swapped.dtype["scale"].str if swapped.dtype.names else swapped.dtype.str
    message = f"dtype must be in native byte order to be mapped, got {order}: load it with"
    with pytest.raises(ValueError, match=re.escape(message)):
        embag.load_table(path)


def test_records_in_two_orders(tmp_path):
    path = tmp_path / "table.npy"
    fields = [("q8x3", np.uint8, (3,)), ("scale", "<f4"), ("bias", ">f4")]
    np.save(path, np.zeros(2, fields))
    with pytest.raises(ValueError, match="or the records of a quantized table"):
        embag.load_table(path, "copy")


@every_kind
def test_safetensors_files_are_little_endian(kind, tmp_path):
    table = low_precision_table(kind, 7, 5)
    path = tmp_path / "table.safetensors"
    embag.save_table(path, table)
    array = save(path, table)
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    assert path.read_bytes().endswith(data)
    assert bytes_of(embag.load_table(path, "copy")) == bytes_of(table)


def test_parts_and_checkpoints_are_little_endian(tmp_path):
    path = tmp_path / "file.safetensors"
    embag.save_table(
        path, embag.RemappedTable(np.ones((4, 2), np.float32), [3, -1], [0.5, 2], first_id=300)
    )
    data = path.read_bytes()
    assert np.array([3, -1], "<i8").tobytes() + np.array([0.5, 2], "<f4").tobytes() in data
    table = embag.load_table(path, "copy")
    assert (table.index_map.tolist(), table.scales.tolist()) == ([3, -1], [0.5, 2])

    array = np.arange(300, 306).reshape(2, 3)
    embag.save_checkpoint(path, {"x": array})
    assert path.read_bytes().endswith(array.astype("<i8").tobytes())
    np.testing.assert_array_equal(embag.load_checkpoint(path)["x"], array)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("n_rows", [0, 7])
def test_quantized_into_a_file(bits, suffix, n_rows, tmp_path):
    floats = low_precision_table("float32", n_rows, 16)
    one, other = tmp_path / f"one{suffix}", tmp_path / f"other{suffix}"
    embag.save_table(one, floats, bits=bits)
    embag.save_table(other, embag.quantize(floats, bits))
    assert one.read_bytes() == other.read_bytes()
