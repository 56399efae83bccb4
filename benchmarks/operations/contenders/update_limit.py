"""The update limit: embag's sort, and `../update_limit.c` with the fastest of many prefetches."""

import ctypes
import importlib
import itertools
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.operations.contenders.limit import CLoop, compile_loop
from benchmarks.operations.workloads import Batch, Workload

SOURCE = Path(__file__).parents[1] / "update_limit.c"
# As in the source: where lines are prefetched; all words of a line are changed.
NOWHERE, L1, L2, STREAM, OWNED, WHOLE = range(6)
AHEAD = (2, 4, 8, 16, 32, 64)  # rows
AT_ONCE = (1, 4, 8, 16, 32)
# Of an optimizer, beside the table: states as wide, and states of a number for each row.
STATES = {"sgd": (0, 0), "adagrad": (1, 0), "row-wise-adagrad": (0, 1), "adam": (2, 0)}


class UpdateLimit(CLoop):
    """Sort the ids, then change a word of each line of their rows in the table and the states.

    Nothing is computed, and the gradient of the output is not read. All arrays lie in memory of
    `aligned_empty`.
    """

    names: ClassVar = {L1: "L1", L2: "L2", STREAM: "NTA", OWNED: "write"}
    whole = WHOLE

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)
        self.n_threads = n_threads
        self.threads = importlib.import_module("embag._process.threads")
        self.group_by_row = importlib.import_module("embag._grouping").group_by_row
        n_wide, n_narrow = len(self.wide), len(self.narrow)
        options = [
            f"-DLINES={workload.row_bytes // 64}",
            *(f"-DN_WIDE={n_wide}", f"-DN_NARROW={n_narrow}"),
            *(["-mprfchw"] if platform.machine() in ("x86_64", "AMD64") else []),
        ]
        self.function = compile_loop(SOURCE, options, n_threads).change
        self.function.restype = None
        self.function.argtypes = [
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64),
            *(ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int),
        ]
        addresses = [array.ctypes.data for array in (*self.wide, *self.narrow)]
        self.arrays = (ctypes.c_void_p * (n_wide + n_narrow + 1))(*addresses)
        self.strategies = _all_strategies()
        self.strategy = self.strategies[0]

    @classmethod
    def unsuited(cls, workload: Workload, n_threads: int) -> str | None:
        return "rows of whole lines only" if workload.row_bytes % 64 else None

    def set_threads(self, n_threads: int) -> None:
        self.module.set_num_threads(n_threads)

    def make_table(self, seed: int) -> tuple[Any, Any]:
        """Make arrays of zeros, as the loop reads them: a double for each word of 8 bytes."""
        n_states, n_narrow = STATES[self.workload.optimizer]
        shape = self.workload.n_rows, self.workload.row_bytes // 8
        self.wide = [self._zeros(shape, np.float64) for _ in range(1 + n_states)]
        self.narrow = [self._zeros(shape[:1], np.float32) for _ in range(n_narrow)]
        return self.wide[0], self.wide[0]

    def _zeros(self, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        array: NDArray[Any] = self.module.aligned_empty(shape, dtype)
        array[...] = 0
        return array

    def run(self, batches: Sequence[Batch]) -> None:
        n_rows, dim, options = self.workload.n_rows, self.workload.dim, self.strategy
        for batch in batches:
            ids = batch.indices
            team = self.threads.team_for(len(ids) * dim, None)
            rows = self.group_by_row(
                ids, len(ids), n_rows, team=team, by_bag=True, offsets=batch.offsets
            ).rows
            self.function(self.arrays, rows.ctypes.data, len(rows), *options, self.n_threads)

    def check(self, batch: Batch) -> None:
        """Compare how often each word has been changed, after all strategies."""
        rows = np.unique(batch.indices)
        before = [array.copy() for array in (*self.wide, *self.narrow)]
        for strategy in self.strategies:
            self.use(strategy)
            self.run([batch])
        n_whole = sum(where > WHOLE for where, _, _ in self.strategies)
        for array, expected in zip((*self.wide, *self.narrow), before, strict=True):
            if array.ndim == 2:
                expected[rows] += n_whole
                expected[rows, ::8] += len(self.strategies) - n_whole
            else:
                expected[rows] += len(self.strategies)
            assert np.array_equal(array, expected), self.workload.name


def _all_strategies() -> list[tuple[int, int, int]]:
    """Return (where, rows ahead, rows at once)."""
    wheres = (L1, L2, STREAM, OWNED, WHOLE + L1, WHOLE + L2, WHOLE + OWNED)
    grid = itertools.product(wheres, AHEAD, AT_ONCE)
    return [(NOWHERE, 0, 1), *((where, *one) for where, *one in grid if one[1] <= one[0])]
