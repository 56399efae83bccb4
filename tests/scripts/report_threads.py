"""Print how many threads embag uses, as others limit them.

Run as ``report_threads.py SCENARIO [ARGUMENT ...]``; a scenario is a function below.
"""

import os
import sys
import threading
import time

import numpy as np

import embag
from embag._process import _teams, threads


def thread_pinned_to(processor):
    def pinned():
        os.sched_setaffinity(0, {int(processor)})
        embag.show_config()

    print(_teams.n_processors() == len(os.sched_getaffinity(0)))
    thread = threading.Thread(target=pinned)
    thread.start()
    thread.join()
    print(_teams.n_processors() == len(os.sched_getaffinity(0)))


def limits_of_threadpoolctl():
    from threadpoolctl import threadpool_info, threadpool_limits  # noqa: PLC0415

    threads._teams.n_processors = lambda: 8
    threads.cgroups.cpu_quota = lambda: None
    print(sum(pool["user_api"] == "openmp" for pool in threadpool_info()))
    with threadpool_limits(8, user_api="openmp"):
        print(threads.threads_for(10**9, None))
        with threadpool_limits(1, user_api="openmp"):
            print(threads.threads_for(10**9, None), threads.explain()[1])
        os.environ["OMP_NUM_THREADS"] = "5"
        with threadpool_limits(3, user_api="openmp"):
            print(*threads.explain())


def calls_with_omp_num_threads(*values):
    """Set the variable, or remove it for "-"; then call, on a thread of its own."""
    threads._teams.n_processors = lambda: 6
    threads._N_MACHINE = 6
    threads.cgroups.cpu_quota = lambda: None
    table, ids = np.ones((1000, 64), np.float32), np.zeros((1000, 10), np.int64)

    def call():
        embag.embedding_bag(ids, table)
        print(*threads.explain(), end=f", {n_of_process() - n_idle} used\n")

    def n_of_process():
        return len(os.listdir("/proc/self/task"))

    n_idle = n_of_process()
    for value in values:
        os.environ["OMP_NUM_THREADS"] = value
        if value == "-":
            del os.environ["OMP_NUM_THREADS"]
        thread = threading.Thread(target=call)  # its team is its own, and ends with it
        thread.start()
        thread.join()
        while n_of_process() > n_idle:
            time.sleep(0.001)


if __name__ == "__main__":
    scenario, *arguments = sys.argv[1:]
    globals()[scenario](*arguments)
