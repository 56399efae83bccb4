"""`EmbeddingBagCollection.save` and `load`: equal bits, whole folders, and errors for bad files."""

import json
import os
import pickle
import re
import threading

import numpy as np
import pytest
from processes import SCRIPTS, run_python

import embag
from embag import EmbeddingBagCollection, Feature, QuantizedTable, RemappedTable, _collection_files

INDEX = "embag-collection.json"
RNG = np.random.default_rng(0)
FLOATS = RNG.standard_normal((20, 6)).astype(np.float32)
TABLES = {
    "float32": FLOATS,
    "float64": FLOATS.astype(np.float64)[:, ::2],
    "float16": FLOATS.astype(np.float16),
    "int8": np.arange(12, dtype=np.int8).reshape(6, 2),
    "8 bits": embag.quantize(FLOATS),
    "4 bits": embag.quantize(FLOATS, 4),
    "symmetric": QuantizedTable.from_int8(np.arange(12, dtype=np.int8).reshape(6, 2), np.arange(6)),
    "remapped": RemappedTable(FLOATS, [0, -1, 19], [1, 2, 3], first_id=2),
    "remapped/quantized": RemappedTable(embag.quantize(FLOATS), np.array([5, 4, 3, 2])),
    "no rows": np.empty((0, 3), np.float32),
    "../Übersicht\n": FLOATS[:3],
}
FEATURES = [
    *(Feature(f"feature of {name}", name) for name in TABLES),
    Feature("mean", "float32", "mean", padding_idx=-1, default_idx=3, normalize=True),
    Feature("max", "8 bits", "max", invalid=np.int64(2)),
    Feature("rows", "4 bits", "none", padding_idx=0, invalid="skip"),
]
IDS = {
    feature.name: np.array([[2, 3], [4, 4]]) if feature.mode == "none" else [[2], [], [2, 3]]
    for feature in FEATURES
} | {"feature of no rows": [[], [], []], "feature of ../Übersicht\n": [[0], [1, 2], []]}


def collection(invalid="skip"):
    return EmbeddingBagCollection(TABLES, FEATURES, invalid=invalid)


def small(value=1.0, n_rows=4):
    return EmbeddingBagCollection(
        {"items": np.full((n_rows, 2), value, np.float32)}, [Feature("clicked", "items")]
    )


def assert_same(one, other):
    assert one.features == other.features
    assert one.invalid == other.invalid
    assert list(one.tables) == list(other.tables)
    for (out, rows), (other_out, other_rows) in [(one(IDS), other(IDS))]:
        assert out.tobytes() == other_out.tobytes()
        assert rows["rows"].tobytes() == other_rows["rows"].tobytes()


@pytest.mark.parametrize("memory", ["map", "copy"])
def test_all_kinds_of_tables_come_back(tmp_path, memory):
    saved = collection()
    saved.save(tmp_path / "new" / "folder")
    loaded = EmbeddingBagCollection.load(str(tmp_path / "new" / "folder"), memory=memory)
    assert_same(loaded, saved)
    assert loaded.tables["float32"].flags.writeable == (memory == "copy")
    assert_same(pickle.loads(pickle.dumps(loaded)), saved)
    loaded.save(tmp_path / "again")
    assert_same(EmbeddingBagCollection.load(tmp_path / "again"), saved)


def test_a_table_of_low_precision(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    table = FLOATS.astype(ml_dtypes.bfloat16)
    EmbeddingBagCollection({"t": table}, [Feature("f", "t")]).save(tmp_path)
    loaded = EmbeddingBagCollection.load(tmp_path).tables["t"]
    assert loaded.dtype == table.dtype
    assert loaded.tobytes() == table.tobytes()


def test_a_collection_without_tables(tmp_path):
    EmbeddingBagCollection({}, []).save(tmp_path)
    assert EmbeddingBagCollection.load(tmp_path).dim == 0


def test_the_index_can_be_read_by_people(tmp_path):
    ebc = EmbeddingBagCollection(
        {"user.items": embag.quantize(FLOATS), "größe": FLOATS},
        [Feature("clicked", "user.items", "mean", padding_idx=0), Feature("size", "größe")],
    )
    ebc.save(tmp_path)
    text = re.sub("-[0-9a-f]{16}", "-*", (tmp_path / INDEX).read_text("utf-8"))
    assert text == (
        "{\n"
        ' "format": 1,\n'
        ' "invalid": "raise",\n'
        ' "tables": {\n'
        '  "user.items": {"file": "user.items-*.safetensors", "shape": [20, 6], '
        '"rows": "8 bits"},\n'
        '  "größe": {"file": "gr_e-*.safetensors", "shape": [20, 6], "rows": "float32"}\n'
        " },\n"
        ' "features": [\n'
        '  {"name": "clicked", "table": "user.items", "mode": "mean", "padding_idx": 0},\n'
        '  {"name": "size", "table": "größe", "mode": "sum"}\n'
        " ]\n"
        "}\n"
    )


def test_a_save_replaces_the_one_before(tmp_path):
    small(1).save(tmp_path)
    (tmp_path / "notes.txt").write_text("of the user")
    first = EmbeddingBagCollection.load(tmp_path)
    small(2, n_rows=7).save(tmp_path)
    second = EmbeddingBagCollection.load(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert (tmp_path / "notes.txt").exists()
    second.save(tmp_path)  # from its own files
    for ebc, value in (first, 1), (second, 2), (EmbeddingBagCollection.load(tmp_path), 2):
        assert ebc({"clicked": [[0]]}).tolist() == [[value, value]]


def test_only_files_of_saves_are_deleted(tmp_path):
    small().save(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    os.rename(tmp_path / index["tables"]["items"]["file"], tmp_path / "mine.safetensors")
    index["tables"]["items"]["file"] = "mine.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert EmbeddingBagCollection.load(tmp_path)({"clicked": [[0]]}).tolist() == [[1, 1]]
    small(2).save(tmp_path)
    assert (tmp_path / "mine.safetensors").exists()


@pytest.mark.parametrize("old", [b"", b"{}", b"\xff" * 10])
def test_a_save_replaces_an_invalid_index(tmp_path, old):
    (tmp_path / INDEX).write_bytes(old)
    small(3).save(tmp_path)
    assert EmbeddingBagCollection.load(tmp_path)({"clicked": [[0]]}).tolist() == [[3, 3]]


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    small(1).save(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    tables = {"a": FLOATS, "b": FLOATS}
    new = EmbeddingBagCollection(tables, [Feature("f", "a")])
    save_table = _collection_files.save_table

    def fail_at_second(path, table):
        if os.path.basename(path).startswith("b"):
            raise OSError(28, "No space left on device")
        save_table(path, table)

    monkeypatch.setattr(_collection_files, "save_table", fail_at_second)
    with pytest.raises(OSError, match="No space left"):
        new.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert EmbeddingBagCollection.load(tmp_path)({"clicked": [[0]]}).tolist() == [[1, 1]]


@pytest.mark.parametrize("name", ["\ud800", "x" * 300])
def test_names_of_files_and_of_tables_differ(tmp_path, name):
    ebc = EmbeddingBagCollection({name: FLOATS}, [Feature("f", name)])
    if name == "\ud800":
        with pytest.raises(ValueError, match="names must be ones that UTF-8 can encode, got"):
            ebc.save(tmp_path / "new")
        assert not (tmp_path / "new").exists()
    else:
        ebc.save(tmp_path)
        assert list(EmbeddingBagCollection.load(tmp_path).tables) == [name]


def test_arguments_are_checked(tmp_path):
    for call in small().save, EmbeddingBagCollection.load:
        with pytest.raises(TypeError, match=r"folder must be a str or an os\.PathLike of one, got"):
            call(3)
    with pytest.raises(ValueError, match="memory must be 'map' or 'copy', got 'mmap'"):
        EmbeddingBagCollection.load(tmp_path, memory="mmap")
    with pytest.raises(TypeError, match="tables must have names of type str, got 1"):
        EmbeddingBagCollection({1: FLOATS}, []).save(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(INDEX)):
        EmbeddingBagCollection.load(tmp_path)


def with_change(change):
    def edit(index):
        change(index)
        return json.dumps(index).encode()

    return edit


def set_file(name):
    return with_change(lambda index: index["tables"]["items"].update(file=name))


def set_feature(**fields):
    return with_change(lambda index: index["features"][0].update(fields))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda index: b"", "index of a collection must be JSON, got Expecting value"),
        (lambda index: json.dumps(index)[:-9].encode(), "must be JSON"),
        (lambda index: b"[" * 100_000, "must be JSON"),
        (lambda index: b"\xff\xfe", "must be JSON, got 'utf-8' codec"),
        (lambda index: b'{"format": 1, "format": 1}', "duplicate key"),
        (lambda index: b'{"format": ' + b"9" * 5000 + b"}", "must be JSON"),
        (lambda index: b"[]", "must be a JSON object, got list"),
        (lambda index: b'{"model_type": "bert"}', "format must be 1, .* got None"),
        (lambda index: b" " * (65 << 20), "at most 67108864 bytes"),
        (
            with_change(lambda index: index.update(format=2)),
            "format must be 1, .* got 2: a newer version",
        ),
        (with_change(lambda index: index.update(extra=0)), "index must be format, invalid, tables"),
        (with_change(lambda index: index.update(invalid=3)), "invalid must be 'raise' or 'skip'"),
        (with_change(lambda index: index.update(tables=[])), "tables must be an object"),
        (with_change(lambda index: index["tables"].update(x={})), "table 'x': entry must be file"),
        (with_change(lambda index: index["tables"]["items"].update(shape=9)), "shape must be"),
        (
            with_change(lambda index: index["tables"]["items"].update(shape=[4, 3])),
            r"must have shape \(4, 3\) and rows of 'float32', as the index says of .* got \(4, 2\)",
        ),
        (with_change(lambda index: index["tables"]["items"].update(rows=[])), "rows of list"),
        (
            with_change(lambda index: index["tables"]["items"].update(shape=[4] * 10**5)),
            r"must have shape \(4, 4, 4",
        ),
        (with_change(lambda index: index["features"].append(3)), r"features\[1\] must be an obj"),
        (set_feature(color="red"), r"features\[0\] must have the fields of a Feature, got others"),
        (set_feature(name=["x"]), r"features\[0\]: name must be a str, got list"),
        (set_feature(table="other"), "table must be a key of tables, got 'other'"),
        (set_feature(mode=[]), "mode"),
        (set_feature(padding_idx=10**400), "padding_idx must name one of the table's 4 rows"),
        (set_feature(padding_idx=0.5), "padding_idx must be an integer, got 0.5"),
        (set_feature(normalize="no"), "normalize must be"),
        (set_file("../x.safetensors"), "file must be the name of a file in the folder, got '../x"),
        (set_file("/etc/passwd"), "file must be the name of a file in the folder"),
        (set_file("C:\\x.npy"), "file must be the name of a file in the folder"),
        (set_file("a\0.safetensors"), "file must be the name of a file in the folder"),
        (set_file(""), "file must be the name of a file in the folder"),
        (set_file(7), "file must be the name of a file in the folder, got 7"),
        (set_file(".."), "path must end in .npy or .safetensors"),
        (set_file(INDEX), "path must end in .npy or .safetensors"),
    ],
)
def test_bad_indexes_are_errors(tmp_path, edit, message):
    small().save(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_bytes(edit(index))
    with pytest.raises(ValueError, match=message) as error:
        EmbeddingBagCollection.load(tmp_path)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("n_bytes", [0, 8, 100, -1])
def test_truncated_tables_are_errors(tmp_path, n_bytes):
    small().save(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match=re.escape(path.name)):
        EmbeddingBagCollection.load(tmp_path)


def test_a_missing_table_is_an_error(tmp_path):
    small().save(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(path.name)):
        EmbeddingBagCollection.load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_an_index_that_is_a_pipe_is_an_error(tmp_path):
    os.mkfifo(tmp_path / INDEX)
    with pytest.raises(ValueError, match="path must lead to a regular file, got a pipe"):
        EmbeddingBagCollection.load(tmp_path)


def test_loads_during_saves_are_whole(tmp_path):
    def values(ebc):
        return {float(table[0, 0]) for table in ebc.tables.values()}

    def save(value):
        tables = {str(i): np.full((3, 2), value, np.float32) for i in range(4)}
        EmbeddingBagCollection(tables, [Feature("f", "0")]).save(tmp_path)

    save(0)
    saving = threading.Thread(target=lambda: [save(value) for value in range(1, 16)])
    saving.start()
    seen = [0.0]
    while saving.is_alive():
        (value,) = values(EmbeddingBagCollection.load(tmp_path))
        seen.append(value)
    saving.join()
    assert seen == sorted(seen)
    assert values(EmbeddingBagCollection.load(tmp_path)) == {15.0}
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.skipif(os.name != "posix", reason="kills processes")
def test_a_process_killed_while_saving_leaves_a_whole_folder(tmp_path):
    run_python(SCRIPTS / "kill_while_saving_collections.py", tmp_path)
