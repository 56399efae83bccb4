"""polars: a query that streams from Parquet to Parquet, in bounded memory."""

import polars as pl
import sample

import embag
import embag.polars  # registers the namespace


def pool(events: str, items: str, out: str) -> None:
    table = embag.load_table(items)
    # The streaming engine reads the file in pieces and pools several concurrently. Concurrent
    # calls of embag share its threads, so no threads need to be set.
    (
        pl.scan_parquet(events)
        .select("user_id", vector=pl.col("item_ids").embag.pool(table))
        .sink_parquet(out)
    )


if __name__ == "__main__":
    sample.run(pool)
