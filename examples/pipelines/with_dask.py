"""Dask: the partitions of a frame, one by one, in bounded memory."""

import dask.dataframe as dd
import pandas as pd
import sample

import embag
import embag.pandas  # registers the accessor


def pool(events: str, items: str, out: str) -> None:
    frame = dd.read_parquet(events, dtype_backend="pyarrow", split_row_groups=True)
    frame.map_partitions(pool_lists, items).to_parquet(out)


def pool_lists(part: pd.DataFrame, items: str) -> pd.DataFrame:
    table = embag.load_table(items)  # mapped: all processes of a machine share its pages
    # Dask runs a task per core, so each call uses one thread.
    vector = part["item_ids"].embag.pool(table, num_threads=1)
    return part[["user_id"]].assign(vector=vector)


if __name__ == "__main__":
    sample.run(pool)
