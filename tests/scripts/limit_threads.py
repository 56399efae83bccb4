"""Look up where threads lack memory, or where OpenMP allows fewer of them.

Run as ``limit_threads.py SCENARIO``; a scenario is a function below. The environment of some
makes stacks of 512 MiB (OMP_STACKSIZE), too large for the C library to keep those of threads
that have ended.
"""

import os
import resource
import sys
import threading

import numpy as np
from threaded_calls import (
    EXPECTED,
    IDS,
    TABLE,
    address_space,
    count_threads,
    look_up,
    look_up_in_parallel,
    run_in_child,
)

import embag
from embag._process import _teams


def limit_address_space(n_bytes):
    resource.setrlimit(resource.RLIMIT_AS, (n_bytes, resource.RLIM_INFINITY))


def notes_on_threads():
    return embag.show_config("dicts")["threads"]["notes"]


def no_helper_in_a_child():
    def child():
        limit_address_space(address_space() + (4 << 20))  # a stack takes 8 MiB
        look_up()
        assert count_threads() == 1, count_threads()
        notes = notes_on_threads()
        assert notes[0].startswith("a forked process"), notes
        assert notes[1] == "the system let a team of 3 have no more than 1 thread(s)", notes
        limit_address_space(resource.RLIM_INFINITY)
        look_up_in_parallel()

    run_in_child(child)  # before the parent has stacks that the child could take
    embag.show_config()


def no_memory_in_a_child():
    def child():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 20,) * 2)
        result = np.empty_like(EXPECTED)
        embag.embedding_bag(IDS, TABLE, mode="sum", num_threads=3, out=result)

    look_up()
    for _ in range(5):
        run_in_child(child)


def no_team():
    limit_address_space(address_space() + (4 << 20))
    look_up()
    assert count_threads() == 1
    notes = notes_on_threads()
    assert notes == ["the system let a team of 3 have no more than 1 thread(s)"], notes


def room_for_one_large_stack():
    limit_address_space(address_space() + (600 << 20))
    look_up()
    assert count_threads() == 2, count_threads()
    assert _teams.shortage() == (3, 2)


def team_that_openmp_keeps_small():
    n = os.cpu_count() + 1
    look_up(n)
    assert _teams.shortage() is None
    n_existing = count_threads()
    assert n_existing < n, n_existing
    limit_address_space(address_space() + (200 << 20))  # no room for another thread
    look_up(n)
    assert _teams.shortage() is None
    assert count_threads() == n_existing, count_threads()


def team_within_the_thread_limit():
    limit_address_space(address_space() + (200 << 20))
    look_up()
    with embag.num_threads(8):
        look_up(None)
    assert _teams.shortage() is None
    assert count_threads() == 1, count_threads()


def team_that_grows_again():
    look_up(8)
    look_up(2)
    while count_threads() > 2:  # they are still ending
        pass
    limit_address_space(address_space() + (600 << 20))
    look_up(8)
    assert _teams.shortage() in [(8, n) for n in range(2, 8)], _teams.shortage()
    limit_address_space(resource.RLIM_INFINITY)
    look_up(8)
    assert _teams.shortage() is None
    assert count_threads() == 8, count_threads()


def first_teams_of_several_threads():
    start, shortages = threading.Barrier(7), []

    def lead():
        start.wait()
        for n_threads in (8, 2, 8):
            look_up(n_threads)
            shortages.append(_teams.shortage())

    workers = [threading.Thread(target=lead) for _ in range(6)]
    for thread in workers:
        thread.start()
    limit_address_space(address_space() + (700 << 20))
    start.wait()
    for thread in workers:
        thread.join()
    assert any(shortages)


if __name__ == "__main__":
    (scenario,) = sys.argv[1:]
    globals()[scenario]()
