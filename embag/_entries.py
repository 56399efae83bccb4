"""The entries of a lookup that count, as arrays.

Gradients (backward.py) and lookups that are spread over machines (ray/) need the ids that are
neither padding nor out of range, with the bag of each.

Tested in tests/gradients/ and tests/sharding/.
"""

from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from embag import _arguments, _call
from embag._bags import ArrayBags, Flattened, flatten
from embag._call import Call
from embag._kernels.dispatch import kernels
from embag._process import threads


def with_arrays(call: Call) -> tuple[Call, Flattened | None]:
    """Return the call with arrays instead of a ragged input, which is then checked in full."""
    if type(call.bags) is ArrayBags:
        return call, None
    call.check()
    column, weights = cast(Any, (call.bags, call.weights))
    flattened = flatten(column, weights, call.table.sums_dtype)
    return replace(call, bags=flattened.bags, weights=flattened.weights), flattened


def counting_entries(call: Call) -> tuple[Call, NDArray[np.int64]]:
    """Return the call with only the entries that count, and their positions in `input`.

    The row that stands for ids out of range is in their place, and the default row in bags in
    which nothing counts: its position is -1.
    """
    bags: Any = call.bags
    ids = bags.indices.reshape(-1).astype(np.int64)
    ends = bags.ends
    if ends is None:
        ends = np.arange(bags.n_bags + 1) * bags.indices.shape[1]
    ends = ends.astype(np.int64)
    if _all_count(call) and ends[0] == 0 and ends[-1] == len(ids):
        flat = None if call.weights is None else cast(Any, call.weights).reshape(-1)
        bags = bags._replace(indices=ids, offsets=ends, includes_last=True)
        return replace(call, bags=bags, weights=flat), np.arange(len(ids))
    is_valid = (ids >= call.table.first_id) & (ids < call.table.first_id + call.n_rows)
    if call.stand_in >= 0:
        ids[~is_valid] = call.stand_in
        is_valid[:] = True
    is_valid &= ids != call.padding
    mapping = call.table.mapping
    if mapping is not None:
        is_valid[is_valid] = ~mapping.is_pruned(ids[is_valid])
    is_valid[: ends[0]] = is_valid[ends[-1] :] = False
    positions = np.flatnonzero(is_valid)
    ends = np.searchsorted(positions, ends)
    sample: Any = call.weights
    ids = ids[positions]
    weights = None if sample is None else sample.reshape(-1)[positions]
    if call.default >= 0:
        empty = np.flatnonzero(np.diff(ends) == 0)
        at = ends[empty]
        ids = np.insert(ids, at, call.default)
        positions = np.insert(positions, at, -1)
        weights = None if weights is None else np.insert(weights, at, 1)
        ends[1:] += np.cumsum(np.diff(ends) == 0)
    bags = bags._replace(indices=ids, offsets=ends, includes_last=True)
    # Only the default may be the padding row here: it has a value, but no gradient.
    call = replace(call, bags=bags, weights=weights, refuse=True, stand_in=-1, default=-1)
    return call, positions


def _all_count(call: Call) -> bool:
    """Return whether every entry of every bag counts."""
    has_none = call.padding < 0 and call.default < 0
    return has_none and call.refuse and call.table.mapping is None


def at_positions(
    grad: NDArray[Any], positions: NDArray[np.int64], shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return the gradient of the weights of some positions as that of all; others have 0."""
    result = _arguments.new_array(np.zeros, shape, grad.dtype)
    result.reshape(-1)[positions[positions >= 0]] = grad[positions >= 0]
    return result


def divide(call: Call, grad: NDArray[Any], team: threads.Team) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return an array with a row for each bag, divided by the divisors of the bags; and these.

    The divisors are those of the mode of the call. Where one is 0, the quotients are.
    """
    bags: Any = call.bags
    quotients = _arguments.new_array(np.empty, grad.shape, grad.dtype)
    divisors = _arguments.new_array(np.empty, grad.shape[:1], grad.dtype)
    done = threads.run(
        kernels.divide_by_divisors,
        team,
        grad,
        *(bags.indices, bags.offsets, bags.includes_last),
        call.weights,
        call.mode.code,
        call.padding,
        quotients,
        divisors,
    )
    if not done:
        _call.blame(call)
    return quotients, divisors
