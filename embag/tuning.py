"""`tune`: settle how a table's rows are prefetched before the first request.

Tested in tests/process/test_tuning.py.
"""

import time
from typing import NamedTuple

import numpy as np

from embag import _arguments
from embag._encodings import Table as EncodedTable
from embag._encodings import as_table
from embag._kernels import strategies
from embag._kernels.dispatch import kernels
from embag._modes import MODES
from embag._process import threads
from embag._types import Mode, Table
from embag.functional import embedding_bag

_BAG = 32  # rows in a bag
_BAGS_PER_THREAD = 512  # in a call: each thread times pieces of some thousand rows
_MOST_CALLS = 60
_MOST_SECONDS = 2.0  # for a mode and a number of threads
_WORK: tuple[tuple[str, Mode, bool], ...] = (
    ("sum", "sum", False),
    ("weighted sum", "sum", True),
    ("max", "max", False),
)


class Tuned(NamedTuple):
    """How rows of a table are prefetched for one mode: see `tune`."""

    mode: str
    n_threads: int
    strategy: str
    settled: bool
    ns_per_row: dict[str, float]


def tune(weight: Table, n_threads: int | None = None) -> list[Tuned]:
    """Choose how rows of a table are prefetched, before the first request.

    Which rows are best prefetched when depends on the processor and on the table. embag
    finds it out while it does the first large lookups, which take a little longer for that.
    A service calls `tune` when it starts, and has that behind it.

    Parameters
    ----------
    weight : ndarray, QuantizedTable or RemappedTable, shape (n_rows, dim)
        The table. Random rows of it are read; nothing is written.
    n_threads : int, optional
        Tune for calls with this many threads, besides those with one; `get_num_threads`
        by default.

    Returns
    -------
    list of Tuned
        For the modes "sum" (also for "mean"), "weighted sum" and "max", for one thread and for
        several (unless lookups have one, as in a narrow table): the strategy, whether it was
        settled in the time given, and the least nanoseconds per row that each candidate took.
        A strategy is written ``L2:64:8``: the cache that rows are prefetched into, how many
        rows ahead of their use, and how many at once (where that is missing, one at a time).
        ``load:32:16``, on 64-bit Arm, prefetches into L1 after loading a byte of each row.
        Empty if the table has no entries.

    Raises
    ------
    TypeError, ValueError
        If `weight` is no table, or `n_threads` is not an integer of at least 1.

    See Also
    --------
    show_config : prints what has been chosen.

    Notes
    -----
    It takes a fraction of a second, and at most two seconds for each line of the result, for
    instance for a mapped table that must be read from a slow disk. The choice holds for
    this process, for all tables of the same encoding and of similar size and width;
    processes that it forks have it, too. It changes no result. With ``EMBAG_PREFETCH``
    set to a strategy there is nothing to choose.

    Examples
    --------
    >>> import embag
    >>> import numpy as np
    >>> weight = np.ones((100_000, 64), np.float32)
    >>> [tuned.mode for tuned in embag.tune(weight, n_threads=1)]
    ['sum', 'weighted sum', 'max']
    """
    table = as_table(weight, kept=True)
    n_threads = (
        threads.get_num_threads()
        if n_threads is None
        else _arguments.as_count(n_threads, "n_threads")
    )
    if table.n_rows == 0 or table.dim == 0 or strategies.pinned() is not None:
        return []
    if isinstance(weight, np.ndarray) and not np.may_share_memory(weight, table.rows):
        weight = np.ascontiguousarray(weight)  # else each call would copy it
    rng = np.random.default_rng(0)
    return [
        tuned
        for n in sorted({1, n_threads})
        for name, mode, is_weighted in _WORK
        if (tuned := _tune(weight, table, n, name, mode, is_weighted, rng)) is not None
    ]


def _tune(
    weight: Table,
    table: EncodedTable,
    n_threads: int,
    name: str,
    mode: Mode,
    is_weighted: bool,
    rng: np.random.Generator,
) -> Tuned | None:
    """Choose for one kind of work; None if it never has so many threads."""
    n_bags = _BAGS_PER_THREAD * max(2, n_threads)
    n = n_bags * _BAG
    if n_threads > 1 and threads.threads_for(n * table.dim, n_threads) == 1:
        return None
    offsets = np.arange(0, n, _BAG)
    weights = rng.random(n).astype(table.sums_dtype) if is_weighted else None
    code = MODES[mode].code
    key = kernels.strategy_class(
        table.code, code, is_weighted, table.dim, table.n_rows, n_threads > 1
    )
    kernels.forget_strategies(key)
    found = None
    stop = time.monotonic() + _MOST_SECONDS
    for _ in range(_MOST_CALLS):
        ids = rng.integers(table.first_id, table.first_id + table.n_rows, n)
        embedding_bag(
            ids, weight, offsets, mode=mode, per_sample_weights=weights, num_threads=n_threads
        )
        found = next((c for c in strategies.choices() if c.key == key), None)
        if found is None or found.state == "settled" or time.monotonic() > stop:
            break
    if found is None:
        return None  # this process has had too many kinds of work
    return Tuned(name, n_threads, found.strategy, found.state == "settled", found.ns_per_row)
