"""`embag pool` and `embag info`: input and output formats, and encodings of lists."""

import gzip
import json

import numpy as np
import pytest
from command_line import (
    LIST,
    LISTS,
    TABLE,
    USERS,
    as_text,
    columns,
    means,
    pa,
    pool,
    read,
    run,
    vectors,
)

from embag.cli import _sinks, _sources

import pyarrow.csv  # isort: skip
import pyarrow.parquet as pq  # isort: skip


def write_arrow(table, path, compression=None):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=3)


def write_arrow_stream(table, path):
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def write_text(table, path, delimiter=","):
    text = table.set_column(1, "ids", pa.array(as_text(table["ids"].to_pylist())))
    options = pyarrow.csv.WriteOptions(delimiter=delimiter)
    pyarrow.csv.write_csv(text, path, options)


def write_json(table, path):
    with open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())


def write_json_gz(table, path):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())


def write_csv_zst(table, path):
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        write_text(table, file)


WRITERS = {
    "in.parquet": lambda table, path: pq.write_table(table, path, row_group_size=3),
    "in.PQ": pq.write_table,
    "in.arrow": write_arrow,
    "in.feather": lambda table, path: write_arrow(table, path, "lz4"),
    "in.arrows": write_arrow_stream,
    "stream.arrow": write_arrow_stream,
    "in.csv": write_text,
    "in.tsv": lambda table, path: write_text(table, path, "\t"),
    "in.csv.zst": write_csv_zst,
    "in.jsonl": write_json,
    "in.ndjson.gz": write_json_gz,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_input_format(name, tmp_path, capsys):
    source = tmp_path / name
    WRITERS[name](columns(), str(source))
    out, summary = pool(capsys, source, tmp_path, "--keep", "user")
    pooled = pq.read_table(out)
    assert pooled.column_names == ["user", "ids_vector"]
    assert pooled["user"].to_pylist() == USERS
    np.testing.assert_array_equal(vectors(pooled["ids_vector"]), means(LISTS))
    assert (summary["rows"], summary["ids"], summary["invalid_ids"]) == (8, 17, 0)
    assert summary["bytes_in"] == source.stat().st_size
    assert summary["bytes_out"] == out.stat().st_size


@pytest.mark.parametrize("name", ["out.parquet", "out.arrow", "out.feather", "out.arrows"])
def test_every_output_format(name, tmp_path, capsys):
    pq.write_table(columns(), tmp_path / "in.parquet")
    out, _ = pool(capsys, tmp_path / "in.parquet", tmp_path, "--keep", "user", out=name)
    pooled = read(out)
    assert pooled["user"].to_pylist() == USERS
    assert pooled.schema.field("ids_vector").type.list_size == 5
    np.testing.assert_array_equal(vectors(pooled["ids_vector"]), means(LISTS))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_npy_input_and_output(dtype, tmp_path, capsys):
    ids = np.random.default_rng(1).integers(0, 50, (700, 3))
    np.save(tmp_path / "in.npy", ids)
    out, summary = pool(
        capsys, tmp_path / "in.npy", tmp_path, "--dtype", dtype, out="out.npy", column=None
    )
    expected = np.asarray(means(ids.tolist())).astype(dtype)
    np.testing.assert_array_equal(np.load(out), expected)
    assert summary["dtype"] == dtype


@pytest.mark.parametrize("dtype", ["int8", "uint16", ">i4", "uint64"])
def test_npy_of_any_integers(dtype, tmp_path, capsys):
    ids = np.arange(24).reshape(8, 3).astype(dtype)
    np.save(tmp_path / "in.npy", np.asfortranarray(ids))
    out, _ = pool(capsys, tmp_path / "in.npy", tmp_path, column=None)
    np.testing.assert_array_equal(vectors(read(out)["ids_vector"]), means(ids.tolist()))


@pytest.mark.parametrize(
    "dtype",
    [
        *(pa.list_(kind()) for kind in (pa.int8, pa.uint8, pa.int16, pa.int32, pa.uint64)),
        pa.large_list(pa.int64()),
        pa.list_view(pa.int32()),
        pa.large_list_view(pa.int64()),
    ],
    ids=str,
)
def test_every_kind_of_list(dtype, tmp_path, capsys):
    write_arrow(columns(dtype=dtype), tmp_path / "in.arrow")
    out, _ = pool(capsys, tmp_path / "in.arrow", tmp_path)
    np.testing.assert_array_equal(vectors(read(out)["ids_vector"]), means(LISTS))


def test_npy_without_lists(tmp_path, capsys):
    np.save(tmp_path / "in.npy", np.zeros((0, 3), np.int32))
    _, summary = pool(capsys, tmp_path / "in.npy", tmp_path, column=None)
    assert summary["rows"] == 0


def test_null_ids_are_skipped(tmp_path, capsys):
    pq.write_table(columns([[1, None, 3], [None], [5]]), tmp_path / "in.parquet")
    out, _ = pool(capsys, tmp_path / "in.parquet", tmp_path)
    np.testing.assert_array_equal(vectors(read(out)["ids_vector"]), means([[1, 3], [], [5]]))


@pytest.mark.parametrize(
    "write",
    [
        str,
        lambda bag: ",".join(map(str, bag)),
        lambda bag: " ; ".join(map(str, bag)),
        lambda bag: "|".join(map(str, bag)),
        lambda bag: "{" + ",".join(map(str, bag)) + "}",
        lambda bag: f"  {tuple(bag)}  ",
        lambda bag: "\t".join(map(str, bag)),
    ],
)
@pytest.mark.parametrize("name", ["in.csv", "in.parquet"])
def test_lists_as_text(name, write, tmp_path, capsys):
    table = pa.table({"ids": as_text(LISTS, write)})
    source = tmp_path / name
    if name == "in.csv":
        pyarrow.csv.write_csv(table, source)
    else:
        pq.write_table(table, source)
    out, _ = pool(capsys, source, tmp_path)
    np.testing.assert_array_equal(vectors(read(out)["ids_vector"]), means(LISTS))


def test_csv_of_single_ids(tmp_path, capsys):
    (tmp_path / "in.csv").write_text("ids,note\n7,a\n3,b\n")
    out, _ = pool(capsys, tmp_path / "in.csv", tmp_path, "--keep", "note")
    np.testing.assert_array_equal(vectors(read(out)["ids_vector"]), TABLE[[7, 3]])


def test_csv_of_a_column_that_starts_empty(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_sources, "_BLOCK", 100)
    (tmp_path / "in.csv").write_text("ids,note\n" + "7,\n" * 100 + "3,2.5\n")
    out, _ = pool(capsys, tmp_path / "in.csv", tmp_path, "--keep", "note")
    assert read(out)["note"].to_pylist() == [None] * 100 + ["2.5"]


def test_json_that_starts_with_empty_lists(tmp_path, capsys):
    lists = [[]] * 100 + [[3]]
    with open(tmp_path / "in.jsonl", "w") as file:
        file.writelines(json.dumps({"ids": bag}) + "\n" for bag in lists)
    out, _ = pool(capsys, tmp_path / "in.jsonl", tmp_path)
    np.testing.assert_array_equal(vectors(read(out)["ids_vector"]), means(lists))


@pytest.mark.parametrize("name", WRITERS)
def test_info_of_every_format(name, tmp_path, capsys):
    source = tmp_path / name
    WRITERS[name](columns(), str(source))
    known = json.loads(run(capsys, "info", source, "--json").out)
    assert list(known["columns"]) == ["user", "ids"]
    np.save(tmp_path / "table.npy", TABLE[:45])
    text = run(capsys, "info", source, "--column", "ids", "--table", tmp_path / "table.npy").out
    assert "8 rows" in text
    least = 1 if "sv" in name else 0  # text files read an empty list as null
    assert f"17 ids, {least} to 9 in a list" in text
    assert "from 0 to 49" in text
    assert "1 out of range for the table of 45 rows" in text


def test_info_counts_null_and_empty_lists_apart(tmp_path, capsys):
    pq.write_table(columns([[1, None], None, []]), tmp_path / "in.parquet")
    found = json.loads(
        run(capsys, "info", tmp_path / "in.parquet", "--column", "ids", "--json").out
    )
    assert found["columns"] == {"user": "int64", "ids": "list<element: int64>"}
    assert found["column"] == {
        "name": "ids",
        "null": 1,
        "empty": 1,
        "ids": 2,
        "null_ids": 1,
        "lengths": [0, 2],
        "mean_length": 1.0,
        "range": [1, 1],
    }


def test_info_counts_rows_of_text_only_on_request(tmp_path, capsys):
    (tmp_path / "in.csv").write_text("ids\n1 2\n")
    assert run(capsys, "info", tmp_path / "in.csv").out.startswith(
        "rows not counted without --column, 8 B\n"
    )


def test_info_of_npy_ids(tmp_path, capsys):
    np.save(tmp_path / "in.npy", np.arange(6).reshape(2, 3))
    found = json.loads(run(capsys, "info", tmp_path / "in.npy", "--json").out)
    assert found["rows"] == 2
    assert found["column"]["range"] == [0, 5]
    assert found["columns"] == {"ids": "fixed_size_list<item: int64>[3]"}


# --- Dictionaries ---------------------------------------------------------------------


def dictionaries(values):
    """Return a column of two chunks, each with its own dictionary of a hundred values."""
    chunks = []
    for first in (0, 100):
        places = [None if row % 10 == 9 else (7 * row) % 100 for row in range(100)]
        dictionary = pa.array([f"v{first + i}" for i in range(100)], values)
        chunks.append(pa.DictionaryArray.from_arrays(pa.array(places, pa.int8()), dictionary))
    return chunks


def read_back(path):
    """Read a column with each library that reads the format."""
    polars = pytest.importorskip("polars")
    pandas = pytest.importorskip("pandas")
    readers = {
        ".parquet": (polars.read_parquet, pandas.read_parquet),
        ".arrow": (polars.read_ipc, pandas.read_feather),
        ".arrows": (polars.read_ipc_stream, None),
    }[path.suffix]
    yield read(path)["d"].to_pylist()
    yield readers[0](path)["d"].to_list()
    if readers[1] is not None:
        found = readers[1](path)["d"].tolist()
        yield [None if value is None or value != value else value for value in found]  # noqa: PLR0124


@pytest.mark.parametrize("out", ["out.parquet", "out.arrow", "out.arrows"])
@pytest.mark.parametrize("values", [pa.string(), pa.large_string(), pa.string_view()])
def test_dictionaries_that_differ_by_chunk(out, values, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_sinks, "_ROWS_AT_ONCE", 30)
    chunks = dictionaries(values)
    ids = pa.array([[1]] * 100, LIST)
    schema = pa.schema([("ids", LIST), pa.field("d", chunks[0].type, metadata={"kind": "x"})])
    with pa.ipc.new_stream(tmp_path / "in.arrows", schema) as writer:
        for chunk in chunks:
            writer.write_batch(pa.record_batch([ids, chunk], schema=schema))
    path, _ = pool(capsys, tmp_path / "in.arrows", tmp_path, "--keep", "d", out=out)
    expected = [value for chunk in chunks for value in chunk.to_pylist()]
    for found in read_back(path):
        assert found == expected
    field = read(path).schema.field("d")
    assert field.type == (pa.large_string() if values == pa.large_string() else pa.string())
    assert b"kind" not in (field.metadata or {})


@pytest.mark.parametrize("out", ["out.parquet", "out.arrow", "out.arrows"])
@pytest.mark.parametrize("kind", ["list", "large_list", "fixed", "view", "struct", "twice"])
def test_dictionaries_nested_in_columns(out, kind, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_sinks, "_ROWS_AT_ONCE", 7)
    encoded = pa.dictionary(pa.int8(), pa.string())
    rows = {
        "list": (pa.list_(encoded), [["a", "b"], [], None, ["a", None]]),
        "large_list": (pa.large_list(encoded), [["a", "b"], [], None, ["a", None]]),
        "fixed": (pa.list_(encoded, 2), [["a", "b"], ["c", None], None]),
        "view": (pa.list_view(encoded), [["a", "b"], [], None, ["a", None]]),
        "struct": (pa.struct({"k": encoded, "n": pa.int64()}), [{"k": "a", "n": 1}, None]),
        "twice": (pa.list_(pa.struct({"k": pa.list_(encoded)})), [[{"k": ["a"]}, None], None]),
    }
    dtype, few = rows[kind]
    many = few * 5
    table = pa.table({"ids": pa.array([[1]] * len(many), LIST), "d": pa.array(many, dtype)})
    with pa.ipc.new_stream(tmp_path / "in.arrows", table.schema) as writer:
        writer.write_table(table)
    path, _ = pool(capsys, tmp_path / "in.arrows", tmp_path, "--keep", "d", out=out)
    assert read(path)["d"].to_pylist() == many


def test_dictionaries_nested_in_a_map_are_refused(tmp_path, capsys):
    dtype = pa.map_(pa.string(), pa.dictionary(pa.int8(), pa.string()))
    table = pa.table({"ids": pa.array([[1]], LIST), "d": pa.array([[("k", "v")]], dtype)})
    with pa.ipc.new_stream(tmp_path / "in.arrows", table.schema) as writer:
        writer.write_table(table)
    np.save(tmp_path / "t.npy", TABLE)
    options = ["--column", "ids", "--keep", "d", "--table", tmp_path / "t.npy"]
    printed = run(
        capsys, "pool", tmp_path / "in.arrows", *options, "--out", tmp_path / "o.arrow", status=1
    )
    assert "must have no dictionaries in map<" in printed.err
    assert not (tmp_path / "o.arrow").exists()
