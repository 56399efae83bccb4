"""The number of threads: rules, settings of others, `num_threads` blocks, concurrent calls."""

import asyncio
import contextvars
import os
import sys
import threading

import numpy as np
import pytest
from processes import SCRIPTS, run_python

import embag
from embag import _core
from embag._process import threads

PLACES = "OpenMP's places (OMP_PLACES, OMP_PROC_BIND, GOMP_CPU_AFFINITY)"
AFFINITY = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
LARGE = 10**9  # enough entries for any number of threads


@pytest.fixture(autouse=True)
def _clean(clean_thread_settings, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_OPENMP", True)
    monkeypatch.setattr(threads, "_FIRST_VARIABLE", None)
    monkeypatch.setattr(threads, "_FIRST_OPENMP_THREADS", 20)
    monkeypatch.setattr(threads._teams, "n_processors", lambda: 16)
    monkeypatch.setattr(threads._teams, "openmp_threads", lambda: 20)
    monkeypatch.setattr(threads._teams, "thread_limit", lambda: 2**31 - 1)
    monkeypatch.setattr(threads._teams, "place_processors", lambda: None)
    monkeypatch.setattr(threads.cgroups, "cpu_quota", lambda: None)
    monkeypatch.setattr(threads, "_N_MACHINE", 32)


def test_affinity_is_the_default():
    assert threads.explain() == (16, "CPU affinity")


def test_the_lowest_limit_decides(monkeypatch):
    monkeypatch.setattr(threads.cgroups, "cpu_quota", lambda: 7.5)
    assert threads.explain() == (8, "the container's CPU quota")
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert threads.explain() == (6, "OMP_NUM_THREADS")
    embag.set_num_threads(4)
    assert threads.explain() == (4, "set_num_threads")
    assert embag.get_num_threads() == 4
    embag.set_num_threads(100)
    assert threads.explain() == (6, "OMP_NUM_THREADS")
    monkeypatch.setattr(threads._teams, "openmp_threads", lambda: 5)
    assert threads.explain() == (5, "OpenMP (threadpoolctl, omp_set_num_threads)")


def test_the_processors_that_openmp_binds_threads_to(monkeypatch):
    monkeypatch.setattr(threads._teams, "place_processors", lambda: {0, 2, 4, 6})
    assert threads.explain() == (4, PLACES)
    assert threads.threads_for(LARGE, None) == 4
    assert threads.threads_for(LARGE, 9) == 9  # the count that the call passes
    embag.set_num_threads(3)
    assert threads.explain() == (3, "set_num_threads")


def test_the_thread_limit_bounds_every_count(monkeypatch):
    monkeypatch.setattr(threads._teams, "thread_limit", lambda: 5)
    assert threads.explain() == (5, "OMP_THREAD_LIMIT")
    assert threads.threads_for(LARGE, None) == threads.threads_for(LARGE, 9) == 5
    with embag.num_threads(9):
        assert threads.explain() == (5, "OMP_THREAD_LIMIT")
        assert threads.threads_for(LARGE, None) == 5
    with embag.num_threads(4):
        assert threads.explain() == (4, "embag.num_threads")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3", 3), (" 3 ", 3), ("4,2", 4), ("0", None), ("-1", None), ("many", None), ("", None)],
)
def test_omp_num_threads(value, expected, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    decided = (16, "CPU affinity") if expected is None else (expected, "OMP_NUM_THREADS")
    assert threads.explain() == decided


def test_omp_num_threads_is_read_at_each_call(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.explain() == (3, "OMP_NUM_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads.explain() == (7, "OMP_NUM_THREADS")
    assert threads.threads_for(LARGE, None) == embag.get_num_threads() == 7
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.explain() == (2, "OMP_NUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.explain() == (16, "CPU affinity")


def test_the_number_that_openmp_was_loaded_with_is_stale_once_the_variable_changes(monkeypatch):
    monkeypatch.setattr(threads, "_FIRST_VARIABLE", "4")
    monkeypatch.setattr(threads, "_FIRST_OPENMP_THREADS", 4)
    monkeypatch.setattr(threads._teams, "openmp_threads", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads.explain() == (4, "OMP_NUM_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    assert threads.explain() == (9, "OMP_NUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.explain() == (16, "CPU affinity")
    monkeypatch.setattr(threads._teams, "openmp_threads", lambda: 5)
    assert threads.explain() == (5, "OpenMP (threadpoolctl, omp_set_num_threads)")


def test_the_quota_is_read_once_for_each_value_of_the_variable(monkeypatch):
    reads = []
    monkeypatch.setattr(threads.cgroups, "cpu_quota", lambda: reads.append(1))
    for _ in range(3):
        threads.explain()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for _ in range(3):
        threads.explain()
    assert len(reads) == 2


def test_without_openmp_there_is_one_thread(monkeypatch):
    monkeypatch.setattr(threads, "_OPENMP", False)
    assert threads.explain() == (1, "a build without OpenMP")
    assert threads.threads_for(10**9, 8) == 1


def test_small_calls_stay_on_their_thread():
    assert threads.threads_for(0, None) == 1
    assert threads.threads_for(2 * threads.ENTRIES_PER_THREAD - 1, 8) == 1
    assert threads.threads_for(3 * threads.ENTRIES_PER_THREAD, 8) == 3
    assert threads.threads_for(10**9, None) == 16
    assert threads.threads_for(10**9, 10**12) == 32


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
    assert threads.threads_for(LARGE, None) == 16
    with embag.num_threads(3):
        assert threads.threads_for(LARGE, None) == embag.get_num_threads() == 3
        assert threads.threads_for(LARGE, 5) == 5
        with embag.num_threads(24):  # more than the count of the process
            assert threads.explain() == (24, "embag.num_threads")
            assert threads.threads_for(LARGE, None) == 24
        with pytest.raises(KeyError), embag.num_threads(1):
            raise KeyError
        assert embag.get_num_threads() == 3
    with embag.num_threads(10**30):
        assert embag.get_num_threads() == threads.threads_for(LARGE, None) == 32
    assert embag.get_num_threads() == 16


def test_a_block_does_not_affect_other_threads():
    seen = []

    def look():
        seen.append(embag.get_num_threads())

    with embag.num_threads(2):
        # In a new context, as threads have it: free-threaded Pythons copy that of the starter.
        thread = threading.Thread(target=contextvars.Context().run, args=[look])
        thread.start()
        thread.join()
        contextvars.copy_context().run(look)
    assert seen == [16, 2]


def test_blocks_in_interleaved_tasks():
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


def test_concurrent_calls_share_threads():
    def kernel(n_threads, depth):
        seen.append(n_threads)
        if depth:
            threads.run(kernel, threads.team_for(LARGE, None), depth - 1)
        orders.append(threads.threads_for(LARGE, 12))

    seen, orders = [], []
    threads.run(kernel, threads.team_for(LARGE, None), 5)
    assert seen == [16, 8, 5, 4, 3, 2]
    assert orders == [12] * 6  # a count that a call passes is not shared
    assert threads.threads_for(LARGE, None) == 16
    with pytest.raises(ZeroDivisionError):
        threads.run(lambda n_threads: n_threads // 0, threads.Team(2, LARGE))
    assert threads.threads_for(LARGE, None) == 16


def test_each_of_many_calls_gets_a_thread(monkeypatch):
    monkeypatch.setattr(threads, "_in_flight", {object() for _ in range(40)})
    assert threads.threads_for(LARGE, None) == 1
    assert threads.threads_for(LARGE, 4) == 4


def test_none_resets_the_count():
    before = embag.get_num_threads()
    embag.set_num_threads(1)
    assert embag.get_num_threads() == 1
    embag.set_num_threads(None)
    assert embag.get_num_threads() == before


def test_a_block_may_be_reentered():
    one = embag.num_threads(1)
    for _ in range(2):
        with one, one:
            assert embag.get_num_threads() == 1


def test_threads_may_share_a_block():
    two, entered, left = embag.num_threads(2), threading.Event(), threading.Event()
    seen = []

    def enter_in_between():
        with two:
            entered.set()
            left.wait(10)
            seen.append(embag.get_num_threads())

    thread = threading.Thread(target=contextvars.Context().run, args=[enter_in_between])
    with two:
        thread.start()
        assert entered.wait(10)
    assert embag.get_num_threads() == 16
    left.set()
    thread.join()
    assert seen == [2]


def test_blocks_may_end_in_any_order():
    one, two = embag.num_threads(1), embag.num_threads(2)
    one.__enter__()
    two.__enter__()
    one.__exit__()
    assert embag.get_num_threads() == 2
    two.__exit__()
    assert embag.get_num_threads() == 16


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", 0), ("64", 65536), ("64k", 65536), (" 2 M ", 2 << 20), ("1G", 1 << 30), ("100B", 100),
     ("M", 0), ("1T", 0), ("-1", 0), ("-1B", sys.maxsize), ("99999999999G", 0), ("9" * 5000, 0)],
)  # fmt: skip
def test_omp_stacksize(value, expected, monkeypatch):
    monkeypatch.setenv("OMP_STACKSIZE", value)
    assert threads._stack_bytes() == expected


def printed(*arguments, **options):
    """Return the lines that Python prints in a process of its own."""
    return run_python(*arguments, **options).stdout.split("\n")


EXPLAIN = "from embag._process import threads; print(*threads.explain())"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's affinity")
@pytest.mark.skipif(not _core.build_info()[1], reason="needs OpenMP")
def test_the_affinity_of_the_calling_thread():
    one = min(os.sched_getaffinity(0))
    lines = printed(SCRIPTS / "report_threads.py", "thread_pinned_to", one)
    assert lines[0] == lines[-2] == "True"
    assert "  threads     1, decided by CPU affinity" in lines


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's affinity")
@pytest.mark.skipif(not _core.build_info()[1], reason="needs OpenMP")
def test_a_process_started_on_one_processor():
    one = min(os.sched_getaffinity(0))
    preexec = (
        f"import os, sys; os.sched_setaffinity(0, {{{one}}}); os.execv(sys.argv[1], sys.argv[1:])"
    )
    assert printed("-c", EXPLAIN, before=[sys.executable, "-c", preexec])[0] == "1 CPU affinity"


@pytest.mark.skipif(not _core.build_info()[1], reason="needs OpenMP")
def test_a_thread_bound_by_openmp_has_all_processors():
    # Then the main thread is bound to one processor, but its team uses all of them.
    code = "from embag._process import _teams; print(_teams.n_processors())"
    assert printed("-c", code, OMP_PROC_BIND="true") == printed("-c", code, OMP_PROC_BIND="false")


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
def test_settings_of_openmp(variables, expected):
    first, last = str(AFFINITY[0]), str(AFFINITY[-1])
    variables = {
        name: value.replace("first", first).replace("last", last)
        for name, value in variables.items()
    }
    code = (
        "import embag._process.cgroups; embag._process.cgroups.cpu_quota = lambda: None; " + EXPLAIN
    )
    output = printed("-c", code, **variables)[0]
    assert output.startswith(expected.replace("all", str(len(AFFINITY))))


@pytest.mark.skipif(not _core.build_info()[1], reason="needs OpenMP")
def test_the_report_notes_that_openmp_may_give_fewer_threads():
    code = "import embag; print(embag.show_config('dicts')['threads']['notes'])"
    note = "OMP_DYNAMIC: OpenMP may give a call fewer threads"
    assert printed("-c", code, OMP_DYNAMIC="true")[0] == str([note])
    assert printed("-c", code, OMP_DYNAMIC="false")[0] == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of the process")
@pytest.mark.skipif(not _core.build_info()[1], reason="needs OpenMP")
@pytest.mark.parametrize(
    ("at_import", "later"),
    [
        ({}, "1 3 2 4 1"),
        ({"OMP_NUM_THREADS": "1"}, "1 3 - 2 1"),
        ({"OMP_NUM_THREADS": "2"}, "1 - 4"),
    ],
)
def test_calls_follow_omp_num_threads(at_import, later):
    lines = printed(
        SCRIPTS / "report_threads.py", "calls_with_omp_num_threads", *later.split(), **at_import
    )
    assert lines[:-1] == [
        "6 CPU affinity, 6 used" if n == "-" else f"{n} OMP_NUM_THREADS, {n} used"
        for n in later.split()
    ]


@pytest.mark.skipif(not _core.build_info()[1], reason="needs OpenMP")
def test_threadpoolctl_sees_and_limits():
    pytest.importorskip("threadpoolctl")
    lines = printed(SCRIPTS / "report_threads.py", "limits_of_threadpoolctl")
    by_openmp = "OpenMP (threadpoolctl, omp_set_num_threads)"
    assert lines[:4] == ["1", "8", f"1 {by_openmp}", f"3 {by_openmp}"]
