"""The limits of a container on processors and memory.

Linux limits a container by control groups, which neither OpenMP nor `sysconf` considers. A
process is in one group of each hierarchy. Every group above it may have a limit too.

Tested in tests/process/.
"""

from collections.abc import Callable, Iterator
from pathlib import Path


def cpu_quota(root: str = "/") -> float | None:
    """Return the smallest CPU quota, in processors; None without one."""
    return _smallest_limit("cpu", _cpu_quota, root)


def memory_limit(root: str = "/") -> float | None:
    """Return the smallest limit on memory, in bytes; None without one."""
    return _smallest_limit("memory", _memory_limit, root)


def _smallest_limit(
    controller: str, read_limit: Callable[[Path], float | None], root: str
) -> float | None:
    limits = [read_limit(group) for group in _group_folders(controller, root)]
    return min((limit for limit in limits if limit is not None), default=None)


def _group_folders(controller: str, root: str) -> Iterator[Path]:
    """Yield the folders that may have a controller's files for this process's groups."""
    try:
        lines = Path(root, "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":  # version 2: one hierarchy for all
            mounts = {""}
        elif controller in controllers.split(","):  # mounted as "cpu,cpuacct" or as "cpu"
            mounts = {controller, controllers}
        else:
            continue
        # Inside a container the path is often that of the host. Then only the mount exists.
        group = Path(path.lstrip("/"))
        for mount in mounts:
            yield from (Path(root, "sys/fs/cgroup", mount, g) for g in (group, *group.parents))


def _cpu_quota(group: Path) -> float | None:
    """Read the quota of one group: cpu.max (version 2), otherwise cfs_quota_us (version 1)."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        if quota == "max" or int(quota) <= 0 or int(period) <= 0:
            return None
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _memory_limit(group: Path) -> float | None:
    """Read the limit of one group: memory.max (version 2), or memory.limit_in_bytes (1)."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            limit = int((group / name).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        return limit if limit >= 0 else None
    return None
