"""The number of threads of a call, and running a kernel with them.

The limit of the process is the minimum of

- the count set by `set_num_threads`
- the environment variables OMP_NUM_THREADS and OMP_THREAD_LIMIT
- the processors that the thread may run on, and those that OpenMP binds its team to
- the CPU quota of the container, which OpenMP ignores
- the number that OpenMP would use, which other libraries set (threadpoolctl)

Concurrent calls share this limit. `num_threads=n` replaces it for one call, and
`with embag.num_threads(n)` for all calls in the block. A small call uses fewer threads: waking
a thread takes microseconds.

OMP_NUM_THREADS is read at each large call, because Ray sets it for a task and removes it
afterwards. OpenMP reads it only when it is loaded. So once the variable has changed, OpenMP's
number is a limit only if someone has set it since.

A call that is slowed down by other programs makes the next ones use fewer (team_sizes.py).

`run` is the only way to run a kernel with several threads. It counts the call, makes sure that
OpenMP can start the threads, and uses a helper thread where OpenMP cannot: after a fork, on the
thread that forked (_teams.pyx).

Threads share global names here, each assigned in one step, and a set of tokens, each added and
removed by one thread. That needs no locks, with the GIL or without. What a thread finds between
two assignments makes a team smaller or larger, and changes no result.

Tested in tests/process/.
"""

import math
import operator
import os
import re
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from embag import _arguments, _core
from embag._kernels.dispatch import kernels
from embag._process import _teams, cgroups, team_sizes

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

# The entries of a table that a thread must gather to be worth its start. Origin:
# docs/design.md, "Threads".
ENTRIES_PER_THREAD = 32 << 10

_OPENMP = _core.build_info()[1] != 0
_N_MACHINE = os.cpu_count() or 1  # read once: it is a system file

_LIMIT_RULE = "OMP_THREAD_LIMIT"
_PLACES_RULE = "OpenMP's places (OMP_PLACES, OMP_PROC_BIND, GOMP_CPU_AFFINITY)"

# What OpenMP was loaded with.
_FIRST_VARIABLE = os.environ.get("OMP_NUM_THREADS")
_FIRST_OPENMP_THREADS = _teams.openmp_threads()

# The blocks that the calling thread or task is in.
_of_context: "ContextVar[tuple[num_threads, ...]]" = ContextVar("embag.num_threads", default=())


class _OuterLimit(NamedTuple):
    n: int
    rule: str
    variable: str | None  # the text of OMP_NUM_THREADS that it was found with


_set_by_user: int | None = None
_outer_limit: _OuterLimit | None = None  # cached result of `_find_outer_limit`
_in_flight: set[object] = set()  # a token for each call that runs with several threads
_n_forks_seen = 0


# --- How many -----------------------------------------------------------------


def _parse_omp_num_threads(text: str | None) -> int | None:
    """Return the first number of a list; None if the variable is unset or not a number."""
    first = (text or "").split(",")[0].strip()
    if not re.fullmatch("[0-9]{1,18}", first) or int(first) == 0:
        return None
    return int(first)


def _find_outer_limit() -> _OuterLimit:
    """Return the smallest limit that the environment sets, and its name."""
    global _outer_limit  # noqa: PLW0603
    _reset_after_fork()
    variable = os.environ.get("OMP_NUM_THREADS")
    limit = _outer_limit
    if limit is None or limit.variable != variable:
        limits: list[tuple[int, str]] = []
        quota = cgroups.cpu_quota()
        if quota is not None:
            limits.append((math.ceil(quota), "the container's CPU quota"))
        environment = _parse_omp_num_threads(variable)
        if environment is not None:
            limits.append((environment, "OMP_NUM_THREADS"))
        limits.append((_teams.thread_limit(), _LIMIT_RULE))
        places = _teams.place_processors()
        if places:
            limits.append((len(places), _PLACES_RULE))
        limit = _OuterLimit(*min(limits, key=operator.itemgetter(0)), variable)
        _outer_limit = limit
    return limit


def explain() -> tuple[int, str]:
    """Return the limit for a call without `num_threads`, and the rule that decided it."""
    if not _OPENMP:
        return 1, "a build without OpenMP"
    blocks = _of_context.get()
    if blocks:
        count, most = min(blocks[-1]._count, _N_MACHINE), _teams.thread_limit()
        return (count, "embag.num_threads") if count <= most else (most, _LIMIT_RULE)
    count, rule = _teams.n_processors(), "CPU affinity"
    outer = _find_outer_limit()
    if outer.n < count:
        count, rule = outer.n, outer.rule
    chosen = _set_by_user
    if chosen is not None and chosen < count:
        count, rule = chosen, "set_num_threads"
    openmp = _teams.openmp_threads()
    is_stale = openmp == _FIRST_OPENMP_THREADS and outer.variable != _FIRST_VARIABLE
    if 0 < openmp < count and not is_stale:  # a huge OMP_NUM_THREADS overflows in OpenMP
        count, rule = openmp, "OpenMP (threadpoolctl, omp_set_num_threads)"
    return count, rule


def notes() -> list[str]:
    """Return remarks on the threads of this process, for `show_config`."""
    found = []
    if _teams.n_forks() > 0:
        found.append(
            "a forked process: a helper makes the parallel calls of the thread that forked"
        )
    shortage = _teams.shortage()
    if shortage is not None:
        requested, granted = shortage
        found.append(f"the system let a team of {requested} have no more than {granted} thread(s)")
    if _teams.is_dynamic():
        found.append("OMP_DYNAMIC: OpenMP may give a call fewer threads")
    return found + team_sizes.notes()


def set_num_threads(n: int | None) -> None:
    """Limit the number of threads of a call, for the whole process.

    The CPU affinity, the CPU quota of the container and OMP_NUM_THREADS still apply. The
    ``num_threads=n`` of a call, or a `num_threads` block, is used instead of this limit.

    Parameters
    ----------
    n : int or None
        The limit, at least 1. None removes it.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is less than 1.

    See Also
    --------
    get_num_threads : The number in effect.
    num_threads : The number for the calls in a block.

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
    """Return the largest number of threads of a call without ``num_threads=n``.

    Returns
    -------
    int
        In a `num_threads` block, the number of the block. Otherwise the minimum of
        `set_num_threads`, OMP_NUM_THREADS, OMP_THREAD_LIMIT, the CPU affinity, the processors
        in OpenMP's places, the CPU quota of the container, and the number of threads that
        OpenMP would use on the calling thread. 1 in a build without OpenMP.

    See Also
    --------
    set_num_threads : Limit it for the process.
    num_threads : Set it for a block.
    show_config : Report it with the rule that decided it.

    Notes
    -----
    Concurrent calls share these threads: a call that starts while `k` others run with several
    threads gets at most one part in ``k + 1``.

    OMP_NUM_THREADS is read at each large call, so changes of ``os.environ`` take effect. OpenMP
    reads it only when it is loaded. After a change, OpenMP's own number counts only if it has been
    set since, by threadpoolctl or ``omp_set_num_threads``.

    Examples
    --------
    >>> import embag
    >>> embag.get_num_threads() >= 1
    True
    """
    return explain()[0]


class num_threads:
    """Set the largest number of threads of each call in a ``with`` block.

    The block has the effect of ``num_threads=n`` in each call that does not pass it.

    Parameters
    ----------
    n : int
        At least 1. It may exceed `get_num_threads`, but is capped at the number of processors
        of the machine.

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is less than 1.

    See Also
    --------
    set_num_threads : Limit the number for the whole process.

    Notes
    -----
    Of the limits of the environment, only OMP_THREAD_LIMIT applies in the block. If a generator
    yields inside the block, the number stays in effect for the code that runs until the
    generator continues.

    The number is a context variable (`contextvars`). It applies to the calling thread or
    asyncio task, and to threads that run in a copy of its context: those of
    ``asyncio.to_thread``, and in free-threaded Python from 3.14 on all threads started in the
    block.

    Examples
    --------
    >>> import embag
    >>> with embag.num_threads(1):
    ...     embag.get_num_threads()
    1
    """

    def __init__(self, n: int) -> None:
        self._count = _arguments.as_count(n, "n")

    # The object does not change: threads may share it.
    def __enter__(self) -> None:
        _of_context.set((*_of_context.get(), self))

    def __exit__(self, *_: object) -> None:
        blocks = list(_of_context.get())
        for i in reversed(range(len(blocks))):  # a generator may end between two others
            if blocks[i] is self:
                del blocks[i]
                break
        _of_context.set(tuple(blocks))


class Team(NamedTuple):
    """The threads of a call."""

    n: int
    n_entries: int  # the size of the call that they are for

    def at_most(self, n: int) -> "Team":
        """Return a team of at most `n` threads."""
        return self if self.n <= n else self._replace(n=n)


SERIAL = Team(1, 0)


def team_for(n_entries: int, num_threads: int | None) -> Team:
    """Return the team for a call that gathers and writes `n_entries` entries."""
    n = threads_for(n_entries, num_threads)
    team_sizes.begin(n_entries, n)
    return Team(n, n_entries)


def runs_alone(n_entries: int, num_threads: int | None) -> bool:
    """Return whether a call gets one thread. It then begins; else `team_for` is to be called."""
    if n_entries < 2 * ENTRIES_PER_THREAD:
        return True  # such a call never has more
    alone = threads_for(n_entries, num_threads) == 1
    if alone:
        team_sizes.begin(n_entries, 1)
    return alone


def threads_for(n_entries: int, num_threads: int | None) -> int:
    """Return the number of threads for a call that gathers and writes `n_entries` entries.

    `num_threads`, if it is given, replaces the limit of the process. It is not shared with
    concurrent calls, and is capped only at the processors of the machine and OMP_THREAD_LIMIT.
    """
    if n_entries < 2 * ENTRIES_PER_THREAD:
        return 1
    if num_threads is None and (blocks := _of_context.get()):
        num_threads = blocks[-1]._count
    if num_threads is None:
        limit = max(1, explain()[0] // (len(_calls_in_flight()) + 1))
    else:
        limit = min(num_threads, _N_MACHINE, _teams.thread_limit()) if _OPENMP else 1
    return team_sizes.limit(n_entries, min(limit, n_entries // ENTRIES_PER_THREAD))


# --- Running ------------------------------------------------------------------


def _stack_bytes() -> int:
    """Return the stack size of OpenMP's threads, from the environment; 0 for the default."""
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


_STACK_BYTES = _stack_bytes()  # at import, as OpenMP reads the variables then


def _reset_after_fork() -> None:
    """Drop the state of the parent, once, in a forked process."""
    global _in_flight, _outer_limit, _n_forks_seen  # noqa: PLW0603
    n_forks = _teams.n_forks()
    if n_forks != _n_forks_seen:
        _in_flight, _outer_limit = set(), None
        team_sizes.forget()
        _n_forks_seen = n_forks


def _calls_in_flight() -> set[object]:
    """Return the tokens of the calls that this process runs with several threads."""
    _reset_after_fork()
    return _in_flight


def run(
    kernel: Callable[Concatenate[int, _Arguments], _Result],
    team: Team,
    *arguments: _Arguments.args,
    **options: _Arguments.kwargs,
) -> _Result:
    """Return ``kernel(team.n, *arguments)``, or call it with fewer threads if necessary."""
    assert not options  # `ParamSpec` requires the parameter
    if team.n == 1:
        return kernel(1, *arguments, **options)
    in_flight = _calls_in_flight()
    token = object()
    try:
        in_flight.add(token)
        # A helper would never run while the interpreter is finalizing.
        may_help = not sys.is_finalizing()
        result, region = _teams.lead(kernel, team.n, _STACK_BYTES, may_help, *arguments)
    finally:
        in_flight.discard(token)
    team_sizes.learn(team.n_entries, team.n, *region)
    return result


_teams.watch_forks()
_teams.measure_by(kernels.take_region)
