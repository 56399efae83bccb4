"""pandas: a frame in memory."""

import pandas as pd
import sample

import embag
import embag.pandas  # registers the accessor


def pool(events: str, items: str, out: str) -> None:
    table = embag.load_table(items)
    # Lists of Arrow types are pooled in place; by default, each list is an array of its own.
    frame = pd.read_parquet(events, dtype_backend="pyarrow")
    frame["vector"] = frame["item_ids"].embag.pool(table)
    frame[["user_id", "vector"]].to_parquet(out)


if __name__ == "__main__":
    sample.run(pool)
