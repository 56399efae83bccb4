"""Who pools a batch: functions that make one, given the folder with the table.

What they make takes a batch of events and returns user_id and vector. A package is imported
where it is used, because each contender runs in a process without the others.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.pipeline.data import DIM, DIMENSIONS

# Nothing in it may be null: a Parquet writer has less to do then.
VECTORS = pa.schema(
    [
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("vector", pa.list_(pa.field("item", pa.float32(), nullable=False), DIM), False),
    ]
)
Pool = Callable[[pa.RecordBatch], pa.Table]
Function = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]


def embag(folder: Path) -> Pool:
    """`embedding_bag`, on the table as `aligned_copy` has it."""
    import embag

    table = embag.aligned_copy(np.load(folder / "items.npy", mmap_mode="r"))

    def pool(ids: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.float32]:
        return embag.embedding_bag(ids, table, bounds, mode="mean", include_last_offset=True)

    return _of_arrays(pool)


def torch(folder: Path) -> Pool:
    """`embedding_bag` in inference mode. Nothing is copied but the offsets, into int64."""
    import torch

    table = torch.from_numpy(np.load(folder / "items.npy"))

    def pool(ids: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.inference_mode():
            vectors = torch.nn.functional.embedding_bag(
                torch.from_dlpack(ids),
                table,
                torch.from_dlpack(bounds),
                mode="mean",
                include_last_offset=True,
            )
        return vectors.numpy()

    return _of_arrays(pool)


def numpy(folder: Path) -> Pool:
    """The loop that one writes first."""
    table = np.load(folder / "items.npy")

    def pool(ids: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.float32]:
        vectors = np.zeros((len(bounds) - 1, DIM), np.float32)
        for bag, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            if start < stop:
                vectors[bag] = table[ids[start:stop]].mean(axis=0)
        return vectors

    return _of_arrays(pool)


def numpy_take(folder: Path) -> Pool:
    """The fastest such loop that we found."""
    table = np.load(folder / "items.npy")

    def pool(ids: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.float32]:
        vectors = np.zeros((len(bounds) - 1, DIM), np.float32)
        places = bounds.tolist()  # Python's own integers are faster than NumPy's
        for bag, (start, stop) in enumerate(zip(places[:-1], places[1:], strict=True)):
            if start < stop:
                vectors[bag] = table.take(ids[start:stop], axis=0).sum(axis=0) / (stop - start)
        return vectors

    return _of_arrays(pool)


def polars(folder: Path) -> Pool:
    """Explode, join, group by: there is no mean of lists of ids otherwise."""
    import polars as pl

    items = pl.read_parquet(folder / "items.parquet").lazy()

    def pool(batch: pa.RecordBatch) -> pa.Table:
        events = pl.from_arrow(batch).lazy()
        pooled = polars_query(events, items).collect(engine="streaming")
        return pooled.to_arrow().cast(VECTORS)

    return pool


def polars_query(events, items):  # type: ignore[no-untyped-def]  # polars' types, where it is
    import polars as pl

    return (
        events.explode("item_ids")
        .join(items, left_on="item_ids", right_on="item_id")
        .group_by("user_id")
        .agg(pl.col(DIMENSIONS).mean())
        .select("user_id", vector=pl.concat_arr(DIMENSIONS))
    )


def duckdb(folder: Path) -> Pool:
    """Unnest, join, group by."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"CREATE TABLE items AS FROM '{folder}/items.parquet'")

    def pool(batch: pa.RecordBatch) -> pa.Table:
        connection.register("events", batch)
        return connection.sql(duckdb_query("events", "items")).to_arrow_table().cast(VECTORS)

    return pool


def duckdb_query(events: str, items: str) -> str:
    means = ", ".join(f"sum({name}) / count(*)" for name in DIMENSIONS)  # faster than avg
    return f"""
        SELECT user_id, [{means}]::FLOAT[{DIM}] AS vector
        FROM (SELECT user_id, unnest(item_ids) AS item_id FROM {events}) JOIN {items} USING (item_id)
        GROUP BY user_id
    """


def _of_arrays(function: Function) -> Pool:
    """Make a pool of a function of ids and bounds, which are not copied on the way."""

    def pool(batch: pa.RecordBatch) -> pa.Table:
        lists = batch["item_ids"]
        bounds = lists.offsets.to_numpy()
        ids = lists.values[bounds[0] : bounds[-1]].to_numpy()
        vectors = function(ids, (bounds - bounds[0]).astype(np.int64))
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.ravel()), type=VECTORS.field("vector").type
        )
        return pa.table([batch["user_id"], column], schema=VECTORS)

    return pool


POOLS = {
    "embag": embag,
    "torch": torch,
    "numpy": numpy,
    "numpy-take": numpy_take,
    "polars": polars,
    "duckdb": duckdb,
}
