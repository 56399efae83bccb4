"""Pool a file with one query: `python -m benchmarks.pipeline.queries ENGINE EVENTS OUT`.

The engine plans reading, joining, pooling and writing. ENGINE is "polars" or "duckdb".
"""

import importlib
import sys
from pathlib import Path

from benchmarks.pipeline.pools import duckdb_query, polars_query


def polars(events: Path, items: Path, out: Path) -> None:
    scan_parquet = importlib.import_module("polars").scan_parquet
    polars_query(scan_parquet(events), scan_parquet(items)).sink_parquet(out)


def duckdb(events: Path, items: Path, out: Path) -> None:
    connection = importlib.import_module("duckdb").connect()
    connection.execute("SET preserve_insertion_order = false")  # so that it needs less memory
    query = duckdb_query(f"'{events}'", f"'{items}'")
    connection.execute(f"COPY ({query}) TO '{out}'")


QUERIES = {"polars": polars, "duckdb": duckdb}

if __name__ == "__main__":
    name, events, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    QUERIES[name](events, events.parent / "items.parquet", out)
