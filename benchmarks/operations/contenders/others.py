"""numba, SciPy and NumPy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.operations.contenders.base import Matrix, PlainSum
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
