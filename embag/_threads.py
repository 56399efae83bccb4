"""How many threads a call gets, decided before the kernel runs; and running it with them.

The process's count is the least of what was set with `set_num_threads`, the environment
variables OMP_NUM_THREADS and OMP_THREAD_LIMIT, the processors that the thread may run on and
those that OpenMP binds its team to, the CPU quota of the container, which OpenMP does not
see, and what OpenMP itself would give, which others set (threadpoolctl). Calls at the same
time share it. A call may name a count of its own, and `with embag.num_threads(n)` names it
for all calls inside.

A call gets fewer where its work is not worth more: waking a thread takes microseconds.

`run` is the one way to a kernel with more than one thread. It counts the call, makes sure
that OpenMP can start the threads, and has a helper make the call where OpenMP cannot:
after `fork`, on the thread that forked (_teams.pyx).

What threads share here are names that are bound anew, in one step, and a set of tokens, each
of which one thread adds and discards: no locks, with the GIL or without.

Tested in tests/test_threads.py and tests/test_fork.py.
"""

import math
import operator
import os
import re
import sys
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, TypeVar

from embag import _arguments, _cgroups, _core, _teams

_Result = TypeVar("_Result")

# Table entries to gather that are worth a thread. Origin: docs/design.md, "Threads".
ENTRIES_PER_THREAD = 32 << 10

_OPENMP = _core.build_info()[1] != 0
_N_MACHINE = os.cpu_count() or 1  # asked once: it reads a file of the system's

_LIMIT_RULE = "OMP_THREAD_LIMIT"
_PLACES_RULE = "OpenMP's places (OMP_PLACES, OMP_PROC_BIND, GOMP_CPU_AFFINITY)"

_of_context: ContextVar[int | None] = ContextVar("embag.num_threads", default=None)

_set_by_user: int | None = None
_least_around: tuple[int, str] | None = None  # cached: what `_surroundings` found
_in_flight: set[object] = set()  # a token for each call that runs with several threads
_n_forks_seen = 0


# --- How many -----------------------------------------------------------------


def _omp_num_threads() -> int | None:
    """Return OMP_NUM_THREADS (the first of a list of levels); None if unset or no number."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not re.fullmatch("[0-9]{1,18}", first) or int(first) == 0:
        return None
    return int(first)


def _surroundings() -> tuple[int, str]:
    """Return the least count that is not in the process's own hands, and where it is from."""
    global _least_around  # noqa: PLW0603
    _notice_fork()
    least = _least_around
    if least is None:
        limits: list[tuple[int, str]] = []
        quota = _cgroups.cpu_quota()
        if quota is not None:
            limits.append((math.ceil(quota), "the container's CPU quota"))
        environment = _omp_num_threads()
        if environment is not None:
            limits.append((environment, "OMP_NUM_THREADS"))
        limits.append((_teams.thread_limit(), _LIMIT_RULE))
        places = _teams.place_processors()
        if places:
            limits.append((len(places), _PLACES_RULE))
        least = min(limits, key=operator.itemgetter(0))
        _least_around = least
    return least


def explain() -> tuple[int, str]:
    """Return the most threads of a call that names no count, and the rule that decided it."""
    if not _OPENMP:
        return 1, "a build without OpenMP"
    chosen = _of_context.get()
    if chosen is not None:
        count, most = min(chosen, _N_MACHINE), _teams.thread_limit()
        return (count, "embag.num_threads") if count <= most else (most, _LIMIT_RULE)
    count, rule = _teams.n_processors(), "CPU affinity"
    around = _surroundings()
    if around[0] < count:
        count, rule = around
    chosen = _set_by_user
    if chosen is not None and chosen < count:
        count, rule = chosen, "set_num_threads"
    openmp = _teams.openmp_threads()
    if 0 < openmp < count:  # it overflows for an absurd OMP_NUM_THREADS
        count, rule = openmp, "OpenMP (threadpoolctl, omp_set_num_threads)"
    return count, rule


def notes() -> list[str]:
    """Return what else there is to say of this process's threads."""
    said = []
    if _teams.n_forks() > 0:
        said.append("a forked process: a helper makes the parallel calls of the thread that forked")
    shortage = _teams.shortage()
    if shortage is not None:
        asked, had = shortage
        said.append(f"the system let a team of {asked} have no more than {had} thread(s)")
    if _teams.is_dynamic():
        said.append("OMP_DYNAMIC: OpenMP may give a call fewer threads")
    return said


def set_num_threads(n: int | None) -> None:
    """Set the most threads that a call may use, for the whole process.

    The affinity, the container's CPU quota and OMP_NUM_THREADS still bound it. A count that a
    call names itself, or a `num_threads` block, stands in its place.

    Parameters
    ----------
    n : int or None
        At least 1. None: as if it had never been set.

    Raises
    ------
    TypeError
        If `n` is no integer.
    ValueError
        If `n` is less than 1.

    See Also
    --------
    get_num_threads : the count in force.
    num_threads : for the calls of a block alone.

    Examples
    --------
    >>> import embag
    >>> embag.set_num_threads(64)
    >>> 1 <= embag.get_num_threads() <= 64
    True
    """
    global _set_by_user  # noqa: PLW0603
    _set_by_user = None if n is None else _arguments.as_count(n, "n")


def get_num_threads() -> int:
    """Return the most threads that a call uses unless it says otherwise.

    Returns
    -------
    int
        That of `num_threads` inside such a block. Else the least of `set_num_threads`,
        OMP_NUM_THREADS, OMP_THREAD_LIMIT, the CPU affinity, the processors in OpenMP's
        places, the container's CPU quota and what OpenMP itself would give the calling
        thread; 1 in a build without OpenMP.

    See Also
    --------
    set_num_threads : lower it for the process.
    num_threads : choose it for a block.
    show_config : also tells which rule decided it.

    Notes
    -----
    Calls at the same time share it: what runs with several threads while `k` others do
    gets no more than a part in ``k + 1``.
    """
    return explain()[0]


class num_threads:
    """Choose the most threads of each call in a ``with`` block.

    It stands in the place of the calls' own ``num_threads=n``; one that a call has goes
    before it.

    Parameters
    ----------
    n : int
        At least 1. As with ``num_threads=n`` it may exceed `get_num_threads`, but not the
        machine's processors.

    Raises
    ------
    TypeError
        If `n` is no integer.
    ValueError
        If `n` is less than 1.

    See Also
    --------
    set_num_threads : for the whole process.

    Notes
    -----
    The container's quota, the affinity and threadpoolctl do not bound this count;
    OMP_THREAD_LIMIT does. A generator that yields in the block leaves it to whoever runs
    the generator meanwhile.

    It holds for the calling thread, or the asyncio task, alone: it is a context variable
    (`contextvars`). Other threads have it only where they run in a copy of the context, as
    those of ``asyncio.to_thread`` do, and in free-threaded Pythons all that are started
    in the block.

    Examples
    --------
    >>> import embag
    >>> with embag.num_threads(1):
    ...     embag.get_num_threads()
    1
    """

    def __init__(self, n: int) -> None:
        self._count = _arguments.as_count(n, "n")
        self._tokens: list[Token[int | None]] = []

    def __enter__(self) -> None:
        self._tokens.append(_of_context.set(self._count))

    def __exit__(self, *_: object) -> None:
        _of_context.reset(self._tokens.pop())


def threads_for(n_entries: int, num_threads: int | None) -> int:
    """Return how many threads a call that gathers and writes `n_entries` gets.

    `num_threads`, already checked, stands in the place of the process's count; it may
    exceed it up to the machine's processors and OMP_THREAD_LIMIT, and is not shared with
    other calls.
    """
    if n_entries < 2 * ENTRIES_PER_THREAD:
        return 1
    if num_threads is None:
        num_threads = _of_context.get()
    if num_threads is None:
        limit = max(1, explain()[0] // (len(_calls_in_flight()) + 1))
    else:
        limit = min(num_threads, _N_MACHINE, _teams.thread_limit()) if _OPENMP else 1
    return min(limit, n_entries // ENTRIES_PER_THREAD)


# --- Running ------------------------------------------------------------------


def _stack_bytes() -> int:
    """Return the size of a team's stacks that the environment names; 0 for the default."""
    names = "OMP_STACKSIZE", "GOMP_STACKSIZE", "KMP_STACKSIZE"
    text = next(filter(None, map(os.environ.get, names)), "").strip().upper()
    match = re.fullmatch(r"([+-]?[0-9]{1,18})\s*([BKMG]?)", text)
    if match is None:
        return 0
    number = int(match[1]) % 2**64  # as C reads it
    size = number << 10 * "BKMG".index(match[2] or "K")
    if size >= 2**64:
        return 0  # OpenMP ignores it
    return min(size, sys.maxsize)


_STACK_BYTES = _stack_bytes()  # now, since OpenMP reads it when embag is imported


def _notice_fork() -> None:
    """Forget what the parent had, in the first call of a forked process that asks."""
    global _in_flight, _least_around, _n_forks_seen
    n_forks = _teams.n_forks()
    if n_forks != _n_forks_seen:
        _n_forks_seen, _in_flight, _least_around = n_forks, set(), None


def _calls_in_flight() -> set[object]:
    """Return the tokens of this process's calls."""
    _notice_fork()
    return _in_flight


def run(kernel: Callable[..., _Result], n_threads: int, *arguments: Any) -> _Result:
    """Return ``kernel(n_threads, *arguments)``, with fewer threads if it must be."""
    if n_threads == 1:
        return kernel(1, *arguments)
    in_flight = _calls_in_flight()
    token = object()
    try:
        in_flight.add(token)
        # While the interpreter ends a helper would not get its turn.
        may_help = not sys.is_finalizing()
        return _teams.lead(kernel, n_threads, _STACK_BYTES, may_help, *arguments)
    finally:
        in_flight.discard(token)


_teams.watch_forks()
