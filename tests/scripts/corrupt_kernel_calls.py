"""Call the compiled functions as embag calls them, but with one argument that does not fit.

Python checks all arguments first. The kernels look at layouts once more, because code that runs in
between may change an array. So whatever an array has become, a kernel raises or returns, and reads
and writes nothing else. The same holds for numbers, but for the number of threads. Prints how many
calls returned and how many raised.
"""

import collections
import contextlib
import copy
import itertools
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.extend(map(str, (Path(__file__).parents[1] / "support", Path(__file__).parents[1])))
from fuzz.child import prepare_process
from sound_calls import sound_calls

import embag
from embag import _encodings, optim
from embag._kernels.dispatch import kernels

FUNCTIONS = [
    *("add_rows", "count_bags", "divide_by_divisors", "dot_rows", "first_bad_index"),
    *("first_bad_offset", "first_bad_row", "gather", "group_by_row", "look_up_weights"),
    *("plain_call", "plain_gather", "quantize", "reduce_bags", "renorm", "scatter", "scatter_max"),
    *("step_tables", "are_apart", "is_encoded_table", "is_table"),
]
METHODS = ["pool", "pool_each", "gather_named"]  # of collections
# These take what the user gave; the others take what was checked.
UNCHECKED = ["plain_call", "plain_gather", "pool", "gather_named", "Collection", "is_table"]
# The first argument is a number of threads, which is trusted, but for these
WITHOUT_THREADS = ["are_apart", "count_bags", "is_encoded_table", "is_table", "gather_named"]
WITHOUT_THREADS += ["first_bad_index", "first_bad_offset", "first_bad_row", "Collection"]
# and these, whose first two are a function and a positive number.
N_TRUSTED = dict.fromkeys(WITHOUT_THREADS, 0) | {"plain_call": 2, "plain_gather": 2}
# The kernels made these arrays themselves: no other code has them.
INTERNAL = {("look_up_weights", 5), ("reduce_bags", 14)}
MOST_EXAMPLES = 32  # calls of a function that are corrupted
ERRORS = (TypeError, ValueError, KeyError, RuntimeError, IndexError, OverflowError, MemoryError)
NUMBERS = (-(2**62), -1, 0, 3, 6, 2**31, 2**62)


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
    more_calls()
    for k, (_, prepare) in enumerate(sound_calls(n_drawn=30)):
        if k % 5 == 0:
            prepare()()
    for name, function in originals.items():
        setattr(kernels, name, function)
    assert set(examples) == {*FUNCTIONS, *METHODS, "Collection"}, list(examples)
    return [call for calls in examples.values() for call in calls.values()]


def more_calls():
    """Make calls that the sound ones do not have, or late."""
    table, ids = np.ones((3, 4), np.float32), np.array([[0, 1], [1, 2]])
    embag.embedding_bag(ids, table.copy(), max_norm=0.5)
    embag.embedding_bag_backward(np.ones((2, 4), "f4"), ids, table, scale_grad_by_freq=True)
    for given in ((ids,), (ids[0], np.array([0, 1]))):
        optim.SGD(table.copy(), 1).update(np.ones((2, 4), np.float32), *given)
    with contextlib.suppress(ValueError):
        embag.quantize(np.full((3, 4), np.nan, np.float32))
    with contextlib.suppress(ValueError):
        embag.embedding_bag(ids[0], table, np.array([0, 3]))
    with contextlib.suppress(ImportError):
        import pyarrow as pa  # noqa: PLC0415

        embag.embedding_bag(pa.chunked_array([[[0], [1, 2]], [[0], [1]]])[1:], table)
    remapped = embag.RemappedTable(table, [2, -1, 0], scales=[1, 2, 3], first_id=5)
    halves, wide = table.astype(np.float16), table.astype(np.float64)
    remapped_halves = embag.RemappedTable(halves, [2, -1, 0], scales=[1, 2, 3], first_id=5)
    for weight, first, dtype in (
        *((remapped, 5, "f4"), (remapped_halves, 5, "f4")),
        *((table, 0, "f4"), (halves, 0, "f4"), (wide, 0, "f8")),
    ):
        input = ids + first
        narrow = "f2" if dtype == "f4" else dtype
        for options in (
            {"return_n_valid": True},
            {"out_dtype": narrow},
            {"out": np.empty((2, 4), dtype), "num_threads": 1},
            {"normalize": True, "default_idx": first, "padding_idx": first},
        ):
            embag.embedding_bag(input, weight, mode="sum", **options)
        embag.embedding(input, weight)
        embag.embedding(input, weight, out_dtype=narrow)
        embag.embedding(input, weight, out=np.empty((2, 2, 4), dtype), num_threads=1)
    ebc = embag.EmbeddingBagCollection({"t": remapped}, [embag.Feature("a", "t", mode="sum")])
    ebc({"a": ids + 5})
    ebc((ids + 5).reshape(-1), np.array([0, 2, 4]))


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
    """Yield arrays of another size, dtype, layout or byte order; and none."""
    yield None
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
        middle = array.size // 2
        parts = slice(1), slice(middle, middle + 1), slice(-1, None)
        for number, part in itertools.product(NUMBERS, parts):
            changed = array.copy()
            changed.reshape(-1)[part] = np.array(number).astype(array.dtype)
            yield changed
    shifted = np.zeros(array.nbytes + 1, np.uint8)[1:]
    yield shifted.view(array.dtype).reshape(array.shape)


def changes_in_between(arguments):
    """Yield arguments of a `plain_*` function whose arrays change while it asks for threads."""
    for i, change in itertools.product(
        range(2, len(arguments)),
        (
            lambda array: setattr(array, "shape", (*array.shape, 1)),
            lambda array: setattr(array, "shape", (array.size, 1)),
            lambda array: setattr(array, "dtype", array.dtype.newbyteorder()),
            lambda array: setattr(array, "dtype", np.int32),
            lambda array: setattr(array, "strides", array.strides[::-1]),
            lambda array: array.resize((0,), refcheck=False),
        ),
    ):
        given = copy.deepcopy(arguments)
        changed = given[i]._encoded.rows if hasattr(given[i], "_encoded") else given[i]
        if isinstance(changed, np.ndarray):
            yield (partial(change_and_agree, change, changed), 0, *given[2:])


def change_and_agree(change, array, *_):
    with contextlib.suppress(ValueError):
        change(array)
    return True


def combinations(name, arguments):
    """Yield arguments of which several are others, but fit each other."""
    if name == "reduce_bags":
        yield tuple(() if type(value) is tuple else value for value in arguments)  # no bags
        if len(arguments) == 15:  # a row for bags without ids
            yield (*arguments, -1, 0)
    # Another encoding of results, and results of its dtype.
    places = {"reduce_bags": (11, 12), "gather": (5, 6)}
    if name in places:
        out, code = places[name]
        for dtype, encoding in _encodings._BY_DTYPE.items():
            results = np.zeros(arguments[out].shape, dtype)
            yield replaced(replaced(arguments, out, results), code, encoding.code)


def replaced(arguments, i, value):
    return (*arguments[:i], value, *arguments[i + 1 :])


def corrupted(name, arguments):
    """Yield arguments of which one is another, or changes."""
    arrays = [array for array in arguments if isinstance(array, np.ndarray)]
    for i in range(N_TRUSTED.get(name, 1), len(arguments)):
        if (name, i) not in INTERNAL or arguments[i] is None:
            for other in others(arguments[i], name not in UNCHECKED, arrays):
                yield replaced(copy.deepcopy(arguments), i, other)
    if name.startswith("plain_"):
        yield from changes_in_between(arguments)
    yield from combinations(name, arguments)


warnings.simplefilter("ignore")  # NumPy's, of shapes that are set
prepare_process(eager=True)
with tempfile.TemporaryDirectory() as tempfile.tempdir:
    examples = record_calls()
counts = collections.Counter()
for name, function, arguments in examples:
    for given in corrupted(name, arguments):
        try:
            function(*given)
            counts["returned"] += 1
        except ERRORS:
            counts["raised"] += 1
print(dict(counts))
