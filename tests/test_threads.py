"""How many threads: the rules, what others set, blocks of one's own, calls that share."""

import asyncio
import contextvars
import os
import sys
import textwrap
import threading

import numpy as np
import pytest
from processes import run_python

import embag
from embag import _core, _threads

PLACES = "OpenMP's places (OMP_PLACES, OMP_PROC_BIND, GOMP_CPU_AFFINITY)"
AFFINITY = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
LARGE = 10**9  # entries that are worth any number of threads


@pytest.fixture(autouse=True)
def _clean(clean_thread_settings, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(_threads, "_OPENMP", True)
    monkeypatch.setattr(_threads._teams, "n_processors", lambda: 16)
    monkeypatch.setattr(_threads._teams, "openmp_threads", lambda: 20)
    monkeypatch.setattr(_threads._teams, "thread_limit", lambda: 2**31 - 1)
    monkeypatch.setattr(_threads._teams, "place_processors", lambda: None)
    monkeypatch.setattr(_threads._cgroups, "cpu_quota", lambda: None)
    monkeypatch.setattr(_threads, "_N_MACHINE", 32)


def test_affinity_is_the_default():
    assert _threads.explain() == (16, "CPU affinity")


def test_the_least_of_the_rules_decides(monkeypatch):
    monkeypatch.setattr(_threads._cgroups, "cpu_quota", lambda: 7.5)
    assert _threads.explain() == (8, "the container's CPU quota")
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.setattr(_threads, "_least_around", None)
    assert _threads.explain() == (6, "OMP_NUM_THREADS")
    embag.set_num_threads(4)
    assert _threads.explain() == (4, "set_num_threads")
    assert embag.get_num_threads() == 4
    embag.set_num_threads(100)
    assert _threads.explain() == (6, "OMP_NUM_THREADS")
    monkeypatch.setattr(_threads._teams, "openmp_threads", lambda: 5)
    assert _threads.explain() == (5, "OpenMP (threadpoolctl, omp_set_num_threads)")


def test_the_processors_that_openmp_binds_threads_to(monkeypatch):
    monkeypatch.setattr(_threads._teams, "place_processors", lambda: {0, 2, 4, 6})
    assert _threads.explain() == (4, PLACES)
    assert _threads.threads_for(LARGE, None) == 4
    assert _threads.threads_for(LARGE, 9) == 9  # a count of the call's own
    embag.set_num_threads(3)
    assert _threads.explain() == (3, "set_num_threads")


def test_the_thread_limit_bounds_every_count(monkeypatch):
    monkeypatch.setattr(_threads._teams, "thread_limit", lambda: 5)
    assert _threads.explain() == (5, "OMP_THREAD_LIMIT")
    assert _threads.threads_for(LARGE, None) == _threads.threads_for(LARGE, 9) == 5
    with embag.num_threads(9):
        assert _threads.explain() == (5, "OMP_THREAD_LIMIT")
        assert _threads.threads_for(LARGE, None) == 5
    with embag.num_threads(4):
        assert _threads.explain() == (4, "embag.num_threads")


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
        (1.5, TypeError, "n must be an integer, got 1.5"),
        (True, TypeError, "n must be an integer, got True"),
    ],
)
def test_errors(n, kind, message):
    for function in (embag.set_num_threads, embag.num_threads):
        with pytest.raises(kind) as caught:
            function(n)
        assert str(caught.value) == message
    embag.set_num_threads(np.int64(2))
    assert embag.get_num_threads() == 2


def test_a_block_chooses_for_its_calls():
    assert _threads.threads_for(LARGE, None) == 16
    with embag.num_threads(3):
        assert _threads.threads_for(LARGE, None) == embag.get_num_threads() == 3
        assert _threads.threads_for(LARGE, 5) == 5
        with embag.num_threads(24):  # more than the process's count
            assert _threads.explain() == (24, "embag.num_threads")
            assert _threads.threads_for(LARGE, None) == 24
        with pytest.raises(KeyError), embag.num_threads(1):
            raise KeyError
        assert embag.get_num_threads() == 3
    with embag.num_threads(10**30):
        assert embag.get_num_threads() == _threads.threads_for(LARGE, None) == 32
    assert embag.get_num_threads() == 16


def test_a_block_does_nothing_to_other_threads():
    seen = []

    def look():
        seen.append(embag.get_num_threads())

    with embag.num_threads(2):
        # In a context of its own, as threads have it: free-threaded Pythons copy the starter's.
        thread = threading.Thread(target=contextvars.Context().run, args=[look])
        thread.start()
        thread.join()
        contextvars.copy_context().run(look)
    assert seen == [16, 2]


def test_blocks_in_tasks_that_take_turns():
    async def task(n):
        with embag.num_threads(n):
            seen = []
            for _ in range(5):
                await asyncio.sleep(0)
                seen += [embag.get_num_threads(), await asyncio.to_thread(embag.get_num_threads)]
        return seen

    async def all_tasks():
        return await asyncio.gather(*(task(n) for n in (1, 2, 3)))

    assert asyncio.run(all_tasks()) == [[1] * 10, [2] * 10, [3] * 10]


def test_calls_at_the_same_time_share():
    def kernel(n_threads, depth):
        seen.append(n_threads)
        if depth:
            _threads.run(kernel, _threads.threads_for(LARGE, None), depth - 1)
        orders.append(_threads.threads_for(LARGE, 12))

    seen, orders = [], []
    _threads.run(kernel, _threads.threads_for(LARGE, None), 5)
    assert seen == [16, 8, 5, 4, 3, 2]
    assert orders == [12] * 6  # what a call asks for is not shared
    assert _threads.threads_for(LARGE, None) == 16
    with pytest.raises(ZeroDivisionError):
        _threads.run(lambda n_threads: n_threads // 0, 2)
    assert _threads.threads_for(LARGE, None) == 16


def test_many_calls_still_get_a_thread_each(monkeypatch):
    monkeypatch.setattr(_threads, "_in_flight", {object() for _ in range(40)})
    assert _threads.threads_for(LARGE, None) == 1
    assert _threads.threads_for(LARGE, 4) == 4


def test_none_undoes_what_was_set():
    before = embag.get_num_threads()
    embag.set_num_threads(1)
    assert embag.get_num_threads() == 1
    embag.set_num_threads(None)
    assert embag.get_num_threads() == before


def test_a_block_may_be_entered_again():
    one = embag.num_threads(1)
    for _ in range(2):
        with one, one:
            assert embag.get_num_threads() == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", 0), ("64", 65536), ("64k", 65536), (" 2 M ", 2 << 20), ("1G", 1 << 30), ("100B", 100),
     ("M", 0), ("1T", 0), ("-1", 0), ("-1B", sys.maxsize), ("99999999999G", 0), ("9" * 5000, 0)],
)  # fmt: skip
def test_omp_stacksize(value, expected, monkeypatch):
    monkeypatch.setenv("OMP_STACKSIZE", value)
    assert _threads._stack_bytes() == expected


def printed(code, **options):
    """Return what a process of its own prints."""
    return run_python("-c", textwrap.dedent(code), **options).stdout.split("\n")


EXPLAIN = "from embag import _threads; print(*_threads.explain())"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's affinity")
@pytest.mark.skipif(not _core.build_info()[1], reason="needs OpenMP")
def test_the_affinity_of_the_calling_thread():
    one = min(os.sched_getaffinity(0))
    lines = printed(
        f"""
        import os, threading
        import embag
        from embag import _teams
        print(_teams.n_processors() == len(os.sched_getaffinity(0)))
        def pinned():
            os.sched_setaffinity(0, {{{one}}})
            embag.show_config()
        thread = threading.Thread(target=pinned)
        thread.start()
        thread.join()
        print(_teams.n_processors() == len(os.sched_getaffinity(0)))
        """
    )
    assert lines[0] == lines[-2] == "True"
    assert "  threads     1, decided by CPU affinity" in lines


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's affinity")
@pytest.mark.skipif(not _core.build_info()[1], reason="needs OpenMP")
def test_a_process_that_was_started_on_one_processor():
    one = min(os.sched_getaffinity(0))
    preexec = (
        f"import os, sys; os.sched_setaffinity(0, {{{one}}}); os.execv(sys.argv[1], sys.argv[1:])"
    )
    assert printed(EXPLAIN, before=[sys.executable, "-c", preexec])[0] == "1 CPU affinity"


@pytest.mark.skipif(not _core.build_info()[1], reason="needs OpenMP")
def test_a_thread_that_openmp_has_bound_has_all_processors():
    # Then the affinity of the main thread is one processor, but its team gets them all.
    code = "from embag import _teams; print(_teams.n_processors())"
    assert printed(code, OMP_PROC_BIND="true") == printed(code, OMP_PROC_BIND="false")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's affinity")
@pytest.mark.skipif(not _core.build_info()[1], reason="needs OpenMP")
@pytest.mark.skipif(len(AFFINITY) < 2, reason="needs two processors")
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMP_PLACES": "{first}"}, "1 " + PLACES),
        ({"OMP_PLACES": "{last}"}, "1 " + PLACES),
        ({"OMP_PLACES": "{first},{first}"}, "1 " + PLACES),
        ({"OMP_PLACES": "{first},{last}"}, "2 "),
        ({"OMP_PLACES": "{first,last}"}, "2 "),
        ({"OMP_PLACES": "{first},{last}", "OMP_PROC_BIND": "close"}, "2 "),
        ({"OMP_PLACES": "{first},{last}", "OMP_PROC_BIND": "master"}, "1 " + PLACES),
        ({"OMP_PLACES": "{first}", "OMP_PROC_BIND": "false"}, "all CPU affinity"),
        ({"OMP_PROC_BIND": "spread"}, "all CPU affinity"),
        ({"GOMP_CPU_AFFINITY": "first"}, "1 " + PLACES),
        ({"GOMP_CPU_AFFINITY": "first last"}, "2 "),
        ({"OMP_THREAD_LIMIT": "1"}, "1 OMP_THREAD_LIMIT"),
        ({"OMP_DYNAMIC": "true"}, "all CPU affinity"),
    ],
    ids=str,
)
def test_what_openmp_does_with_its_threads(variables, expected):
    first, last = str(AFFINITY[0]), str(AFFINITY[-1])
    variables = {
        name: value.replace("first", first).replace("last", last)
        for name, value in variables.items()
    }
    code = "import embag._cgroups; embag._cgroups.cpu_quota = lambda: None; " + EXPLAIN
    output = printed(code, **variables)[0]
    assert output.startswith(expected.replace("all", str(len(AFFINITY))))


@pytest.mark.skipif(not _core.build_info()[1], reason="needs OpenMP")
def test_the_report_tells_that_openmp_may_give_fewer_threads():
    code = "import embag; print(embag.show_config('dicts')['threads']['notes'])"
    note = "OMP_DYNAMIC: OpenMP may give a call fewer threads"
    assert printed(code, OMP_DYNAMIC="true")[0] == str([note])
    assert printed(code, OMP_DYNAMIC="false")[0] == "[]"


@pytest.mark.skipif(not _core.build_info()[1], reason="needs OpenMP")
def test_threadpoolctl_sees_and_limits():
    pytest.importorskip("threadpoolctl")
    lines = printed(
        """
        import embag
        from threadpoolctl import threadpool_info, threadpool_limits
        from embag import _threads
        _threads._teams.n_processors = lambda: 8
        _threads._cgroups.cpu_quota = lambda: None
        print(sum(pool["user_api"] == "openmp" for pool in threadpool_info()))
        with threadpool_limits(8, user_api="openmp"):
            print(_threads.threads_for(10**9, None))
            with threadpool_limits(1, user_api="openmp"):
                print(_threads.threads_for(10**9, None), _threads.explain()[1])
        """
    )
    assert lines[:3] == ["1", "8", "1 OpenMP (threadpoolctl, omp_set_num_threads)"]
