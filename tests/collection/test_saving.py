"""Collections in folders."""

import json
import os

import ml_dtypes
import numpy as np
import pytest

import embag
from embag import EmbeddingBagCollection, Feature

ROWS = np.arange(24, dtype=np.float32).reshape(6, 4)
TABLES = {
    "floats": ROWS,
    "a/b \u00e9": ROWS.astype(np.float64),
    "half": ROWS.astype(np.float16),
    "bfloat16": ROWS.astype(ml_dtypes.bfloat16),
    "8 bits": embag.quantize(ROWS),
    "symmetric": embag.QuantizedTable.from_int8(ROWS.astype(np.int8), np.arange(6.0)),
    "remapped": embag.RemappedTable(ROWS, [5, -1, 0], first_id=7, scales=[1, 2, 3.0]),
    "x" * 300: ROWS,
    "strided": ROWS[::2, ::-1],
}
FEATURES = [
    Feature("a", "floats", "mean", padding_idx=-1, default_idx=2, invalid=3, normalize=True),
    Feature("b", "a/b \u00e9", "max", invalid="skip"),
    Feature("c", "half", "none"),
    *(Feature(name, name) for name in TABLES),
]


def values():
    found = {}
    for feature in FEATURES:
        first = 7 if feature.table == "remapped" else 0
        found[feature.name] = [[first, first + 2], [first + 1, first]]
    return found


@pytest.mark.parametrize("memory", ["map", "copy"])
def test_a_loaded_collection_is_the_same(memory, tmp_path):
    ebc = EmbeddingBagCollection(TABLES, FEATURES, invalid="skip")
    ebc.save(tmp_path / "new" / "folder")
    loaded = EmbeddingBagCollection.load(str(tmp_path / "new" / "folder"), memory)
    assert (loaded.features, loaded.invalid) == (ebc.features, "skip")
    for found, expected in zip(loaded(values()), ebc(values()), strict=True):
        np.testing.assert_equal(found, expected)
    assert loaded.tables["floats"].flags.writeable == (memory == "copy")
    index = json.loads((tmp_path / "new" / "folder" / "collection.json").read_text())
    assert index["tables"]["floats"]["shape"] == [6, 4]
    assert len(os.listdir(tmp_path / "new" / "folder")) == 1 + len(TABLES)


def test_a_new_save_replaces_the_old_one(tmp_path):
    ebc = EmbeddingBagCollection({"t": ROWS}, [Feature("x", "t")])
    ebc.save(tmp_path)
    (tmp_path / "other").touch()
    mapped = EmbeddingBagCollection.load(tmp_path)
    ebc.replace("t", ROWS + 1)
    ebc.save(tmp_path)
    assert len(os.listdir(tmp_path)) == 3
    assert EmbeddingBagCollection.load(tmp_path)({"x": [[0]]})[0, 0] == 1
    assert mapped({"x": [[0]]})[0, 0] == 0  # the file that it has mapped is deleted


def test_a_save_that_fails_changes_nothing(tmp_path, monkeypatch):
    ebc = EmbeddingBagCollection({"t": ROWS, "u": ROWS}, [Feature("x", "t")])
    ebc.save(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    save_table = embag._collection_files.save_table
    calls = []

    def fail(path, table):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save_table(path, table)

    monkeypatch.setattr(embag._collection_files, "save_table", fail)
    with pytest.raises(OSError, match="No space left"):
        ebc.save(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_wrong_kinds(tmp_path):
    ebc = EmbeddingBagCollection({"t": ROWS}, [Feature("x", "t")])
    for call in (ebc.save, EmbeddingBagCollection.load):
        with pytest.raises(TypeError, match=r"folder must be a str or an os\.PathLike of one, got"):
            call(3)
    with pytest.raises(FileNotFoundError):
        EmbeddingBagCollection.load(tmp_path)
    ebc.save(tmp_path)
    with pytest.raises(ValueError, match="memory must be 'map' or 'copy', got 'disk'"):
        EmbeddingBagCollection.load(tmp_path, "disk")


def changed(**fields):
    return lambda index: index.update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.clear(), "file must be a collection of the format"),
        (changed(format="embag collection 2"), "file must be a collection of the format"),
        (changed(other=1), "file must be a collection of the format"),
        (changed(tables=[]), "tables must be an object, got list"),
        (changed(tables={"t": {}}), "table 't' must have a file and a shape, got others"),
        (
            changed(tables={"t": {"file": "../t.npy", "shape": [6, 4]}}),
            "table 't' must be a file of the folder, got '../t.npy'",
        ),
        (
            changed(tables={"t": {"file": 3, "shape": [6, 4]}}),
            "table 't' must be a file of the folder, got 3",
        ),
        (lambda index: index["tables"]["t"].update(shape=[7, 4]), "must have shape [7, 4], got"),
        (changed(features={}), "features must be a list of objects, got others"),
        (changed(features=[3]), "features must be a list of objects, got others"),
        (changed(features=[{"name": "x", "table": "t", "other": 1}]), "other"),
        (changed(features=[{"name": "x", "table": "u"}]), "table must be a key of tables"),
        (changed(features=[{"name": "x", "table": 3}]), "table must be a str, got 3"),
        (changed(features=[{"name": "x", "table": "t", "mode": "median"}]), "mode must be"),
        (changed(features=[{"name": "x", "table": "t", "padding_idx": 99}]), "padding_idx must"),
        (changed(features=[{"name": "x", "table": "t", "invalid": "no"}]), "invalid must"),
        (changed(invalid=5), "invalid must be 'raise' or 'skip', got 5"),
    ],
)
def test_a_folder_that_is_not_one(change, message, tmp_path):
    EmbeddingBagCollection({"t": ROWS}, [Feature("x", "t")]).save(tmp_path)
    path = tmp_path / "collection.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"collection\.json: ") as caught:
        EmbeddingBagCollection.load(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\0"])
def test_an_index_that_is_no_json(text, tmp_path):
    (tmp_path / "collection.json").write_text(text)
    with pytest.raises(ValueError, match="file must be JSON, got"):
        EmbeddingBagCollection.load(tmp_path)


def test_a_truncated_table(tmp_path):
    EmbeddingBagCollection({"t": ROWS}, [Feature("x", "t")]).save(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"collection\.json: "):
        EmbeddingBagCollection.load(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        EmbeddingBagCollection.load(tmp_path)
