"""Make sound and corrupted calls under LeakSanitizer: no call loses memory.

    find_leaks.py FOLDER [FAULT]

Run with gcc's liblsan.so preloaded and PYTHONMALLOC=malloc. It reports memory to which nothing
points after all calls: blocks that a call did not free, and objects with too many references. It
does not see objects that the garbage collector tracks. Files are written to FOLDER. FAULT is a
function below, to show that it is found. Prints the number of calls; the exit status is 23 if
there is a leak.
"""

import ctypes
import gc
import itertools
import os
import sys
import tempfile
from pathlib import Path

sys.path.extend(map(str, (Path(__file__).parents[1] / "support", Path(__file__).parents[1])))
from fuzz.checked_call import run
from fuzz.child import draw, prepare_process
from sound_calls import flatten, sound_calls

N_CORRUPTED = 3000
library = ctypes.CDLL(None)


def lose_a_block(_results):
    library.malloc(ctypes.c_size_t(1234))


def lose_an_array(results):
    for array in results[:1]:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(array.copy()))


def make_calls():
    n_calls = 0
    for _, prepare in sound_calls(n_drawn=20):
        prepare()()
        n_calls += 1
    for k in range(N_CORRUPTED):
        run(draw("leaks", k))
    return n_calls + N_CORRUPTED


def make_faulty_calls(fault):
    for _, prepare in itertools.islice(sound_calls(n_drawn=0), 100):
        fault(flatten(prepare()()))
    return 100


tempfile.tempdir, *faults = sys.argv[1:]
prepare_process(eager=True)
n_calls = make_faulty_calls(globals()[faults[0]]) if faults else make_calls()
gc.collect()
if library.__lsan_do_recoverable_leak_check():
    os._exit(23)
print(n_calls, flush=True)
os._exit(0)  # the interpreter itself does not free everything
