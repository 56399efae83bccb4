"""Lookups that are large enough for a team of threads, and checked; shared by the other scripts."""

import os
import sys
from pathlib import Path

import numpy as np

import embag
from embag._process import threads

# A call gets the threads that it requests, even on a small machine.
threads._N_MACHINE = 64
N_THREADS = 3

RNG = np.random.default_rng(0)
TABLE = RNG.random((2000, 64), dtype=np.float32)
IDS = RNG.integers(0, 2000, (300, 20))
EXPECTED = embag.embedding_bag(IDS, TABLE, mode="sum", num_threads=1)


def look_up(n_threads=N_THREADS):
    result = embag.embedding_bag(IDS, TABLE, mode="sum", num_threads=n_threads)
    assert (result == EXPECTED).all()


def count_threads():
    """Count the threads of this process, of Python and OpenMP."""
    return len(os.listdir("/proc/self/task"))


def look_up_in_parallel():
    """Look up, and check that a new team did it: its threads remain for the next lookup."""
    before = count_threads()
    look_up()
    assert count_threads() - before >= N_THREADS - 1, (before, count_threads())
    look_up()


def run_in_child(work, *arguments):
    """Call a function in a forked child, and fail if it raises."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(*arguments)
            status = 0
        finally:
            if status:
                sys.excepthook(*sys.exc_info())
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def address_space():
    """Return the bytes of address space in use."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmSize:")[2].split()[0]) << 10
