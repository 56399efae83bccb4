"""Run cases in this process, and write progress to a file: python -m tests.fuzz.child."""

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

from embag._process import threads

from . import values
from .calls import case
from .checked_call import run

MEMORY = 2 << 30  # bytes per child, so that too large allocations fail at once
FILE = 64 << 20  # bytes per file that a child writes
SECONDS = 60  # per case
MOST_FAILURES = 20


def draw(seed, k):
    """Return case k of a seed."""
    return case(random.Random(f"{seed}/{k}"))


def prepare_process(eager, memory=MEMORY):
    """Prepare the process for hostile calls: limits, warnings, and threads if `eager`.

    `memory` is the most bytes of addresses; -1 for any number.
    """
    faulthandler.enable()
    np.seterr(all="ignore")
    warnings.simplefilter("ignore")  # those of NumPy, about conversions
    preloaded = os.environ.get("LD_PRELOAD", "")
    # The sanitizers, of which OSS-Fuzz's are in sanitizer_with_fuzzer.so, reserve more addresses.
    if sys.platform == "linux" and "san.so" not in preloaded and "sanitizer" not in preloaded:
        import resource  # noqa: PLC0415  # not on every system

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    else:  # without a limit, copies would take gigabytes
        values.HUGE[:] = [
            shape if not 2**24 < math.prod(shape) < 2**48 else (2**58,) for shape in values.HUGE
        ]
    if eager:  # a call gets the threads that it requests, however small it is
        threads.ENTRIES_PER_THREAD, threads._N_MACHINE = 1, 8


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
    """Return the traceback and the call of a failure."""
    kind, error, frames = sys.exc_info()
    lines = traceback.format_list(traceback.extract_tb(frames)[-6:])
    lines += [line[:1500] for line in traceback.format_exception_only(kind, error)]
    return "".join(lines) + repr(call)[:3000]


if __name__ == "__main__":
    given_seed, given_first, given_stop, given_report, is_eager = sys.argv[1:]
    prepare_process(is_eager == "1")
    tempfile.tempdir = str(Path(given_report).parent)
    run_cases(given_seed, int(given_first), int(given_stop), given_report)
