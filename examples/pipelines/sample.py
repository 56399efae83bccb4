"""Shared by the examples: a small Parquet file, a table, and the expected vectors."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

import embag

N_USERS, N_ITEMS, DIM = 1000, 500, 8


def run(pool: Callable[[str, str, str], None]) -> None:
    """Run an example on the files of the command line, or on a sample.

    `python with_polars.py EVENTS ITEMS OUT`: EVENTS is Parquet with the columns user_id and
    item_ids, ITEMS a table in a .npy file, and OUT the file or folder for the vectors.
    """
    if len(sys.argv) == 4:
        pool(*sys.argv[1:])
        return
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder, name)) for name in ("events.parquet", "items.npy", "vectors")]
        expected = make(*files[:2])
        pool(*files)
        vectors = read(files[2])
    np.testing.assert_array_equal(vectors, expected)  # to the bit
    print(f"{Path(sys.argv[0]).name}: {len(vectors)} rows, equal to those of plain arrays")


def make(events: str, items: str) -> np.ndarray:
    """Write a sample; return the expected vectors, pooled from plain arrays."""
    rng = np.random.default_rng(7)
    table = rng.standard_normal((N_ITEMS, DIM)).astype(np.float32)
    embag.save_table(items, table)
    lengths = rng.integers(0, 30, N_USERS)  # some are 0
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(0, N_ITEMS, offsets[-1])
    missing = pa.array(lengths == 7)  # null lists, which are empty bags
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids))
    lists = pa.compute.if_else(missing, pa.scalar(None, lists.type), lists)
    columns = pa.table({"user_id": np.arange(N_USERS), "item_ids": lists})
    pq.write_table(columns, events, row_group_size=256)

    vectors = embag.embedding_bag(ids, table, offsets, include_last_offset=True)
    vectors[lengths == 7] = 0
    return vectors


def read(out: str) -> np.ndarray:
    """Return the vectors that an example has written to a file or a folder, by user."""
    columns = pyarrow.dataset.dataset(out, format="parquet").to_table().sort_by("user_id")
    assert columns["user_id"].to_pylist() == list(range(N_USERS))
    return np.array(columns["vector"].to_pylist(), np.float32)
