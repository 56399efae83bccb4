"""Files of every version since 0.1.0 give the same bits, and this version writes the same files.

There is a folder for each version that added or changed a format. tests/support/stored_files.py
says what is in it. If `test_this_version_writes_what_the_newest_folder_has` fails on purpose,
record a folder for the version that comes next, and leave the others as they are.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import assert_same_bits
from shards import local_shards
from stored_files import MODES, as_gradient, as_weights, make_sharded, record

import embag
from embag import EmbeddingBagCollection

HERE = Path(__file__).parent
VERSIONS = sorted(
    (folder for folder in HERE.iterdir() if (folder / "expected.json").exists()),
    key=lambda folder: [int(part) for part in folder.name.split(".")],
)
EXPECTED = {
    folder: json.loads((folder / "expected.json").read_text("utf-8")) for folder in VERSIONS
}
TABLES = [
    pytest.param(folder, file, id=f"{folder.name}/{file}")
    for folder, expected in EXPECTED.items()
    for file in expected["tables"]
]
# The files are little-endian: other machines cannot map them (tests/tables/test_byte_orders.py).
MEMORIES = ["map", "copy"] if sys.byteorder == "little" else ["copy"]
of_each_version = pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)


def require_dtypes(name):
    if "float8" in name or "bfloat16" in name:
        pytest.importorskip("ml_dtypes")


def test_there_are_files():
    assert VERSIONS[0].name == "0.1.0"
    assert len(TABLES) >= 18


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(("folder", "file"), TABLES)
def test_tables(folder, file, memory, level):
    require_dtypes(file)
    call = EXPECTED[folder]["call"]
    table = embag.load_table(folder / "tables" / file, memory)
    for name, result in EXPECTED[folder]["tables"][file].items():
        mode, is_weighted = MODES[name]
        out = embag.embedding_bag(
            call["input"],
            table,
            call["offsets"],
            mode=mode,
            per_sample_weights=as_weights(call["per_sample_weights"], table)
            if is_weighted
            else None,
            invalid="skip",
        )
        assert_same_bits(out, np.array(result, out.dtype))


@of_each_version
def test_quantized_bytes(folder):
    floats = embag.load_table(folder / "tables" / "float32.npy", "copy")
    for file in ("8-bits.npy", "4-bits.safetensors", "2-bits.npy"):
        table = embag.load_table(folder / "tables" / file, "copy")
        assert embag.quantize(floats, table.bits).packed.tobytes() == table.packed.tobytes()


@pytest.mark.parametrize("memory", MEMORIES)
@of_each_version
def test_collection(folder, memory, level):
    ebc = EmbeddingBagCollection.load(folder / "collection", memory=memory)
    expected = EXPECTED[folder]["collection"]
    call = EXPECTED[folder]["call"]
    bags = np.array(call["input"]), np.array(call["offsets"])
    ids = {f.name: bags if f.mode != "none" else bags[0] for f in ebc.features}
    results = ebc.split(ebc(ids))
    assert results.keys() == expected.keys()
    for name, result in expected.items():
        assert_same_bits(results[name], np.array(result, np.float32))


@of_each_version
def test_training_goes_on(folder, level):
    expected = EXPECTED[folder]["training"]
    items, metadata = embag.load_checkpoint(folder / "training.safetensors", return_metadata=True)
    assert metadata == expected["metadata"]
    assert items.keys() == expected["arrays"].keys() | expected["optimizers"].keys()
    for name, array in expected["arrays"].items():
        assert items[name].dtype == array["dtype"]
        assert items[name].tolist() == array["values"]
    gradient = as_gradient(*expected["next gradient"].values())
    for name, saved in expected["optimizers"].items():
        optimizer = items[name]
        assert type(optimizer).__name__ == saved["class"]
        assert optimizer.n_steps == saved["n_steps"]
        for option, value in saved["options"].items():
            assert getattr(optimizer, option) == (tuple(value) if type(value) is list else value)
        assert optimizer.states.keys() == saved["states"].keys()
        for state, values in saved["states"].items():
            assert_same_bits(optimizer.states[state], np.array(values, np.float32))
        assert_same_bits(optimizer.table, np.array(saved["table"], np.float32))
        optimizer.step(gradient)
        assert_same_bits(optimizer.table, np.array(saved["table after one more step"], np.float32))


@of_each_version
def test_sharded_save(folder, monkeypatch):
    expected = EXPECTED[folder]["sharded"]
    rows = np.array(expected["table"], np.float32)
    blocks = [
        embag.load_checkpoint(folder / "sharded" / f"items-{block}-save1.safetensors")["table"]
        for block in ("0-2", "2-4")
    ]
    assert_same_bits(np.concatenate([block.table for block in blocks]), rows)
    sums = np.concatenate([block.states["sum"] for block in blocks])
    assert_same_bits(sums, np.array(expected["sum"], np.float32))
    with local_shards(monkeypatch), make_sharded() as sharded:
        sharded.restore(folder / "sharded")
        assert_same_bits(sharded({"bought": [[0], [1], [2], [3]]}), rows)


# What this version writes


def read_for_comparison(path):
    """Return what a file holds: of a .npy file, the array, since NumPy writes its header."""
    if path.suffix == ".npy":
        array = np.load(path)
        return array.dtype, array.shape, array.tobytes()
    data = path.read_bytes()
    # In the index of a collection: 16 random digits.
    return re.sub(rb"-[0-9a-f]{16}\.", b".", data) if path.suffix == ".json" else data


def files_in(folder):
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name = re.sub(r"-[0-9a-f]{16}\.", ".", path.relative_to(folder).as_posix())
            found[name] = read_for_comparison(path)
    return found


def test_this_version_writes_what_the_newest_folder_has(tmp_path):
    pytest.importorskip("ml_dtypes")
    record(tmp_path)
    written, stored = files_in(tmp_path), files_in(VERSIONS[-1])
    assert written.keys() == stored.keys()
    assert [name for name in stored if written[name] != stored[name]] == []


# Files of versions to come


def replace_text(path, old, new):
    """Replace text in a file; in a .safetensors file, in its header, whose length may change."""
    data = path.read_bytes()
    assert old in data
    if path.suffix != ".safetensors":
        path.write_bytes(data.replace(old, new))
        return
    end = 8 + int.from_bytes(data[:8], "little")
    header = data[8:end].replace(old, new)
    header += b" " * (-(8 + len(header)) % 64)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])


def load(path, monkeypatch):
    """Load what this file is a part of."""
    if path.parent.name == "tables":
        return embag.load_table(path, "copy")
    if path.parent.name == "collection":
        return EmbeddingBagCollection.load(path.parent, memory="copy")
    if path.parent.name == "sharded":
        with local_shards(monkeypatch), make_sharded() as sharded:
            return sharded.restore(path.parent)
    return embag.load_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("tables/8-bits.npy", b"q8x5", b"q9x5"),
        ("tables/bfloat16.npy", b"bfloat16", b"bfloat99"),
        ("tables/float32.npy", b"<f4", b"<c8"),
        ("tables/4-bits.safetensors", rb"\"bits\": 4", rb"\"bits\": 3"),
        ("tables/4-bits.safetensors", rb"\"dim\"", rb"\"groups\": 2, \"dim\""),
        ("tables/4-bits.safetensors", b"fused", b"other"),
        ("tables/float8-scale.safetensors", b"F8_E4M3", b"F8_E8M0"),
        ("tables/remapped.safetensors", rb"{\"first_id\"", rb"{\"last_id\": 9, \"first_id\""),
        ("tables/remapped.safetensors", rb"\"scales\"", rb"\"biases\""),
        ("collection/embag-collection.json", b'"format": 1', b'"format": 2'),
        (
            "collection/embag-collection.json",
            b'"invalid": "raise"',
            b'"threads": 1, "invalid": "raise"',
        ),
        ("collection/embag-collection.json", b'"shape"', b'"n_bytes": 9, "shape"'),
        ("collection/embag-collection.json", b'"mode"', b'"dtype": "float16", "mode"'),
        ("collection/embag-collection.json", b"sqrtn", b"median"),
        ("training.safetensors", b"FTRL", b"Lion"),
        ("training.safetensors", rb"\"lr_decay\"", rb"\"decay\": 0, \"lr_decay\""),
        ("training.safetensors", rb"\"n_steps\"", rb"\"n_rows\": 4, \"n_steps\""),
        ("training.safetensors", b"adam.exp_avg_sq", b"adam.exp_avg_max"),
        ("sharded/embag-sharded.json", b'"format": 1', b'"format": 2'),
    ],
)
def test_a_newer_file_is_an_error_that_names_it(name, old, new, tmp_path, monkeypatch):
    require_dtypes(name)
    path = shutil.copytree(VERSIONS[-1], tmp_path / "copy") / name
    load(path, monkeypatch)
    replace_text(path, old, new)
    with pytest.raises(ValueError, match=re.escape(path.name)):
        load(path, monkeypatch)
