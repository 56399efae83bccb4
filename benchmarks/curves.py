"""Time against the number of ids, bags, tables and threads: `python -m benchmarks.curves`.

Sums of rows of 64 float32. Each result is compared with NumPy's in float64 before it is timed. At
each point the contenders take turns, and walk through ids that they have not seen before. All use
one thread, except in the curve of threads, where embag is alone and is timed before another OpenMP
runtime is loaded. The figures are seconds per call, one for each round.

`--publish` writes `results/curves-KEY.json`, KEY being the processor. `--quick` is for tests.
"""

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import embag
from benchmarks import machine, published

DIM = 64
Ids, Offsets = NDArray[np.int64], NDArray[np.int64]
Call = Callable[[Ids], Any]  # of the ids of one call


class Inputs:
    """Tables, and ids that are handed out in turn."""

    def __init__(self, n_rows: int, n_ids: int) -> None:
        self._rng = np.random.default_rng(0)
        self.n_rows = n_rows
        self._ids = self._rng.integers(n_rows, size=n_ids)
        self._at = 0

    def table(self) -> NDArray[np.float32]:
        return embag.aligned_copy(self._rng.random((self.n_rows, DIM), np.float32))

    def take(self, n: int) -> Ids:
        if self._at + n > len(self._ids):
            self._at = 0
        self._at += n
        return self._ids[self._at - n : self._at]


def lookups(table: NDArray[np.float32], offsets: Offsets) -> dict[str, Call]:
    """Return the contenders for bags of one table."""

    def look_up(ids: Ids) -> Any:
        return embag.embedding_bag(ids, table, offsets, mode="sum", num_threads=1)

    calls: dict[str, Call] = {"embag": look_up}
    if _has_torch():
        import torch  # noqa: PLC0415

        weight, starts = torch.tensor(table), torch.from_numpy(offsets)
        function = torch.nn.functional.embedding_bag
        calls["torch"] = lambda ids: function(torch.from_numpy(ids), weight, starts, mode="sum")
    calls["numpy"] = lambda ids: np.add.reduceat(table[ids], offsets)
    return calls


def collections(tables: list[NDArray[np.float32]], bag: int) -> dict[str, Call]:
    """Return the contenders for a bag of each table, side by side."""
    n = len(tables)
    names = [f"table_{i}" for i in range(n)]
    features = [embag.Feature(name, name) for name in names]
    ebc = embag.EmbeddingBagCollection(dict(zip(names, tables, strict=True)), features)
    offsets, one = np.arange(n + 1) * bag, np.zeros(1, np.int64)

    def loop(ids: Ids) -> Any:
        parts = (
            embag.embedding_bag(own, table, one, mode="sum", num_threads=1)
            for own, table in zip(ids.reshape(n, bag), tables, strict=True)
        )
        return np.concatenate(list(parts), axis=1)

    calls: dict[str, Call] = {
        "embag": lambda ids: ebc(ids, offsets, num_threads=1),
        "embag, a loop": loop,
    }
    if _has_torch():
        import torch  # noqa: PLC0415

        weights, start = [torch.tensor(table) for table in tables], torch.from_numpy(one)
        function = torch.nn.functional.embedding_bag

        def loop_of_torch(ids: Ids) -> Any:
            parts = [
                function(own, weight, start, mode="sum")
                for own, weight in zip(torch.from_numpy(ids.reshape(n, bag)), weights, strict=True)
            ]
            return torch.cat(parts, dim=1)

        calls["torch, a loop"] = loop_of_torch
    return calls


def measure(
    calls: dict[str, Call], take: Callable[[], Ids], expected: Callable[[Ids], Any], quick: bool
) -> dict[str, list[float]]:
    """Return the seconds of a call, by contender and round."""
    ids = take()
    for name, call in calls.items():
        result = np.asarray(call(ids))
        np.testing.assert_allclose(result, expected(ids), rtol=1e-4, err_msg=name)
    n_calls = {name: _settle(call, take, 0.01 if quick else 0.3) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(2 if quick else 15):
        for name, call in calls.items():
            inputs = [take() for _ in range(n_calls[name])]
            start = time.perf_counter()
            for ids in inputs:
                call(ids)
            seconds[name].append((time.perf_counter() - start) / len(inputs))
    return seconds


def _settle(call: Call, take: Callable[[], Ids], seconds: float) -> int:
    """Repeat a call for a while; return how many make a round of 10 ms."""
    n, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        call(take())
        n += 1
    return max(1, min(2000, int(0.01 * n / passed)))


def _has_torch() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    return True


def over_threads(inputs: Inputs, sizes: dict[str, Any], quick: bool) -> Iterator[dict[str, Any]]:
    table, bag = inputs.table(), 40
    offsets = np.arange(sizes["bags of 40"]) * bag
    for n in sizes["threads"]:
        embag.tune(table, n)

        def look_up(ids: Ids, n: int = n) -> Any:
            return embag.embedding_bag(ids, table, offsets, mode="sum", num_threads=n)

        def expected(ids: Ids) -> Any:
            return np.add.reduceat(table[ids].astype(np.float64), offsets)

        take = lambda: inputs.take(len(offsets) * bag)  # noqa: E731
        yield {"x": n, "seconds": measure({"embag": look_up}, take, expected, quick)}


def over_ids(inputs: Inputs, sizes: dict[str, Any], quick: bool) -> Iterator[dict[str, Any]]:
    yield from _over(inputs, [(1, n) for n in sizes["ids"]], quick, lambda n_bags, bag: bag)


def over_bags(inputs: Inputs, sizes: dict[str, Any], quick: bool) -> Iterator[dict[str, Any]]:
    yield from _over(inputs, [(n, 20) for n in sizes["bags"]], quick, lambda n_bags, bag: n_bags)


def _over(
    inputs: Inputs, shapes: list[tuple[int, int]], quick: bool, x: Callable[[int, int], int]
) -> Iterator[dict[str, Any]]:
    table = inputs.table()
    embag.tune(table, 1)
    for n_bags, bag in shapes:
        offsets = np.arange(n_bags) * bag

        def expected(ids: Ids, offsets: Offsets = offsets) -> Any:
            return np.add.reduceat(table[ids].astype(np.float64), offsets)

        take = lambda n=n_bags * bag: inputs.take(n)  # noqa: E731
        yield {
            "x": x(n_bags, bag),
            "seconds": measure(lookups(table, offsets), take, expected, quick),
        }


def over_tables(inputs: Inputs, sizes: dict[str, Any], quick: bool) -> Iterator[dict[str, Any]]:
    bag = 20
    everything = [inputs.table() for _ in range(max(sizes["tables"]))]
    for n in sizes["tables"]:
        tables = everything[:n]

        def expected(ids: Ids, tables: list[NDArray[np.float32]] = tables) -> Any:
            own = zip(ids.reshape(len(tables), bag), tables, strict=True)
            return np.concatenate([table[part].sum(0, np.float64) for part, table in own])[None]

        take = lambda n=n: inputs.take(n * bag)  # noqa: E731
        yield {"x": n, "seconds": measure(collections(tables, bag), take, expected, quick)}


CURVES = {
    "threads": ("8192 bags of 40 ids, a table of 1 M rows", over_threads, 1_000_000),
    "ids": ("one bag, a table of 1 M rows", over_ids, 1_000_000),
    "bags": ("bags of 20 ids, a table of 1 M rows", over_bags, 1_000_000),
    "tables": ("a bag of 20 ids in each table of 100 k rows", over_tables, 100_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--publish", action="store_true", help="write them to results/")
    parser.add_argument("--quick", action="store_true", help="small tables, two rounds")
    arguments = parser.parse_args()
    quick = arguments.quick
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= (n_cpus or 1)]
    sizes = {
        "threads": counts,
        "bags of 40": 64 if quick else 8192,
        "ids": [1, 4] if quick else [4**i for i in range(9)],
        "bags": [1, 4] if quick else [4**i for i in range(8)],
        "tables": [1, 2] if quick else [1, 2, 4, 8, 16, 32, 64],
    }
    results = machine.facts() | {"settings": {"quick": quick}, "curves": {}}
    for name, (title, points, n_rows) in CURVES.items():
        inputs = Inputs(1000 if quick else n_rows, 10_000 if quick else 8_000_000)
        found = list(points(inputs, sizes, quick))
        results["curves"][name] = {"title": title, "points": found}
        for point in found:
            times = {key: f"{np.median(s) * 1e6:.2f} us" for key, s in point["seconds"].items()}
            print(name, point["x"], times)
    text = json.dumps(results, indent=1) + "\n"
    if arguments.json:
        arguments.json.write_text(text)
    if arguments.publish:
        key = results["machine"]["key"]
        (published.FOLDER / f"curves-{key}.json").write_text(text)


if __name__ == "__main__":
    main()
