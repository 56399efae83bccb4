"""DuckDB: the result of a query, streamed in Arrow batches, in bounded memory."""

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import sample

import embag

ROWS = 100_000  # of a batch


def pool(events: str, items: str, out: str) -> None:
    table = embag.load_table(items)
    vector = pa.list_(pa.float32(), table.shape[1])
    schema = pa.schema([("user_id", pa.int64()), ("vector", vector)])
    with duckdb.connect() as connection, pq.ParquetWriter(out, schema) as writer:
        query = connection.sql("SELECT user_id, item_ids FROM read_parquet($1)", params=[events])
        # DuckDB makes a batch when it is requested, so DuckDB and embag work in turn, each on
        # all cores. No threads need to be set.
        for batch in query.to_arrow_reader(ROWS):
            vectors = embag.embedding_bag(batch["item_ids"], table)
            columns = [batch["user_id"], pa.array(embag.to_arrow(vectors))]
            writer.write_batch(pa.record_batch(columns, schema))


if __name__ == "__main__":
    sample.run(pool)
