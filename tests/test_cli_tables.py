"""`embag quantize` and `embag info` of tables."""

import json

import numpy as np
import pytest
from cli_cases import TABLE, run

import embag


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


def test_quantize_refuses_what_cannot_be(tmp_path, capsys):
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


def test_info_of_what_is_no_table(tmp_path, capsys):
    np.save(tmp_path / "t.npy", np.asfortranarray(TABLE))
    text = run(capsys, "info", tmp_path / "t.npy").out
    assert "array of 50 x 5, float32, Fortran order" in text
    assert "no table for embag: table must be in C order, got Fortran order" in text
    (tmp_path / "t.safetensors").write_bytes(b"no table")
    printed = run(capsys, "info", tmp_path / "t.safetensors", status=1)
    assert printed.err.startswith(f"embag info: error: {tmp_path}/t.safetensors: file must have")
    assert "there is no" not in printed.err
    assert run(capsys, "info", tmp_path / "t.npy", "--column", "x", status=2).out == ""
