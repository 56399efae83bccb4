"""What the scripts of test_fork.py share: calls that are large enough for threads, and checked."""

import os
import sys
from pathlib import Path

import numpy as np

import embag
from embag import _threads

# As many threads as are asked for, on however small a machine.
_threads._N_MACHINE = 64
N_THREADS = 3

RNG = np.random.default_rng(0)
TABLE = RNG.random((2000, 64), dtype=np.float32)
IDS = RNG.integers(0, 2000, (300, 20))
EXPECTED = embag.embedding_bag(IDS, TABLE, mode="sum", num_threads=1)


def call(n_threads=N_THREADS):
    result = embag.embedding_bag(IDS, TABLE, mode="sum", num_threads=n_threads)
    assert (result == EXPECTED).all()


def n_alive():
    """Count the threads of this process, of Python and OpenMP."""
    return len(os.listdir("/proc/self/task"))


def call_in_parallel():
    """Call, and see that a team did it: threads that were not there wait for the next call."""
    before = n_alive()
    call()
    assert n_alive() - before >= N_THREADS - 1, (before, n_alive())
    call()


def in_child(work, *arguments):
    """Have a forked child do some work; fail if it does."""
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


def address_space_kib():
    """Return the address space in use, in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmSize:")[2].split()[0])
