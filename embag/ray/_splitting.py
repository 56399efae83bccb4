"""Split ids by the blocks that hold their rows, and merge what the blocks answer.

Plain functions of arrays. A bag whose ids are in several blocks is reduced in each of them; only
the bags of which a block has ids are sent to it and back.

Tested in tests/sharding/test_splitting.py.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import embag
from embag._entries import divide
from embag._process import threads

AnyArray = NDArray[Any]


class BlockIds(NamedTuple):
    """The ids of a block, cut into the bags that have any."""

    ids: AnyArray
    offsets: NDArray[np.int64]  # (n_bags + 1,)
    bags: NDArray[np.int64]  # (n_bags,) the numbers of these bags in the lookup
    positions: NDArray[np.int64]  # of the ids in the lookup


class Cut(NamedTuple):
    """Ids in bags, and how their table is cut: each block but the last has `block_rows` rows."""

    ids: AnyArray
    offsets: AnyArray
    block_rows: int
    n_blocks: int


def split_ids(
    ids: AnyArray, offsets: AnyArray, block_rows: int, n_blocks: int
) -> list[BlockIds | None]:
    """Return the ids of each block, None if it has none. Those of a bag stay in their order."""
    return split_features([Cut(ids, offsets, block_rows, n_blocks)])[0]


def split_features(features: list[Cut]) -> list[list[BlockIds | None]]:
    """Return the ids of each block of each feature's table; all are sorted at once."""
    firsts = list(itertools.accumulate((len(feature.ids) for feature in features), initial=0))
    first_blocks = [*itertools.accumulate((f.n_blocks for f in features), initial=0)]
    n_ids, n_blocks = firsts[-1], first_blocks[-1]
    # NumPy sorts 16 bits by their digits.
    blocks = np.empty(n_ids, np.uint16 if n_blocks < 1 << 16 else np.int64)
    bags = np.empty(n_ids, np.int64)
    for feature, first, first_block in zip(features, firsts, first_blocks, strict=False):
        here = slice(first, first + len(feature.ids))
        blocks[here] = feature.ids // feature.block_rows + first_block
        bags[here] = np.repeat(np.arange(len(feature.offsets) - 1), np.diff(feature.offsets))
    order = np.argsort(blocks, kind="stable")
    bounds = np.zeros(n_blocks + 1, np.int64)
    np.cumsum(np.bincount(blocks, minlength=n_blocks), out=bounds[1:])
    ids = np.concatenate([np.zeros(0, np.int64), *(feature.ids for feature in features)])[order]
    bags = bags[order]
    begins = np.ones(n_ids + 1, np.bool_)  # a bag begins at this position
    np.not_equal(bags[1:], bags[:-1], out=begins[1:-1])
    begins[bounds] = True
    starts = np.flatnonzero(begins)
    cuts, stops = np.searchsorted(starts, bounds).tolist(), bounds.tolist()
    found: list[list[BlockIds | None]] = []
    for first, first_block, stop_block in zip(firsts, first_blocks, first_blocks[1:], strict=False):
        own: list[BlockIds | None] = []
        for i in range(first_block, stop_block):
            start, stop = stops[i], stops[i + 1]
            if start == stop:
                own.append(None)
                continue
            of_bags = starts[cuts[i] : cuts[i + 1] + 1]
            positions = order[start:stop] - first
            own.append(BlockIds(ids[start:stop], of_bags - start, bags[of_bags[:-1]], positions))
        found.append(own)
    return found


class Pieces(NamedTuple):
    """A lookup, and the bags that each block has reduced for it."""

    call: Any  # with only the entries that count
    parts: list[tuple[BlockIds, AnyArray]]


def merge_pooled(lookups: list[Pieces], reduction: Any, dim: int) -> list[AnyArray]:
    """Return the results of lookups that were reduced alike, in rows of `dim` entries.

    The parts of a bag are added in the order of blocks.
    """
    sizes = [pieces.call.bags.n_bags for pieces in lookups]
    firsts = [*itertools.accumulate(sizes, initial=0)]
    answers, bags = [np.zeros((0, dim), np.float32)], [np.zeros(0, np.int64)]
    for first, pieces in zip(firsts, lookups, strict=False):
        answers += [answer for _, answer in pieces.parts]
        bags += [block.bags + first for block, _ in pieces.parts]
    rows, of_rows = np.concatenate(answers), np.concatenate(bags)
    merged = embag.segment_reduce(rows, of_rows, firsts[-1], mode=reduction)
    results = []
    for (call, _), first, n_bags in zip(lookups, firsts, sizes, strict=False):
        result: AnyArray = merged[first : first + n_bags]
        if call.mode.divides:
            result, _ = divide(call, result, threads.team_for(result.size, None))
        results.append(normalize(result) if call.normalizes else result)
    return results


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
