"""How many threads a call gets: an integer, decided before the kernel runs.

The process's count is the least of what was set with `set_num_threads`, the environment
variable OMP_NUM_THREADS, the processors that this process may run on, and the CPU quota
of its container, which OpenMP itself does not see. It is worked out once.

A call gets fewer where its work is not worth more: waking a thread takes microseconds.

After `fork` the child runs serially. libgomp's threads do not survive the fork, and a
parallel region in the child would wait for them for ever.

Tested in tests/test_threads.py.
"""

import math
import operator
import os
from pathlib import Path
from typing import Any

from embag import _core

# Table entries to gather that are worth a thread. Origin: docs/design.md, "Threads".
ENTRIES_PER_THREAD = 32 << 10

_OPENMP = _core.build_info()[1] != 0
_N_MACHINE = os.cpu_count() or 1  # asked once: it reads a file of the system's

_set_by_user: int | None = None
_forked = False
_decided: tuple[int, str] | None = None  # cached: (count, the rule that decided it)


def _cgroup_quota(root: str = "/") -> float | None:
    """Return the CPU quota of this process's container in processors; None without one."""
    try:
        lines = Path(root, "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            mount = Path(root, "sys/fs/cgroup")
        elif "cpu" in controllers.split(","):
            mount = Path(root, "sys/fs/cgroup/cpu")
        else:
            continue
        # Every group up to the root may hold a quota. Inside a container the path is
        # often the host's: then only the mount's root is there to be read.
        group = Path(path.lstrip("/"))
        for folder in [mount / group, *(mount / parent for parent in group.parents), mount]:
            quota = _read_quota(folder)
            if quota is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _read_quota(folder: Path) -> float | None:
    """Read one group's quota: cgroup v2's cpu.max, else v1's cfs_quota_us."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        if quota == "max" or int(quota) <= 0 or int(period) <= 0:
            return None
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _omp_num_threads() -> int | None:
    """Return OMP_NUM_THREADS (the first of a list of levels); None if unset or no number."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def _n_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return _N_MACHINE


def explain() -> tuple[int, str]:
    """Return the process's thread count and the rule that decided it."""
    global _decided  # noqa: PLW0603
    if _decided is None:
        limits = [(_n_processors(), "CPU affinity")]
        quota = _cgroup_quota()
        if quota is not None:
            limits.append((math.ceil(quota), "the container's CPU quota"))
        environment = _omp_num_threads()
        if environment is not None:
            limits.append((environment, "OMP_NUM_THREADS"))
        if _set_by_user is not None:
            limits.append((_set_by_user, "set_num_threads"))
        if not _OPENMP:
            limits.append((1, "a build without OpenMP"))
        if _forked:
            limits.append((1, "fork (a forked process runs serially)"))
        _decided = min(limits, key=operator.itemgetter(0))
    return _decided


def check_count(count: Any, name: str) -> int:
    """Return a thread count as an int.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is less than 1.
    """
    try:
        if isinstance(count, bool):
            raise TypeError
        n = operator.index(count)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(count).__name__}") from None
    if n < 1:
        seen = str(n) if n.bit_length() <= 64 else f"an integer of {n.bit_length()} bits"
        raise ValueError(f"{name} must be at least 1, got {seen}")
    return n


def set_num_threads(n: int) -> None:
    """Set the most threads that a call may use, for the whole process.

    The affinity, the container's CPU quota and OMP_NUM_THREADS still bound it.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError
        If `n` is no integer.
    ValueError
        If `n` is less than 1.

    See Also
    --------
    get_num_threads : the count in force.

    Examples
    --------
    >>> import embag
    >>> embag.set_num_threads(64)
    >>> 1 <= embag.get_num_threads() <= 64
    True
    """
    global _set_by_user, _decided  # noqa: PLW0603
    _set_by_user = check_count(n, "n")
    _decided = None


def get_num_threads() -> int:
    """Return the most threads that a call uses unless it says otherwise.

    Returns
    -------
    int
        The least of `set_num_threads`, OMP_NUM_THREADS, the CPU affinity and the
        container's CPU quota; 1 in a forked process and in a build without OpenMP.

    See Also
    --------
    set_num_threads : lower it.
    show_config : also tells which rule decided it.
    """
    return explain()[0]


def threads_for(n_entries: int, num_threads: int | None) -> int:
    """Return how many threads a call that gathers and writes `n_entries` gets.

    `num_threads`, already checked, stands in the place of the process's count; it may
    exceed it up to the machine's processors, but not undo a fork.
    """
    if n_entries < 2 * ENTRIES_PER_THREAD:
        return 1
    if num_threads is None:
        limit = explain()[0]
    elif _forked or not _OPENMP:
        limit = 1
    else:
        limit = min(num_threads, _N_MACHINE)
    return min(limit, n_entries // ENTRIES_PER_THREAD)


def _after_fork_in_child() -> None:
    global _forked, _decided  # noqa: PLW0603
    _forked = True
    _decided = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
