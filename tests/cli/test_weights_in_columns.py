"""`embag pool` and `embag info` on columns of ids with weights, and on dictionaries."""

import json

import numpy as np
import pytest
from command_line import TABLE, pa, pool, read, run, vectors

import embag
from embag.cli import _json_lines

import pyarrow.parquet as pq  # isort: skip

IDS = [[1, 2], [], None, [3], [49, 4, 4]]
WEIGHTS = [[0.5, 2.0], [], None, [4.0], [1.0, 2.0, 3.0]]
PAIRS = [None if bag is None else list(zip(bag, w, strict=True)) for bag, w in zip(IDS, WEIGHTS)]  # noqa: B905
ENTRY = pa.struct([("item", pa.int32()), ("share", pa.float64())])
COLUMNS = {
    "map": pa.array(PAIRS, pa.map_(pa.int64(), pa.float32())),
    "list_of_structs": pa.array(
        [None if bag is None else [{"item": i, "share": w} for i, w in bag] for bag in PAIRS],
        pa.list_(ENTRY),
    ),
    "struct": pa.array(
        [None if i is None else {"ids": i, "w": w} for i, w in zip(IDS, WEIGHTS, strict=True)]
    ),
}
BY_COLUMN = pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)


def write(path, column, n=1):
    column = pa.concat_arrays([column] * n)
    table = pa.table({"ids": column, "row": range(len(column))})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=4)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    return path


def expected(mode, ids=IDS, weights=WEIGHTS):
    weights = None if mode in ("max", "min") else weights
    return embag.embedding_bag(ids, TABLE, mode=mode, per_sample_weights=weights)


@BY_COLUMN
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_weights_of_the_column_are_used(column, mode, suffix, tmp_path, capsys):
    source = write(tmp_path / f"in{suffix}", column, n=3)
    out, summary = pool(capsys, source, tmp_path, "--mode", mode)
    np.testing.assert_array_equal(vectors(read(out)["ids_vector"]), np.tile(expected(mode), (3, 1)))
    assert summary["ids"] == 18


@pytest.mark.parametrize("kind", ["struct", "list_of_structs"])
def test_json_lines_with_objects(kind, tmp_path, capsys, monkeypatch):
    """The first block has integers for weights, and later ones floats."""
    monkeypatch.setattr(_json_lines, "_BLOCK", 50)
    lines = [{"ids": {"item": bag, "share": w}} for bag, w in zip(IDS, WEIGHTS, strict=True)]
    lines[0]["ids"]["share"] = [1, 2]
    weights = [[1, 2], *WEIGHTS[1:3], [4.5], WEIGHTS[4]]
    lines[3]["ids"]["share"] = [4.5]
    if kind == "list_of_structs":
        for line in lines:
            bag, shares = line["ids"].values()
            line["ids"] = [
                {"item": i, "w": w} for i, w in zip(bag or [], shares or [], strict=True)
            ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, _ = pool(capsys, source, tmp_path, "--mode", "sum")
    np.testing.assert_array_equal(vectors(read(out)["ids_vector"]), expected("sum", IDS, weights))


@BY_COLUMN
def test_null_weights(column, tmp_path, capsys):
    null = pa.array([[(1, 0.5), (2, None)], [(3, 4.0)]], pa.map_(pa.int64(), pa.float32()))
    if pa.types.is_struct(column.type):
        null = pa.array([{"a": [1, 2], "b": [0.5, None]}, {"a": [3], "b": [4.0]}])
    elif pa.types.is_list(column.type):
        null = null.cast(pa.list_(pa.struct([("key", pa.int64()), ("value", pa.float32())])))
    source = write(tmp_path / "in.parquet", null)
    np.save(tmp_path / "table.npy", TABLE)
    arguments = [source, "--column", "ids", "--table", tmp_path / "table.npy"]
    arguments += ["--out", tmp_path / "out.arrow", "--mode", "sum"]
    failed = run(capsys, "pool", *arguments, status=1)
    assert "column 'ids', row 0: the weight of id 2 is null" in failed.err
    printed = run(capsys, "pool", *arguments, "--null-weights", "skip", "--json")
    assert json.loads(printed.out)["null_weights"] == 1
    np.testing.assert_array_equal(
        vectors(read(tmp_path / "out.arrow")["ids_vector"]),
        expected("sum", [[1], [3]], [[0.5], [4.0]]),
    )


def test_weights_beside_those_of_the_column(tmp_path, capsys):
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"ids": COLUMNS["map"], "w": WEIGHTS}), source)
    np.save(tmp_path / "table.npy", TABLE)
    arguments = [source, "--column", "ids", "--table", tmp_path / "table.npy", "--mode", "sum"]
    arguments += ["--weights", "w", "--out", tmp_path / "out.arrow"]
    failed = run(capsys, "pool", *arguments, status=2)
    assert "--weights must be left out: column 'ids' has weights of its own" in failed.err


def test_dictionaries_are_decoded(tmp_path, capsys):
    codes = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 1], pa.int8()), pa.array([7, 9]))
    column = pa.ListArray.from_arrays(pa.array([0, 2, 2, None, 4], pa.int32()), codes)
    source = write(tmp_path / "in.arrow", column)
    out, _ = pool(capsys, source, tmp_path, "--mode", "sum")
    np.testing.assert_array_equal(
        vectors(read(out)["ids_vector"]), expected("sum", [[7, 9], [], [9], []], None)
    )


@BY_COLUMN
def test_info_describes_the_ids(column, tmp_path, capsys):
    source = write(tmp_path / "in.parquet", column)
    printed = run(capsys, "info", source, "--column", "ids", "--json")
    seen = json.loads(printed.out)["column"]
    assert (seen["null"], seen["empty"], seen["ids"], seen["range"]) == (1, 1, 6, [1, 49])


@pytest.mark.parametrize("invalid", ["skip", "0"])
def test_ids_out_of_range_are_counted_in_a_column(invalid, tmp_path, capsys):
    lists = [[1, 99], None, [], [-1, None, 50, 3], [2]]
    source = write(tmp_path / "in.arrow", pa.array(lists))
    options = ["--invalid", invalid, "--n-invalid", "outside", "--keep", "row"]
    out, summary = pool(capsys, source, tmp_path, *options)
    table = read(out)
    assert table.column_names == ["row", "outside", "ids_vector"]
    assert table["outside"].to_pylist() == [1, 0, 0, 2, 0]
    assert summary["invalid_ids"] == 3
