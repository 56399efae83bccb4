"""All of it in one query: `python -m benchmarks.pipeline.queries WHO EVENTS OUT`.

The engine reads, joins, pools and writes as it thinks best.
"""

import sys
from pathlib import Path

from benchmarks.pipeline.pools import duckdb_query, polars_query


def polars(events: Path, items: Path, out: Path) -> None:
    import polars as pl

    polars_query(pl.scan_parquet(events), pl.scan_parquet(items)).sink_parquet(out)


def duckdb(events: Path, items: Path, out: Path) -> None:
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET preserve_insertion_order = false")  # so it need not hold all of it
    query = duckdb_query(f"'{events}'", f"'{items}'")
    connection.execute(f"COPY ({query}) TO '{out}'")


QUERIES = {"polars": polars, "duckdb": duckdb}

if __name__ == "__main__":
    events = Path(sys.argv[2])
    QUERIES[sys.argv[1]](events, events.parent / "items.parquet", Path(sys.argv[3]))
