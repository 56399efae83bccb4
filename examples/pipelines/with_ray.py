"""Ray Data: `map_batches` with `embag.ray.Pool`."""

import ray
import sample

import embag.ray


def pool(events: str, items: str, out: str) -> None:
    # Each actor maps the table once, and uses the CPUs that Ray assigns to it: one by default.
    # All actors of a machine share the table's pages.
    (
        ray.data.read_parquet(events)
        .map_batches(
            embag.ray.Pool,
            fn_constructor_args=[items, "item_ids"],
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=2),
        )
        .select_columns(["user_id", "vector"])
        .write_parquet(out)
    )


if __name__ == "__main__":
    sample.run(pool)
