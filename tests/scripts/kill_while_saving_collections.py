"""Kill processes while they save a collection: the folder is always that of one step.

    python kill_while_saving_collections.py FOLDER

Each child saves without end. It is killed before or after some call of the system, or by its
parent after some milliseconds.
"""

import os
import random
import signal
import sys
import time

import numpy as np

import embag

FOLDER = sys.argv[1]
N_TABLES = 3
READER, WRITER = os.pipe()  # a byte for each save that is done


def kill_at(name, number, after):
    """Kill this process before or after the given call of a function of `os`."""
    call, calls = getattr(os, name), iter(range(number))

    def count(*arguments, **options):
        is_last = next(calls, None) is None
        if is_last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*arguments, **options)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, name, count)


def save(step):
    tables = {str(i): np.full((500, 16), step, np.float32) for i in range(N_TABLES)}
    features = [embag.Feature(name, name) for name in tables]
    embag.EmbeddingBagCollection(tables, features).save(FOLDER)


def check():
    """Check that the folder is whole, and return its step."""
    ebc = embag.EmbeddingBagCollection.load(FOLDER)
    (step,) = {value for table in ebc.tables.values() for value in np.unique(table)}
    return int(step)


def run_child(step, prepare=None):
    """Start a child that saves from a step on; with `prepare`, it ends by itself."""
    child = os.fork()
    if child == 0:
        try:
            if prepare is not None:
                prepare()
            while True:
                step += 1
                save(step)
                os.write(WRITER, b"1")
        finally:
            os._exit(1)
    return child


save(0)
n_moments = 0
for name, n_calls in (("replace", N_TABLES + 1), ("fsync", 2 * N_TABLES + 2), ("unlink", N_TABLES)):
    for number in range(n_calls):
        for after in (False, True):
            before = check()
            child = run_child(before, lambda at=(name, number, after): kill_at(*at))
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), (name, number, after, status)
            # The index is the last of the files that are flushed and put in place.
            is_new = {
                "replace": number == N_TABLES and after,
                "fsync": number == n_calls - 1,  # of the folder
                "unlink": True,
            }[name]
            assert check() == before + is_new, (name, number, after)
            n_moments += 1

rng = random.Random(0)
step = check()
for _ in range(30):
    child = run_child(step)
    os.read(READER, 1)
    time.sleep(rng.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    os.write(WRITER, b"1")
    n_saves = len(os.read(READER, 1000))  # one was read above, one written
    # A child may be killed between its last save and the byte for it.
    assert step + n_saves <= check() <= step + n_saves + 1
    step = check()

print(f"step {step} after kills at {n_moments} chosen moments and 30 random ones")
