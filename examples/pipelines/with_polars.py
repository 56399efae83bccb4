"""polars: a query that streams from Parquet to Parquet, in bounded memory."""

import polars as pl
import sample

import embag
import embag.polars  # registers the namespace


def pool(events: str, items: str, out: str) -> None:
    table = embag.load_table(items)
    # The streaming engine takes the file piece by piece and pools several of them at a time;
    # embag's calls at the same time share its threads. There is nothing to set.
    (
        pl.scan_parquet(events)
        .select("user_id", vector=pl.col("item_ids").embag.pool(table))
        .sink_parquet(out)
    )


if __name__ == "__main__":
    sample.run(pool)
