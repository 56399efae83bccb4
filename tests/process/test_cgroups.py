"""Limits of containers, in fake trees of control groups: version 2, version 1 and both."""

import pytest

from embag._process import cgroups


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


CPU = {
    "v2": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"},
        1.5,
    ),
    "v2, no limit": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
        None,
    ),
    "v2, a parent's limit is lower": (
        {
            "proc/self/cgroup": "0::/pod/app\n",
            "sys/fs/cgroup/pod/app/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "200000 100000\n",
        },
        2.0,
    ),
    "v2, the host's path inside a container": (
        {
            "proc/self/cgroup": "0::/kubepods/pod1\n",
            "sys/fs/cgroup/cpu.max": "300000 100000\n",
        },
        3.0,
    ),
    "v1": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n",
            "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
        },
        0.5,
    ),
    "v1, no limit": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
    "v1, under the name of both of its controllers": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/x\n",
            "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
        },
        2.5,
    ),
    "hybrid: the controllers are of version 1": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/a/b\n1:name=systemd:/a/b\n0::/a/b\n",
            "sys/fs/cgroup/unified/a/b/cgroup.procs": "1\n",
            "sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
        },
        3.0,
    ),
    "v2, a path that leads out of the container": (
        {
            "proc/self/cgroup": "0::/../other\n",
            "sys/fs/cgroup/cpu.max": "100000 100000\n",
        },
        1.0,
    ),
    "a zero": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 0\n"},
        None,
    ),
    "garbage": (
        {"proc/self/cgroup": "what\n0::/\n", "sys/fs/cgroup/cpu.max": "lots of\n"},
        None,
    ),
    "no cgroups": ({}, None),
}


MEMORY = {
    "v2": (
        {
            "proc/self/cgroup": "0::/pod/app\n",
            "sys/fs/cgroup/pod/app/memory.max": "max\n",
            "sys/fs/cgroup/pod/memory.max": "2000000\n",
            "sys/fs/cgroup/memory.max": "3000000\n",
        },
        2_000_000,
    ),
    "v1": (
        {
            "proc/self/cgroup": "4:memory:/docker/x\n5:cpu:/other\n",
            "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "1000000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
        1_000_000,
    ),
    "no limit": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"},
        None,
    ),
    "garbage": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "\n"},
        None,
    ),
    "no cgroups": ({}, None),
}


@pytest.mark.parametrize("name", CPU)
def test_cpu_quota(name, tmp_path):
    files, expected = CPU[name]
    write(tmp_path, files)
    assert cgroups.cpu_quota(str(tmp_path)) == expected


@pytest.mark.parametrize("name", MEMORY)
def test_memory_limit(name, tmp_path):
    files, expected = MEMORY[name]
    write(tmp_path, files)
    assert cgroups.memory_limit(str(tmp_path)) == expected


def test_the_groups_of_this_machine_can_be_read():
    quota, limit = cgroups.cpu_quota(), cgroups.memory_limit()
    assert quota is None or quota > 0
    assert limit is None or limit > 1 << 20
