"""The workloads by name, how their inputs are made, and how results are checked.

A workload is a table, `n_batches` batches of indices with offsets, and the options of the call.
The batches are used in turn. All their rows together are far larger than the caches (except in
the workloads for tables in cache): repeating one batch would measure the last-level cache.

A workload with a `gradient` is the backward pass of such a call, or a step with its result. One
with an `optimizer` is a step of training. The gradient of the output is the same array for all
batches: in training it has just been computed and is in the caches.

The batches of a collection have the concatenated ids of all its tables.

Targets are ratios of seconds: those of the named contender over those of this one.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Neighbours in this order are compared most exactly.
OURS = ("embag", "embag-again", "embag-pinned")
ALIGNED = ("torch", "zentorch", *OURS, "limit")
MAIN = (*ALIGNED, "embag-numpy", "limit-numpy")
IN_CACHE = ("torch", "zentorch", *OURS, "embag-numpy")  # the gather limit is one of memory
PLAIN = ("numba", "scipy", "numpy")
BACKWARD = ("torch", "embag", "embag-again")
SPARSE = ("torch", "torch-uncoalesced", "embag", "embag-again")
COLLECTION = ("fbgemm", "torch", "zentorch", "embag", "embag-again")
GATHER = ("numpy", "torch", "zentorch", *OURS)
MATRIX = ("scipy", *OURS, "embag-numpy")
UPDATE = ("two-calls", "embag", "embag-again", "limit")
TRAIN = ("fbgemm", "embag", "embag-again")

# The bits of an entry, and the bytes of scale and bias of a quantized row.
FORMATS = {
    "float64": (64, 0),
    "float32": (32, 0),
    "float16": (16, 0),
    "bfloat16": (16, 0),
    "int8": (8, 8),
    "int4": (4, 4),
    "int2": (2, 4),
}
_EPS = {"float64": 2**-52, "float32": 2**-23, "float16": 2**-10, "bfloat16": 2**-7}

# Neither 2 nor 5 divides this number, so multiplying by it permutes the rows of a table whose
# size has no other prime factors.
_SPREAD = 2_654_435_761


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    n_rows: int
    dim: int
    n_bags: int = 1024
    bag_size: int = 40  # on average, for ragged bags
    n_tables: int = 1  # each has n_rows rows and n_bags bags
    dtype: str = "float32"  # of the table: a key of FORMATS
    mode: str = "sum"
    weighted: bool = False
    padding_idx: int | None = None  # if given, a tenth of the indices
    ids: str = "uniform"  # or "zipf", or "hot": half of the ids are the same row
    skewed: bool = False  # 99 of a hundred ids of a collection are those of the first table
    ragged: bool = False  # geometric lengths, some 0; one bag is a fifth as large as the rest
    kind: str = "forward"  # of operation: a key of `contenders.CONTENDERS`
    gradient: str | None = None  # of the table: "dense" or "sparse"; or "per_sample_weights"
    optimizer: str | None = None  # of training: "sgd", "adagrad", "row-wise-adagrad" or "adam"
    n_batches: int = 32
    passes: int = 1  # over all batches in a round
    n_threads: int = 1  # of each contender
    contenders: tuple[str, ...] = MAIN
    targets: dict[str, dict[str, float]] = field(default_factory=dict)  # contender: {other: ratio}
    limit_target: float | None = None  # embag's share of the gather limit

    @property
    def row_bytes(self) -> int:
        entry_bits, numbers_bytes = FORMATS[self.dtype]
        return self.dim * entry_bits // 8 + numbers_bytes

    @property
    def bits(self) -> int:
        return FORMATS[self.dtype][0]

    @property
    def is_quantized(self) -> bool:
        return FORMATS[self.dtype][1] > 0

    @property
    def sums_dtype(self) -> str:
        return "float64" if self.dtype == "float64" else "float32"


@dataclass(frozen=True)
class Batch:
    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sample_weights: NDArray[Any] | None


class QuantizedRows:
    """Quantized rows for the reference: indexing decodes them with NumPy alone.

    `codes` are the bytes of the entries, `numbers` those of scale and bias.
    """

    def __init__(self, codes: NDArray[np.uint8], numbers: NDArray[np.uint8], bits: int):
        self.codes, self.numbers, self.bits = codes, numbers, bits

    def __getitem__(self, rows: Any) -> NDArray[np.float64]:
        codes, scales, biases = self._unpack(rows)
        return codes * scales + biases

    def _unpack(self, rows: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
        codes = self.codes[rows][:, :, None] >> shifts & (2**self.bits - 1)
        numbers = np.ascontiguousarray(self.numbers[rows]).view(self._dtype).astype(np.float64)
        return codes.reshape(len(codes), -1), numbers[:, :1], numbers[:, 1:]

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(f"f{self.numbers.shape[1] // 2}")

    def assert_stands_for(self, floats: NDArray[np.float32]) -> None:
        """Compare with the first rows of the table that these were made of.

        Rounding the codes loses up to half a step. Rounding scale and bias loses some units in
        the last place, times the largest code.
        """
        _, scales, _ = self._unpack(slice(len(floats)))
        steps = np.abs(self[: len(floats)] - floats) / scales
        allowed = 0.5 + 4 * (2**self.bits - 1) * float(np.finfo(self._dtype).eps)
        assert steps.max() <= allowed, f"rows quantized wrongly: off by {steps.max()} steps"


# Tables of two million rows are far larger than the caches. Workloads for which other libraries
# need 500 ns per row have 16 batches.
_FORWARD = [
    Workload(
        "one-bag",
        "one bag of 20, D = 64, 1000 rows: the whole call",
        *(1000, 64, 1, 20),
        passes=64,
        contenders=(*IN_CACHE, *PLAIN),
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
        contenders=(*IN_CACHE, *PLAIN),
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
        contenders=(*MAIN, *PLAIN),
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
        contenders=ALIGNED,  # 2 GB each
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
        "mean-d128-2m", "mean, D = 128, 2 M rows", 2_000_000, 128, mode="mean", contenders=ALIGNED
    ),
    Workload(
        "mean-d256-2m",
        "mean, D = 256, 2 M rows",
        *(2_000_000, 256),
        mode="mean",
        n_batches=16,
        contenders=ALIGNED,
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
_INFERENCE = [
    Workload(
        "int8-d64-2m",
        "8-bit sum, D = 64, 2 M rows",
        *(2_000_000, 64),
        dtype="int8",
        kind="quantized",
        contenders=ALIGNED,
        targets={"embag": {"torch": 1.6}},
    ),
    Workload(
        "int4-d128-2m",
        "4-bit sum, D = 128, 2 M rows",
        *(2_000_000, 128),
        dtype="int4",
        kind="quantized",
        contenders=ALIGNED,
        targets={"embag": {"torch": 1.6}},
    ),
    Workload(
        "int2-d128-2m",
        "2-bit sum, D = 128, 2 M rows",
        *(2_000_000, 128),
        dtype="int2",
        kind="quantized",
        contenders=ALIGNED,
    ),
    Workload(
        "float16-d64-2m",
        "float16 sum, D = 64, 2 M rows",
        *(2_000_000, 64),
        dtype="float16",
        contenders=ALIGNED,
        targets={"embag": {"torch": 1.4}},
    ),
    Workload(
        "float16-d128-2m",
        "float16 sum, D = 128, 2 M rows",
        *(2_000_000, 128),
        dtype="float16",
        contenders=ALIGNED,
        targets={"embag": {"torch": 1.4}},
    ),
    Workload(
        "bfloat16-d64-2m",
        "bfloat16 sum, D = 64, 2 M rows",
        *(2_000_000, 64),
        dtype="bfloat16",
        contenders=ALIGNED,
    ),
    Workload(
        "bfloat16-d128-2m",
        "bfloat16 sum, D = 128, 2 M rows",
        *(2_000_000, 128),
        dtype="bfloat16",
        contenders=ALIGNED,
    ),
    Workload(
        "int8-d64-10k",
        "8-bit sum, D = 64, 10 k rows, 512 bags of 40",
        *(10_000, 64, 512),
        dtype="int8",
        kind="quantized",
        passes=4,
        contenders=("torch", "zentorch", *OURS),
        targets={"embag": {"torch": 1.1}},
    ),
    Workload(
        "int8-d128-10k",
        "8-bit sum, D = 128, 10 k rows, 512 bags of 40",
        *(10_000, 128, 512),
        dtype="int8",
        kind="quantized",
        passes=4,
        contenders=("torch", "zentorch", *OURS),
    ),
    Workload(
        "int4-d64-10k",
        "4-bit sum, D = 64, 10 k rows, 512 bags of 40",
        *(10_000, 64, 512),
        dtype="int4",
        kind="quantized",
        passes=4,
        contenders=("torch", "zentorch", *OURS),
    ),
    Workload(
        "int4-d128-10k",
        "4-bit sum, D = 128, 10 k rows, 512 bags of 40",
        *(10_000, 128, 512),
        dtype="int4",
        kind="quantized",
        passes=4,
        contenders=("torch", "zentorch", *OURS),
        targets={"embag": {"torch": 1.1}},
    ),
    # A request has few rows. Many batches keep these out of the nearer caches.
    Workload(
        "26-tables-request",
        "26 tables of 10 k rows, D = 32, one request of 4 ids each: the whole call",
        *(10_000, 32, 1, 4),
        n_tables=26,
        kind="collection",
        n_batches=1024,
        passes=4,
        contenders=COLLECTION,
        targets={"embag": {"fbgemm": 10, "torch": 25}},
    ),
    Workload(
        "26-tables-batch",
        "26 tables of 100 k rows, D = 64, 512 bags of 10 each",
        *(100_000, 64, 512, 10),
        n_tables=26,
        kind="collection",
        n_batches=8,
        contenders=(*COLLECTION, "embag-pinned", "limit"),
        targets={"embag": {"fbgemm": 1.3}},
    ),
    Workload(
        "26-tables-batch-int8",
        "the same, 8-bit tables",
        *(100_000, 64, 512, 10),
        n_tables=26,
        dtype="int8",
        kind="collection",
        n_batches=8,
        contenders=("fbgemm", *OURS, "limit"),
        targets={"embag": {"fbgemm": 1.3}},
    ),
    Workload(
        "quantize-int8-1m",
        "quantize to 8 bits, D = 64, 1 M rows",
        *(1_000_000, 64, 1, 1),
        dtype="int8",
        kind="quantize",
        n_batches=4,  # calls
        contenders=("torch", "embag", "embag-again"),
        targets={"embag": {"torch": 1}},
    ),
]
_MATRICES = [
    Workload(
        "csr-d64-10k",
        "`X @ W`, D = 64, 10 k rows, 512 rows of X with 40 entries",
        *(10_000, 64, 512),
        kind="matrix",
        weighted=True,
        contenders=MATRIX,
        targets={"embag": {"scipy": 3}},
    ),
    Workload(
        "csr-d64-10k-4096",
        "the same, 4096 rows of X",
        *(10_000, 64, 4096),
        kind="matrix",
        weighted=True,
        contenders=MATRIX,
        targets={"embag": {"scipy": 3}},
    ),
    Workload(
        "csr-d64-2m",
        "`X @ W`, D = 64, 2 M rows",
        *(2_000_000, 64),
        kind="matrix",
        weighted=True,
        contenders=(*MATRIX, "limit", "limit-numpy"),
        targets={"embag": {"scipy": 3}},
    ),
]
# An id each of 40,960 bags of one.
_GATHERS = [
    Workload(
        "gather-d64-2m",
        "D = 64, 2 M rows, 40,960 ids",
        *(2_000_000, 64, 40_960, 1),
        kind="gather",
        contenders=GATHER,
        targets={"embag": {"numpy": 1.3, "torch": 1, "zentorch": 1}},
    ),
    Workload(
        "gather-out-d64-2m",
        "the same, with `out`",
        *(2_000_000, 64, 40_960, 1),
        kind="gather-out",
        contenders=("numpy", "torch", *OURS),
        targets={"embag": {"numpy": 1.3, "torch": 1}},
    ),
    Workload(
        "gather-d64-10k",
        "D = 64, 10 k rows, 4,096 ids",
        *(10_000, 64, 4096, 1),
        kind="gather",
        passes=8,
        contenders=GATHER,
        targets={"embag": {"numpy": 1, "torch": 1, "zentorch": 1}},
    ),
    Workload(
        "gather-d64-1k-20",
        "D = 64, 1000 rows, 20 ids: the whole call",
        *(1000, 64, 20, 1),
        kind="gather",
        passes=64,
        contenders=GATHER,
        targets={"embag": {"numpy": 1, "torch": 1, "zentorch": 1}},
    ),
    Workload(
        "gather-float16-d64-2m",
        "float16 to float32, D = 64, 2 M rows, 40,960 ids",
        *(2_000_000, 64, 40_960, 1),
        dtype="float16",
        kind="gather",
        contenders=("numpy", *OURS),
    ),
    Workload(
        "gather-int8-d64-2m",
        "8 bits to float32, D = 64, 2 M rows, 40,960 ids",
        *(2_000_000, 64, 40_960, 1),
        dtype="int8",
        kind="gather",
        contenders=("numpy", *OURS),
        targets={"embag": {"numpy": 1.5}},
    ),
]
_THREADS = [
    Workload(
        "sum-d64-2m-2t",
        "sum, D = 64, 2 M rows",
        *(2_000_000, 64),
        n_threads=2,
        contenders=ALIGNED,
    ),
    Workload(
        "sum-d128-2m-2t",
        "sum, D = 128, 2 M rows",
        *(2_000_000, 128),
        n_threads=2,
        contenders=ALIGNED,
    ),
    Workload(
        "int8-d64-2m-2t",
        "8-bit sum, D = 64, 2 M rows",
        *(2_000_000, 64),
        dtype="int8",
        kind="quantized",
        n_threads=2,
        contenders=ALIGNED,
    ),
    Workload(
        "26-tables-batch-2t",
        "26 tables of 100 k rows, D = 64, 512 bags of 10 each",
        *(100_000, 64, 512, 10),
        n_tables=26,
        kind="collection",
        n_batches=8,
        n_threads=2,
        contenders=(*COLLECTION, "embag-pinned", "limit"),
    ),
    Workload(
        "26-tables-skewed-2t",
        "the same, the first table has 99 % of as many ids",
        *(100_000, 64, 512, 10),
        n_tables=26,
        skewed=True,
        kind="collection",
        n_batches=8,
        n_threads=2,
        contenders=(*COLLECTION, "embag-pinned", "limit"),
    ),
]
_TRAINING = [
    Workload(
        "update-adagrad-d64-1m",
        "Adagrad",
        *(1_000_000, 64, 512),
        kind="update",
        optimizer="adagrad",
        contenders=("torch", *UPDATE),
        targets={"embag": {"torch": 12, "two-calls": 1.2}},
        limit_target=0.7,
    ),
    Workload(
        "update-adagrad-zipf-d64-1m",
        "Adagrad, Zipf-distributed ids",
        *(1_000_000, 64, 512),
        ids="zipf",
        kind="update",
        optimizer="adagrad",
        contenders=("torch", *UPDATE),
        targets={"embag": {"torch": 12}},
    ),
    Workload(
        "update-adam-d64-1m",
        "Adam",
        *(1_000_000, 64, 512),
        kind="update",
        optimizer="adam",
        contenders=("torch", *UPDATE),
        targets={"embag": {"torch": 15, "two-calls": 1.2}},
        limit_target=0.7,
    ),
    Workload(
        "update-sgd-d64-1m",
        "SGD",
        *(1_000_000, 64, 512),
        kind="update",
        optimizer="sgd",
        contenders=("torch", *UPDATE),
        targets={"embag": {"torch": 5, "two-calls": 1.2}},
        limit_target=0.7,
    ),
    Workload(
        "update-row-wise-adagrad-d64-1m",
        "row-wise Adagrad",
        *(1_000_000, 64, 512),
        kind="update",
        optimizer="row-wise-adagrad",
        contenders=UPDATE,
        targets={"embag": {"two-calls": 1.2}},
        limit_target=0.7,
    ),
    Workload(
        "update-adagrad-d64-1m-2t",
        "Adagrad, two threads",
        *(1_000_000, 64, 512),
        kind="update",
        optimizer="adagrad",
        n_threads=2,
        contenders=("torch", "one-thread", *UPDATE),
        targets={"embag": {"one-thread": 1.7}},
    ),
    Workload(
        "train-row-wise-adagrad-d64-1m",
        "lookup and row-wise Adagrad",
        *(1_000_000, 64, 512),
        kind="train",
        optimizer="row-wise-adagrad",
        contenders=TRAIN,
        targets={"embag": {"fbgemm": 2}},
    ),
    Workload(
        "train-adagrad-d64-1m",
        "lookup and Adagrad",
        *(1_000_000, 64, 512),
        kind="train",
        optimizer="adagrad",
        contenders=TRAIN,
        targets={"embag": {"fbgemm": 6}},
    ),
    Workload(
        "train-sgd-d64-1m",
        "lookup and SGD",
        *(1_000_000, 64, 512),
        kind="train",
        optimizer="sgd",
        contenders=TRAIN,
        targets={"embag": {"fbgemm": 3}},
    ),
    Workload(
        "train-26-tables",
        "lookup and row-wise Adagrad, 26 tables of 100 k rows, 512 bags of 10 each",
        *(100_000, 64, 512, 10),
        n_tables=26,
        kind="train-collection",
        optimizer="row-wise-adagrad",
        n_batches=8,
        contenders=TRAIN,
        targets={"embag": {"fbgemm": 2}},
    ),
]
# A workload for each kind, encoding and option.
QUICK = ("one-bag", "weighted-d64-2m", "ragged-d64-2m", "max-d64-1m", "padding-d64-1m")
QUICK += ("dense-mean-d64-10k", "dense-max-d64-10k", "sparse-weighted-d64-1m")
QUICK += ("weights-d64-1m", "step-d64-1m")
QUICK += ("int8-d64-2m", "int4-d64-10k", "int2-d128-2m", "float16-d64-2m", "bfloat16-d64-2m")
QUICK += ("26-tables-request", "26-tables-batch-int8", "quantize-int8-1m", "csr-d64-10k")
QUICK += ("gather-d64-2m", "gather-out-d64-2m", "gather-int8-d64-2m")
QUICK += ("sum-d64-2m-2t", "26-tables-skewed-2t")
QUICK += ("update-adam-d64-1m", "update-sgd-d64-1m", "update-row-wise-adagrad-d64-1m")
QUICK += ("update-adagrad-d64-1m-2t", "train-sgd-d64-1m", "train-26-tables")
_GROUPS = {
    "forward": _FORWARD,
    "gradients": _GRADIENTS,
    "inference": _INFERENCE,
    "matrices": _MATRICES,
    "gathers": _GATHERS,
    "threads": _THREADS,
    "training": _TRAINING,
}
WORKLOADS = {workload.name: workload for group in _GROUPS.values() for workload in group}
GROUPS = {name: [workload.name for workload in group] for name, group in _GROUPS.items()}


def get_workload(name: str, quick: bool = False) -> Workload:
    """Return the workload of this name, reduced to milliseconds with `quick`."""
    workload = WORKLOADS[name]
    if not quick:
        return workload
    return replace(
        workload,
        n_rows=min(workload.n_rows, 10_000),
        n_bags=min(workload.n_bags, 64),
        n_tables=min(workload.n_tables, 3),
        n_batches=2,
        passes=2,
    )


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return a dtype of floats by its name."""
    if name == "bfloat16":
        importlib.import_module("ml_dtypes")  # registers it with NumPy
    return np.dtype(name)


def fill_table(table: NDArray[Any], seed: int = 1) -> None:
    """Fill a table with values from 0 to 1, without a second array of its size."""
    rng = np.random.default_rng(seed)
    if table.dtype in (np.float32, np.float64):
        rng.random(out=table, dtype=table.dtype)
        return
    n_chunk = 10_000
    for start in range(0, len(table), n_chunk):
        part = table[start : start + n_chunk]
        part[...] = rng.random(part.shape, np.float32)


def make_batches(workload: Workload) -> list[Batch]:
    """Return the batches, which are the same for every contender."""
    rng = np.random.default_rng(2)
    return [_make_batch(workload, rng) for _ in range(workload.n_batches)]


def _make_batch(workload: Workload, rng: np.random.Generator) -> Batch:
    n_bags = workload.n_tables * workload.n_bags
    lengths = np.full(n_bags, workload.bag_size)
    if workload.ragged:
        lengths = rng.geometric(1 / (workload.bag_size + 1), n_bags) - 1
        lengths[0] = lengths[-1] = 0
        lengths[n_bags // 2] = lengths.sum() // 5
    if workload.skewed:
        lengths = _skew(lengths, workload.n_bags)
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
        sample_weights = rng.random(n_indices, np.dtype(workload.sums_dtype))
    return Batch(indices, offsets, sample_weights)


def _skew(lengths: NDArray[Any], n_bags: int) -> NDArray[Any]:
    """Return lengths with the same sum, of which the first bags have 99 %."""
    n_indices = int(lengths.sum())
    n_others = n_indices // 100
    shares = (n_indices - n_others, n_bags), (n_others, len(lengths) - n_bags)
    return np.concatenate([np.diff(np.arange(n + 1) * total // n) for total, n in shares])


def split_batch(workload: Workload, batch: Batch) -> list[Batch]:
    """Return the batch of each table of a collection."""
    starts = batch.offsets[:: workload.n_bags]
    indices = np.split(batch.indices, starts[1:])
    offsets = batch.offsets.reshape(workload.n_tables, workload.n_bags) - starts[:, None]
    return [Batch(part, bags, None) for part, bags in zip(indices, offsets, strict=True)]


def reference(workload: Workload, table: Any, batch: Batch) -> NDArray[np.float64]:
    """Return the expected result, computed bag by bag in float64."""
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


def assert_result(workload: Workload, table: Any, batch: Batch, result: Any) -> None:
    """Compare a result with the reference."""
    n_terms = int(np.diff(np.append(batch.offsets, len(batch.indices))).max())
    if workload.is_quantized:
        n_terms *= 2  # an entry is a multiple of the scale, plus the bias
    _assert_close(workload, result, reference(workload, table, batch), n_terms)


def assert_rows(workload: Workload, table: Any, batch: Batch, result: NDArray[np.float32]) -> None:
    """Compare rows with those of the table: bit by bit, unless a library decodes them."""
    expected = table[batch.indices]
    if workload.is_quantized:
        _assert_close(workload, result, expected, 2)
    else:
        assert result.tobytes() == expected.astype(result.dtype).tobytes(), workload.name


def assert_collection(
    workload: Workload, tables: Sequence[Any], batch: Batch, result: NDArray[Any]
) -> None:
    """Compare the columns of each table in the result with the reference."""
    assert result.shape == (workload.n_bags, workload.n_tables * workload.dim), workload.name
    results = np.split(result, workload.n_tables, axis=1)
    for table, part, columns in zip(tables, split_batch(workload, batch), results, strict=True):
        assert_result(workload, table, part, columns)


def reference_gradient(
    workload: Workload, table: NDArray[Any], batch: Batch, grad_output: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """Compute the gradient of the table in float64.

    Returns (rows, gradients, n_terms): the rows that occur, their gradients, and the number of
    terms of the largest sum.
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
    """Return for each position and column whether it is the first maximum of the bag."""
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
    """Compare gradients with the reference: that of the table, if any, then of the weights."""
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

    The relative error of a sum of n terms is below n times eps, for any order of additions. A
    product and a quotient add one eps each, and rounding to the dtype of the result one eps of
    that dtype.
    """
    result = np.asarray(result)
    np.testing.assert_allclose(
        result.astype(np.float64),
        expected,
        rtol=(n_terms + 2) * _EPS[workload.sums_dtype] + _EPS[result.dtype.name],
        err_msg=f"{workload.name}: the result must be right before it is timed",
    )
