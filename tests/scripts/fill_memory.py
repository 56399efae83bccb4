"""Make calls twice, with new memory full of one byte and of another: the results are the same.

    fill_memory.py FOLDER [faults]

Run with guarded_memory.c preloaded (tests/support/preloading.py). A byte of a result that is not
written, or that depends on one, differs. A write beyond an array or a block of malloc changes
its guards. Files are written to FOLDER. Prints how many calls were made, and how many arrays they
returned. With `faults`, lookups make one fault after the other, and what is found is printed.
"""

import ctypes
import gc
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

sys.path.extend(map(str, (Path(__file__).parents[1] / "support", Path(__file__).parents[1])))
from array_memory import use_allocator
from sound_calls import flatten, sound_calls

import embag
from embag._process import threads

threads.ENTRIES_PER_THREAD = 1  # a call gets the threads that it requests, however small it is
# -1 as an integer and NaN as a float; a large integer and 12.1 as a float.
BYTES = 0xFF, 0x41

library = ctypes.CDLL(None)


def run(prepare, byte):
    """Return the dtype, the shape and the bytes of the arrays of a call."""
    library.memory_fill(byte)
    return [(array.dtype, array.shape, array.tobytes()) for array in flatten(prepare()())]


def check_calls():
    """Raise AssertionError for the first call with a wrong write; return two counts."""
    n_damaged = library.memory_n_damaged()
    n_calls = n_arrays = 0
    for name, prepare in sound_calls(n_drawn=20):
        one, other = (run(prepare, byte) for byte in BYTES)
        assert one == other, f"{name}: depends on memory that was not written"
        assert library.memory_n_damaged() == n_damaged, f"{name}: a write beyond the ends"
        n_calls, n_arrays = n_calls + 2, n_arrays + len(one)
    gc.collect()
    assert library.memory_n_damaged() == n_damaged, "a write beyond the ends"
    return n_calls, n_arrays


# --- Faults -----------------------------------------------------------------------


def leave_a_row_unwritten(result):
    other = np.empty_like(result)
    other[:-1] = result[:-1]
    return other


def write_past_an_array(result):
    ctypes.memset(result.ctypes.data + result.nbytes + 3, 0, 1)
    return result


def write_before_an_array(result):
    ctypes.memset(result.ctypes.data - 1, 0, 1)
    return result


def write_past_a_block(result):
    library.malloc.restype = ctypes.c_void_p
    block = library.malloc(ctypes.c_size_t(100))
    ctypes.memset(block + 100, 0, 1)
    library.free(ctypes.c_void_p(block))
    return result


FAULTS = [
    leave_a_row_unwritten,
    write_past_an_array,
    write_before_an_array,
    write_past_a_block,
]


def find(fault):
    """Let lookups make the fault, and return the message of the check."""

    def with_fault(*arguments, **options):
        result = embedding_bag(*arguments, **options)
        return fault(result) if isinstance(result, np.ndarray) else result

    embedding_bag, embag.embedding_bag = embag.embedding_bag, with_fault
    try:
        return check_calls()
    except AssertionError as error:
        return str(error).rpartition(": ")[2]
    finally:
        embag.embedding_bag = embedding_bag


tempfile.tempdir, *faults = sys.argv[1:]
use_allocator(library)
np.seterr(all="ignore")
warnings.simplefilter("ignore")
if faults:
    for fault in FAULTS:
        print(fault.__name__, find(fault), sep=", ")
else:
    print(*check_calls(), sep=", ")
