"""Sound calls of everything that returns arrays, for checks of memory.

    for name, prepare in sound_calls(n_drawn=20):
        call = prepare()            # makes the arguments
        arrays = flatten(call())    # the results, and arrays that the call may write to

The same calls come each time, with the same arguments. They are: lookups of the table of cases
(cases.py) in all modes and encodings, their rows with some ids skipped, gradients and steps of
them, and cases of the fuzzer (fuzz/calls.py), uncorrupted.
"""

import random
from functools import partial

import numpy as np
from cases import (
    CASES,
    EIGHT_BITS,
    NARROW_FLOATS,
    QUANTIZED,
    REDUCTIONS,
    call_arguments,
    low_precision_table,
)
from fuzz.calls import SOUND

import embag
from embag import optim

KINDS = ["float32", "float64", *NARROW_FLOATS, *EIGHT_BITS, *QUANTIZED]
# `aligned_empty` returns memory that is not written; the others return no arrays.
_WITHOUT_ARRAYS = {
    *("aligned_empty", "get_num_threads", "num_threads", "set_num_threads", "show_config"),
    *("tune", "Feature", "EmbeddingBagGrads", "SegmentReduceGrads", "quantized.row_bytes"),
}
_RULES = [
    partial(optim.SGD, lr=0.5),
    partial(optim.SGD, lr=0.5, momentum=0.5),
    partial(optim.Adagrad, lr=0.5),
    partial(optim.RowWiseAdagrad, lr=0.5),
    partial(optim.Adam, lr=0.5),
    partial(optim.FTRL, lr=0.5),
]


def sound_calls(n_drawn):
    """Yield names, and functions that prepare a call; `n_drawn` cases of each of the fuzzer's."""
    for n, case in enumerate(CASES):
        n_threads = n % 2 + 1
        for kind in KINDS:
            yield f"rows of {kind}, {case.name}", partial(_rows, case, kind, n_threads)
        for reduction in REDUCTIONS:
            name = f"{case.name}, {reduction}"
            for kind in KINDS:
                yield f"{kind}, {name}", partial(_lookup, case, reduction, kind, n_threads)
            yield f"gradient, {name}", partial(_gradients, case, reduction, n_threads)
            if case.n_rows:
                make = _RULES[n % len(_RULES)]
                yield f"update, {name}", partial(_update, case, reduction, make, n_threads)
    for name, draw in SOUND:
        if name not in _WITHOUT_ARRAYS:
            for k in range(n_drawn):
                yield f"{name}, {draw.__name__} {k}", partial(_drawn, draw, f"{name}/{k}")


def flatten(value):
    """Return the arrays of a result."""
    if isinstance(value, dict):
        return [array for item in value.values() for array in flatten(item)]
    if isinstance(value, tuple | list):
        return [array for item in value for array in flatten(item)]
    if isinstance(value, embag.SparseRows):
        return [value.indices, value.values]
    if isinstance(value, embag.QuantizedTable):
        return flatten([value.packed, value.scales])
    if isinstance(value, embag.RemappedTable):
        return flatten([value.table, value.index_map, value.scales])
    if isinstance(value, optim.Optimizer):
        return flatten([value.table, dict(value.states)])
    if isinstance(value, embag.EmbeddingBag):
        return flatten(value.weight)
    if isinstance(value, embag.EmbeddingBagCollection):
        return flatten(dict(value.tables))
    if hasattr(value, "__arrow_c_array__"):
        import pyarrow as pa  # noqa: PLC0415

        column = pa.array(value)
        return [np.asarray(column.is_valid()), np.asarray(column.flatten())]
    return [np.asarray(value)] if isinstance(value, np.ndarray | int | float) else []


def _rows(case, kind, n_threads):
    table = low_precision_table(kind, case.n_rows, case.dim)
    ids = np.concatenate([case.input.reshape(-1), [-1, case.n_rows]])
    padding = case.options.get("padding_idx")

    def call():
        rows = embag.embedding(
            ids, table, padding_idx=padding, invalid="skip", num_threads=n_threads
        )
        if kind not in ("float32", "float64"):
            return rows
        return rows, [
            embag.embedding_backward(
                rows, ids, table, invalid="skip", sparse=sparse, num_threads=n_threads
            )
            for sparse in (False, True)
        ]

    return call


def _lookup(case, reduction, kind, n_threads):
    dtype = np.float64 if kind == "float64" else np.float32
    (input, _, offsets), options = call_arguments(case, reduction, dtype)
    table = low_precision_table(kind, case.n_rows, case.dim)
    winners = {"return_max_indices": True} if reduction == "max" else {}

    def call():
        found = embag.embedding_bag(
            input, table, offsets, return_n_valid=True, num_threads=n_threads, **winners, **options
        )
        out = np.empty_like(found[0])
        return found, embag.embedding_bag(
            input, table, offsets, out=out, num_threads=n_threads, **options
        )

    return call


def _grad_of(case, options):
    n_bags = embag.embedding_bag(
        case.input, np.zeros((case.n_rows, 1), np.float32), case.offsets, **options
    ).shape[0]
    return np.random.default_rng(2).standard_normal((n_bags, case.dim)).astype(np.float32)


def _gradients(case, reduction, n_threads):
    arguments, options = call_arguments(case, reduction, np.float32)
    grad = _grad_of(case, options)

    def call():
        return [
            embag.embedding_bag_backward(
                grad, *arguments, sparse=sparse, num_threads=n_threads, **options
            )
            for sparse in (False, True)
        ]

    return call


def _update(case, reduction, make, n_threads):
    (input, table, offsets), options = call_arguments(case, reduction, np.float32)
    optimizer, grad = make(table), _grad_of(case, options)
    if reduction == "weighted":
        options["wrt"] = None

    def call():
        of_weights = [
            optimizer.update(grad, input, offsets, num_threads=n_threads, **options)
            for _ in range(2)
        ]
        return optimizer, of_weights

    return call


def _drawn(draw, seed):
    case = draw(random.Random(seed))
    if case.name == "EmbeddingBag":  # else its rows are random
        case.arguments.setdefault("rng", 0)

    def call():
        if not case.sound:  # a layout that this function refuses
            return None
        result = case.function(**case.arguments)
        written = (*case.writes, *case.torn, "weight", "optimizer", "optimizers")
        return result, [case.arguments.get(name) for name in written]

    return call
