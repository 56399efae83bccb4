"""Rows per second of `embag.ray.Pool` in Ray Data: `python -m benchmarks.sharded.pool`.

A Parquet file of lists is pooled into Parquet, in turn by `Pool` in actors, by `Pool` in tasks,
and by a plain function in tasks, which maps the table for every batch. All results are compared
with those of plain arrays first. The first round, in which Ray starts its workers, is not counted.
Actors are started in each round, tasks find workers that run.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import ray

import embag
import embag.ray
from benchmarks import machine

N_ITEMS, DIM = 200_000, 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharded.pool", description=__doc__)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    arguments = parser.parse_args()
    results = machine.facts()
    results["settings"] = {"rows": arguments.rows, "rounds": arguments.rounds}
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as folder:
        events, items = f"{folder}/events.parquet", f"{folder}/items.npy"
        expected = make(events, items, arguments.rows)
        ways = {"actors": in_actors, "tasks": in_tasks, "function": with_function}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for i in range(arguments.rounds + 1):
            for way, dataset in ways.items():
                out = f"{folder}/{way}{i}"
                start = time.perf_counter()
                dataset(events, items).select_columns(["user_id", "vector"]).write_parquet(out)
                if i > 0:
                    seconds[way].append(time.perf_counter() - start)
                else:
                    check(out, expected)
                shutil.rmtree(out)
    for way, times in seconds.items():
        results[way] = arguments.rows / statistics.median(times)
        print(f"{way}: {results[way]:,.0f} rows per second")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def make(events: str, items: str, n_rows: int) -> Any:
    """Write lists of 0 to 39 ids, and a table; return the vectors of the first 1000 lists."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((N_ITEMS, DIM), np.float32)
    embag.save_table(items, table)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 40, n_rows))])
    ids = rng.integers(0, N_ITEMS, offsets[-1])
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids))
    columns = pa.table({"user_id": np.arange(n_rows), "item_ids": lists})
    pq.write_table(columns, events, row_group_size=n_rows // 16)
    return embag.embedding_bag(ids, table, offsets[:1001], include_last_offset=True)


def in_tasks(events: str, items: str) -> Any:
    pool = embag.ray.Pool(items, "item_ids")
    return ray.data.read_parquet(events).map_batches(pool, batch_format="pyarrow")


def in_actors(events: str, items: str) -> Any:
    return ray.data.read_parquet(events).map_batches(
        embag.ray.Pool,
        fn_constructor_args=[items, "item_ids"],
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=2),
    )


def with_function(events: str, items: str) -> Any:
    return ray.data.read_parquet(events).map_batches(
        pool_lists, fn_args=[items], batch_format="pyarrow"
    )


def pool_lists(batch: Any, items: str) -> Any:
    vectors = embag.embedding_bag(batch["item_ids"], embag.load_table(items))
    return batch.append_column("vector", pa.array(embag.to_arrow(vectors)))


def check(out: str, expected: Any) -> None:
    """Raise unless the first vectors are right, to the bit."""
    rows = pyarrow.dataset.dataset(out, format="parquet").to_table(
        filter=pa.compute.field("user_id") < len(expected)
    )
    vectors = rows.sort_by("user_id")["vector"].to_pylist()
    np.testing.assert_array_equal(np.array(vectors, np.float32), expected)


if __name__ == "__main__":
    main()
