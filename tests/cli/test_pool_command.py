"""`embag pool`: options, the summary, progress and memory."""

import json
import sys

import numpy as np
import pytest
from command_line import LISTS, TABLE, columns, means, pa, pool, read, run, vectors
from processes import SCRIPTS, run_python

import embag

import pyarrow.parquet as pq  # isort: skip


@pytest.fixture
def source(tmp_path):
    pq.write_table(columns(), tmp_path / "in.parquet", row_group_size=3)
    return tmp_path / "in.parquet"


def pooled(path, name="ids_vector"):
    return vectors(read(path)[name])


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_modes_and_threads(mode, threads, source, tmp_path, capsys):
    out, summary = pool(capsys, source, tmp_path, "--mode", mode, "--threads", threads)
    np.testing.assert_array_equal(pooled(out), means(LISTS, mode=mode))
    assert 1 <= summary["threads"] <= int(threads)
    embag.set_num_threads(None)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_tables(bits, source, tmp_path, capsys):
    table = embag.quantize(TABLE, bits)
    embag.save_table(tmp_path / "small.npy", table)
    arguments = ["--column", "ids", "--table", tmp_path / "small.npy"]
    run(capsys, "pool", source, *arguments, "--out", tmp_path / "o.arrow")
    np.testing.assert_array_equal(pooled(tmp_path / "o.arrow"), means(LISTS, table))


@pytest.mark.parametrize("load", ["map", "copy"])
def test_float64_tables_give_float64(load, source, tmp_path, capsys):
    table = TABLE.astype(np.float64)
    out, summary = pool(capsys, source, tmp_path, "--load", load, table=table)
    np.testing.assert_array_equal(pooled(out), means(LISTS, table))
    assert summary["dtype"] == "float64"


def test_weights(tmp_path, capsys):
    lists, weights = [[1, 2], [], [3]], [[0.5, 2], [], [4]]
    table = pa.table({"ids": lists, "w": weights})
    pq.write_table(table, tmp_path / "in.parquet")
    out, _ = pool(capsys, tmp_path / "in.parquet", tmp_path, "--mode", "sum", "--weights", "w")
    expected = embag.embedding_bag(
        [1, 2, 3],
        TABLE,
        [0, 2, 2],
        mode="sum",
        per_sample_weights=np.array([0.5, 2, 4], np.float32),
    )
    np.testing.assert_array_equal(pooled(out), expected)


def test_reductions(tmp_path, capsys):
    lists, weights = [[1, 2], [], [3, 10**6], [10**6]], [[0.5, 2], [], [4, 1], [1]]
    pq.write_table(pa.table({"ids": lists, "w": weights}), tmp_path / "in.parquet")
    offsets, flat = [0, 2, 2, 4], [1, 2, 3, 10**6, 10**6]
    factors = np.array([0.5, 2, 4, 1, 1], np.float32)
    for policy, done in (("skip", "2 ids skipped: out of range"), ("5", "2 ids replaced by 5")):
        options = ["--mode", "sqrtn", "--weights", "w", "--invalid", policy, "--normalize"]
        arguments = [*options, "--default-idx", "7"]
        out, summary = pool(capsys, tmp_path / "in.parquet", tmp_path, *arguments)
        expected = embag.embedding_bag(
            flat,
            TABLE,
            offsets,
            mode="sqrtn",
            per_sample_weights=factors,
            invalid=policy if policy == "skip" else int(policy),
            default_idx=7,
            normalize=True,
        )
        np.testing.assert_array_equal(pooled(out), expected)
        assert summary["invalid_ids"] == 2
        arguments += ["--column", "ids", "--table", tmp_path / "table.npy", "--out", out]
        assert done in run(capsys, "pool", tmp_path / "in.parquet", *arguments).out


def test_weights_as_text(tmp_path, capsys):
    (tmp_path / "in.csv").write_text('ids,w\n1 2,"0.5,2"\n3,1e1\n')
    out, _ = pool(capsys, tmp_path / "in.csv", tmp_path, "--mode", "sum", "--weights", "w")
    expected = np.stack([np.float32(0.5) * TABLE[1] + np.float32(2) * TABLE[2], 10 * TABLE[3]])
    np.testing.assert_array_equal(pooled(out), expected)


def test_keep_name_and_order(tmp_path, capsys):
    table = columns().append_column("when", pa.array(range(8), pa.timestamp("s")))
    pq.write_table(table, tmp_path / "in.parquet")
    options = ["--keep", "when,user", "--keep", "ids", "--name", "v"]
    out, _ = pool(capsys, tmp_path / "in.parquet", tmp_path, *options)
    found, given = read(out), read(tmp_path / "in.parquet")
    assert found.column_names == ["when", "user", "ids", "v"]
    assert found.drop_columns("v").equals(given.select(["when", "user", "ids"]))


def test_keep_the_text_of_lists(tmp_path, capsys):
    (tmp_path / "in.csv").write_text("ids\n1 2\n[3]\n")
    out, _ = pool(capsys, tmp_path / "in.csv", tmp_path, "--keep", "ids")
    assert read(out)["ids"].to_pylist() == ["1 2", "[3]"]


def test_invalid_ids_are_skipped_and_counted(source, tmp_path, capsys):
    out, summary = pool(capsys, source, tmp_path, "--invalid", "skip", table=TABLE[:7])
    kept = [[row for row in bag or [] if row < 7] for bag in LISTS]
    np.testing.assert_array_equal(pooled(out), means(kept))
    assert summary["invalid_ids"] == sum(row >= 7 for bag in LISTS for row in bag or [])


def test_padding(source, tmp_path, capsys):
    out, _ = pool(capsys, source, tmp_path, "--padding-idx", "7")
    kept = [[row for row in bag or [] if row != 7] for bag in LISTS]
    np.testing.assert_array_equal(pooled(out), means(kept))


@pytest.mark.parametrize("name", ["o.parquet", "o.arrow"])
def test_null_for_empty_lists(name, source, tmp_path, capsys):
    out, _ = pool(capsys, source, tmp_path, "--null-empty", out=name)
    expected = [
        vector.tolist() if bag else None for bag, vector in zip(LISTS, means(LISTS), strict=True)
    ]
    assert read(out)["ids_vector"].to_pylist() == expected


LIST_TYPES = [
    pa.list_(pa.int64()),
    pa.large_list(pa.int32()),
    pa.list_view(pa.int64()),
    pa.list_(pa.int64(), 2),
    pa.string(),
]


@pytest.mark.parametrize("dtype", LIST_TYPES, ids=str)
@pytest.mark.parametrize("chunk_bytes", [100, 16 << 20])
def test_null_for_lists_without_valid_ids(dtype, chunk_bytes, tmp_path, capsys, monkeypatch):
    from embag.cli import _sources  # noqa: PLC0415

    monkeypatch.setattr(_sources, "_CHUNK_BYTES", chunk_bytes)
    # 7 is padding, and 50 is out of range.
    lists = [
        [1, 7],
        None,
        [7, 7],
        [50, 2],
        [50, 50],
        [7, 50],
        [3, 3],
        [50, 7],
        [None, 4],
        [None] * 2,
    ]
    if dtype == pa.string():
        lists = [None if bag is None else [i for i in bag if i is not None] for bag in lists]
        column = pa.array([None if bag is None else ",".join(map(str, bag)) for bag in lists])
    else:
        column = pa.array(lists, dtype)
    with pa.ipc.new_file(tmp_path / "in.arrow", pa.schema([("ids", dtype)])) as writer:
        writer.write_table(pa.table({"ids": column}).slice(0, 6))
        writer.write_table(pa.table({"ids": column}).slice(6))
    options = ["--padding-idx", "7", "--invalid", "skip", "--null-empty"]
    out, summary = pool(capsys, tmp_path / "in.arrow", tmp_path, *options, out="o.arrow")
    kept = [[i for i in bag or [] if i not in (None, 7, 50)] for bag in lists]
    expected = [
        vector.tolist() if bag else None for bag, vector in zip(kept, means(kept), strict=True)
    ]
    assert read(out)["ids_vector"].to_pylist() == expected
    assert summary["null_vectors"] == expected.count(None) == 6
    out, summary = pool(capsys, tmp_path / "in.arrow", tmp_path, *options[:-1], out="o.arrow")
    np.testing.assert_array_equal(pooled(out), means(kept))
    assert summary["null_vectors"] == 0
    text = run(
        capsys,
        *("pool", tmp_path / "in.arrow", "--column", "ids", "--table", tmp_path / "table.npy"),
        *("--out", tmp_path / "o.arrow", *options),
    ).out
    assert "6 vectors are null: their lists have no id that counts" in text


@pytest.mark.parametrize("dtype", LIST_TYPES[:-1], ids=str)
@pytest.mark.parametrize("chunk_bytes", [100, 16 << 20])
def test_ids_whose_weights_are_null(dtype, chunk_bytes, tmp_path, capsys, monkeypatch):
    from embag.cli import _sources  # noqa: PLC0415

    monkeypatch.setattr(_sources, "_CHUNK_BYTES", chunk_bytes)
    lists = [[1, 2], None, [3, 4], [None, 5], [6, 7], [8, None]]
    weights = [[1.0, None], None, [None, None], [None, 2.0], [3.0, 4.0], [None, 5.0]]
    factors = pa.list_(pa.float64(), 2) if pa.types.is_fixed_size_list(dtype) else None
    table = pa.table({"ids": pa.array(lists, dtype), "w": pa.array(weights, factors)})
    with pa.ipc.new_file(tmp_path / "in.arrow", table.schema) as writer:
        writer.write_table(table)
    options = ["--mode", "sum", "--weights", "w", "--null-weights", "skip"]
    out, summary = pool(capsys, tmp_path / "in.arrow", tmp_path, *options)
    expected = np.zeros((6, 5), np.float32)
    expected[0] = TABLE[1]
    expected[3] = np.float32(2) * TABLE[5]
    expected[4] = np.float32(3) * TABLE[6] + np.float32(4) * TABLE[7]
    np.testing.assert_array_equal(pooled(out), expected)
    assert (summary["ids"], summary["null_weights"]) == (10, 4)
    out, summary = pool(
        capsys, tmp_path / "in.arrow", tmp_path, *options, "--null-empty", out="o.arrow"
    )
    nulls = [vector is None for vector in read(out)["ids_vector"].to_pylist()]
    assert nulls == [False, True, True, False, False, True]
    assert summary["null_vectors"] == 3
    text = run(
        capsys,
        *("pool", tmp_path / "in.arrow", "--column", "ids", "--table", tmp_path / "table.npy"),
        *("--out", tmp_path / "o.arrow", *options),
    ).out
    assert "4 ids skipped: their weights are null" in text


def test_files_without_rows(tmp_path, capsys):
    pq.write_table(columns([]), tmp_path / "in.parquet")
    for name in ("o.parquet", "o.arrow", "o.npy"):
        out, summary = pool(capsys, tmp_path / "in.parquet", tmp_path, out=name)
        assert summary["rows"] == summary["ids"] == 0
        found = np.load(out) if name == "o.npy" else pooled_or_empty(out)
        assert found.shape == (0, 5)


def pooled_or_empty(path):
    table = read(path)
    return np.zeros((len(table), table.schema.field("ids_vector").type.list_size))


def test_an_old_file_is_replaced(source, tmp_path, capsys):
    (tmp_path / "out.parquet").write_bytes(b"old")
    out, _ = pool(capsys, source, tmp_path)
    np.testing.assert_array_equal(pooled(out), means(LISTS))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.parquet",
        "out.parquet",
        "table.npy",
    ]


def test_the_printed_summary(source, tmp_path, capsys):
    np.save(tmp_path / "table.npy", TABLE)
    arguments = ["--column", "ids", "--table", tmp_path / "table.npy", "--invalid", "skip"]
    text = run(capsys, "pool", source, *arguments, "--out", tmp_path / "o.arrow").out
    assert "8 rows, 17 ids ->" in text
    assert "reading" in text
    assert "0 ids skipped" in text


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_progress_on_a_terminal(source, tmp_path, capsys):
    np.save(tmp_path / "table.npy", TABLE)
    arguments = ["--column", "ids", "--table", tmp_path / "table.npy", "--out", tmp_path / "o.npy"]
    command = [SCRIPTS / "run_on_terminal.py", "pool", source, *arguments]
    printed = run_python(*command, TERM="xterm", COLUMNS="200").stdout
    assert "100%" in printed
    assert "rows/s" in printed


@pytest.mark.parametrize("chunk_bytes", [1, 100, 1000])
def test_chunks_of_any_size(chunk_bytes, tmp_path, capsys, monkeypatch):
    from embag.cli import _sources  # noqa: PLC0415

    monkeypatch.setattr(_sources, "_CHUNK_BYTES", chunk_bytes)
    rng = np.random.default_rng(2)
    lists = [rng.integers(0, 50, n).tolist() for n in rng.integers(0, 9, 100)]
    table = pa.table({"user": range(100), "ids": lists})
    for name, write in (("in.parquet", pq.write_table), ("in.arrow", write_one_batch)):
        write(table, tmp_path / name)
        out, summary = pool(capsys, tmp_path / name, tmp_path, "--keep", "user", out="o.arrow")
        assert read(out)["user"].to_pylist() == list(range(100))
        np.testing.assert_array_equal(pooled(out), means(lists))
        assert summary["rows"] == 100


def write_one_batch(table, path):
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="measures memory as Linux counts it"
)
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Pool one row group of 30 million ids, 240 MB that do not compress."""
    ids = np.random.default_rng(3).integers(0, 2**62, 30_000_000)
    bounds = pa.array(np.arange(0, len(ids) + 1, 1000, dtype=np.int32))
    table = pa.table({"ids": pa.ListArray.from_arrays(bounds, pa.array(ids))})
    options = {"use_dictionary": False, "compression": "none"}
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=len(table), **options)
    pq.write_table(table.slice(0, 10), tmp_path / "small.parquet")
    np.save(tmp_path / "table.npy", TABLE)

    def peak(name):
        done = run_python(
            *("-m", "embag", "pool", tmp_path / name, "--column", "ids", "--threads", "2"),
            *("--table", tmp_path / "table.npy", "--out", tmp_path / "o.npy"),
            *("--invalid", "skip", "--json"),
        )
        return json.loads(done.stdout)

    small, large = peak("small.parquet"), peak("in.parquet")
    assert (large["rows"], large["ids"], large["invalid_ids"]) == (30_000, 30e6, 30e6)
    assert large["peak_memory_bytes"] - small["peak_memory_bytes"] < 200e6
