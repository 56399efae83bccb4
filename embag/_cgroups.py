"""What a container leaves this process: processors and memory.

Linux bounds a container by control groups, which neither OpenMP nor `sysconf` looks at. A
process is in one group of each hierarchy, and each group above that may have a limit too.

Tested in tests/test_cgroups.py.
"""

from collections.abc import Callable, Iterator
from pathlib import Path


def cpu_quota(root: str = "/") -> float | None:
    """Return the least CPU quota, in processors; None without one."""
    return _least("cpu", _cpu_quota, root)


def memory_limit(root: str = "/") -> float | None:
    """Return the least limit on memory, in bytes; None without one."""
    return _least("memory", _memory_limit, root)


def _least(controller: str, limit_of: Callable[[Path], float | None], root: str) -> float | None:
    limits = [limit_of(group) for group in _groups(controller, root)]
    return min((limit for limit in limits if limit is not None), default=None)


def _groups(controller: str, root: str) -> Iterator[Path]:
    """Give the folders of this process's groups that a controller's files may be in."""
    try:
        lines = Path(root, "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":  # version 2: one hierarchy for all
            mounts = {""}
        elif controller in controllers.split(","):  # one for "cpu,cpuacct", by either name
            mounts = {controller, controllers}
        else:
            continue
        # Inside a container the path is often the host's: then only the mount is there.
        group = Path(path.lstrip("/"))
        for mount in mounts:
            yield from (Path(root, "sys/fs/cgroup", mount, g) for g in (group, *group.parents))


def _cpu_quota(group: Path) -> float | None:
    """Read one group's quota: version 2's cpu.max, else version 1's cfs_quota_us."""
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
    """Read one group's limit: version 2's memory.max, else version 1's."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            limit = int((group / name).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        return limit if limit >= 0 else None
    return None
