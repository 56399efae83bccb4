"""Run cases in this process, and tell in a file how far it is: python -m tests.fuzz.child."""

import collections
import faulthandler
import json
import math
import os
import random
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import numpy as np

from embag import _threads

from . import values
from .calls import case
from .case import run

MEMORY = 2 << 30  # bytes of a child, so that what is too large fails at once
FILE = 64 << 20  # bytes of a file that it writes
SECONDS = 60  # of a case
MOST_FAILURES = 20


def draw(seed, k):
    """Return case k of a seed."""
    return case(random.Random(f"{seed}/{k}"))


def settle(eager):
    """Set the process up for hostile calls."""
    faulthandler.enable()
    np.seterr(all="ignore")
    warnings.simplefilter("ignore")  # NumPy's, about conversions
    if sys.platform == "linux" and "san.so" not in os.environ.get("LD_PRELOAD", ""):
        import resource  # noqa: PLC0415  # not everywhere

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    else:  # copies of gigabytes would be made
        values.HUGE[:] = [
            shape if not 2**24 < math.prod(shape) < 2**48 else (2**58,) for shape in values.HUGE
        ]
    if eager:  # as many threads as a call asks for, however small it is
        _threads.ENTRIES_PER_THREAD, _threads._N_MACHINE = 1, 8


def run_cases(seed, first, stop, report):
    """Run cases one after the other, each under an alarm that ends the process."""
    faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)
    counts, failures = collections.Counter(), []
    progress = os.open(f"{report}.at", os.O_RDWR | os.O_CREAT)
    for k in range(first, stop):
        os.pwrite(progress, b"%20d" % k, 0)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        call = None
        try:
            call = draw(seed, k)
            counts[f"{call.name}/{run(call)}"] += 1
        except Exception:
            counts[f"{getattr(call, 'name', 'no case')}/FAILED"] += 1
            failures.append((k, failure_text(call)))
        signal.setitimer(signal.ITIMER_REAL, 0)
        if k % 256 == 0 or k == stop - 1 or len(failures) == MOST_FAILURES:
            Path(report).write_text(json.dumps([k + 1, counts, failures]))
        if len(failures) == MOST_FAILURES:
            break


def failure_text(call):
    """Return what went wrong, and in which call."""
    kind, error, frames = sys.exc_info()
    lines = traceback.format_list(traceback.extract_tb(frames)[-6:])
    lines += [line[:1500] for line in traceback.format_exception_only(kind, error)]
    return "".join(lines) + repr(call)[:3000]


if __name__ == "__main__":
    given_seed, given_first, given_stop, given_report, is_eager = sys.argv[1:]
    settle(is_eager == "1")
    tempfile.tempdir = str(Path(given_report).parent)
    run_cases(given_seed, int(given_first), int(given_stop), given_report)
