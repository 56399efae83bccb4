"""Long format, and what users write without it: `python -m benchmarks.long_format`.

Events, each of a user, an item and a weight, in any order: `embag.embedding_bag` with
`segment_ids`, the CSR matrix of the events pooled by embag, and polars' `group_by` with embag's
expression, each from the three arrays. Rows with a segment each: `embag.segment_reduce`,
`numpy.add.at`, and `numpy.add.reduceat` where segments are sorted.

All run in this process, in turn; none of the others uses OpenMP. Results are first compared with
sums in float64. The ratio is the median of the ratios of neighbouring calls.
"""

import argparse
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import embag
from benchmarks import machine

DIM = 64
N_CHECKED = 200  # users and segments


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_format", description=__doc__)
    parser.add_argument("--events", type=int, default=3_000_000)
    parser.add_argument("--users", type=int, default=300_000)
    parser.add_argument("--items", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print(machine.facts())
    sizes = arguments.events, arguments.users, arguments.items
    print(f"{sizes[0]:,} events, {sizes[1]:,} users, {sizes[2]:,} items, D = {DIM}")
    compare(events_contenders(*sizes), arguments.rounds)
    n_rows, n_segments = arguments.events // 3, arguments.users // 3
    for is_sorted in (False, True):
        print(f"{n_rows:,} rows, {n_segments:,} segments, {'' if is_sorted else 'not '}sorted")
        compare(segment_contenders(n_rows, n_segments, is_sorted), arguments.rounds)


def events_contenders(n_events: int, n_users: int, n_items: int) -> dict[str, Callable[[], Any]]:
    """Return the ways to pool the items of each user, after a check of their results."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(n_users, size=n_events), rng.integers(n_items, size=n_events)
    users[-1] = n_users - 1
    weights = rng.random(n_events, np.float32)
    table = embag.aligned_empty((n_items, DIM), np.float32)
    rng.random(out=table, dtype=np.float32)

    def by_segment_ids() -> Any:
        return embag.embedding_bag(
            items, table, segment_ids=users, mode="sum", per_sample_weights=weights
        )

    contenders: dict[str, Callable[[], Any]] = {"embag": by_segment_ids}
    if importlib.util.find_spec("scipy"):
        sparse = importlib.import_module("scipy.sparse")

        def by_matrix() -> Any:
            matrix = sparse.csr_array((weights, (users, items)), shape=(n_users, n_items))
            return embag.embedding_bag(matrix, table, mode="sum")

        contenders["CSR"] = by_matrix
    if importlib.util.find_spec("polars"):
        pl: Any = importlib.import_module("polars")
        importlib.import_module("embag.polars")
        pool = pl.col("item").embag.pool_rows(table, "sum", "weight")

        def by_groups() -> Any:
            frame = pl.DataFrame({"user": users, "item": items, "weight": weights})
            return frame.group_by("user").agg(pool)

        contenders["polars"] = by_groups

    expected = sums(table[items[users < N_CHECKED]], users, weights)
    for name, contender in contenders.items():
        result = contender()
        if name == "polars":
            result = result.sort("user")
            occurring = np.unique(users)
            assert result["user"].to_list() == occurring.tolist()
            check(result["item"].to_numpy(), expected[occurring[occurring < N_CHECKED]])
        else:
            assert len(result) == n_users
            check(result, expected)
    return contenders


def segment_contenders(
    n_rows: int, n_segments: int, is_sorted: bool
) -> dict[str, Callable[[], Any]]:
    """Return the ways to sum the rows of each segment, after a check of their results."""
    rng = np.random.default_rng(1)
    segments = rng.integers(n_segments, size=n_rows)
    segments[:n_segments] = np.arange(n_segments)  # `reduceat` has no empty segments
    if is_sorted:
        segments.sort()
    data = rng.random((n_rows, DIM), np.float32)

    def by_embag() -> Any:
        return embag.segment_reduce(data, segments, n_segments)

    def by_add_at() -> Any:
        result = np.zeros((n_segments, DIM), np.float32)
        np.add.at(result, segments, data)
        return result

    def by_reduceat() -> Any:
        return np.add.reduceat(data, np.flatnonzero(np.diff(segments, prepend=-1)))

    contenders: dict[str, Callable[[], Any]] = {"embag": by_embag, "add.at": by_add_at}
    if is_sorted:
        contenders["add.reduceat"] = by_reduceat
    expected = sums(data[segments < N_CHECKED], segments, np.ones(n_rows, np.float32))
    for contender in contenders.values():
        check(contender(), expected)
    return contenders


def sums(
    rows: NDArray[np.float32], segments: NDArray[np.int64], weights: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the sums of the first segments; `rows` are those of their positions."""
    first = segments < N_CHECKED
    result = np.zeros((N_CHECKED, DIM))
    np.add.at(result, segments[first], rows * weights[first, None].astype(np.float64))
    return result


def check(result: NDArray[np.float32], expected: NDArray[np.float64]) -> None:
    """Compare the first rows of a result; sums of hundreds of positive terms."""
    np.testing.assert_allclose(result[: len(expected)], expected[: len(result)], rtol=1e-4)


def compare(contenders: dict[str, Callable[[], Any]], n_rounds: int) -> None:
    """Run the contenders in turn, and print their medians and ratios to embag."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(n_rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            seconds[name].append(time.perf_counter() - start)
    for name, runs in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(runs, seconds["embag"], strict=True))
        print(
            f"  {name:>12}: {1e3 * statistics.median(runs):8.1f} ms "
            f"({1e3 * min(runs):.1f} to {1e3 * max(runs):.1f}), {ratio:.2f} x embag's time"
        )


if __name__ == "__main__":
    main()
