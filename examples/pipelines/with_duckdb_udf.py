"""DuckDB: a function for SQL, `pool(item_ids)`, on Arrow columns."""

import duckdb
import pyarrow as pa
import sample

import embag


def pool(events: str, items: str, out: str) -> None:
    table = embag.load_table(items)

    def pool_lists(lists: pa.ChunkedArray) -> pa.Array:
        # DuckDB calls this from its threads with 2048 rows, too few for several threads.
        return pa.array(embag.to_arrow(embag.embedding_bag(lists, table, num_threads=1)))

    with duckdb.connect() as connection:
        connection.create_function(
            "pool",
            pool_lists,
            ["BIGINT[]"],
            f"FLOAT[{table.shape[1]}]",
            type="arrow",
            null_handling="special",  # passes null lists, too, which are empty bags
        )
        connection.execute(
            "COPY (SELECT user_id, pool(item_ids) AS vector FROM read_parquet($1))"
            " TO $2 (FORMAT parquet)",
            [events, out],
        )
        connection.remove_function("pool")


if __name__ == "__main__":
    sample.run(pool)
