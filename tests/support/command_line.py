"""Tables, files of lists, and functions that run the command line on them."""

import json

import numpy as np
import pytest

import embag

pa = pytest.importorskip("pyarrow", "20")
pytest.importorskip("click")
pytest.importorskip("rich")

import pyarrow.parquet as pq  # noqa: E402

from embag import cli  # noqa: E402

TABLE = np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32)
LISTS = [[1, 2, 3], [], None, [49], [0, 0], [7] * 9, [], [4, 44]]
USERS = [10 * b for b in range(len(LISTS))]


def means(lists, table=TABLE, mode="mean"):
    """Pool lists as plain arrays."""
    lists = [bag or [] for bag in lists]
    ids = np.array([row for bag in lists for row in bag], np.int64)
    offsets = np.cumsum([0, *map(len, lists)])
    return embag.embedding_bag(ids, table, offsets, mode=mode, include_last_offset=True)


def columns(lists=LISTS, dtype=None):
    """Return an Arrow table of users and lists of ids."""
    return pa.table({"user": USERS[: len(lists)], "ids": pa.array(lists, dtype or LIST)})


LIST = pa.list_(pa.int64())


def as_text(lists, write=lambda bag: " ".join(map(str, bag))):
    return ["" if bag is None else write(bag) for bag in lists]


def run(capsys, *arguments, status=0):
    """Run the command line and return its stdout and stderr."""
    assert cli.main([*map(str, arguments)]) == status, capsys.readouterr().err
    return capsys.readouterr()


def pool(capsys, source, tmp_path, *options, table=TABLE, out="out.parquet", column="ids"):
    """Run `embag pool`; return the path of the vectors, and the summary."""
    np.save(tmp_path / "table.npy", table)
    arguments = ["--table", tmp_path / "table.npy", "--out", tmp_path / out, "--json", *options]
    if column is not None:
        arguments += ["--column", column]
    printed = run(capsys, "pool", source, *arguments)
    assert printed.err == ""
    return tmp_path / out, json.loads(printed.out)


def read(path):
    """Read a file of columns as an Arrow table."""
    if path.suffix == ".parquet":
        return pq.read_table(path)
    with pa.memory_map(str(path)) as file:
        opened = pa.ipc.open_stream if path.suffix == ".arrows" else pa.ipc.open_file
        return opened(file).read_all()


def vectors(column):
    """Return a column of vectors as an array, including the values of nulls."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return np.concatenate(
        [chunk.values.to_numpy().reshape(-1, chunk.type.list_size) for chunk in chunks]
    )
