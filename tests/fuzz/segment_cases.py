"""Sound calls in long format: `segment_ids` of lookups, their gradients, `segment_reduce`."""

import numpy as np

import embag

from . import lookup_cases
from .checked_call import Case
from .lookup_cases import RAISES, THREADS, plain
from .values import layouts

_WAYS = ["spaced", "reversed", "misaligned", "read-only", "swapped", "map"]


def _segments(rng, n, n_bags):
    """Return the bag of each position; it is non-decreasing half of the time."""
    segments = np.array([rng.randrange(n_bags) for _ in range(n)], rng.choice(["i8", "i4", "u1"]))
    return np.sort(segments) if rng.random() < 0.5 else segments


def _in_order(segments, n_bags):
    """Return the positions by segment and the offsets, by NumPy."""
    order = np.argsort(segments, kind="stable")
    return order, np.searchsorted(segments[order], np.arange(n_bags + 1))


def _arguments(rng, kinds):
    """Return the arguments of a lookup by segment ids, and those of the same bags by offsets."""
    table = lookup_cases.tables(rng, kinds)
    n_rows = lookup_cases.rows_of(table)
    n_bags = rng.choice([1, 2, 6])
    n = rng.choice([0, 1, 5, 40]) if n_rows else 0
    ids = np.array([rng.randrange(n_rows) for _ in range(n)], "i8")
    segments = _segments(rng, n, n_bags)
    call = {"weight": table, "mode": rng.choice(lookup_cases.MODES)}
    if call["mode"] in ("max", "min"):
        weights = None
    else:
        weights = rng.choice([None, lookup_cases.sample_weights(rng, (n,))])
    if n_rows and rng.random() < 0.3:
        call["padding_idx"] = rng.randrange(-n_rows, n_rows)
    call["num_threads"] = rng.choice(THREADS)
    order, offsets = _in_order(segments, n_bags)
    sound = {**call, "input": ids[order], "offsets": offsets, "include_last_offset": True}
    call |= {
        "input": layouts(rng, ids, _WAYS),
        "segment_ids": layouts(rng, segments, _WAYS),
        "n_bags": rng.choice([n_bags, np.int64(n_bags)]),
    }
    if weights is not None:
        call["per_sample_weights"] = weights
        sound["per_sample_weights"] = plain(weights)[order]
    return call, sound, order


def _is_same(call, given):
    """Return whether a call, which may be corrupted, has the arguments that were drawn."""
    return call.keys() == given.keys() and all(call[name] is given[name] for name in given)


def segment_lookup_cases(rng):
    """Return a call of `embedding_bag` or of its gradients with segment ids."""
    backward = rng.random() < 0.4
    kinds = (*lookup_cases.FLOATS, *([] if backward else [*lookup_cases.NARROW, ("fused", 8)]))
    call, sound, order = _arguments(rng, kinds)
    if backward:
        shape = int(call["n_bags"]), call["weight"].shape[1]
        call["grad_output"] = sound["grad_output"] = np.ones(shape, call["weight"].dtype)
    given = dict(call)

    def check(result, call):
        if not _is_same(call, given):
            return
        if not backward:
            lookup_cases.check_forward(result, sound)
            return
        if result.per_sample_weights is not None:
            result = result._replace(per_sample_weights=result.per_sample_weights[order])
        lookup_cases.check_backward(result, sound)

    if backward:
        name, function = "embedding_bag_backward", embag.embedding_bag_backward
    else:
        name, function = "embedding_bag", embag.embedding_bag
    return Case(name, function, call, check, RAISES)


def segment_reduce_cases(rng):
    """Return a call of `segment_reduce` or of its gradients."""
    backward = rng.random() < 0.4
    data = lookup_cases.tables(rng, lookup_cases.FLOATS if backward else ("f4", "f8", "f2"))
    n, n_segments = len(data), rng.choice([1, 2, 6])
    segments = _segments(rng, n, n_segments)
    mode = rng.choice(lookup_cases.MODES)
    selects = mode in ("max", "min")
    call = {
        "data": data,
        "segment_ids": layouts(rng, segments, _WAYS),
        "n_segments": n_segments,
        "mode": mode,
        "per_sample_weights": None,
        "num_threads": rng.choice(THREADS),
    }
    order, offsets = _in_order(segments, n_segments)
    sound = {
        "weight": data,
        "input": order,
        "offsets": offsets,
        "include_last_offset": True,
        "mode": mode,
    }
    if not selects and rng.random() < 0.5:
        call["per_sample_weights"] = lookup_cases.sample_weights(rng, (n,))
        sound["per_sample_weights"] = plain(call["per_sample_weights"])[order]
    if backward:
        call["grad_output"] = np.ones((n_segments, data.shape[1]), data.dtype)
        sound["grad_output"] = call["grad_output"]
        call["wrt"] = rng.choice([None, None, "data"])
        sound["wrt"] = call["wrt"] and "weight"
        call["max_indices"] = None
    else:
        dtype = np.dtype("f8" if plain(data).dtype.char == "d" else "f4")
        call["return_max_indices"] = sound["return_max_indices"] = selects and rng.random() < 0.5
        call["out_dtype"] = rng.choice([None, dtype])
        call["out"] = rng.choice([None, np.full((n_segments, data.shape[1]), 7, dtype)])
    given = dict(call)

    def check(result, call):
        if not _is_same(call, given):
            return
        if not backward:
            lookup_cases.check_forward(result, sound)
            return
        of_weights = result.per_sample_weights
        if of_weights is not None:
            of_weights = of_weights[order]
        assert type(result) is embag.SegmentReduceGrads
        lookup_cases.check_backward(embag.EmbeddingBagGrads(result.data, of_weights), sound)

    if backward:
        return Case("segment_reduce_backward", embag.segment_reduce_backward, call, check, RAISES)
    return Case("segment_reduce", embag.segment_reduce, call, check, RAISES, writes=("out",))
