"""Fork, in every order: the child looks up with many threads, and runs in parallel.

Run as ``fork_threaded_processes.py SCENARIO [ARGUMENT ...]``; a scenario is a function below.
"""

import atexit
import ctypes
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from threaded_calls import (
    EXPECTED,
    IDS,
    N_THREADS,
    TABLE,
    count_threads,
    look_up,
    look_up_in_parallel,
    run_in_child,
)

import embag
from embag._process import threads

# --- Orders of threads and forks ------------------------------------------------------


def parent_without_threads():
    run_in_child(look_up_in_parallel)
    look_up_in_parallel()


def parent_with_threads():
    look_up_in_parallel()
    run_in_child(look_up_in_parallel)
    run_in_child(look_up_in_parallel)
    look_up()


def fork_from_another_thread():
    failed = []

    def fork():
        try:
            look_up_in_parallel()
            run_in_child(look_up_in_parallel)
            look_up()
        except BaseException as error:
            failed.append(error)
            raise

    look_up_in_parallel()
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    assert not failed
    look_up()


def forks_of_forks():
    def lead_and_fork():
        look_up_in_parallel()
        run_in_child(look_up_in_parallel)

    def second():
        look_up_in_parallel()
        run_in_child(look_up_in_parallel)
        # From a thread that has led a team of its own in this child.
        thread = threading.Thread(target=lead_and_fork)
        thread.start()
        thread.join()
        look_up()

    look_up_in_parallel()
    run_in_child(second)
    run_in_child(run_in_child, second)
    look_up()


def many_calling_threads_in_the_child():
    def many():
        look_up_in_parallel()
        with ThreadPoolExecutor(8) as pool:
            pending = [pool.submit(look_up) for _ in range(80)]
            for _ in range(20):
                look_up()
            assert all(future.result() is None for future in pending)
        look_up()

    look_up_in_parallel()
    run_in_child(many)


def fork_during_calls_of_other_threads():
    stopped = threading.Event()

    def work():
        while not stopped.is_set():
            look_up()

    def child():
        assert not threads._calls_in_flight()
        look_up_in_parallel()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for thread in workers:
        thread.start()
    for _ in range(20):
        run_in_child(child)
    stopped.set()
    for thread in workers:
        thread.join()


def fork_in_c():
    """Fork without Python's knowledge, and once more in the child."""
    is_child = False

    def fork():
        nonlocal is_child
        child = ctypes.PyDLL(None).fork()
        if child == 0:
            try:
                look_up_in_parallel()
                if not is_child:
                    is_child = True
                    fork()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0

    look_up_in_parallel()
    fork()


def fork_in_c_forgets_calls_of_the_parent():
    threads._in_flight.add("of a thread that does not exist in the child")
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        os._exit(len(threads._calls_in_flight()))
    assert os.waitpid(child, 0)[1] == 0
    assert len(threads._calls_in_flight()) == 1


def second_openmp_with_threads():
    maps = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split()[-1] for line in maps if "libgomp" in line}
    assert len(paths) <= 1  # none if another compiler built embag
    for path in paths:
        other = ctypes.CDLL(shutil.copy(path, os.getcwd()))
        seen = []
        note = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(seen.append)
        other.GOMP_parallel(note, None, 3, 0)
        assert len(seen) == 3 == count_threads()
    look_up_in_parallel()
    run_in_child(look_up_in_parallel)
    look_up()


def child_that_calls_while_it_ends():
    def end():
        look_up()
        print("called at exit")

    class Late:
        def __del__(self, call=look_up, finalizing=sys.is_finalizing, write=os.write):
            assert finalizing()
            call()
            write(1, b"called during finalization\n")

    look_up_in_parallel()
    child = os.fork()
    if child == 0:
        atexit.register(end)
        look_up_in_parallel()
        sys.modules[__name__].late = Late()
    else:
        assert os.waitpid(child, 0)[1] == 0


def child_that_first_calls_while_it_ends():
    look_up_in_parallel()
    child = os.fork()
    if child == 0:
        atexit.register(look_up)
    else:
        assert os.waitpid(child, 0)[1] == 0


# --- Multiprocessing ------------------------------------------------------------------


def look_up_with_threads_first(i):
    if i == 0:
        look_up_in_parallel()
    else:
        look_up()
    return i


def pool_of_processes(method):
    context = multiprocessing.get_context(method)
    look_up_in_parallel()
    process = context.Process(target=look_up_in_parallel)
    process.start()
    process.join()
    assert process.exitcode == 0
    # Workers are daemons, and a second set replaces the first.
    with context.Pool(2, initializer=look_up_in_parallel, maxtasksperchild=4) as pool:
        results = pool.map(look_up_with_threads_first, [1] * 16, chunksize=1)
        assert results == [1] * 16
    look_up()


# --- What a child may do --------------------------------------------------------------


def results_of_every_function(n_threads):
    team = {"num_threads": n_threads}
    weights = np.linspace(0, 1, IDS.size, dtype=np.float32).reshape(IDS.shape)
    table = TABLE.copy()
    offsets = np.arange(0, IDS.size + 1, 10)
    ebc = embag.EmbeddingBagCollection(
        {"a": TABLE, "b": TABLE},
        [embag.Feature("x", "a"), embag.Feature("y", "b", mode="max")],
    )
    small = embag.quantize(TABLE, **team)
    yield small.packed
    yield small.dequantize(**team)
    yield embag.embedding_bag(IDS, small, **team)
    yield embag.embedding_bag(IDS, small, mode="max", return_max_indices=True, **team)[1]
    yield embag.embedding_bag(IDS, table, max_norm=1.0, **team)
    yield table
    yield ebc(IDS.reshape(-1), offsets, **team)
    yield ebc({"x": IDS, "y": IDS}, **team)
    for options in (
        {},
        {"mode": "max"},
        {"mode": "mean", "sparse": True},
        {"mode": "sum", "per_sample_weights": weights},
        {"mode": "sum", "per_sample_weights": weights, "sparse": True},
    ):
        grads = embag.embedding_bag_backward(EXPECTED, IDS, TABLE, **team, **options)
        if options.get("sparse"):
            yield grads.weight.values
            yield grads.weight.indices
            grads.weight.add_to(table, -0.1, **team)
            yield table
        else:
            yield grads.weight
        if "per_sample_weights" in options:
            yield grads.per_sample_weights


def every_function_in_a_child():
    def child():
        one_thread, several = results_of_every_function(1), results_of_every_function(N_THREADS)
        for one, other in zip(one_thread, several, strict=True):
            assert (one == other).all()
        assert count_threads() > 3

    assert len(list(results_of_every_function(N_THREADS))) == 19
    run_in_child(child)


def errors_in_a_child():
    def fail(n_threads, kind):
        raise kind("no")

    def child():
        for kind in (RuntimeError, MemoryError, KeyboardInterrupt, SystemExit):
            try:
                threads.run(fail, threads.Team(2, 0), kind)
            except kind as error:
                assert error.args == ("no",)
            else:
                raise AssertionError(kind)
        assert not threads._calls_in_flight()
        bad = IDS.copy()
        bad[-1, -1] = 2000
        try:
            embag.embedding_bag(bad, TABLE, num_threads=3)
        except IndexError as error:
            assert "2000 is out of range" in str(error)
        look_up()

    look_up()
    run_in_child(child)


def signal_during_a_call():
    done = []

    def slow(n_threads):
        time.sleep(1)
        done.append(threading.get_ident() != main)

    def child():
        for _ in range(2):
            signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
            try:
                threads.run(slow, threads.Team(2, 0))
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert done == [True]
            else:
                raise AssertionError("no interrupt")
            done.clear()
        assert not threads._calls_in_flight()
        look_up()
        # One more: the calling thread, which waits for the helper that leads the team.
        assert count_threads() == 1 + N_THREADS, count_threads()

    def interrupt(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    main = threading.get_ident()
    signal.signal(signal.SIGALRM, interrupt)
    look_up_in_parallel()
    run_in_child(child)


def signal_handler_that_forks():
    random.seed(0)
    parent, children = os.getpid(), []
    signal.signal(signal.SIGALRM, lambda *_: children.append(os.fork()))
    look_up()
    for _ in range(60):
        children.clear()
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 3e-3))
        while not children:
            look_up()
        if os.getpid() != parent:
            look_up()
            os._exit(0)
        end = time.monotonic() + 20
        while os.waitpid(children[0], os.WNOHANG) == (0, 0):
            assert time.monotonic() < end, "a child hangs"
            time.sleep(0.001)


# --- Subinterpreters ------------------------------------------------------------------


def team_after_a_subinterpreter():
    try:
        import _interpreters as interpreters  # noqa: PLC0415
    except ImportError:
        import _xxsubinterpreters as interpreters  # noqa: PLC0415

    interpreters.destroy(interpreters.create())
    look_up()
    ebc = embag.EmbeddingBagCollection({"t": TABLE}, [embag.Feature("f", "t")])
    assert (ebc({"f": IDS}, num_threads=N_THREADS) == EXPECTED).all()
    grads = embag.embedding_bag_backward(
        EXPECTED, IDS, TABLE, mode="sum", sparse=True, num_threads=N_THREADS
    )
    assert len(grads.weight.indices) > 0
    several, one = (embag.quantize(TABLE, num_threads=n).packed for n in (N_THREADS, 1))
    assert (several == one).all()
    assert count_threads() == N_THREADS


if __name__ == "__main__":
    scenario, *arguments = sys.argv[1:]
    globals()[scenario](*arguments)
