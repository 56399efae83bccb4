"""Make sound calls under MemorySanitizer: no call reads memory that was not written.

    poison_memory.py FOLDER

Run by tools/memory_sanitizer.sh, as poisoned_memory.c says. A branch or an address that depends on
such memory ends the process with a report. All results must be written. The gaps between the
rows of a table, and ids and weights beyond the last offset, count as unwritten too. Files are
written to FOLDER. Prints the number of calls.
"""

import ctypes
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

sys.path.extend(map(str, (Path(__file__).parents[1] / "support", Path(__file__).parents[1])))
from array_memory import use_allocator
from cases import WIDTHS, low_precision_table
from sound_calls import KINDS, flatten, sound_calls

import embag
from embag import _arguments, quantized

library = ctypes.CDLL(None)
library.__msan_test_shadow.restype = ctypes.c_ssize_t


def call_msan(function, array):
    return function(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))


def poison(array):
    call_msan(library.__msan_poison, array)
    return array


def is_written(array):
    if not array.flags.c_contiguous:
        parts = array if array.ndim > 1 else np.split(array, len(array))
        return all(map(is_written, parts))
    return call_msan(library.__msan_test_shadow, array) == -1


def poison_outputs():
    """Poison the arrays that embag makes in Python for the kernels to write."""
    new_array, aligned_empty = _arguments.new_array, quantized.aligned_empty

    def new_poisoned(make, shape, dtype):
        array = new_array(make, shape, dtype)
        return poison(array) if make is np.empty else array

    _arguments.new_array = new_poisoned
    quantized.aligned_empty = lambda *arguments: poison(aligned_empty(*arguments))


def calls_with_gaps():
    """Yield names, and lookups of tables with gaps in poisoned memory, by some ids of more."""
    ids, weights = np.arange(30) % 9, np.ones(30, np.float32)
    poison(ids[20:])
    poison(weights[20:])
    bags = {"offsets": np.array([0, 3, 3, 20]), "include_last_offset": True}
    for kind in KINDS:
        for dim in WIDTHS:
            table = low_precision_table(kind, 9, dim)
            rows = table.packed if isinstance(table, embag.QuantizedTable) else table
            whole = np.zeros((9, rows.shape[1] + 40), rows.dtype)
            whole[:, : rows.shape[1]] = rows
            rows = whole[:, : rows.shape[1]]
            for gap in whole[:, rows.shape[1] :]:
                poison(gap)
            if isinstance(table, embag.QuantizedTable):
                rows = embag.QuantizedTable.from_packed(rows, table.bits, dim, table.layout)
            for options in (
                {"mode": "sum", "per_sample_weights": weights},
                {"mode": "mean"},
                {"mode": "max", "return_max_indices": True},
            ):
                yield (
                    f"gaps, {kind}, dim {dim}, {options['mode']}",
                    lambda rows=rows, options=options: (
                        lambda: embag.embedding_bag(ids, rows, **bags, **options)
                    ),
                )


def check_that_faults_are_found():
    """An unwritten result is seen, and a branch on unwritten ids ends a process."""
    result = embag.embedding_bag([[1, 2]], np.ones((3, 4), np.float32))
    assert is_written(result)
    poison(result[:, 3:])
    assert not is_written(result)
    assert not is_written(_arguments.new_array(np.empty, (2, 3), np.dtype(np.float32)))
    ids = np.zeros((3, 4), np.int64)
    poison(ids[1, 1:])
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        embag.embedding_bag(ids, np.ones((3, 4), np.float32))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1, "unwritten ids were read"


tempfile.tempdir = sys.argv[1]
np.seterr(all="ignore")
warnings.simplefilter("ignore")
use_allocator(library)
poison_outputs()
check_that_faults_are_found()
n_calls = 0
for calls in (calls_with_gaps(), sound_calls(n_drawn=20)):
    for name, prepare in calls:
        print(name, end="\r" if sys.stdout.isatty() else "\n")
        assert all(map(is_written, flatten(prepare()()))), f"{name}: the result is not written"
        n_calls += 1
print(f"{n_calls} calls; every result is written")
