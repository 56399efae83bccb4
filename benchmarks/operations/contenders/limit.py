"""The gather limit: `../gather_limit.c` with the fastest of many ways to prefetch."""

import ctypes
import importlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.operations.contenders.search import Search
from benchmarks.operations.workloads import Batch, Workload, fill_table

SOURCE = Path(__file__).parents[1] / "gather_limit.c"
# As in the source: where lines are prefetched; all words of a line are read.
NOWHERE, L1, L2, STREAM, WHOLE = range(5)
AHEAD = (4, 8, 16, 24, 32, 48, 64, 128)  # rows
AT_ONCE = (1, 4, 8, 16, 32, 64, 128)
WORDS = 8  # of a line
GUARD = (2 << 20) // 8  # words around a table: a huge page, so that it lies as embag's does


class CLoop(Search):
    """Base of the limits: a loop in C, with strategies (where, rows ahead, rows at once)."""

    package = "embag"
    names: dict[int, str]  # of where lines are prefetched
    whole: int  # added to where, if the loop uses all words of a line

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which(_compiler()) is None:
            return f"no C compiler: {_compiler()}"
        return super().missing()

    def use(self, strategy: tuple[int, int, int]) -> None:
        self.strategy = strategy

    def name_of(self, strategy: tuple[int, int, int]) -> str:
        where, ahead, burst = strategy
        if not where:
            return "none"
        name = self.names[where - self.whole * (where > self.whole)]
        return f"{name}:{ahead}:{burst}" + " whole" * (where > self.whole)


class Limit(CLoop):
    """Read one word of each line of the rows of a table in memory of `aligned_empty`."""

    names: ClassVar = {L1: "L1", L2: "L2", STREAM: "NTA"}
    whole = WHOLE

    def __init__(self, workload: Workload, n_threads: int):
        super().__init__(workload, n_threads)
        starts, stops = self._lines(np.arange(workload.n_tables * workload.n_rows))
        self.n_lines = int((stops - starts).max())
        self.n_threads = n_threads
        self.function = compile_loop(SOURCE, [f"-DLINES={self.n_lines}"], n_threads).gather
        self.function.restype = ctypes.c_uint64
        self.function.argtypes = [
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64),
            *(ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int),
        ]
        self.strategies = _all_strategies()
        self.strategy = self.strategies[0]

    def make_table(self, seed: int) -> tuple[Any, Any]:
        """Make one table of as many bytes as all tables of the workload.

        Before and behind it there is memory, so that whole lines can be checked. If that were a
        line, rows would begin at odd lines, and take up to a quarter longer on a Zen 5.
        """
        n_bytes = self.workload.n_tables * self.workload.n_rows * self.workload.row_bytes
        self.memory = self.allocate_words(-(-n_bytes // 8) + 2 * GUARD)
        fill_table(self.memory, seed)
        table = self.memory[GUARD:-GUARD]
        return table, table

    def allocate_words(self, n_words: int) -> NDArray[np.float64]:
        return self.module.aligned_empty(n_words, np.float64)

    def convert(self, batch: Batch) -> Any:
        """Return the rows in the one table."""
        first_rows = np.arange(self.workload.n_tables) * self.workload.n_rows
        starts = batch.offsets[:: self.workload.n_bags]
        return batch.indices + first_rows.repeat(np.diff(starts, append=len(batch.indices)))

    def run(self, batches: Sequence[Any]) -> int:
        table, n_bytes = self.table.ctypes.data, self.workload.row_bytes
        options, result = (*self.strategy, self.n_threads), 0
        for rows in batches:
            result = self.function(table, rows.ctypes.data, len(rows), n_bytes, *options)
        return result

    def _lines(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first cache line of each row, and the one after its last, by address."""
        first = self.table.ctypes.data + rows * self.workload.row_bytes
        return np.stack([first // 64, (first + self.workload.row_bytes + 63) // 64])

    def check(self, batch: Batch) -> None:
        """Compare the sum of the words that each strategy reads."""
        rows = self.convert(batch)
        starts, stops = self._lines(rows)
        lines = np.minimum(starts[:, None] + np.arange(self.n_lines), stops[:, None] - 1)
        words = (lines * 64 - self.memory.ctypes.data) // 8
        memory = self.memory.view(np.uint64)
        first = int(memory[words].sum(dtype=np.uint64))
        whole = int(memory[words[..., None] + np.arange(WORDS)].sum(dtype=np.uint64))
        for strategy in self.strategies:
            self.use(strategy)
            expected = whole if strategy[0] > WHOLE else first
            assert self.run([rows]) == expected, strategy


class LimitNumpy(Limit):
    """The same for a table that NumPy allocated, whose rows touch more lines."""

    def allocate_words(self, n_words: int) -> NDArray[np.float64]:
        return np.empty(n_words)


def _all_strategies() -> list[tuple[int, int, int]]:
    """Return (where, rows ahead, rows at once): those that embag has, and many more."""
    kernels = importlib.import_module("embag._kernels.dispatch").kernels
    candidates = [
        (L1 if near else L2, ahead, max(1, burst))
        for near, ahead, burst in kernels.candidate_strategies()
        if ahead > 0
    ]
    ours = [
        (where, ahead, burst)
        for where, ahead, burst in itertools.product(Limit.names, AHEAD, AT_ONCE)
        if burst <= ahead
    ]
    whole = [
        (WHOLE + where, ahead, burst)
        for where, ahead, burst in candidates + ours
        if where != STREAM and burst <= 16
    ]
    return [(NOWHERE, 0, 1), *dict.fromkeys(candidates + ours + whole)]


def _compiler() -> str:
    return os.environ.get("CC", "cc")


def compile_loop(source: Path, definitions: list[str], n_threads: int) -> ctypes.CDLL:
    options = ["-O3", *definitions, *(["-fopenmp"] if n_threads > 1 else [])]
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder, "library.so"))
        command = [_compiler(), *options, "-shared", "-fPIC", "-o", library, str(source)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(library)
