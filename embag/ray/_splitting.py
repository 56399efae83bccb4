"""Split ids by the blocks that hold their rows, and merge what the blocks answer.

Plain functions of arrays. A bag whose ids are in several blocks is reduced in each of them; only
the bags of which a block has ids are sent to it and back.

Tested in tests/ray/test_splitting.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import embag
from embag._call import Call
from embag._entries import divide
from embag._grouping import group_by_segment
from embag._process import threads

AnyArray = NDArray[Any]


class BlockIds(NamedTuple):
    """The ids of a block, cut into the bags that have any."""

    ids: AnyArray
    offsets: NDArray[np.int64]  # (n_bags + 1,)
    bags: NDArray[np.int64]  # (n_bags,) the numbers of these bags in the lookup
    positions: Any  # of the ids in the lookup: a slice or an array


def split_ids(
    ids: AnyArray, offsets: AnyArray, block_rows: int, n_blocks: int, first_id: int = 0
) -> list[BlockIds | None]:
    """Return the ids of each block, None if it has none. Those of a bag stay in their order.

    Ids start with `first_id`, and each block but the last has `block_rows` rows.
    """
    n_bags = len(offsets) - 1
    sizes = np.diff(offsets)
    bags = np.repeat(np.arange(n_bags), sizes)
    segments = group_by_segment((ids - first_id) // block_rows * n_bags + bags, n_blocks * n_bags)
    assert segments is not None  # ids have been checked
    order, bounds = segments
    sorted_ids = ids if order is None else ids[order]
    used = np.flatnonzero(np.diff(bounds))  # the bags of each block that have ids
    cuts = np.searchsorted(used, np.arange(n_blocks + 1) * n_bags).tolist()
    starts = np.append(bounds[used], len(ids))
    found: list[BlockIds | None] = []
    for i in range(n_blocks):
        if cuts[i] == cuts[i + 1]:
            found.append(None)
            continue
        own_offsets = starts[cuts[i] : cuts[i + 1] + 1]
        start, stop = int(own_offsets[0]), int(own_offsets[-1])
        positions: Any = slice(start, stop) if order is None else order[start:stop]
        own_bags = used[cuts[i] : cuts[i + 1]] - i * n_bags
        found.append(BlockIds(sorted_ids[start:stop], own_offsets - start, own_bags, positions))
    return found


def merge_pooled(
    call: Call, reduction: Any, parts: list[tuple[BlockIds, AnyArray]], dim: int
) -> AnyArray:
    """Return the result of a lookup, given the bags that each block has reduced.

    `call` has only entries that count. The parts of a bag are added in the order of blocks.
    """
    n_bags = call.bags.n_bags
    if not parts:
        return np.zeros((n_bags, dim), np.float32)
    merged: AnyArray = embag.segment_reduce(
        np.concatenate([pooled for _, pooled in parts]),
        np.concatenate([block.bags for block, _ in parts]),
        n_bags,
        mode=reduction,
    )
    if call.mode.divides:
        merged, _ = divide(call, merged, threads.team_for(merged.size, None))
    return normalize(merged) if call.normalizes else merged


def normalize(rows: AnyArray) -> AnyArray:
    """Return rows divided by their norms."""
    each = np.arange(len(rows)).reshape(-1, 1)
    normalized: AnyArray = embag.embedding_bag(each, rows, mode="sum", normalize=True)
    return normalized


def invert(blocks: list[BlockIds], n: int) -> NDArray[np.int64]:
    """Return which row of the blocks' rows, end to end, belongs to each of `n` positions.

    -1 for a position of no block.
    """
    places = np.full(n, -1, np.int64)
    start = 0
    for block in blocks:
        places[block.positions] = np.arange(start, start + len(block.ids))
        start += len(block.ids)
    return places
