"""Print how many threads embag uses, as others limit them.

Run as ``report_threads.py SCENARIO [ARGUMENT]``; a scenario is a function below.
"""

import os
import sys
import threading

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


if __name__ == "__main__":
    scenario, *arguments = sys.argv[1:]
    globals()[scenario](*arguments)
