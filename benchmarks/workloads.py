"""What is computed: one table of named workloads, and how their inputs are made.

A workload is a table, `n_batches` batches of indices with offsets, and the options of
the call. The batches are used in turn. Their rows together are far larger than the
caches (but for the workloads that are about caches): the same batch again and again
would measure the last-level cache.

A workload with a `gradient` is the backward pass of such a call, or a step with its
result. The gradient of the output is the same array for all batches: in training it has
just been computed and is in the caches.

Targets are ratios: the seconds of the contender that is named over those of this one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAIN = ("torch", "embag", "embag-numpy", "limit")
IN_CACHE = ("torch", "embag", "embag-numpy")  # there the limit is the loop, not the memory
EVERYONE = (*MAIN, "numba", "scipy", "numpy")
BACKWARD = ("torch", "embag")
SPARSE = ("torch", "torch-uncoalesced", "embag")

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
    ids: str = "uniform"  # or "zipf", or "hot": half of them one row
    ragged: bool = False  # geometric lengths, some 0; one bag as large as a fifth of the rest
    kind: str = "forward"  # of operation: who computes it (`contenders.CONTENDERS`)
    gradient: str | None = None  # of the table: "dense" or "sparse"; or "per_sample_weights"
    n_batches: int = 32
    passes: int = 1  # over all batches, in a round
    contenders: tuple[str, ...] = MAIN
    targets: dict[str, dict[str, float]] = field(default_factory=dict)  # {who: {than whom: times}}
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
_FORWARD = [
    Workload(
        "one-bag",
        "one bag of 20, D = 64, 1000 rows: the whole call",
        *(1000, 64, 1, 20),
        passes=64,
        contenders=(*IN_CACHE, "numba", "scipy", "numpy"),
        targets={"embag": {"torch": 3}},
    ),
    Workload(
        "32-bags",
        "32 bags of 20, D = 64, 10 k rows",
        *(10_000, 64, 32, 20),
        passes=32,
        contenders=IN_CACHE,
        targets={"embag": {"torch": 1.5}},
    ),
    Workload(
        "sum-d64-10k",
        "sum, D = 64, 10 k rows, 512 bags of 40",
        *(10_000, 64, 512),
        contenders=(*IN_CACHE, "numba", "scipy", "numpy"),
        targets={"embag": {"torch": 1.15}},
    ),
    Workload(
        "sum-d128-10k",
        "sum, D = 128, 10 k rows, 512 bags of 40",
        *(10_000, 128, 512),
        contenders=IN_CACHE,
        targets={"embag": {"torch": 1.15}},
    ),
    Workload("sum-d32-2m", "sum, D = 32, 2 M rows", 2_000_000, 32),
    Workload(
        "sum-d64-2m",
        "sum, D = 64, 2 M rows",
        *(2_000_000, 64),
        contenders=EVERYONE,
        targets={"embag": {"torch": 1.6}, "embag-numpy": {"torch": 1.15}},
        limit_target=0.9,
    ),
    Workload(
        "sum-d100-2m", "sum, D = 100, 2 M rows", 2_000_000, 100, targets={"embag": {"torch": 1.4}}
    ),
    Workload(
        "sum-d128-2m",
        "sum, D = 128, 2 M rows",
        *(2_000_000, 128),
        targets={"embag": {"torch": 1.6}, "embag-numpy": {"torch": 1.15}},
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
        targets={"embag": {"torch": 1.5}},
    ),
    Workload(
        "mean-d64-2m",
        "mean, D = 64, 2 M rows",
        *(2_000_000, 64),
        mode="mean",
        targets={"embag": {"torch": 1.5}},
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
        targets={"embag": {"torch": 8}},
    ),
    Workload(
        "float64-d64-1m",
        "float64 sum, D = 64, 1 M rows",
        *(1_000_000, 64),
        dtype="float64",
        n_batches=16,
        targets={"embag": {"torch": 8}},
    ),
    Workload(
        "padding-d64-1m",
        "sum with padding_idx, D = 64, 1 M rows",
        *(1_000_000, 64),
        padding_idx=0,
        n_batches=16,
        targets={"embag": {"torch": 8}},
    ),
]
_GRADIENTS = [
    Workload(
        "dense-sum-d64-10k",
        "dense gradient, sum, 10 k rows",
        *(10_000, 64, 512),
        kind="backward",
        gradient="dense",
        contenders=BACKWARD,
        targets={"embag": {"torch": 10}},
    ),
    Workload(
        "dense-mean-d64-10k",
        "dense gradient, mean, 10 k rows",
        *(10_000, 64, 512),
        mode="mean",
        kind="backward",
        gradient="dense",
        contenders=BACKWARD,
        targets={"embag": {"torch": 8}},
    ),
    Workload(
        "dense-max-d64-10k",
        "dense gradient, max, 10 k rows",
        *(10_000, 64, 512),
        mode="max",
        kind="backward",
        gradient="dense",
        contenders=BACKWARD,
        targets={"embag": {"torch": 2}},
    ),
    Workload(
        "dense-float64-d64-10k",
        "dense gradient, float64 sum, 10 k rows",
        *(10_000, 64, 512),
        dtype="float64",
        kind="backward",
        gradient="dense",
        contenders=BACKWARD,
        targets={"embag": {"torch": 10}},
    ),
    Workload(
        "dense-sum-d64-1m",
        "dense gradient, sum, 1 M rows",
        *(1_000_000, 64, 512),
        kind="backward",
        gradient="dense",
        n_batches=8,
        contenders=BACKWARD,
        targets={"embag": {"torch": 4}},
    ),
    Workload(
        "sparse-sum-d16-1m",
        "sparse gradient, sum, D = 16, 1 M rows",
        *(1_000_000, 16, 512),
        kind="backward",
        gradient="sparse",
        contenders=SPARSE,
    ),
    Workload(
        "sparse-sum-d64-1m",
        "sparse gradient, sum, 1 M rows",
        *(1_000_000, 64, 512),
        kind="backward",
        gradient="sparse",
        contenders=SPARSE,
        targets={"embag": {"torch": 8, "torch-uncoalesced": 1.5}},
    ),
    Workload(
        "sparse-sum-d256-1m",
        "sparse gradient, sum, D = 256, 1 M rows",
        *(1_000_000, 256, 512),
        kind="backward",
        gradient="sparse",
        contenders=SPARSE,
    ),
    Workload(
        "sparse-mean-d64-1m",
        "sparse gradient, mean, 1 M rows",
        *(1_000_000, 64, 512),
        mode="mean",
        kind="backward",
        gradient="sparse",
        contenders=SPARSE,
    ),
    Workload(
        "sparse-weighted-d64-1m",
        "sparse gradient and that of the weights, weighted sum, 1 M rows",
        *(1_000_000, 64, 512),
        weighted=True,
        kind="backward",
        gradient="sparse",
        contenders=SPARSE,
    ),
    Workload(
        "sparse-zipf-d64-1m",
        "sparse gradient, sum, Zipf-distributed ids, 4096 bags of 20, 1 M rows",
        *(1_000_000, 64, 4096, 20),
        ids="zipf",
        kind="backward",
        gradient="sparse",
        n_batches=16,
        contenders=SPARSE,
        targets={"embag": {"torch": 8}},
    ),
    Workload(
        "sparse-hot-d64-1m",
        "sparse gradient, sum, one row in half of all places, 1 M rows",
        *(1_000_000, 64, 512),
        ids="hot",
        kind="backward",
        gradient="sparse",
        contenders=SPARSE,
    ),
    Workload(
        "weights-d64-1m",
        "gradient of the weights alone, weighted sum, 1 M rows",
        *(1_000_000, 64, 512),
        weighted=True,
        kind="backward",
        gradient="per_sample_weights",
        contenders=BACKWARD,
        targets={"embag": {"torch": 1.5}},
    ),
    Workload(
        "step-d64-1m",
        "a step: the sparse gradient added to the table, 1 M rows",
        *(1_000_000, 64, 512),
        kind="step",
        gradient="sparse",
        contenders=BACKWARD,
    ),
]
QUICK = ("one-bag", "weighted-d64-2m", "ragged-d64-2m", "max-d64-1m", "padding-d64-1m")
QUICK += ("dense-mean-d64-10k", "dense-max-d64-10k", "sparse-weighted-d64-1m")
QUICK += ("weights-d64-1m", "step-d64-1m")
WORKLOADS = {workload.name: workload for workload in [*_FORWARD, *_GRADIENTS]}
GROUPS = {
    "forward": [workload.name for workload in _FORWARD],
    "gradients": [workload.name for workload in _GRADIENTS],
}


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
    if workload.ids == "hot":
        indices[rng.random(n_indices) < 0.5] = workload.n_rows // 3
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
    """Compare with the reference."""
    n_terms = int(np.diff(np.append(batch.offsets, len(batch.indices))).max())
    _assert_close(workload, result, reference(workload, table, batch), n_terms)


def reference_gradient(
    workload: Workload, table: NDArray[Any], batch: Batch, grad_output: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """Compute the gradient of the table in float64: of the rows that occur, and which.

    Also how many terms the largest sum has.
    """
    lengths = np.diff(np.append(batch.offsets, len(batch.indices)))
    terms = np.repeat(grad_output.astype(np.float64), lengths, axis=0)
    if workload.mode == "mean":
        terms /= np.repeat(lengths, lengths)[:, None]
    if workload.mode == "max":
        terms *= _is_maximum(table, batch)
    if batch.sample_weights is not None:
        terms *= batch.sample_weights[:, None]
    order = np.argsort(batch.indices, kind="stable")
    rows, starts, counts = np.unique(batch.indices[order], return_index=True, return_counts=True)
    return rows, np.add.reduceat(terms[order], starts), int(counts.max())


def _is_maximum(table: NDArray[Any], batch: Batch) -> NDArray[np.bool_]:
    """For each place and column: is this the first maximum of the bag?"""
    result = np.zeros((len(batch.indices), table.shape[1]), np.bool_)
    stops = np.append(batch.offsets[1:], len(batch.indices))
    for start, stop in zip(batch.offsets, stops, strict=True):
        if start < stop:
            first = table[batch.indices[start:stop]].argmax(axis=0)
            result[start + first, np.arange(table.shape[1])] = True
    return result


def assert_gradients(
    workload: Workload,
    table: NDArray[Any],
    batch: Batch,
    grad_output: NDArray[Any],
    gradients: Sequence[NDArray[Any]],
) -> None:
    """Compare with the reference: the gradient of the table, if any, then of the weights."""
    gradients = list(gradients)
    if workload.gradient != "per_sample_weights":
        gradient = gradients.pop(0)
        rows, expected, n_terms = reference_gradient(workload, table, batch, grad_output)
        _assert_close(workload, gradient[rows], expected, n_terms)
        assert np.count_nonzero(gradient) == np.count_nonzero(gradient[rows]), workload.name
    if batch.sample_weights is not None:
        lengths = np.diff(np.append(batch.offsets, len(batch.indices)))
        terms = np.repeat(grad_output.astype(np.float64), lengths, axis=0) * table[batch.indices]
        _assert_close(workload, gradients.pop(0), terms.sum(axis=1), workload.dim)
    assert not gradients, workload.name


def _assert_close(workload: Workload, result: Any, expected: Any, n_terms: int) -> None:
    """Compare sums of this many positive terms.

    The relative error of a sum of n is below n times eps, for any order of additions; a
    product or quotient adds one each.
    """
    np.testing.assert_allclose(
        np.asarray(result),
        expected,
        rtol=float((n_terms + 2) * np.finfo(workload.dtype).eps),
        err_msg=f"{workload.name}: a wrong result is not timed",
    )
