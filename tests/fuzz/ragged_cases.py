"""Sound calls with ragged inputs or lengths, their gradients, `empty_bags` and `to_arrow`."""

import collections
import importlib.util
import itertools
import math

import numpy as np
import scipy.sparse

import embag

from . import lookup_cases
from .checked_call import Case
from .values import layouts, numbers

# Beside an installed wheel, few packages but NumPy are available.
if importlib.util.find_spec("pyarrow"):
    import pyarrow as pa
else:
    pa = None
HAS_NANOARROW = importlib.util.find_spec("nanoarrow") is not None


class Bags:
    """Ragged ids and weights as lists, from which inputs and expected results are made."""

    def __init__(self, lists, weights):
        self.lists, self.weights = lists, weights

    def flat(self, values):
        return [
            x
            for bag, some in zip(self.lists, values, strict=True)
            for i, x in zip(bag or (), some or (), strict=True)
            if i is not None
        ]

    def arrays(self, weights):
        """Return the arguments of the equivalent call with plain arrays."""
        lengths = [sum(i is not None for i in bag or ()) for bag in self.lists]
        same = {
            "input": np.array(self.flat(self.lists), "i8"),
            "offsets": np.cumsum([0, *lengths]),
            "include_last_offset": True,
        }
        if weights:
            same["per_sample_weights"] = np.array(self.flat(self.weights), "f8")
        return same


def bags(rng, n_rows):
    n_bags = rng.choice([0, 1, 1, 2, 3, 9])
    nulls = rng.random() < 0.5
    lists = []
    for _ in range(n_bags):
        n = rng.choice([0, 0, 1, 2, 5, 40]) if n_rows else 0
        bag = [rng.randrange(n_rows) for _ in range(n)]
        if nulls:
            bag = [None if rng.random() < 0.1 else i for i in bag]
        lists.append(None if nulls and rng.random() < 0.2 else bag)
    weights = [None if bag is None else [rng.randint(-9, 9) / 4 for _ in bag] for bag in lists]
    return Bags(lists, weights)


def as_sequences(rng, lists, dtype):
    if rng.random() < 0.4 or not lists:
        column = np.empty(len(lists), object)
        for b, bag in enumerate(lists):
            column[b] = bag if bag is None or None in bag else np.array(bag, dtype)
        return column
    make = rng.choice([list, list, tuple, collections.deque, lambda bag: np.array(bag, object)])
    entries = [None if bag is None else make(bag) for bag in lists]
    return rng.choice([list, tuple, collections.deque])(entries)


def as_arrow(rng, lists, dtype):
    item = pa.from_numpy_dtype(np.dtype(dtype))
    if item != pa.float32() and item != pa.float64() and rng.random() < 0.2:
        kind = rng.choice([pa.list_, pa.large_list])(pa.dictionary(pa.int32(), item))
    else:
        kind = rng.choice([pa.list_, pa.large_list, pa.list_view, pa.large_list_view])(item)
    return as_chunks(rng, lists, kind, [1, 2])


def as_chunks(rng, lists, kind, junk):
    """Return lists as slices of one or several arrays, which begin with `junk`."""
    cuts = sorted(rng.randint(0, len(lists)) for _ in range(rng.choice([0, 1, 3])))
    bounds = [0, *cuts, len(lists)]
    chunks = [
        pa.array([junk, *lists[a:b], None], kind).slice(1, b - a)
        for a, b in itertools.pairwise(bounds)
    ]
    return pa.chunked_array(chunks, kind) if len(chunks) > 1 else chunks[0]


def as_weighted(rng, some, dtype):
    """Return a column of ids with weights."""
    item, share = pa.from_numpy_dtype(np.dtype(dtype)), rng.choice([pa.float32(), pa.float64()])
    pairs = [
        None if bag is None else list(zip(bag, weights, strict=True))
        for bag, weights in zip(some.lists, some.weights, strict=True)
    ]
    has_nulls = any(None in (bag or ()) for bag in some.lists)
    how = rng.choice(["structs", "struct", *["map"] * (not has_nulls)])
    if how == "map":
        return as_chunks(rng, pairs, pa.map_(item, share), [(1, 2.0)])
    if how == "struct":
        rows = [None if bag is None else tuple(zip(*bag, strict=True)) or ([], []) for bag in pairs]
        kind = pa.struct([("a", pa.list_(item)), ("b", pa.large_list(share))])
        return as_chunks(rng, rows, kind, ([1, 2], [3.0, 4.0]))
    entry = pa.struct([("a", item), ("b", share)])
    return as_chunks(rng, pairs, rng.choice([pa.list_, pa.list_view])(entry), [(1, 2.0)])


def as_column(rng, lists, dtype):
    if pa is None or rng.random() < 0.3:
        return as_sequences(rng, lists, dtype)
    return as_arrow(rng, lists, dtype)


def column_table_cases(rng):
    """Return a call of `embedding_bag` with a table in an Arrow column."""
    if pa is None:
        return ragged_lookup_cases(rng)
    n_rows, dim, before = rng.randint(1, 9), rng.choice([1, 3, 8, 33]), rng.randint(0, 3)
    table = numbers(rng, (before + n_rows, dim)).astype(rng.choice(["f4", "f8"]))
    column = pa.FixedSizeListArray.from_arrays(pa.array(table.reshape(-1)), dim)
    table, column = table[before:], column[before:]
    if rng.random() < 0.3:
        cut = rng.randint(0, n_rows)
        column = pa.chunked_array([column[:cut], column[cut:]])
    if rng.random() < 0.2:
        column = pa.table({"vector": column})
    ids = np.array([[rng.randrange(n_rows) for _ in range(3)] for _ in range(2)])
    options = {"input": ids, "mode": rng.choice(["sum", "mean", "max"])}

    def check(result, call):
        if call.get("weight") is column and all(call.get(k) is v for k, v in options.items()):
            lookup_cases.check_same_bits(result, embag.embedding_bag(weight=table, **options))

    return Case(
        "embedding_bag",
        embag.embedding_bag,
        {"weight": column, **options},
        check,
        lookup_cases.RAISES,
    )


def ragged_arguments(rng, **options):
    """Return the arguments of a lookup with a ragged input, its bags, and `equivalent`."""
    call = lookup_cases.forward_arguments(rng, **options)
    for name in ("offsets", "include_last_offset", "per_sample_weights", "max_norm", "norm_type"):
        call.pop(name, None)
    n_rows = lookup_cases.rows_of(call["weight"])
    some = bags(rng, n_rows)
    sums = call["mode"] not in ("max", "min")
    weighted = sums and rng.random() < 0.5
    matrix = rng.random() < 0.15 and sums
    if matrix:
        # A matrix has no nulls, and its data are weights.
        some = Bags([[i for i in bag or () if i is not None] for bag in some.lists], None)
        some.weights = [[rng.randint(-9, 9) / 4 for _ in bag] for bag in some.lists]
        flat = some.arrays(True)
        parts = flat["per_sample_weights"], flat["input"], flat["offsets"]
        call["input"] = scipy.sparse.csr_array(parts, (len(some.lists), n_rows))
        weighted = True
    else:
        dtype = rng.choice(["i8", "i8", "i4", "u8", "i2", *["u1"] * (n_rows <= 256)])
        own = pa is not None and rng.random() < 0.2
        call["input"] = as_weighted(rng, some, dtype) if own else as_column(rng, some.lists, dtype)
        weighted = weighted or own
        if weighted and not own:
            kind = rng.choice(["f4", "f8"])
            call["per_sample_weights"] = as_column(rng, some.weights, kind)
    given = call["input"], call.get("per_sample_weights")

    def equivalent(call):
        """Return the arguments of the same call with arrays; None if others have been changed."""
        if call.get("input") is not given[0] or call.get("per_sample_weights") is not given[1]:
            return None
        # The weights of a matrix or a column do not matter for maxima and minima.
        takes = weighted and call.get("mode", "mean") not in ("max", "min")
        return {**call, **some.arrays(takes)}

    return call, some, equivalent


def ragged_lookup_cases(rng):
    """Return a call of `embedding_bag` with a ragged input."""
    call, some, equivalent = ragged_arguments(rng)
    if "out" in call:
        call["out"] = np.full((len(some.lists), call["weight"].shape[1]), 7, call["out"].dtype)
    if rng.random() < 0.3:
        call["invalid"], call["return_n_invalid"] = rng.choice(["raise", "skip"]), True

    def check(result, call):
        same = equivalent(call)
        if same is not None:
            lookup_cases.check_forward(result, same)

    return Case(
        "embedding_bag", embag.embedding_bag, call, check, lookup_cases.RAISES, writes=("out",)
    )


def ragged_backward_cases(rng):
    """Return a call of `embedding_bag_backward` with a ragged input."""
    kinds = (*lookup_cases.FLOATS, *lookup_cases.NARROW)
    call, some, equivalent = ragged_arguments(rng, kinds=kinds, maps=False)
    for name in lookup_cases.FORWARD_ONLY:
        call.pop(name, None)
    grad = numbers(rng, (len(some.lists), call["weight"].shape[1]))
    call["grad_output"] = grad.astype(rng.choice(["f4", "f8"]))
    if rng.random() < 0.2:
        call["invalid"] = "skip"

    def check(result, call):
        same = equivalent(call)
        if same is None:
            return
        if result.per_sample_weights is not None:
            known = np.array([i is not None for bag in some.lists for i in bag or ()], bool)
            of_weights = result.per_sample_weights.reshape(-1)
            assert not of_weights[~known].any()
            result = result._replace(per_sample_weights=of_weights[known])
        lookup_cases.check_backward(result, same)

    return Case(
        "embedding_bag_backward", embag.embedding_bag_backward, call, check, lookup_cases.RAISES
    )


def lengths_cases(rng):
    """Return a call of `embedding_bag`, or of `empty_bags`, with lengths."""
    call = lookup_cases.forward_arguments(rng)
    for name in ("offsets", "include_last_offset", "per_sample_weights", "max_norm", "norm_type"):
        call.pop(name, None)
    some = lookup_cases.bags(
        rng, lookup_cases.rows_of(call["weight"]), two_d=False, ilo=True, narrow=False
    )
    offsets = lookup_cases.plain(some.offsets).astype("i8")
    call["input"] = lookup_cases.plain(some.input)[: int(offsets[-1])]
    lengths = np.diff(offsets).astype(rng.choice(["i8", "i4", "u1"]))
    call["lengths"] = layouts(rng, lengths, ["spaced", "reversed", "swapped", "map"])
    if "out" in call:
        call["out"] = np.full((some.n_bags, call["weight"].shape[1]), 7, call["out"].dtype)
    given = call["input"], call["lengths"]
    sound = {"offsets": offsets, "include_last_offset": True}

    def check(result, call):
        if call.get("input") is given[0] and call.get("lengths") is given[1]:
            lookup_cases.check_forward(result, {**call, **sound})

    return Case(
        "embedding_bag", embag.embedding_bag, call, check, lookup_cases.RAISES, writes=("out",)
    )


def empty_bags_cases(rng):
    how = rng.choice(["column", "lengths", "offsets"])
    if how == "column":
        some = bags(rng, 100)
        call = {"input": as_column(rng, some.lists, "i4")}
        expected = [not any(i is not None for i in bag or ()) for bag in some.lists]
    else:
        some = lookup_cases.bags(rng, 100, two_d=False)
        offsets, n = (
            lookup_cases.plain(some.offsets).astype("i8"),
            lookup_cases.plain(some.input).size,
        )
        lengths = np.diff(offsets if some.include_last_offset else np.append(offsets, n))
        expected = lengths == 0
        call = {"input": some.input, "offsets": some.offsets}
        call["include_last_offset"] = some.include_last_offset
        if how == "lengths" and int(lengths.sum()) == n:
            call = {"input": some.input, "lengths": lengths}
    given = dict(call)

    def check(result, call):
        assert result.dtype == np.bool_
        if all(call.get(name) is value for name, value in given.items()) and len(call) == len(
            given
        ):
            assert result.tolist() == list(expected)

    return Case("empty_bags", embag.empty_bags, call, check, lookup_cases.RAISES)


def to_arrow_cases(rng):
    shape = rng.choice([0, 1, 2, 7]), rng.choice([0, 1, 3, 16])
    array = numbers(rng, shape, special=rng.random() < 0.2)
    with np.errstate(all="ignore"):
        array = array.astype(rng.choice(["f4", "f4", "f8", "f2", ">f4"]))
    call = {"array": layouts(rng, array, ["fortran", "spaced", "reversed", "read-only", "map"])}
    if rng.random() < 0.6:
        call["mask"] = np.array([rng.random() < 0.5 for _ in range(shape[0])], bool)

    def check(result, call):
        rows = lookup_cases.plain(call["array"])
        if max(rows.shape, default=0) > lookup_cases.MOST:
            return
        mask = call.get("mask")
        null = [False] * len(rows) if mask is None else lookup_cases.plain(mask).tolist()
        for row, seen, missing in zip(rows.tolist(), result.to_pylist(), null, strict=True):
            assert (seen is None) == missing
            for a, b in zip(row, seen or (), strict=seen is not None):
                assert a == b or (math.isnan(a) and math.isnan(b))

    raises = lookup_cases.RAISES if HAS_NANOARROW else (*lookup_cases.RAISES, ImportError)
    case = Case("to_arrow", embag.to_arrow, call, check, raises)
    case.sound = HAS_NANOARROW
    return case
