"""Functions that pool a batch, one for each package.

`make_*` takes the folder with the table and returns a function from a batch of events to a
table of user_id and vector. Packages are imported where they are used, because each contender
runs in a process without the others.
"""

import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.pipeline.data import DIM, DIMENSIONS

# Not nullable, which is less work for a Parquet writer.
ENTRY = pa.field("item", pa.float32(), nullable=False)
VECTORS = pa.schema(
    [
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("vector", pa.list_(ENTRY, DIM), nullable=False),
    ]
)
Pool = Callable[[pa.RecordBatch], pa.Table]


def make_embag(folder: Path) -> Pool:
    """`embedding_bag` of the list column, with the table that `load_table` maps."""
    embag = importlib.import_module("embag")
    table = embag.load_table(folder / "items.npy")

    def pool(batch: pa.RecordBatch) -> pa.Table:
        return _with_users(batch, embag.embedding_bag(batch["item_ids"], table, mode="mean"))

    return pool


def make_torch(folder: Path) -> Pool:
    """`embedding_bag` in inference mode. Only the bounds are copied, to int64."""
    torch = importlib.import_module("torch")
    # torch's memory starts on a cache line. NumPy's does not, and would make torch slower.
    with open(folder / "items.npy", "rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        table = torch.empty(shape)
        file.readinto(table.numpy())

    def pool(batch: pa.RecordBatch) -> pa.Table:
        ids, bounds = map(torch.from_dlpack, _ids_and_bounds(batch))
        with torch.inference_mode():
            vectors = torch.nn.functional.embedding_bag(
                ids, table, bounds, mode="mean", include_last_offset=True
            )
        return _with_users(batch, vectors.numpy())

    return pool


def make_numpy(folder: Path) -> Pool:
    """The obvious loop over lists."""
    table = np.load(folder / "items.npy")

    def pool(batch: pa.RecordBatch) -> pa.Table:
        ids, bounds = _ids_and_bounds(batch)
        vectors = np.zeros((len(batch), DIM), np.float32)
        for row, (start, stop) in enumerate(itertools.pairwise(bounds)):
            if start < stop:
                vectors[row] = table[ids[start:stop]].mean(axis=0)
        return _with_users(batch, vectors)

    return pool


def make_numpy_take(folder: Path) -> Pool:
    """The fastest loop over lists that we found."""
    table = np.load(folder / "items.npy")

    def pool(batch: pa.RecordBatch) -> pa.Table:
        ids, bounds = _ids_and_bounds(batch)
        vectors = np.zeros((len(batch), DIM), np.float32)
        places = bounds.tolist()  # slicing with Python ints is faster than with NumPy's
        for row, (start, stop) in enumerate(itertools.pairwise(places)):
            if start < stop:
                vectors[row] = table.take(ids[start:stop], axis=0).sum(axis=0) / (stop - start)
        return _with_users(batch, vectors)

    return pool


def make_polars(folder: Path) -> Pool:
    """A query for each batch."""
    polars = importlib.import_module("polars")
    items = polars.read_parquet(folder / "items.parquet").lazy()

    def pool(batch: pa.RecordBatch) -> pa.Table:
        query = polars_query(polars.from_arrow(batch).lazy(), items)
        return query.collect(engine="streaming").to_arrow().cast(VECTORS)

    return pool


def make_duckdb(folder: Path) -> Pool:
    """A query for each batch."""
    connection = importlib.import_module("duckdb").connect()
    connection.execute(f"CREATE TABLE items AS FROM '{folder}/items.parquet'")

    def pool(batch: pa.RecordBatch) -> pa.Table:
        connection.register("events", batch)
        return connection.sql(duckdb_query("events", "items")).to_arrow_table().cast(VECTORS)

    return pool


def polars_query(events: Any, items: Any) -> Any:
    """Explode, join and group by, the only way from lists of ids to means in polars."""
    concat_arr = importlib.import_module("polars").concat_arr
    means = importlib.import_module("polars").col(DIMENSIONS).mean()
    rows = events.explode("item_ids").join(items, left_on="item_ids", right_on="item_id")
    return rows.group_by("user_id").agg(means).select("user_id", vector=concat_arr(DIMENSIONS))


def duckdb_query(events: str, items: str) -> str:
    """Unnest, join, group by."""
    means = ", ".join(f"sum({name}) / count(*)" for name in DIMENSIONS)  # faster than avg
    return f"""
        SELECT user_id, [{means}]::FLOAT[{DIM}] AS vector
        FROM (SELECT user_id, unnest(item_ids) AS item_id FROM {events})
        JOIN {items} USING (item_id)
        GROUP BY user_id
    """


def _ids_and_bounds(batch: pa.RecordBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ids of all lists without a copy, and the n + 1 bounds of the lists."""
    lists = batch["item_ids"]
    bounds = lists.offsets.to_numpy()
    ids = lists.values[bounds[0] : bounds[-1]]
    return ids.to_numpy(), (bounds - bounds[0]).astype(np.int64)


def _with_users(batch: pa.RecordBatch, vectors: NDArray[np.float32]) -> pa.Table:
    entries = pa.array(vectors.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(entries, type=VECTORS.field("vector").type)
    return pa.table([batch["user_id"], column], schema=VECTORS)


POOLS = {
    "embag": make_embag,
    "torch": make_torch,
    "numpy": make_numpy,
    "numpy-take": make_numpy_take,
    "polars": make_polars,
    "duckdb": make_duckdb,
}
