"""A thread that writes to arrays while others use them; shared by the other scripts."""

import contextlib
import threading
import time

import numpy as np

from embag._process import threads

# A call gets the threads that it requests, however small it is.
threads.ENTRIES_PER_THREAD = 1
threads._N_MACHINE = 64

ERRORS = (IndexError, ValueError, RuntimeError)


@contextlib.contextmanager
def scribbling(*arrays):
    """Have another thread write to one entry of each array, often the last, and restore it."""
    extremes = [2**62, -1, -(2**63), 2**31, 10**9, 0]
    rng, goods, stop = np.random.default_rng(1), [array.copy() for array in arrays], False

    def scribble():
        while not stop:
            places = [-1 if rng.random() < 0.3 else rng.integers(len(array)) for array in arrays]
            for array, k in zip(arrays, places, strict=True):
                array[k] = rng.choice(extremes)
            time.sleep(0)
            for array, good, k in zip(arrays, goods, places, strict=True):
                array[k] = good[k]

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        yield
    finally:
        stop = True
        thread.join()


def call_while_scribbling(calls, arrays, seconds=1):
    """Return how the calls end, as a set: "result", or the name of an error's class."""
    outcomes = set()
    deadline = time.monotonic() + seconds
    with scribbling(*arrays):
        while time.monotonic() < deadline:
            for call in calls:
                try:
                    call()
                    outcomes.add("result")
                except ERRORS as error:
                    outcomes.add(type(error).__name__)
    return outcomes
