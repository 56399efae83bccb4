"""How many threads: the rules, fake containers, and what a fork leaves."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import embag
from embag import _threads


@pytest.fixture(autouse=True)
def _clean(clean_thread_settings, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(_threads, "_OPENMP", True)
    monkeypatch.setattr(_threads, "_n_processors", lambda: 16)
    monkeypatch.setattr(_threads, "_cgroup_quota", lambda: None)
    monkeypatch.setattr(_threads, "_N_MACHINE", 32)


def test_affinity_is_the_default():
    assert _threads.explain() == (16, "CPU affinity")


def test_the_least_of_the_rules_decides(monkeypatch):
    monkeypatch.setattr(_threads, "_cgroup_quota", lambda: 7.5)
    assert _threads.explain() == (8, "the container's CPU quota")
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.setattr(_threads, "_decided", None)
    assert _threads.explain() == (6, "OMP_NUM_THREADS")
    embag.set_num_threads(4)
    assert _threads.explain() == (4, "set_num_threads")
    assert embag.get_num_threads() == 4
    embag.set_num_threads(100)
    assert _threads.explain() == (6, "OMP_NUM_THREADS")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3", 3), (" 3 ", 3), ("4,2", 4), ("0", None), ("-1", None), ("many", None), ("", None)],
)
def test_omp_num_threads(value, expected, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert _threads._omp_num_threads() == expected


def test_without_openmp_there_is_one_thread(monkeypatch):
    monkeypatch.setattr(_threads, "_OPENMP", False)
    assert _threads.explain() == (1, "a build without OpenMP")
    assert _threads.threads_for(10**9, 8) == 1


def test_after_fork_there_is_one_thread(monkeypatch):
    assert _threads.threads_for(10**9, None) == 16
    _threads._after_fork_in_child()
    assert _threads.threads_for(10**9, None) == 1
    assert _threads.threads_for(10**9, 8) == 1
    assert "fork" in _threads.explain()[1]


def test_small_calls_stay_on_their_thread():
    assert _threads.threads_for(0, None) == 1
    assert _threads.threads_for(2 * _threads.ENTRIES_PER_THREAD - 1, 8) == 1
    assert _threads.threads_for(3 * _threads.ENTRIES_PER_THREAD, 8) == 3
    assert _threads.threads_for(10**9, None) == 16
    assert _threads.threads_for(10**9, 10**12) == 32


@pytest.mark.parametrize(
    ("n", "kind", "message"),
    [
        (0, ValueError, "n must be at least 1, got 0"),
        (-3, ValueError, "n must be at least 1, got -3"),
        (1.5, TypeError, "n must be an integer, got float"),
        (None, TypeError, "n must be an integer, got NoneType"),
        (True, TypeError, "n must be an integer, got bool"),
    ],
)
def test_set_num_threads_errors(n, kind, message):
    with pytest.raises(kind) as caught:
        embag.set_num_threads(n)
    assert str(caught.value) == message
    embag.set_num_threads(np.int64(2))
    assert embag.get_num_threads() == 2


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


CGROUPS = {
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
    "garbage": (
        {"proc/self/cgroup": "what\n0::/\n", "sys/fs/cgroup/cpu.max": "lots of\n"},
        None,
    ),
    "no cgroups": ({}, None),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_cgroup_quota(name, tmp_path, monkeypatch):
    monkeypatch.undo()
    files, expected = CGROUPS[name]
    write(tmp_path, files)
    assert _threads._cgroup_quota(str(tmp_path)) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_of_a_parent_that_used_threads_does_not_hang():
    code = textwrap.dedent("""
        import os, sys
        import numpy as np
        import embag
        from embag import _threads

        table = np.ones((1000, 64), np.float32)
        input = np.zeros(200_000, np.int64)
        call = lambda: embag.embedding_bag(input, table, [0, 1000, 90_000], num_threads=2)
        expected = call()
        child = os.fork()
        if child == 0:
            os._exit(0 if (call() == expected).all() and embag.get_num_threads() == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert (call() == expected).all()
    """)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
