"""`embag quantize`, `embag convert` and `embag info` of tables."""

import json
import tracemalloc

import numpy as np
import pytest
from command_line import TABLE, columns, means, run

import embag

import pyarrow.parquet as pq  # isort: skip


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", ["small.npy", "small.safetensors"])
def test_quantize(bits, name, tmp_path, capsys):
    np.save(tmp_path / "table.npy", TABLE)
    printed = run(
        capsys, "quantize", tmp_path / "table.npy", tmp_path / name, "--bits", bits, "--json"
    )
    summary = json.loads(printed.out)
    small = embag.load_table(tmp_path / name)
    np.testing.assert_array_equal(small.packed, embag.quantize(TABLE, bits).packed)
    error = small.error(TABLE)
    assert (summary["largest_error"], summary["mean_error"], summary["mean_cosine"]) == error
    assert (summary["rows"], summary["dim"], summary["bits"]) == (50, 5, bits)
    assert (summary["bytes_in"], summary["bytes_out"]) == (1000, small.nbytes)
    text = run(capsys, "quantize", tmp_path / "table.npy", tmp_path / name, "--bits", bits).out
    assert f"off by {error.max_abs:.3g} at most" in text


def test_errors_of_quantize(tmp_path, capsys):
    table = TABLE.copy()
    table[7, 1] = np.inf
    np.save(tmp_path / "table.npy", table)
    source, target = tmp_path / "table.npy", tmp_path / "small.npy"
    target.write_bytes(b"old")
    printed = run(capsys, "quantize", source, target, status=1)
    assert printed.err == (
        f"embag quantize: error: {target}: weight must have finite rows, got inf in row 7\n"
    )
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    assert "another file" in run(capsys, "quantize", source, source, status=2).err
    embag.save_table(target, embag.quantize(TABLE))
    printed = run(capsys, "quantize", target, source, status=1)
    assert "table must be of floats, got QuantizedTable" in printed.err


@pytest.mark.parametrize("name", ["table.npy", "table.safetensors"])
def test_info_of_a_table(name, tmp_path, capsys):
    embag.save_table(tmp_path / name, TABLE)
    assert json.loads(run(capsys, "info", tmp_path / name, "--json").out) == {
        "kind": "table",
        "shape": [50, 5],
        "dtype": "float32",
        "order": "C",
        "bytes": 1000,
        "bytes_of_a_row": 20,
        "aligned_to": 64,
    }
    text = run(capsys, "info", tmp_path / name).out
    assert text.startswith("table of 50 x 5, float32, C order, 1.0 kB\nrows of 20 bytes")


def test_info_of_a_quantized_table(tmp_path, capsys):
    embag.save_table(tmp_path / "t.npy", TABLE, bits=4)
    found = json.loads(run(capsys, "info", tmp_path / "t.npy", "--json").out)
    assert (found["bits"], found["layout"], found["bytes_of_a_row"]) == (4, "fused", 7)
    assert "quantized to 4 bits" in run(capsys, "info", tmp_path / "t.npy").out


def test_info_verifies_a_file(tmp_path, capsys):
    path = tmp_path / "t.safetensors"
    embag.save_table(path, TABLE)
    assert json.loads(run(capsys, "info", path, "--verify", "--json").out)["verified"] is True
    assert "the checksum agrees" in run(capsys, "info", path, "--verify").out
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "the file is damaged" in run(capsys, "info", path, "--verify", status=1).err
    embag.save_table(tmp_path / "t.npy", TABLE)
    error = run(capsys, "info", tmp_path / "t.npy", "--verify", status=2).err
    assert "--verify must be left out" in error


def test_info_of_tables_with_a_map_or_scales(tmp_path, capsys):
    path = tmp_path / "t.safetensors"
    embag.save_table(path, embag.RemappedTable(TABLE, [3, -1, 2], [1, 2, 3], first_id=5))
    found = json.loads(run(capsys, "info", path, "--json").out)
    assert (found["shape"], found["rows"], found["first_id"]) == ([3, 5], 50, 5)
    text = run(capsys, "info", path).out
    assert "table of 3 x 5, float32" in text
    assert "ids from 5 on, mapped to 50 rows" in text
    embag.save_table(path, embag.QuantizedTable.from_int8(np.ones((4, 3), np.int8), [1, 2, 3, 4]))
    found = json.loads(run(capsys, "info", path, "--json").out)
    assert (found["shape"], found["layout"], found["bytes"]) == ([4, 3], "symmetric", 28)


def test_convert_keeps_a_map_and_scales(tmp_path, capsys):
    source, target = tmp_path / "t.safetensors", tmp_path / "u.safetensors"
    table = embag.RemappedTable(TABLE, [3, -1, 2], [1, 2, 3], first_id=5)
    embag.save_table(source, table, name="a")
    run(capsys, "convert", source, target, "--tensor", "a")
    found = embag.load_table(target)
    assert repr(found) == repr(table)
    assert embag.embedding([5, 7], found).tobytes() == embag.embedding([5, 7], table).tobytes()


def test_info_of_arrays_that_are_not_tables(tmp_path, capsys):
    np.save(tmp_path / "t.npy", np.asfortranarray(TABLE))
    text = run(capsys, "info", tmp_path / "t.npy").out
    assert "array of 50 x 5, float32, Fortran order" in text
    assert "not a table: table must be in C order, got Fortran order" in text
    (tmp_path / "t.safetensors").write_bytes(b"no table")
    printed = run(capsys, "info", tmp_path / "t.safetensors", status=1)
    assert printed.err.startswith(f"embag info: error: {tmp_path}/t.safetensors: file must have")
    assert "there is no" not in printed.err
    assert run(capsys, "info", tmp_path / "t.npy", "--column", "x", status=2).out == ""


# --- Several tensors ------------------------------------------------------------------


@pytest.fixture
def several(tmp_path):
    """Write a file of three tensors, two of which are tables."""
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "model.safetensors"
    tensors = {"a": TABLE, "b.weight": TABLE[:20, :3].astype(np.float64), "ids": np.arange(4)}
    safetensors_numpy.save_file(tensors, path)
    return path


def test_info_lists_several_tensors(several, capsys):
    assert json.loads(run(capsys, "info", several, "--json").out) == {
        "kind": "tensors",
        "bytes": several.stat().st_size,
        "tensors": {
            "a": {"shape": [50, 5], "dtype": "F32"},
            "b.weight": {"shape": [20, 3], "dtype": "F64"},
            "ids": {"shape": [4], "dtype": "I64"},
        },
    }
    first, *rows = run(capsys, "info", several).out.splitlines()
    assert first.startswith("3 tensors, ")
    assert sorted(rows) == [
        "  a         F32   50 x 5",
        "  b.weight  F64   20 x 3",
        "  ids       I64   4",
    ]
    found = json.loads(run(capsys, "info", several, "--tensor", "b.weight", "--json").out)
    assert (found["kind"], found["shape"], found["dtype"]) == ("table", [20, 3], "float64")
    printed = run(capsys, "info", several, "--tensor", "ids", status=1)
    assert "dtype of 'ids' must be F16, BF16, F32, F64" in printed.err


def test_info_of_a_file_without_tensors(tmp_path, capsys):
    (tmp_path / "t.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert run(capsys, "info", tmp_path / "t.safetensors").out == "0 tensors, 10 B\n"


def test_every_command_that_reads_a_table_takes_the_name_of_a_tensor(several, tmp_path, capsys):
    pq.write_table(columns([[1, 2], [19]]), tmp_path / "in.parquet")
    table = TABLE[:20, :3].astype(np.float64)
    named = ["--tensor", "b.weight"]
    ids = [tmp_path / "in.parquet", "--column", "ids", "--table", several]

    run(capsys, "pool", *ids, "--out", tmp_path / "v.npy", *named)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), means([[1, 2], [19]], table))
    found = json.loads(run(capsys, "info", *ids, "--json", *named).out)
    assert found["column"]["table_rows"] == 20
    run(capsys, "quantize", several, tmp_path / "q.npy", *named)
    small = embag.load_table(tmp_path / "q.npy")
    np.testing.assert_array_equal(small.packed, embag.quantize(table).packed)
    run(capsys, "convert", several, tmp_path / "c.npy", *named)
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), table)


def test_unnamed_and_missing_tensors(several, tmp_path, capsys):
    pq.write_table(columns([[1]]), tmp_path / "in.parquet")
    np.save(tmp_path / "t.npy", TABLE)
    ids = [tmp_path / "in.parquet", "--column", "ids", "--table"]
    out = ["--out", tmp_path / "v.npy"]
    rule = f"{several}: --tensor must be one of the file's tensors ("
    for command in (
        ["pool", *ids, several, *out],
        ["info", *ids, several],
        ["quantize", several, tmp_path / "q.npy"],
        ["convert", several, tmp_path / "q.npy"],
    ):
        printed = run(capsys, *command, status=1)
        assert printed.err.startswith(f"embag {command[0]}: error: {rule}")
        assert printed.err.endswith("), got None\n")
        printed = run(capsys, *command, "--tensor", "c", status=1)
        assert printed.err.endswith("), got 'c'\n")
    printed = run(capsys, "info", several, "--tensor", "c", status=1)
    assert printed.err.startswith(f"embag info: error: {rule}")
    for command in (
        ["pool", *ids, tmp_path / "t.npy", *out],
        ["info", *ids, tmp_path / "t.npy"],
        ["info", tmp_path / "t.npy"],
        ["quantize", tmp_path / "t.npy", tmp_path / "q.npy"],
        ["convert", tmp_path / "t.npy", tmp_path / "q.npy"],
    ):
        printed = run(capsys, *command, "--tensor", "c", status=2)
        assert "t.npy is not a .safetensors file" in " ".join(printed.err.split())
    assert not (tmp_path / "q.npy").exists()
    assert not (tmp_path / "v.npy").exists()


# --- Convert --------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["out.npy", "out.safetensors"])
@pytest.mark.parametrize(
    "source",
    [
        TABLE,
        np.asfortranarray(TABLE),
        TABLE.astype(">f4"),
        np.asfortranarray(TABLE.astype(">f8")),
        TABLE.astype(np.float16)[:0],
        TABLE[:, :0],
    ],
    ids=["c", "fortran", "big_endian", "fortran_big_endian", "no_rows", "no_columns"],
)
def test_convert(out, source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(embag.tables, "_BLOCK", 128)
    np.save(tmp_path / "in.npy", source)
    printed = run(capsys, "convert", tmp_path / "in.npy", tmp_path / out, "--json")
    expected = np.ascontiguousarray(source, source.dtype.newbyteorder("="))
    summary = json.loads(printed.out)
    assert summary.pop("seconds") >= 0
    assert summary == {
        "out": str(tmp_path / out),
        "rows": source.shape[0],
        "dim": source.shape[1],
        "dtype": expected.dtype.name,
        "bytes": expected.nbytes,
    }
    table = embag.load_table(tmp_path / out)
    assert table.dtype == expected.dtype
    assert table.dtype.isnative
    np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize("suffixes", [(".npy", ".safetensors"), (".safetensors", ".npy")])
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_convert_between_formats(suffixes, bits, tmp_path, capsys):
    source, target = (tmp_path / f"t{suffix}" for suffix in suffixes)
    embag.save_table(source, TABLE, bits=bits)
    text = run(capsys, "convert", source, target).out
    kind = "float32" if bits is None else f"{bits} bits"
    assert text.startswith(f"50 x 5 of {kind}, ")
    before, after = embag.load_table(source), embag.load_table(target)
    if bits is None:
        np.testing.assert_array_equal(after, before)
    else:
        assert (after.bits, after.dim, after.layout) == (bits, 5, "fused")
        np.testing.assert_array_equal(after.packed, before.packed)


def test_convert_keeps_bfloat16(tmp_path, capsys):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    table = TABLE.astype(ml_dtypes.bfloat16)
    embag.save_table(tmp_path / "in.npy", table)
    run(capsys, "convert", tmp_path / "in.npy", tmp_path / "out.safetensors")
    found = embag.load_table(tmp_path / "out.safetensors")
    assert found.dtype == table.dtype
    np.testing.assert_array_equal(found.view(np.uint16), table.view(np.uint16))


def test_convert_holds_blocks_in_memory(tmp_path, capsys):
    np.save(tmp_path / "in.npy", np.asfortranarray(np.ones((300_000, 64), np.float32)))  # 77 MB
    tracemalloc.start()
    run(capsys, "convert", tmp_path / "in.npy", tmp_path / "out.npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * embag.tables._BLOCK


def test_convert_that_fails_leaves_the_old_file(tmp_path, capsys):
    source, target = tmp_path / "in.npy", tmp_path / "out.npy"
    target.write_bytes(b"old")
    np.save(source, np.zeros((3, 4), np.int64))
    printed = run(capsys, "convert", source, target, status=1)
    assert printed.err.startswith(f"embag convert: error: {source}: dtype must be float32, ")
    assert "another file" in run(capsys, "convert", source, source, status=2).err
    np.save(source, TABLE)
    printed = run(capsys, "convert", source, tmp_path / "out.txt", status=1)
    assert "path must end in .npy or .safetensors" in printed.err
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_in_fortran_order_is_pooled_from_a_copy(tmp_path, capsys):
    np.save(tmp_path / "t.npy", np.asfortranarray(TABLE))
    np.save(tmp_path / "ids.npy", np.array([[1, 2], [3, 4]]))
    command = ["pool", tmp_path / "ids.npy", "--table", tmp_path / "t.npy", "--out"]
    printed = run(capsys, *command, tmp_path / "v.npy", status=1)
    assert "table must be in C order, got Fortran order: load it with memory='copy'" in printed.err
    run(capsys, *command, tmp_path / "v.npy", "--load", "copy")
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), means([[1, 2], [3, 4]]))


def test_tables_of_other_formats_are_explained(tmp_path, capsys):
    np.savez(tmp_path / "t.npz", weight=TABLE)
    np.save(tmp_path / "ids.npy", np.array([[1, 2], [3, 4]]))
    source, out = tmp_path / "t.npz", tmp_path / "out.npy"
    for command in (
        ["info", source],
        ["convert", source, out],
        ["quantize", source, out],
        ["pool", tmp_path / "ids.npy", "--table", source, "--out", out],
    ):
        printed = run(capsys, *command, status=1)
        assert "an .npz archive of 'weight': read one of them by `table = np" in printed.err
        assert len(printed.err.splitlines()) == 1
