"""One update of a `ShardedCollection`: what each shard is sent.

A whole table is updated by its shard as by one machine. For a table that is cut, each block gets
the ids of its rows with the gradients of their bags: in the modes that add rows, the gradient of
the output, divided by the divisor of the bag. Other gradients depend on the rows of all blocks:
these are fetched first, and each position gets a gradient of its own.

Nothing here knows Ray. Tested in tests/sharding/test_updates.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import embag
from embag import _arguments
from embag._bags import Flattened
from embag._call import Call
from embag._collection_gradients import Part
from embag._entries import at_positions, counting_entries, divide, with_arrays
from embag._process import threads
from embag.ray._lookups import Entries, Layout, entries_of, join_entries
from embag.ray._messages import (
    OptimizerSpec,
    Piece,
    PieceUpdate,
    Reply,
    Request,
    UpdateRequest,
)
from embag.ray._plan import block_rows
from embag.ray._rows import join_rows
from embag.ray._splitting import BlockIds, invert, split_ids

AnyArray = NDArray[Any]


class _Whole(NamedTuple):
    """A feature of a whole table."""

    part: Part
    call: Call  # with arrays
    flattened: Flattened | None  # if the ids are ragged
    entries: Entries


class _Cut(NamedTuple):
    """A feature of a table that is cut."""

    part: Part
    call: Any  # with arrays
    flattened: Flattened | None
    counting: Any  # with the entries that count
    positions: NDArray[np.int64]  # of these in the ids
    grad: AnyArray
    blocks: list[tuple[int, BlockIds]]  # with their numbers
    needs_rows: bool


class Update:
    """An update: the rows that it needs, and what it sends to shards."""

    def __init__(
        self,
        layout: Layout,
        parts: list[Part],
        optimizers: dict[str, OptimizerSpec],
        dtypes: Mapping[str, np.dtype[Any]],
        wrt: Literal["weight"] | None,
    ) -> None:
        self._layout = layout
        self._optimizers = optimizers
        self._wrt = wrt
        self._whole: dict[int, list[_Whole]] = {}
        self._cut: list[_Cut] = []
        # Those of tables that do not change are only checked, first, as on one machine.
        for part in sorted(parts, key=lambda part: part.table in optimizers):
            with _arguments.prefix_errors(f"feature {part.name!r}"):
                call, flattened = with_arrays(part.call)
                call.check()
                if part.table not in optimizers:
                    continue
                if layout.is_whole(part.table):
                    given = part.grad_output.dtype
                    _arguments.check_castable("grad_output", given, dtypes[part.table])
                    shard = layout.plan.blocks[part.table][0].shards[0]
                    whole = _Whole(part, call, flattened, entries_of(call))
                    self._whole.setdefault(shard, []).append(whole)
                else:
                    self._cut.append(self._split(part, call, flattened, dtypes[part.table]))
        self._pieces: dict[int, list[PieceUpdate]] = {}
        self._of_weights: dict[str, AnyArray] = {}

    def _split(
        self, part: Part, call: Call, flattened: Flattened | None, dtype: np.dtype[Any]
    ) -> _Cut:
        counting, positions = counting_entries(call)
        bags: Any = counting.bags
        plan = self._layout.plan
        n_blocks = len(plan.blocks[part.table])
        n_rows = block_rows(plan.tables[part.table], n_blocks)
        found = split_ids(bags.indices, bags.offsets, n_rows, n_blocks)
        blocks = [(i, block) for i, block in enumerate(found) if block is not None]
        grad = _arguments.as_grad_output(part.grad_output, bags.n_bags, call.table.dim, dtype)
        wants_weights = self._wrt is None and call.weights is not None
        needs_rows = bool(call.mode.selects or call.normalizes or wants_weights)
        return _Cut(part, call, flattened, counting, positions, grad, blocks, needs_rows)

    def _shard_of(self, table: str, block: int) -> int:
        return self._layout.plan.blocks[table][block].shards[0]

    def rows_requests(self) -> dict[int, Request]:
        """Return what shards are asked before the gradients can be computed."""
        pieces: dict[int, list[Piece]] = {}
        for cut in self._cut:
            for i, block in cut.blocks if cut.needs_rows else ():
                shard = self._shard_of(cut.part.table, i)
                piece = Piece(cut.part.table, i, "rows", block.ids, None, None)
                pieces.setdefault(shard, []).append(piece)
        generation = self._layout.version.generation
        return {
            shard: Request(generation, 0, None, {}, asked, False, None)
            for shard, asked in pieces.items()
        }

    def requests(self, rows: Mapping[int, Reply]) -> dict[int, UpdateRequest]:
        """Return what shards are sent, given the rows that were asked for."""
        answers = {shard: iter(reply.pieces) for shard, reply in rows.items()}
        for cut in self._cut:
            if cut.needs_rows:
                shards = [self._shard_of(cut.part.table, i) for i, _ in cut.blocks]
                self._add_by_position(cut, [next(answers[shard]) for shard in shards])
            else:
                self._add_by_bag(cut)
        # Every block of a table counts the step, whether or not it has ids.
        shards_of = {
            table: {s for block in self._layout.plan.blocks[table] for s in block.shards}
            for table in {cut.part.table for cut in self._cut}
        }
        everyone = set(self._whole).union(*shards_of.values())
        requests = {}
        for shard in sorted(everyone):
            whole = self._whole.get(shard, [])
            tables = {feature.part.table for feature in whole}
            tables |= {table for table, shards in shards_of.items() if shard in shards}
            requests[shard] = self._request(shard, whole, tables)
        return requests

    def _request(self, shard: int, whole: list[_Whole], tables: set[str]) -> UpdateRequest:
        rows_of = self._layout.shapes._unpooled_counts  # features without bags, by name
        pooled = [feature for feature in whole if feature.part.name not in rows_of]
        unpooled = [feature for feature in whole if feature.part.name in rows_of]
        joined = grad = None
        if pooled:
            names = [feature.part.name for feature in pooled]
            joined = join_entries(names, [feature.entries for feature in pooled])
            grad = np.concatenate([feature.part.grad_output for feature in pooled], axis=1)
        return UpdateRequest(
            self._layout.version.generation,
            0,
            joined,
            {feature.part.name: feature.entries.ids for feature in unpooled},
            grad,
            {feature.part.name: np.asarray(feature.part.grad_output) for feature in unpooled},
            self._pieces.get(shard, []),
            {table: self._optimizers[table] for table in tables},
            self._wrt,
        )

    def _add(self, cut: _Cut, i: int, grad: AnyArray, ids: Any, offsets: Any, weights: Any) -> None:
        pieces = self._pieces.setdefault(self._shard_of(cut.part.table, i), [])
        pieces.append(PieceUpdate(cut.part.table, i, grad, ids, offsets, weights))

    def _add_by_bag(self, cut: _Cut) -> None:
        """Send each block the gradients of its bags."""
        grad, blocks, counting = cut.grad, cut.blocks, cut.counting
        if counting.mode.divides:
            grad, _ = divide(counting, grad, threads.team_for(grad.size, None))
        if (counting.bags.indices == counting.padding).any():
            # The default row is the padding row: it has a value, but no gradient.
            counting, _ = counting_entries(counting)
            blocks = self._split(cut.part, counting, None, grad.dtype).blocks
        for i, block in blocks:
            weights = counting.weights
            own = None if weights is None else weights[block.positions]
            self._add(cut, i, grad[block.bags], block.ids, block.offsets, own)

    def _add_by_position(self, cut: _Cut, answers: list[Any]) -> None:
        """Send each block a gradient for each position of its ids."""
        bags, counting = cut.counting.bags, cut.counting
        no_rows = np.zeros((0, cut.grad.shape[1]), cut.grad.dtype)
        rows: Any = join_rows(answers) if answers else no_rows
        grads = embag.embedding_bag_backward(
            cut.grad,
            invert([block for _, block in cut.blocks], len(bags.indices)),
            rows,
            bags.offsets,
            mode=counting.mode.name,
            sparse=True,  # with max and min, only rows that are in the result have a gradient
            per_sample_weights=counting.weights,
            include_last_offset=True,
            normalize=counting.normalizes,
            wrt=None if self._wrt is None and counting.weights is not None else "weight",
        )
        found: Any = grads.weight
        start = 0
        for i, block in cut.blocks:
            own = slice(*np.searchsorted(found.indices, (start, start + len(block.ids))))
            ids = block.ids[found.indices[own] - start]
            start += len(block.ids)
            counts = np.flatnonzero(ids != counting.padding)  # the default may not
            offsets = np.arange(len(counts) + 1)
            self._add(cut, i, found.values[own][counts], ids[counts], offsets, None)
        if grads.per_sample_weights is not None:
            shape = cut.call.bags.indices.shape
            of_weights = at_positions(grads.per_sample_weights, cut.positions, shape)
            self._of_weights[cut.part.name] = _as_given(of_weights, cut.flattened)

    def gradients_of_weights(
        self, replies: Mapping[int, dict[str, AnyArray]]
    ) -> dict[str, AnyArray]:
        """Return the gradients of the weights by feature, given the answers of the shards."""
        found = dict(self._of_weights)
        for shard, whole in self._whole.items():
            for feature in whole:
                grad = replies[shard].get(feature.part.name)
                if grad is not None:
                    found[feature.part.name] = _as_given(
                        _of_all(grad, feature.call), feature.flattened
                    )
        return {f.name: found[f.name] for f in self._layout.shapes.features if f.name in found}


def _of_all(grad: AnyArray, call: Call) -> AnyArray:
    """Return the gradients of the weights in bags as those of all; others have 0."""
    bags: Any = call.bags
    first = 0 if bags.ends is None else int(bags.ends[0])
    return at_positions(grad, np.arange(first, first + len(grad)), bags.indices.shape)


def _as_given(grad: AnyArray, flattened: Flattened | None) -> AnyArray:
    """Return the gradients of weights as those of a ragged input, if it was one."""
    if flattened is None:
        return grad
    return at_positions(grad.reshape(-1), flattened.positions, flattened.shape)
