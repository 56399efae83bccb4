"""Spark: `mapInArrow`, batch by batch in the Python workers."""

import os
import sys
from collections.abc import Iterator

import pyarrow as pa
import sample
from pyspark.sql import SparkSession

import embag


def pool(events: str, items: str, out: str) -> None:
    def pool_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        # Spark runs a task per core, each in a worker of its own, so calls use one thread.
        embag.set_num_threads(1)
        # Mapped: all workers of a machine share its pages. Every machine needs the file.
        table = embag.load_table(items)
        for batch in batches:
            vectors = pa.array(embag.to_arrow(embag.embedding_bag(batch["item_ids"], table)))
            lists = vectors.cast(pa.list_(pa.float32()))  # Spark has no FixedSizeList
            yield pa.record_batch({"user_id": batch["user_id"], "vector": lists})

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # of workers on this machine
    with SparkSession.builder.getOrCreate() as spark:
        frame = spark.read.parquet(events)
        vectors = frame.mapInArrow(pool_batches, "user_id long, vector array<float>")
        vectors.write.parquet(out)


if __name__ == "__main__":
    sample.run(pool)
