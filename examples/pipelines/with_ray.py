"""Ray Data: `map_batches` with `embag.ray.Pool`."""

import ray
import sample

import embag.ray


def pool(events: str, items: str, out: str) -> None:
    # Tasks get the path of the table and map it; those of a machine share its pages. Each uses the
    # CPUs that Ray assigns to it, one by default.
    (
        ray.data.read_parquet(events)
        .map_batches(embag.ray.Pool(items, "item_ids"), batch_format="pyarrow")
        .select_columns(["user_id", "vector"])
        .write_parquet(out)
    )


if __name__ == "__main__":
    sample.run(pool)
