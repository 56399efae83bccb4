"""How long threads spin for the next call before they sleep.

gcc's OpenMP lets them spin for some milliseconds. That is 15 ms of CPU time after a call of
0.4 ms, and if another program wants the processors, calls wait for threads that others keep from
running. OpenMP reads the environment once, when it is loaded. A wheel has a copy of it for embag
alone, which gets a shorter time, unless the user chooses. A runtime of the system, which other
libraries in the process may use, keeps its own.

Tested in tests/process/test_waiting.py.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

# Turns of the loop, some 0.15 ms: calls that follow each other at once find the threads awake.
# Origin: benchmarks/callers/waiting.py, docs/serving.md.
_TURNS = "10000"
_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_LIBRARIES = Path(__file__).parents[2] / "embag_cpu.libs"  # of a wheel


def is_brief() -> bool:
    """Return whether embag sets a short time: with a runtime of its own, unless the user does."""
    is_free = not any(name in os.environ for name in _VARIABLES)
    return is_free and any(_LIBRARIES.glob("libgomp*"))


@contextlib.contextmanager
def spinning_briefly() -> Iterator[None]:
    """Have the OpenMP runtime that is loaded in this block let threads spin briefly."""
    if not is_brief():
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = _TURNS
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]
