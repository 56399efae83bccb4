"""Call the compiled functions as embag calls them, but with one argument that does not fit.

Python checks all arguments first. The kernels look at layouts once more, because code that runs in
between may change an array. So whatever an array has become, a kernel raises or returns, and reads
and writes nothing else. The same holds for numbers, but for the number of threads. Prints how many
calls returned and how many raised.
"""

import collections
import contextlib
import copy
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

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
METHODS = ["pool", "pool_each", "gather_named"]  # of collections
# These take what the user gave; the others take what was checked.
UNCHECKED = ["plain_call", "plain_gather", "pool", "gather_named"]
# How many arguments come first that stay as they are: threads, or a function and a number.
N_TRUSTED = {"plain_call": 2, "plain_gather": 2, "gather_named": 0, "Collection": 0}
# The kernels made these arrays themselves: no other code has them.
INTERNAL = {("look_up_weights", 5)}
MOST_EXAMPLES = 24  # calls of a function that are corrupted
ERRORS = (TypeError, ValueError, KeyError, RuntimeError, IndexError, OverflowError, MemoryError)
NUMBERS = (-(2**62), -1, 0, 3, 2**31, 2**62)


def record_calls():
    """Return (name, function, arguments) of calls that differ in kind."""
    examples = collections.defaultdict(dict)

    def record(name, function, *arguments):
        kinds = tuple(map(kind_of, arguments))
        if kinds not in examples[name] and len(examples[name]) < MOST_EXAMPLES:
            examples[name][kinds] = name, function, copy.deepcopy(arguments)
        return function(*arguments)

    class Collection(kernels.Collection):
        pass

    def recorder_of_method(name):
        method = getattr(kernels.Collection, name)
        return lambda self, *arguments: record(name, partial(method, self), *arguments)

    for name in METHODS:
        setattr(Collection, name, recorder_of_method(name))
    originals = {name: getattr(kernels, name) for name in [*FUNCTIONS, "Collection"]}
    for name in FUNCTIONS:
        setattr(kernels, name, partial(record, name, originals[name]))
    kernels.Collection = partial(record, "Collection", Collection)
    for k, (_, prepare) in enumerate(sound_calls(n_drawn=30)):
        if k % 5 == 0:
            prepare()()
    table = np.ones((3, 4), np.float32)
    embag.embedding_bag(np.zeros((2, 2), np.int64), table, max_norm=0.5)
    with contextlib.suppress(ValueError):
        embag.quantize(np.full((3, 4), np.nan, np.float32))
    for name, function in originals.items():
        setattr(kernels, name, function)
    assert set(examples) == {*FUNCTIONS, *METHODS, "Collection"}, list(examples)
    return [call for calls in examples.values() for call in calls.values()]


def kind_of(value):
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.ndim, value.size > 0
    return tuple(map(kind_of, value)) if isinstance(value, tuple) else type(value).__name__


def others(value, is_checked, arrays=()):
    """Yield values that an argument may have become, or should not be.

    `arrays` are the arrays among the other arguments: where there is none yet, one of their shapes.
    """
    if isinstance(value, np.ndarray):
        yield from arrays_like(value)
    elif isinstance(value, tuple | list):
        make = getattr(value, "_make", type(value))
        for i, item in enumerate(value):
            for other in others(item, is_checked):
                yield make([*value[:i], other, *value[i + 1 :]])
        yield value[:-1]
        yield value + value[-1:]
    elif type(value) is bool:
        yield not value
    elif isinstance(value, int):
        yield from NUMBERS
    elif isinstance(value, dict):
        for key, item in value.items():
            for other in others(item, is_checked):
                yield value | {key: other}
            yield {name: other for name, other in value.items() if name != key}
    elif hasattr(value, "_encoded"):
        for other in others(value._encoded, is_checked=False):
            yield SimpleNamespace(_encoded=other)
    elif value is None:
        for array in arrays:
            for dtype in ("i4", "i8", "f4", "f8"):
                yield np.zeros(array.shape, dtype)
    if not is_checked:
        yield from (None, (), 1.5, 0.0, "skip", "other", object(), True, [], *NUMBERS)
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
for name, function, arguments in examples:
    for i in range(N_TRUSTED.get(name, 1), len(arguments)):
        if (name, i) in INTERNAL:
            continue
        arrays = [array for array in arguments if isinstance(array, np.ndarray)]
        for other in others(arguments[i], name not in UNCHECKED, arrays):
            given = copy.deepcopy(arguments)
            try:
                function(*given[:i], other, *given[i + 1 :])
                counts["returned"] += 1
            except ERRORS:
                counts["raised"] += 1
print(dict(counts))
