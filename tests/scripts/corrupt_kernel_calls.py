"""Call the compiled functions as embag calls them, but with one argument that does not fit.

Python checks all arguments first. The kernels look at layouts once more, because code that runs in
between may change an array. So whatever an array has become, a kernel raises or returns, and reads
and writes nothing else. Prints how many calls returned and how many raised.
"""

import collections
import contextlib
import copy
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.extend(map(str, (Path(__file__).parents[1] / "support", Path(__file__).parents[1])))
from fuzz.child import prepare_process
from sound_calls import sound_calls

import embag
from embag._kernels.dispatch import kernels

FUNCTIONS = [
    *("add_rows", "count_bags", "divide_by_divisors", "dot_rows", "first_bad_index"),
    *("first_bad_offset", "first_bad_row", "gather", "group_by_row", "look_up_weights"),
    *("plain_call", "plain_gather", "quantize", "reduce_bags", "renorm", "scatter", "scatter_max"),
    *("step_tables", "are_apart", "is_encoded_table"),
]
# These take what the user gave; the others take what was checked, of which arrays may change.
UNCHECKED = ["plain_call", "plain_gather"]
# The kernels made these arrays themselves: no other code has them.
INTERNAL = {("look_up_weights", 5)}
MOST_EXAMPLES = 8  # calls of a function that are corrupted
ERRORS = (TypeError, ValueError, RuntimeError, IndexError, OverflowError, MemoryError)
NUMBERS = (-(2**62), -1, 0, 3, 2**31, 2**62)


def record_calls():
    """Return calls of each function by its name: arguments that differ in kind."""
    examples = collections.defaultdict(dict)

    def recorder(name, function):
        def call(*arguments):
            kinds = tuple(map(kind_of, arguments))
            if kinds not in examples[name] and len(examples[name]) < MOST_EXAMPLES:
                examples[name][kinds] = copy.deepcopy(arguments)
            return function(*arguments)

        return call

    functions = {name: getattr(kernels, name) for name in FUNCTIONS}
    for name, function in functions.items():
        setattr(kernels, name, recorder(name, function))
    for k, (_, prepare) in enumerate(sound_calls(n_drawn=30)):
        if k % 5 == 0:
            prepare()()
    table = np.ones((3, 4), np.float32)
    embag.embedding_bag(np.zeros((2, 2), np.int64), table, max_norm=0.5)
    with contextlib.suppress(ValueError):
        embag.quantize(np.full((3, 4), np.nan, np.float32))
    for name, function in functions.items():
        setattr(kernels, name, function)
    return {functions[name]: list(calls.values()) for name, calls in examples.items()}


def kind_of(value):
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.ndim, value.size > 0
    return tuple(map(kind_of, value)) if isinstance(value, tuple) else type(value).__name__


def others(value, is_checked):
    """Yield values that an argument may have become, or should not be."""
    if isinstance(value, np.ndarray):
        yield from arrays_like(value)
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            for other in others(item, is_checked):
                yield (*value[:i], other, *value[i + 1 :])
    if not is_checked:
        yield from (None, (), 1.5, "skip", object(), True, *NUMBERS)
        yield from (np.zeros(3, np.int64), np.zeros((2, 2), np.float32), np.zeros(0, np.int32))


def arrays_like(array):
    """Yield arrays of another size, dtype, layout or byte order."""
    for dtype in ("i4", "i8", "f4", "f8", "u1", "i2", "f2", "?"):
        yield np.zeros(array.shape, dtype)
    yield np.zeros(array.shape, array.dtype.newbyteorder())
    yield np.zeros((*array.shape, 2), array.dtype)
    yield np.asfortranarray(array) if array.ndim > 1 else np.repeat(array, 2)[::2]
    yield np.zeros((), array.dtype)
    frozen = array.copy()
    frozen.flags.writeable = False
    yield frozen
    for axis in range(array.ndim):
        for shift in (-1, 1):
            shape = list(array.shape)
            shape[axis] = max(0, shape[axis] + shift)
            yield np.zeros(shape, array.dtype)
    yield array.reshape(-1)
    if array.ndim == 2:
        yield np.broadcast_to(array[:1], array.shape)
        yield array[::-1]
    if array.dtype.kind == "i":
        for number in NUMBERS:
            changed = array.copy()
            changed.reshape(-1)[-1:] = np.array(number).astype(array.dtype)
            yield changed


prepare_process(eager=True)
with tempfile.TemporaryDirectory() as tempfile.tempdir:
    examples = record_calls()
counts = collections.Counter()
for function, calls in examples.items():
    for arguments in calls:
        # The first argument of `plain_*` is a function, and the second one a positive number.
        for i in range(2 if function.__name__ in UNCHECKED else 0, len(arguments)):
            if (function.__name__, i) in INTERNAL:
                continue
            for other in others(arguments[i], function.__name__ not in UNCHECKED):
                given = copy.deepcopy(arguments)
                given = (*given[:i], other, *given[i + 1 :])
                try:
                    function(*given)
                    counts["returned"] += 1
                except ERRORS:
                    counts["raised"] += 1
assert len(examples) == len(FUNCTIONS), sorted(function.__name__ for function in examples)
print(dict(counts))
