"""Make the files: `python -m benchmarks.pipeline.data FOLDER --rows 10000000`.

events.parquet  user_id, the number of the row, and item_ids: lists of 0 to 50 int64 ids
part.parquet    its first rows, for slow contenders
start.parquet   its first thousand rows, to measure the start of a program
items.npy       the table, float32
items.parquet   the same table for engines that join: item_id, and a column for each dimension

The Parquet files have pyarrow's default settings (Snappy), except that floats have no
dictionary. The files are written in parts, so little memory is used.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIM = 64
MOST_IDS = 50  # of a list
N_GROUP = 131_072  # rows of a row group: about 25 MB of ids
N_START = 1000
DIMENSIONS = [f"d{d}" for d in range(DIM)]
EVENTS = pa.schema([("user_id", pa.int64()), ("item_ids", pa.list_(pa.int64()))])
ITEMS = pa.schema([("item_id", pa.int64()), *((name, pa.float32()) for name in DIMENSIONS)])


@dataclass(frozen=True)
class Sizes:
    n_rows: int = 10_000_000
    n_part: int = 1_000_000
    n_items: int = 1_000_000


def make_files(folder: Path, sizes: Sizes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lengths = {"events": sizes.n_rows, "part": sizes.n_part, "start": N_START}
    for name, n_rows in lengths.items():
        with pq.ParquetWriter(folder / f"{name}.parquet", EVENTS) as writer:
            for batch in _make_events(n_rows, sizes.n_items):
                writer.write_batch(batch)
    rng = np.random.default_rng(1)
    shape = sizes.n_items, DIM
    table = np.lib.format.open_memmap(folder / "items.npy", "w+", np.dtype("float32"), shape)
    with pq.ParquetWriter(folder / "items.parquet", ITEMS, use_dictionary=False) as writer:
        for start in range(0, sizes.n_items, N_GROUP):
            part = table[start : start + N_GROUP]
            part[...] = rng.standard_normal(part.shape, np.float32)
            item_ids = np.arange(start, start + len(part))
            writer.write_batch(pa.record_batch([item_ids, *part.T.copy()], schema=ITEMS))


def _make_events(n_rows: int, n_items: int) -> Iterator[pa.RecordBatch]:
    """Yield the first `n_rows` rows, which are the same for every `n_rows`."""
    rng = np.random.default_rng(0)
    for start in range(0, n_rows, N_GROUP):
        lengths = rng.integers(0, MOST_IDS, N_GROUP, endpoint=True)
        bounds = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
        item_ids = pa.ListArray.from_arrays(bounds, rng.integers(n_items, size=bounds[-1]))
        user_ids = np.arange(start, start + N_GROUP)
        yield pa.record_batch([user_ids, item_ids], schema=EVENTS).slice(0, n_rows - start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline.data", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=Sizes.n_rows)
    parser.add_argument("--part", type=int, default=Sizes.n_part, help="rows of part.parquet")
    parser.add_argument("--items", type=int, default=Sizes.n_items, help="rows of the table")
    arguments = parser.parse_args()
    make_files(arguments.folder, Sizes(arguments.rows, arguments.part, arguments.items))
