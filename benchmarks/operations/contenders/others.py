"""numba, SciPy and NumPy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.operations.contenders.base import Gather, Matrix, PlainSum, fused_rows
from benchmarks.operations.workloads import Batch, Workload


class Numba(PlainSum):
    """The obvious three loops, compiled."""

    package = "numba"

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)

        @self.module.njit
        def embedding_bag(indices, table, offsets):
            result = np.zeros((len(offsets), table.shape[1]), table.dtype)
            for b in range(len(offsets)):
                stop = offsets[b + 1] if b + 1 < len(offsets) else len(indices)
                for k in range(offsets[b], stop):
                    for d in range(table.shape[1]):
                        result[b, d] += table[indices[k], d]
            return result

        self.function = embedding_bag

    def run(self, batches: Sequence[Batch]) -> Any:
        function, table, result = self.function, self.table, None
        for batch in batches:
            result = function(batch.indices, table, batch.offsets)
        return result


class Scipy(PlainSum):
    """A CSR matrix of ones times the table. Making the matrix from its parts is timed."""

    package = "scipy"

    def convert(self, batch: Batch) -> Any:
        ones = np.ones(len(batch.indices), self.workload.dtype)
        return ones, batch.indices, np.append(batch.offsets, len(batch.indices))

    def run(self, batches: Sequence[Any]) -> Any:
        csr_array, table, result = self.module.sparse.csr_array, self.table, None
        shape = self.workload.n_bags, self.workload.n_rows
        for ones, indices, bounds in batches:
            result = csr_array((ones, indices, bounds), shape=shape) @ table
        return result


class ScipyMatrix(Matrix):
    """`X @ W`."""

    package = "scipy"

    def run(self, batches: Sequence[Any]) -> Any:
        table, result = self.table, None
        for matrix in batches:
            result = matrix @ table
        return result


class Numpy(PlainSum):
    """`np.add.reduceat` of the gathered rows, which does not support empty bags."""

    package = "numpy"

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        if workload.ragged:
            return "no empty bags"
        return super().unsuited(workload, n_threads)

    def run(self, batches: Sequence[Batch]) -> Any:
        table, result = self.table, None
        for batch in batches:
            result = np.add.reduceat(table[batch.indices], batch.offsets)
        return result


class NumpyGather(Gather):
    """`np.take`. Rows of other dtypes are taken and then decoded to float32."""

    package = "numpy"

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        return "one thread only" if n_threads > 1 else None

    def make_table(self, seed: int) -> tuple[Any, Any]:
        if not self.workload.is_quantized:
            return super().make_table(seed)
        floats = self.make_floats(seed)
        least = floats.min(axis=1, keepdims=True)
        scales = (floats.max(axis=1, keepdims=True) - least) / np.float32(255)
        codes = np.rint((floats - least) / scales).astype(np.uint8)
        packed = np.hstack([codes, np.hstack([scales, least]).view(np.uint8)])
        return packed, fused_rows(packed, 8, floats)

    def run(self, batches: Sequence[Any]) -> Any:
        take, weight, result = self.module.take, self.weight, None
        if self.workload.dtype == "float32":
            for ids in batches:
                result = take(weight, ids, axis=0)
        else:
            for ids in batches:
                result = self.decode(take(weight, ids, axis=0))
        return result

    def decode(self, packed: Any) -> Any:
        if not self.workload.is_quantized:
            return packed.astype(np.float32)
        dim = self.workload.dim
        factors = packed[:, dim:].copy().view(np.float32)
        rows = packed[:, :dim].astype(np.float32)
        rows *= factors[:, :1]
        rows += factors[:, 1:]
        return rows


class NumpyGatherOut(NumpyGather):
    """`np.take` with `out`, which is fast with mode="clip" only."""

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)
        self.out = np.empty((workload.n_bags, workload.dim), workload.dtype)

    def run(self, batches: Sequence[Any]) -> Any:
        take, weight, out = self.module.take, self.weight, self.out
        for ids in batches:
            take(weight, ids, axis=0, out=out, mode="clip")
        return out
