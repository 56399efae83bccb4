"""One figure: `python -m benchmarks.pages.one JSON`. Prints ns per row.

A table of which none, a half or all of the rows that are looked up are in memory; the residency
is verified before the lookups. Each result is compared with NumPy's.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import embag
from benchmarks.pages.files import (
    DIM,
    N_DIFFERENT,
    Array,
    different_rows,
    drop,
    rows_of,
    share_in_memory,
)
from embag import tables
from embag._kernels.dispatch import kernels

BAG = 20
FEATURES = 26
STATES = {"cold": 0.0, "half": 0.5, "warm": 1.0}  # the share of rows in memory
WORK = ("embedding_bag", "collection", "requests", "embag pool")


def one(
    path: str, work: str, state: str, n_threads: int, n_rows: int, seed: int, is_on: bool,
    is_small: bool,
) -> float:  # fmt: skip
    """Return ns per row of lookups; `is_on`: pages may be prefetched."""
    if is_small:  # as if the table were larger than half of the memory
        tables._memory_limit = lambda: 0
    drop(Path(path))
    table = embag.load_table(path)
    above = 0 if is_small else tables._memory_limit() // 2
    assert rows_of(table).nbytes > above
    if not is_on:  # also when the command line loads the table once more
        kernels.prefetch_pages_above(float("inf"))
        kernels.prefetch_pages_above = lambda n_bytes: None
    rng = np.random.default_rng(seed)
    n_bags = max(1, n_rows // (BAG * FEATURES)) * FEATURES
    ids = rng.integers(0, len(rows_of(table)), (n_bags, BAG))
    warm_up(table, ids[rng.permutation(n_bags)[: round(STATES[state] * n_bags)]])
    in_memory = share_in_memory(rows_of(table), ids)
    assert abs(in_memory - STATES[state]) < 0.1, f"{in_memory:.0%} in memory"

    call = CALLS[work](table, path, ids, n_threads)
    if state == "warm":
        for _ in range(20):
            call()
        repeats = 100 if work != "embag pool" else 5
        seconds = float(np.median([timed(call)[0] for _ in range(repeats)]))
        result = call()
    else:
        seconds, result = timed(call)
    check(result, ids, isinstance(table, embag.QuantizedTable))
    return seconds / ids.size * 1e9


def warm_up(table: Any, ids: Array) -> None:
    rows = rows_of(table)
    for bag in ids:
        rows[bag].sum()


def timed(call: Callable[[], Array]) -> tuple[float, Array]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def check(result: Array, ids: Array, is_quantized: bool) -> None:
    rows: Array = different_rows()
    if is_quantized:
        rows = embag.quantize(rows).dequantize()
    expected = rows[ids % N_DIFFERENT].sum(axis=1, dtype=np.float64)
    np.testing.assert_allclose(result.reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)


# --- The calls: each returns (n_bags, DIM) -------------------------------------


def bags(table: Any, _: str, ids: Array, n_threads: int) -> Callable[[], Array]:
    return lambda: embag.embedding_bag(ids, table, mode="sum", num_threads=n_threads)


def collection(table: Any, _: str, ids: Array, n_threads: int) -> Callable[[], Array]:
    """Return a call of one batch of 26 features."""
    features = [embag.Feature(f"f{f}", "t", mode="sum") for f in range(FEATURES)]
    pool = embag.EmbeddingBagCollection({"t": table}, features)
    batch = np.ascontiguousarray(ids.reshape(-1, FEATURES, BAG).swapaxes(0, 1)).reshape(-1)
    offsets = np.arange(0, len(batch) + 1, BAG)

    def call() -> Array:
        with embag.num_threads(n_threads):
            result: Array = pool(batch, offsets)
        return result

    return call


def requests(table: Any, _: str, ids: Array, n_threads: int) -> Callable[[], Array]:
    """Return calls of 26 features and one bag each, one after the other."""
    features = [embag.Feature(f"f{f}", "t", mode="sum") for f in range(FEATURES)]
    pool = embag.EmbeddingBagCollection({"t": table}, features)
    offsets = np.arange(0, FEATURES * BAG + 1, BAG)
    parts = ids.reshape(-1, FEATURES * BAG)

    def call() -> Array:
        with embag.num_threads(n_threads):
            return np.concatenate([pool(part, offsets) for part in parts])

    return call


def command(_: Any, path: str, ids: Array, n_threads: int) -> Callable[[], Array]:
    """Return a run of the command line, without the start of Python, from memory to memory."""
    from embag.cli import main, pool  # noqa: F401, PLC0415

    in_memory = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(dir=in_memory if in_memory.exists() else None)
    np.save(f"{folder.name}/ids.npy", ids)
    command = ["pool", f"{folder.name}/ids.npy", "--table", path, "--out"]
    command += [f"{folder.name}/out.npy", "--mode", "sum", "--threads", str(n_threads)]

    def call() -> Array:
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(command) == 0
        result: Array = np.load(Path(folder.name, "out.npy"))
        return result.reshape(-1, DIM)

    return call


CALLS = dict(zip(WORK, (bags, collection, requests, command), strict=True))

if __name__ == "__main__":
    print("ns per row:", one(**json.loads(sys.argv[1])))
