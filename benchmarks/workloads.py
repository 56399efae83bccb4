"""What is computed: one table of named workloads, and how their inputs are made.

A workload is a table, `n_batches` batches of indices with offsets, and the options of
the call. The batches are used in turn. Their rows together are far larger than the
caches (but for the workloads that are about caches): the same batch again and again
would measure the last-level cache.

Targets are ratios: the seconds of torch over those of the contender.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAIN = ("torch", "embag", "embag-numpy", "limit")
IN_CACHE = ("torch", "embag", "embag-numpy")  # there the limit is the loop, not the memory
EVERYONE = (*MAIN, "numba", "scipy", "numpy")

# An odd number that 2 and 5 do not divide: multiplying by it permutes the rows of a
# table whose size has no other factors.
_SPREAD = 2_654_435_761


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    n_rows: int
    dim: int
    n_bags: int = 1024
    bag_size: int = 40  # on average, for ragged bags
    dtype: str = "float32"
    mode: str = "sum"
    weighted: bool = False
    padding_idx: int | None = None  # then a tenth of the indices
    ids: str = "uniform"  # or "zipf"
    ragged: bool = False  # geometric lengths, some 0; one bag as large as a fifth of the rest
    n_batches: int = 32
    passes: int = 1  # over all batches, in a round
    contenders: tuple[str, ...] = MAIN
    targets: dict[str, float] = field(default_factory=dict)
    limit_target: float | None = None  # embag's share of the gather limit

    @property
    def row_bytes(self) -> int:
        return self.dim * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Batch:
    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sample_weights: NDArray[Any] | None


# Two million rows: far more than the caches hold. Sixteen batches where peers take 500 ns
# for a row.
_ALL = [
    Workload(
        "one-bag",
        "one bag of 20, D = 64, 1000 rows: the whole call",
        *(1000, 64, 1, 20),
        passes=64,
        contenders=(*IN_CACHE, "numba", "scipy", "numpy"),
        targets={"embag": 3},
    ),
    Workload(
        "32-bags",
        "32 bags of 20, D = 64, 10 k rows",
        *(10_000, 64, 32, 20),
        passes=32,
        contenders=IN_CACHE,
        targets={"embag": 1.5},
    ),
    Workload(
        "sum-d64-10k",
        "sum, D = 64, 10 k rows, 512 bags of 40",
        *(10_000, 64, 512),
        contenders=(*IN_CACHE, "numba", "scipy", "numpy"),
        targets={"embag": 1.15},
    ),
    Workload(
        "sum-d128-10k",
        "sum, D = 128, 10 k rows, 512 bags of 40",
        *(10_000, 128, 512),
        contenders=IN_CACHE,
        targets={"embag": 1.15},
    ),
    Workload("sum-d32-2m", "sum, D = 32, 2 M rows", 2_000_000, 32),
    Workload(
        "sum-d64-2m",
        "sum, D = 64, 2 M rows",
        *(2_000_000, 64),
        contenders=EVERYONE,
        targets={"embag": 1.6, "embag-numpy": 1.15},
        limit_target=0.9,
    ),
    Workload("sum-d100-2m", "sum, D = 100, 2 M rows", 2_000_000, 100, targets={"embag": 1.4}),
    Workload(
        "sum-d128-2m",
        "sum, D = 128, 2 M rows",
        *(2_000_000, 128),
        targets={"embag": 1.6, "embag-numpy": 1.15},
    ),
    Workload(
        "sum-d256-2m",
        "sum, D = 256, 2 M rows",
        *(2_000_000, 256),
        n_batches=16,
        contenders=("torch", "embag", "limit"),  # 2 GB each
    ),
    Workload(
        "weighted-d64-2m",
        "weighted sum, D = 64, 2 M rows",
        *(2_000_000, 64),
        weighted=True,
        targets={"embag": 1.5},
    ),
    Workload(
        "mean-d64-2m",
        "mean, D = 64, 2 M rows",
        *(2_000_000, 64),
        mode="mean",
        targets={"embag": 1.5},
    ),
    Workload(
        "zipf-d64-2m", "sum, Zipf-distributed ids, D = 64, 2 M rows", 2_000_000, 64, ids="zipf"
    ),
    Workload("ragged-d64-2m", "sum, ragged bags, D = 64, 2 M rows", 2_000_000, 64, ragged=True),
    Workload(
        "max-d64-1m",
        "max, D = 64, 1 M rows",
        *(1_000_000, 64),
        mode="max",
        n_batches=16,
        targets={"embag": 8},
    ),
    Workload(
        "float64-d64-1m",
        "float64 sum, D = 64, 1 M rows",
        *(1_000_000, 64),
        dtype="float64",
        n_batches=16,
        targets={"embag": 8},
    ),
    Workload(
        "padding-d64-1m",
        "sum with padding_idx, D = 64, 1 M rows",
        *(1_000_000, 64),
        padding_idx=0,
        n_batches=16,
        targets={"embag": 8},
    ),
]
QUICK = ("one-bag", "weighted-d64-2m", "ragged-d64-2m", "max-d64-1m", "padding-d64-1m")
WORKLOADS = {workload.name: workload for workload in _ALL}


def get_workload(name: str, quick: bool = False) -> Workload:
    """Return the workload; if `quick`, one of the same kind that takes milliseconds."""
    workload = WORKLOADS[name]
    if not quick:
        return workload
    return replace(
        workload,
        n_rows=min(workload.n_rows, 10_000),
        n_bags=min(workload.n_bags, 64),
        n_batches=2,
        passes=2,
    )


def fill_table(table: NDArray[Any]) -> None:
    """Fill with values in [0, 1), without a second array of that size."""
    np.random.default_rng(1).random(out=table, dtype=table.dtype)


def make_batches(workload: Workload) -> list[Batch]:
    """Make the batches: the same for every contender."""
    rng = np.random.default_rng(2)
    return [_make_batch(workload, rng) for _ in range(workload.n_batches)]


def _make_batch(workload: Workload, rng: np.random.Generator) -> Batch:
    lengths = np.full(workload.n_bags, workload.bag_size)
    if workload.ragged:
        lengths = rng.geometric(1 / (workload.bag_size + 1), workload.n_bags) - 1
        lengths[0] = lengths[-1] = 0
        lengths[workload.n_bags // 2] = lengths.sum() // 5
    n_indices = int(lengths.sum())
    if workload.ids == "zipf":
        ranks = (rng.zipf(1.1, n_indices) - 1) % workload.n_rows
        indices = ranks * _SPREAD % workload.n_rows
    else:
        indices = rng.integers(workload.n_rows, size=n_indices)
    if workload.padding_idx is not None:
        indices[rng.random(n_indices) < 0.1] = workload.padding_idx
    offsets = np.concatenate([[0], lengths.cumsum()[:-1]])
    sample_weights = None
    if workload.weighted:
        sample_weights = rng.random(n_indices, np.dtype(workload.dtype))
    return Batch(indices, offsets, sample_weights)


def reference(workload: Workload, table: NDArray[Any], batch: Batch) -> NDArray[np.float64]:
    """Compute what every contender must return, bag by bag, in float64."""
    result = np.zeros((workload.n_bags, workload.dim))
    stops = np.append(batch.offsets[1:], len(batch.indices))
    for b, (start, stop) in enumerate(zip(batch.offsets, stops, strict=True)):
        indices = batch.indices[start:stop]
        rows = table[indices].astype(np.float64)
        if batch.sample_weights is not None:
            rows *= batch.sample_weights[start:stop, None]
        if workload.padding_idx is not None:
            rows = rows[indices != workload.padding_idx]
        if len(rows):
            result[b] = getattr(rows, workload.mode)(axis=0)
    return result


def assert_result(workload: Workload, table: NDArray[Any], batch: Batch, result: Any) -> None:
    """Compare with the reference.

    All terms are positive, so the relative error of a sum of n is below n times eps, for
    any order of additions; a product or quotient adds one each.
    """
    n_terms = np.diff(np.append(batch.offsets, len(batch.indices))).max() + 2
    np.testing.assert_allclose(
        np.asarray(result),
        reference(workload, table, batch),
        rtol=float(n_terms * np.finfo(workload.dtype).eps),
        err_msg=f"{workload.name}: a wrong result is not timed",
    )
