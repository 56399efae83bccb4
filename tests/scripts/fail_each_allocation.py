"""Let each allocation of a call fail, one after the other: MemoryError, and nothing half done.

    fail_each_allocation.py FOLDER [NAME...]

Names are those of the calls below; all by default. Run with failing_allocations.c preloaded
(tests/support/preloading.py), and CPython's _testcapi. Three kinds of allocations fail: those of
Python's objects, and those that the compiled code of NumPy and of embag makes. Prints, for each
call, number of threads and kind, how often it raised, and how often that was another error than
MemoryError.

After each failure a step is made and counted, or nothing has changed and the next call is right.
limit_memory.py lets large allocations fail by the limit of the system.
"""

import _testcapi
import copy
import ctypes
import itertools
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

import embag
from embag import optim
from embag._process import threads

threads.ENTRIES_PER_THREAD = 1
FOLDER = sys.argv[1]
# A call is over when so many numbers in a row are beyond its last allocation.
N_BEYOND = 25

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((40, 6)).astype(np.float32)
IDS = RNG.integers(0, 40, 60)
OFFSETS = np.arange(0, 60, 3)
GRAD = RNG.standard_normal((20, 6)).astype(np.float32)
OF_ROWS = RNG.standard_normal((60, 6)).astype(np.float32)
WEIGHTS = RNG.random(60).astype(np.float32)
LISTS = [list(map(int, bag)) for bag in IDS.reshape(20, 3)]


class Case(NamedTuple):
    """A call, and the optimizers that it changes."""

    call: Callable[[Any, int], Any]  # takes the optimizers and the number of threads
    optimizers: Any = ()


def remap(table):
    return embag.RemappedTable(table, np.arange(len(table))[::-1].copy())


class Exported:
    """A tensor of another library."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


# --- Lookups and gradients ----------------------------------------------------


def lookup_cases():
    remapped = embag.RemappedTable(TABLE, np.arange(40)[::-1].copy(), np.linspace(0, 1, 40))
    small = embag.quantize(TABLE)
    segments = np.repeat(np.arange(20), 3)
    calls = {
        "embedding_bag": lambda t: embag.embedding_bag(IDS, TABLE, OFFSETS, num_threads=t),
        "max with ids of rows": lambda t: embag.embedding_bag(
            IDS, TABLE, OFFSETS, mode="max", return_max_indices=True, num_threads=t
        ),
        "a remapped table": lambda t: embag.embedding_bag(IDS, remapped, OFFSETS, num_threads=t),
        "counts of a remapped table": lambda t: embag.embedding_bag(
            IDS, remapped, OFFSETS, return_n_valid=True, num_threads=t
        ),
        "lists": lambda t: embag.embedding_bag(LISTS, TABLE, num_threads=t),
        "tensors": lambda t: embag.embedding_bag(
            Exported(IDS), Exported(TABLE), Exported(OFFSETS), num_threads=t
        ),
        "lengths": lambda t: embag.embedding_bag(IDS, TABLE, lengths=np.full(20, 3), num_threads=t),
        "segment ids": lambda t: embag.embedding_bag(
            IDS, TABLE, segment_ids=segments, n_bags=20, num_threads=t
        ),
        "skipped ids": lambda t: embag.embedding_bag(
            IDS, TABLE[:20], OFFSETS, invalid="skip", return_n_valid=True, num_threads=t
        ),
        "embedding": lambda t: embag.embedding(IDS, TABLE, num_threads=t),
        "embedding of a remapped table": lambda t: embag.embedding(IDS, remapped, num_threads=t),
        "embedding of a quantized table": lambda t: embag.embedding(IDS, small, num_threads=t),
        "segment_reduce": lambda t: embag.segment_reduce(TABLE, np.arange(40) // 3, num_threads=t),
        "quantize": lambda t: embag.quantize(TABLE, 4, num_threads=t).packed,
        "dequantize": lambda t: small.dequantize(num_threads=t),
        "sparse gradient": lambda t: embag.embedding_bag_backward(
            GRAD, IDS, TABLE, OFFSETS, sparse=True, num_threads=t
        ),
        "dense gradient": lambda t: embag.embedding_bag_backward(
            GRAD, IDS, TABLE, OFFSETS, mode="sum", per_sample_weights=WEIGHTS, num_threads=t
        ),
        "gradient of a remapped table": lambda t: embag.embedding_bag_backward(
            GRAD, IDS, remapped, OFFSETS, sparse=True, num_threads=t
        ),
        "gradient of embedding": lambda t: embag.embedding_backward(
            OF_ROWS, IDS, TABLE, sparse=True, num_threads=t
        ),
        "gradient of segment_reduce": lambda t: embag.segment_reduce_backward(
            GRAD[:14], TABLE, np.arange(40) // 3, num_threads=t
        ),
    }
    if find_spec("pyarrow") and find_spec("nanoarrow"):
        import pyarrow as pa  # noqa: PLC0415

        column = pa.array(LISTS)
        calls["a list column"] = lambda t: embag.embedding_bag(column, TABLE, num_threads=t)
    return {
        name: Case(lambda _, n_threads, call=call: call(n_threads)) for name, call in calls.items()
    }


# --- Steps --------------------------------------------------------------------

RULES = {
    "SGD": lambda table: optim.SGD(table, lr=0.5),
    "momentum": lambda table: optim.SGD(table, lr=0.5, momentum=0.5),
    "Adagrad": lambda table: optim.Adagrad(table, lr=0.5),
    "RowWiseAdagrad": lambda table: optim.RowWiseAdagrad(table, lr=0.5),
    "Adam": lambda table: optim.Adam(table, lr=0.5),
    "FTRL": lambda table: optim.FTRL(table, lr=0.5),
}


def step_cases():
    def update(optimizers, n_threads, **options):
        return optimizers[0].update(GRAD, IDS, OFFSETS, num_threads=n_threads, **options)

    weighted = {"mode": "sum", "per_sample_weights": WEIGHTS, "wrt": None}
    sparse = embag.embedding_bag_backward(GRAD, IDS, TABLE, OFFSETS, sparse=True).weight
    make = RULES["Adagrad"]
    cases = {
        f"update by {name}": Case(update, [make_one(TABLE.copy())])
        for name, make_one in RULES.items()
    }
    cases |= {
        f"sparse step by {name}": Case(
            lambda made, t: made[0].step(sparse, num_threads=t), [make_one(TABLE.copy())]
        )
        for name, make_one in RULES.items()
    }
    cases |= {
        "dense step": Case(
            lambda made, t: made[0].step(np.tile(GRAD, (2, 1)), num_threads=t),
            [make(TABLE.copy())],
        ),
        "weighted update": Case(lambda made, t: update(made, t, **weighted), [make(TABLE.copy())]),
        "update by maxima": Case(lambda made, t: update(made, t, mode="max"), [make(TABLE.copy())]),
        "update of lists": Case(
            lambda made, t: made[0].update(GRAD, LISTS, num_threads=t), [make(TABLE.copy())]
        ),
        "update of a remapped table": Case(update, [make(remap(TABLE.copy()))]),
        "update of float16": Case(update, [make(TABLE.astype(np.float16))]),
        "grow": Case(lambda made, _: made[0].grow(50), [make(TABLE.copy())]),
        "state_dict": Case(lambda made, _: made[0].state_dict(), [make(TABLE.copy())]),
        "load_state_dict": Case(
            lambda made, _: made[0].load_state_dict({"step": 3, "sum": np.ones_like(TABLE)}),
            [make(TABLE.copy())],
        ),
    }
    rows = embag.embedding_bag_backward(GRAD, IDS, TABLE, OFFSETS, sparse=True).weight
    calls = {
        "sum of sparse rows": lambda: rows + rows,
        "to_dense": rows.to_dense,
    }
    cases |= {name: Case(lambda _, __, call=call: call()) for name, call in calls.items()}
    return cases


# --- Collections and files ----------------------------------------------------

FEATURES = [
    embag.Feature("one", "a"),
    embag.Feature("two", "b", "mean"),
    embag.Feature("three", "a", "sum"),
]
VALUES = {"one": (IDS, OFFSETS), "two": LISTS, "three": IDS.reshape(20, 3)}
OF_ALL = RNG.standard_normal((20, 18)).astype(np.float32)


def collection_cases():
    def make(optimizers):
        tables = {"a": optimizers[0].table, "b": optimizers[1].table}
        return embag.EmbeddingBagCollection(tables, FEATURES)

    def update(optimizers, n_threads):
        return make(optimizers).update(
            OF_ALL,
            VALUES,
            optimizers=dict(zip("ab", optimizers, strict=True)),
            num_threads=n_threads,
        )

    fixed = embag.EmbeddingBagCollection({"a": TABLE, "b": embag.quantize(TABLE)}, FEATURES)
    floats = embag.EmbeddingBagCollection({"a": TABLE, "b": remap(TABLE)}, FEATURES)
    arrays = {name: IDS.reshape(20, 3) for name in VALUES}

    def save(_, __):
        fixed.save(f"{FOLDER}/collection")
        return embag.EmbeddingBagCollection.load(f"{FOLDER}/collection").tables["a"]

    def save_checkpoint(optimizers, _):
        path = f"{FOLDER}/training.safetensors"
        embag.save_checkpoint(path, {"item": optimizers[0], "bias": GRAD})
        return embag.load_checkpoint(path)["bias"]

    fixed.save(f"{FOLDER}/saved")
    embag.save_checkpoint(f"{FOLDER}/saved.safetensors", {"item": optim.Adam(TABLE.copy())})
    embag.save_table(f"{FOLDER}/remapped.safetensors", remap(TABLE))
    calls = {
        "collection of arrays": lambda t: fixed(arrays, num_threads=t),
        "collection": lambda t: fixed(VALUES, num_threads=t),
        "collection end to end": lambda t: fixed(
            np.tile(IDS, 3), np.arange(0, 181, 3), num_threads=t
        ),
        "gradients of a collection": lambda t: floats.backward(
            OF_ALL, VALUES, wrt="weight", num_threads=t
        ),
        "load a collection": lambda _: embag.EmbeddingBagCollection.load(
            f"{FOLDER}/saved", "copy", verify=True
        ).tables["a"],
        "load_checkpoint": lambda _: (
            embag.load_checkpoint(f"{FOLDER}/saved.safetensors")["item"].table
        ),
        "load_table": lambda t: (
            embag.load_table(f"{FOLDER}/remapped.safetensors", "copy", num_threads=t).table
        ),
    }
    cases = {name: Case(lambda _, t, call=call: call(t)) for name, call in calls.items()}
    return cases | {
        "update of a collection": Case(
            update, [optim.Adagrad(TABLE.copy()), optim.Adam(remap(TABLE.copy()))]
        ),
        "save a collection": Case(save),
        "save_checkpoint": Case(save_checkpoint, [optim.Adagrad(TABLE.copy())]),
    }


# --- Failures -----------------------------------------------------------------

library = ctypes.CDLL(None)
library.allocations_disarm.restype = ctypes.c_long


def flatten(value):
    """Return the arrays of a result."""
    if isinstance(value, dict):
        return [array for name in sorted(value) for array in flatten(value[name])]
    if isinstance(value, embag.SparseRows):
        return [value.indices, value.values]
    if isinstance(value, tuple | list):
        return [array for part in value for array in flatten(part)]
    return [] if value is None else [np.asarray(value)]


def state_of(optimizers):
    state = []
    for optimizer in optimizers:
        table = optimizer.table
        rows = table.table if isinstance(table, embag.RemappedTable) else table
        state += [
            np.array(optimizer.n_steps),
            rows.copy(),
            *map(np.copy, flatten(optimizer.states)),
        ]
    return state


def same(one, other):
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def fail_python(run, number):
    _testcapi.set_nomemory(number + 1, number + 2)
    try:
        return run()
    finally:
        _testcapi.remove_mem_hooks()


def fail_in(part_of_path, run, number):
    library.allocations_arm(part_of_path, ctypes.c_long(number))
    try:
        return run()
    finally:
        library.allocations_disarm()


# Each lets the allocation of a number fail while it runs a function.
KINDS = {
    "Python": fail_python,
    "NumPy": partial(fail_in, b"/_multiarray_umath"),
    "embag": partial(fail_in, b"/embag/_core"),
}
# CPython takes a failure while it looks up an attribute for a missing one, and NumPy forgets to
# set the error where it allocates iterators.
MAY_RAISE = {"Python": Exception, "NumPy": (MemoryError, SystemError), "embag": MemoryError}


def count_failures(case, n_threads, kind):
    """Let one allocation fail after the other.

    Returns how many calls raised, and how many of these another error than MemoryError.
    """

    def make():
        return copy.deepcopy(case.optimizers)

    def run(made):
        return flatten(case.call(made, n_threads))

    run(make())  # what is allocated once
    made = make()
    before = state_of(made)
    expected = run(made)
    after = state_of(made)
    n_failed = n_others = n_beyond = 0
    for number in itertools.count():
        made = make()
        try:
            result = KINDS[kind](partial(run, made), number)
        except MAY_RAISE[kind] as error:
            n_failed, n_beyond = n_failed + 1, 0
            n_others += not isinstance(error, MemoryError)
            if not same(state_of(made), after):
                assert same(state_of(made), before), f"{name}: half a step, allocation {number}"
                assert same(run(made), expected), f"{name}: after allocation {number}"
        else:
            n_beyond += 1
            assert same(result, expected), f"{name}: allocation {number}"
        assert same(state_of(made), after), f"{name}: allocation {number}"
        assert not [file for file in os.listdir(FOLDER) if file.startswith(".embag-")]
        if n_beyond == N_BEYOND:
            return n_failed, n_others
    raise AssertionError


cases = lookup_cases() | step_cases() | collection_cases()
for name in sys.argv[2:] or cases:
    for n_threads in (1, 2):
        for kind in KINDS:
            counts = count_failures(cases[name], n_threads, kind)
            print(name, n_threads, kind, *counts, sep=", ", flush=True)
