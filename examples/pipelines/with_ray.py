"""Ray Data: `map_batches` with Arrow batches."""

import pyarrow as pa
import ray
import sample

import embag


def pool(events: str, items: str, out: str) -> None:
    (
        ray.data.read_parquet(events)
        .map_batches(pool_lists, fn_args=[items], batch_format="pyarrow")
        .write_parquet(out)
    )


def pool_lists(batch: pa.Table, items: str) -> pa.Table:
    # Ray runs a task per core and sets its OMP_NUM_THREADS to 1, which embag respects. The table
    # is mapped: all workers of a machine share its pages.
    vectors = embag.embedding_bag(batch["item_ids"], embag.load_table(items))
    vector = pa.array(embag.to_arrow(vectors))
    return pa.table({"user_id": batch["user_id"], "vector": vector})


if __name__ == "__main__":
    sample.run(pool)
