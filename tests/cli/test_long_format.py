"""`embag pool --by`: files with one id in each row."""

import gzip
import json

import numpy as np
import pytest
from command_line import TABLE, pa, pool, read, run, vectors

import embag
from embag.cli import _long_format, _sources

import pyarrow.parquet as pq  # isort: skip
from pyarrow.csv import write_csv  # isort: skip

RNG = np.random.default_rng(0)
N = 500
KEYS = RNG.integers(-20, 20, N)
IDS = RNG.integers(0, 50, N)
WEIGHTS = RNG.random(N).round(3)


def expected(keys=KEYS, ids=IDS, weights=None, **options):
    """Return the keys, sorted, and their vectors, by plain loops."""
    names = sorted(set(keys.tolist()))
    rows = [[k for k, key in enumerate(keys.tolist()) if key == name] for name in names]
    flat = np.array([k for some in rows for k in some], np.int64)
    weights = None if weights is None else weights[flat].astype(np.float32)
    offsets = np.cumsum([0, *map(len, rows)])
    return names, embag.embedding_bag(
        ids[flat], TABLE, offsets, include_last_offset=True, per_sample_weights=weights, **options
    )


def events(keys=KEYS, **columns):
    return pa.table({"user": keys, "item": IDS, "w": WEIGHTS} | columns)


def write(table, path):
    """Write a table in the format that the suffix names."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(table, path, row_group_size=64)
    elif name.endswith(".arrow"):
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table, max_chunksize=50)
    elif name.endswith(".jsonl"):
        path.write_text("\n".join(map(json.dumps, table.to_pylist())))
    else:
        text = pa.BufferOutputStream()
        write_csv(table, text)
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "wb") as file:
            file.write(text.getvalue())
    return path


def pool_events(capsys, source, tmp_path, *options, **others):
    return pool(capsys, source, tmp_path, "--by", "user", *options, column="item", **others)


def check(path, names, bits):
    table = read(path)
    assert table.column_names == ["user", "item_vector"]
    assert table["user"].to_pylist() == names
    np.testing.assert_array_equal(vectors(table["item_vector"]), bits)


@pytest.mark.parametrize("name", ["in.parquet", "in.arrow", "in.csv", "in.csv.gz", "in.jsonl"])
@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize("rows_at_once", [1, 100, 1 << 18])
def test_formats(name, is_sorted, rows_at_once, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_long_format, "_ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr(_sources, "_MOST_ROWS_AT_ONCE", 90)
    keys = np.sort(KEYS) if is_sorted else KEYS
    source = write(events(keys), tmp_path / name)
    names, bits = expected(keys, weights=WEIGHTS)
    out, summary = pool_events(capsys, source, tmp_path, "--weights", "w", out="out.arrow")
    check(out, names, bits)
    assert (summary["rows"], summary["ids"]) == (len(names), N)


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
def test_modes(mode, tmp_path, capsys):
    source = write(events(), tmp_path / "in.parquet")
    out, _ = pool_events(capsys, source, tmp_path, "--mode", mode)
    check(out, *expected(mode=mode))
    out, _ = pool_events(capsys, source, tmp_path, "--mode", mode, out="out.npy")
    np.testing.assert_array_equal(np.load(out), expected(mode=mode)[1])


@pytest.mark.parametrize("dictionary", [False, True])
def test_keys_of_text(dictionary, tmp_path, capsys):
    text = np.array([f"user {key}" for key in KEYS])
    column = pa.array(text)
    source = tmp_path / "in.parquet"
    write(events(column.dictionary_encode() if dictionary else column), source)
    out, _ = pool_events(capsys, source, tmp_path)
    check(out, *expected(text))
    assert read(out)["user"].type == pa.string()


def test_nulls(tmp_path, capsys):
    table = pa.table(
        {
            "user": pa.array([2, None, 1, 2, None, 3], pa.int32()),
            "item": pa.array([4, 5, None, 6, 7, 8], pa.uint8()),
            "w": [1.0, 2.0, None, 3.0, 4.0, 5.0],
        }
    )
    source = write(table, tmp_path / "in.parquet")
    out, summary = pool_events(capsys, source, tmp_path, "--weights", "w", "--mode", "sum")
    bits = [TABLE[0] * 0, TABLE[4] + 3 * TABLE[6], 5 * TABLE[8], 2 * TABLE[5] + 4 * TABLE[7]]
    check(out, [1, 2, 3, None], bits)
    out, summary = pool_events(capsys, source, tmp_path, "--null-empty", out="out.arrow")
    assert read(out)["item_vector"].is_null().to_pylist() == [True, False, False, False]
    assert summary["null_vectors"] == 1


def test_no_rows(tmp_path, capsys):
    source = write(events()[:0], tmp_path / "in.parquet")
    out, summary = pool_events(capsys, source, tmp_path)
    assert read(out).num_rows == summary["rows"] == 0


def test_null_weights_and_ids_out_of_range(tmp_path, capsys):
    source = tmp_path / "in.parquet"
    write(pa.table({"user": ["a", "b", "a"], "item": [1, 2, 3], "w": [1, 2, None]}), source)
    arguments = ["pool", source, "--by", "user", "--column", "item", "--weights", "w", "--table"]
    np.save(tmp_path / "t.npy", TABLE)
    arguments += [tmp_path / "t.npy", "--out", tmp_path / "o.parquet"]
    printed = run(capsys, *arguments, status=1)
    assert "column 'w', user 'a': the weight of id 3 is null" in printed.err
    printed = run(capsys, *arguments, "--null-weights", "skip")
    assert "1 ids skipped: their weights are null" in printed.out
    np.save(tmp_path / "t.npy", TABLE[:2])
    printed = run(capsys, *arguments, "--null-weights", "skip", status=1)
    assert "column 'item', user 'b': id 2 is out of range for a table of 2 rows" in printed.err
    printed = run(capsys, *arguments, "--null-weights", "skip", "--invalid", "skip")
    assert "1 ids skipped: out of range" in printed.out


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--by", "nobody"], 1, "there is no column 'nobody'"),
        (["--by", "user", "--keep", "w"], 2, "--keep must be left out where --by is given"),
        (["--by", "user", "--column", "w"], 1,
         "column 'w' must have integers with --by, got double"),
        (["--by", "user", "--weights", "text"], 1,
         "column 'text' must have numbers with --by, got string"),
        (["--by", "list"], 1, "dictionary_encode"),
        (["--by", "user", "--name", "user"], 2, "must differ"),
    ],
)  # fmt: skip
def test_errors(options, status, message, tmp_path, capsys):
    table = events(text=[str(w) for w in WEIGHTS], list=[[1]] * N)
    source = write(table, tmp_path / "in.parquet")
    np.save(tmp_path / "t.npy", TABLE)
    arguments = ["--column", "item", "--table", tmp_path / "t.npy", "--out", tmp_path / "o.arrow"]
    printed = run(capsys, "pool", source, *arguments, *options, status=status)
    assert message in printed.err
    assert not (tmp_path / "o.arrow").exists()
