"""Kinds of tables side by side: ``python -m benchmarks.tables``.

Each line is a lookup by embag on one thread: sums of 20 rows of 64 entries. The lines of a group
take turns. Every result is first compared with NumPy's. The times are the least of some rounds,
in ns per row; the ratio is to the first line of the group.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import embag
from benchmarks import machine

DIM, BAG, N_IDS, N_BATCHES = 64, 20, 40_960, 8
OFFSETS = np.arange(0, N_IDS, BAG)


class Line(NamedTuple):
    name: str
    table: Any
    ids: list[NDArray[np.int64]]
    decode: Callable[[NDArray[np.int64]], NDArray[Any]]  # the rows of some ids, by NumPy
    weights: NDArray[np.float32] | None = None

    def look_up(self, batch: int) -> NDArray[np.float32]:
        result: NDArray[np.float32] = embag.embedding_bag(
            self.ids[batch % N_BATCHES],
            self.table,
            OFFSETS,
            mode="sum",
            per_sample_weights=self.weights,
            num_threads=1,
        )
        return result

    def check(self) -> None:
        rows = self.decode(self.ids[0]).astype(np.float64)
        if self.weights is not None:
            rows = rows * self.weights[:, None]
        expected = np.add.reduceat(rows, OFFSETS)
        np.testing.assert_allclose(self.look_up(0), expected, rtol=1e-3, atol=1e-2)


def encodings(n_rows: int, rng: np.random.Generator) -> Iterator[Line]:
    """Rows of 8 bits, with and without scales."""
    floats = embag.aligned_copy(rng.standard_normal((n_rows, DIM), np.float32))
    ids = [rng.integers(0, n_rows, N_IDS) for _ in range(N_BATCHES)]
    fused = embag.quantize(floats)
    q = np.clip(floats * 40, -127, 127).astype(np.int8)
    scales = rng.uniform(0.5, 2, n_rows).astype(np.float32)
    yield Line("8 bits, scale and bias in the row", fused, ids, fused.dequantize)
    yield Line("int8", q, ids, lambda i: q[i])
    one = embag.QuantizedTable.from_int8(q, 0.5)
    yield Line("int8, one scale", one, ids, lambda i: q[i] * np.float32(0.5))
    each = embag.QuantizedTable.from_int8(q, scales)
    yield Line("int8, a scale for each row", each, ids, lambda i: q[i] * scales[i, None])
    for name in ("float8_e4m3fn", "float8_e5m2"):
        small = floats.astype(getattr(ml_dtypes, name))
        yield Line(name, small, ids, lambda i, small=small: small[i].astype(np.float32))


def mapped(n_rows: int, rng: np.random.Generator) -> Iterator[Line]:
    """Ids that are mapped to rows, beside rows that were mapped before the call."""
    floats = embag.aligned_copy(rng.standard_normal((n_rows, DIM), np.float32))
    n_ids = min(n_rows, 100_000)
    index_map = rng.permutation(n_rows)[:n_ids].astype(np.int32)
    scales = rng.uniform(0.5, 2, n_ids).astype(np.float32)
    ids = [rng.integers(0, n_ids, N_IDS) for _ in range(N_BATCHES)]
    rows = [index_map[batch].astype(np.int64) for batch in ids]
    weights = scales[ids[0]]
    by_map = embag.RemappedTable(floats, index_map)
    yield Line("rows", floats, rows, lambda r: floats[r])
    yield Line("ids, mapped", by_map, ids, lambda i: floats[index_map[i]])
    yield Line("rows, weighted", floats, rows[:1] * N_BATCHES, lambda r: floats[r], weights)
    scaled = embag.RemappedTable(floats, index_map, scales)
    yield Line(
        "ids, mapped and scaled", scaled, ids, lambda i: floats[index_map[i]] * scales[i, None]
    )


def measure(lines: list[Line], rounds: int) -> list[float]:
    """Return the least time of each line, in ns a row; the lines take turns."""
    best = [float("inf")] * len(lines)
    for line in lines:
        line.check()
        for batch in range(60):  # until its strategy is chosen
            line.look_up(batch)
    for batch in range(rounds):
        for k, line in enumerate(lines):
            start = time.perf_counter()
            line.look_up(batch)
            best[k] = min(best[k], time.perf_counter() - start)
    return [seconds / N_IDS * 1e9 for seconds in best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    print(machine.processor()["name"])
    for group in (encodings, mapped):
        for n_rows in (2_000, 2_000_000):
            lines = list(group(n_rows, np.random.default_rng(0)))
            times = measure(lines, rounds)
            print(f"\n{group.__doc__.splitlines()[0]} {n_rows:,} rows")
            for line, ns in zip(lines, times, strict=True):
                print(f"{ns:7.2f} ns  {times[0] / ns:5.2f}  {line.name}")


if __name__ == "__main__":
    main()
