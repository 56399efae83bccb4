"""What all contenders have in common, and what those for one kind of workload have in common.

A contender has a table as its users would make it, filled in place. Its `run` is a plain loop of
calls, so the time of the loop is that of the calls. Packages are imported where they are used:
each contender runs in a process without the others, because two OpenMP runtimes in one process
disturb each other. `missing` and `unsuited` return the reason if a contender cannot take part.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.operations.steps import assert_steps
from benchmarks.operations.workloads import (
    Batch,
    QuantizedRows,
    Workload,
    assert_collection,
    assert_gradients,
    assert_result,
    assert_rows,
    fill_table,
    numpy_dtype,
)

N_CHECKED = 10_000  # quantized rows that are compared with the floats they were made of
LEARNING_RATE = 2.0**-10  # a power of two, so that multiplying by it is exact


class Contender:
    """A way to compute a workload.

    `weight` is the table for the package, and `table` the same memory as the reference reads it.
    """

    package = ""
    note = ""

    def __init__(self, workload: Workload, n_threads: int):
        self.module: Any = importlib.import_module(self.package)
        self.workload = workload
        self.set_threads(n_threads)
        self.weight, self.table = self.make_table(seed=1)

    @classmethod
    def missing(cls) -> str | None:
        """Return the reason if this contender cannot run on this machine."""
        if importlib.util.find_spec(cls.package) is None:
            return f"{cls.package} is not installed"
        return None

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        """Return the reason if this contender cannot compute this workload."""
        return None

    def set_threads(self, n_threads: int) -> None:
        """Set the number of threads, if the environment variables of worker.py do not."""

    def make_table(self, seed: int) -> tuple[Any, Any]:
        """Return `weight` and `table`."""
        table = self.allocate((self.workload.n_rows, self.workload.dim))
        fill_table(table, seed)
        return table, table

    def allocate(self, shape: tuple[int, int]) -> NDArray[Any]:
        return np.empty(shape, numpy_dtype(self.workload.dtype))

    def make_floats(self, seed: int) -> NDArray[np.float32]:
        """Return the table of floats that a quantized table is made of."""
        floats = np.empty((self.workload.n_rows, self.workload.dim), np.float32)
        fill_table(floats, seed)
        return floats

    def convert(self, batch: Batch) -> Any:
        """Convert a batch to the types of the contender; this is not timed."""
        return batch

    def count_rows(self, batch: Batch) -> int:
        """Return the number of rows that are read."""
        return len(batch.indices)

    def run(self, batches: Sequence[Any]) -> Any:
        """Compute all batches in turn; return the last result."""
        raise NotImplementedError

    def check_all(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            self.check(batch)

    def check(self, batch: Batch) -> None:
        self.assert_result(batch, self.run([self.convert(batch)]))

    def settle(self, calls: Sequence[Any]) -> None:
        """Repeat calls until what the contender chooses while it runs has been chosen."""

    def assert_result(self, batch: Batch, result: Any) -> None:
        assert_result(self.workload, self.table, batch, result)


class EmbeddingBag(Contender):
    """Base of torch and embag, which share the signature of the function."""

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        if workload.dtype == "bfloat16" and importlib.util.find_spec("ml_dtypes") is None:
            return "ml_dtypes is not installed"
        return None

    def set_threads(self, n_threads: int) -> None:
        self.module.set_num_threads(n_threads)

    def convert(self, batch: Batch) -> Any:
        options: dict[str, Any] = {}
        if batch.sample_weights is not None:
            options["per_sample_weights"] = batch.sample_weights
        if self.workload.padding_idx is not None:
            options["padding_idx"] = self.workload.padding_idx
        return batch.indices, batch.offsets, options

    def call_all(self, function: Any, table: Any, batches: Sequence[Any]) -> Any:
        mode, result = self.workload.mode, None
        if any(options for _, _, options in batches):
            for indices, offsets, options in batches:
                result = function(indices, table, offsets, mode=mode, **options)
        else:  # unpacking an empty dict would take a tenth of the smallest call
            for indices, offsets, _ in batches:
                result = function(indices, table, offsets, mode=mode)
        return result


class Backward(Contender):
    """Base of the contenders for gradients, with the gradient of the output."""

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)
        # In memory of NumPy, as the layer above would leave it.
        shape = workload.n_bags, workload.n_tables * workload.dim
        self.grad_output: Any = np.empty(shape, workload.dtype)
        fill_table(self.grad_output)

    def to_arrays(self, result: Any) -> list[NDArray[Any]]:
        """Return the gradients of a result as dense arrays."""
        raise NotImplementedError

    def assert_result(self, batch: Batch, result: Any) -> None:
        grad_output, gradients = np.asarray(self.grad_output), self.to_arrays(result)
        assert_gradients(self.workload, self.table, batch, grad_output, gradients)


class Step(Backward):
    """Base of the contenders for steps, which change the table."""

    def check(self, batch: Batch) -> None:
        """Check a step from a table of zeros, where no rounding hides the gradient."""
        self.table[...] = 0
        self.run([self.convert(batch)])
        gradient, grad_output = self.table / -LEARNING_RATE, np.asarray(self.grad_output)
        assert_gradients(self.workload, self.table, batch, grad_output, [gradient])


class Update(Backward):
    """Base of the contenders for training: each call changes the table. Some return a lookup."""

    def check_all(self, batches: Sequence[Batch]) -> None:
        """Check a step for each batch, and the first lookup. The states begin with zeros."""
        tables = [self.table] if isinstance(self.table, np.ndarray) else self.table
        before = [table.copy() for table in tables]
        results = [self.run([self.convert(batch)]) for batch in batches]
        if results[0] is not None:
            assert_collection(self.workload, before, batches[0], np.asarray(results[0]))
        assert_steps(self.workload, before, tables, batches, np.asarray(self.grad_output))


class Collection(Contender):
    """Base of the contenders for many tables: `weight` and `table` have an entry for each."""

    def make_table(self, seed: int) -> tuple[Any, Any]:
        make_table = super().make_table
        tables = [make_table(seed + t) for t in range(self.workload.n_tables)]
        return tuple(zip(*tables, strict=True))

    def convert(self, batch: Batch) -> Any:
        """Return the concatenated ids, and the offsets with the end of the last bag."""
        return batch.indices, np.append(batch.offsets, len(batch.indices))

    def assert_result(self, batch: Batch, result: Any) -> None:
        assert_collection(self.workload, self.table, batch, np.asarray(result))


class Gather(Contender):
    """Base of the contenders for rows without bags."""

    def convert(self, batch: Batch) -> Any:
        return batch.indices

    def assert_result(self, batch: Batch, result: Any) -> None:
        assert_rows(self.workload, self.table, batch, np.asarray(result))


class Quantize(Contender):
    """Base of the contenders for quantizing. Each result is freed before the next is made."""

    def make_table(self, seed: int) -> tuple[Any, Any]:
        floats = self.make_floats(seed)
        return floats, floats

    def count_rows(self, batch: Batch) -> int:
        return self.workload.n_rows

    def assert_result(self, batch: Batch, result: Any) -> None:
        fused_rows(np.asarray(result), self.workload.bits, self.table)


class PlainSum(Contender):
    """Base of the contenders that only compute sums."""

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        if n_threads > 1:
            return "one thread only"
        if workload.mode != "sum" or workload.weighted or workload.padding_idx is not None:
            return "plain sums only"
        if workload.dtype not in ("float32", "float64"):
            return "float32 and float64 only"
        return None


class Matrix(Contender):
    """Base of the contenders for sparse matrices, which are CSR arrays of SciPy."""

    def convert(self, batch: Batch) -> Any:
        sparse = importlib.import_module("scipy.sparse")
        parts = batch.sample_weights, batch.indices, np.append(batch.offsets, len(batch.indices))
        return sparse.csr_array(parts, shape=(self.workload.n_bags, self.workload.n_rows))


def fused_rows(packed: NDArray[np.uint8], bits: int, floats: NDArray[np.float32]) -> QuantizedRows:
    """Return quantized rows in which scale and bias follow the entries."""
    n_codes = floats.shape[1] * bits // 8
    rows = QuantizedRows(packed[:, :n_codes], packed[:, n_codes:], bits)
    rows.assert_stands_for(floats[:N_CHECKED])
    return rows
