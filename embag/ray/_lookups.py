"""One lookup of a `ShardedCollection`: what each shard is asked, and the result of the answers.

    read     a collection of the same shapes, without rows, reads and checks the arguments
    ask      features of whole tables go to one shard each, end to end; the ids of a table that is
             cut go to the shards of their blocks
    merge    columns are put side by side; bags of several blocks are reduced once more

Nothing here knows Ray. Tested in tests/sharding/test_lookups.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

import embag
from embag import _arguments, _encodings
from embag._call import Call
from embag._columns.pieces import Column
from embag._entries import counting_entries, with_arrays
from embag._unpooled import Unpooled
from embag.collection import EmbeddingBagCollection, Feature
from embag.ray._messages import Piece, Pooled, Reduction, Reply, Request, Version
from embag.ray._plan import Plan, TableSpec, block_rows
from embag.ray._rows import join_rows, round_rows
from embag.ray._splitting import BlockIds, Cut, Pieces, invert, merge_pooled, split_features
from embag.remapped import RemappedTable

AnyArray = NDArray[Any]

_FLOAT32 = np.dtype(np.float32)


class Layout(NamedTuple):
    """What a lookup depends on: a version of the tables, and where they are."""

    version: Version
    shapes: EmbeddingBagCollection  # of the same shapes, without rows
    exact: bool

    @property
    def plan(self) -> Plan:
        """Where the tables are."""
        return self.version.plan

    def is_whole(self, table: str) -> bool:
        """Return whether a table is not cut."""
        return len(self.plan.blocks[table]) == 1


def collection_of_shapes(
    tables: Mapping[str, TableSpec], features: Any, invalid: Any
) -> EmbeddingBagCollection:
    """Return a collection that reads and checks arguments: its tables take no memory."""
    stand_ins: dict[str, Any] = {}
    for name, spec in tables.items():
        rows = np.broadcast_to(np.zeros(spec.dim, np.float32), (spec.n_rows, spec.dim))
        stand_ins[name] = rows
        if spec.is_remapped:
            stand_ins[name] = RemappedTable(rows, first_id=spec.first_id)
    return EmbeddingBagCollection(stand_ins, features, invalid=invalid)


@dataclass
class _CutLookup:
    """A lookup in a table that is cut; then what its blocks are asked."""

    table: str
    dim: int
    reduction: Reduction
    ids: AnyArray
    offsets: AnyArray
    call: Any = None  # with the entries that count; None for a feature without bags
    blocks: list[BlockIds] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)  # shard, number of the piece

    def answers(self, replies: Mapping[int, Reply]) -> list[Any]:
        """Return what the blocks have answered."""
        return [replies[shard].pieces[i] for shard, i in self.places]


class Entries(NamedTuple):
    """The ids of a feature with bags, in arrays."""

    ids: AnyArray
    offsets: AnyArray  # (n_bags + 1,), from 0 on
    weights: AnyArray | None


def entries_of(call: Call) -> Entries:
    """Return the ids of a call in bags."""
    bags: Any = call.bags
    ids, ends, weights = bags.used, bags.ends, cast(Any, call.weights)
    if ends is None:
        n_bags, size = bags.indices.shape
        offsets = np.arange(n_bags + 1) * size
    else:
        offsets = ends if ends[0] == 0 else ends - ends[0]
        if weights is not None:
            weights = weights[int(ends[0]) : int(ends[-1])]
    return Entries(ids.reshape(-1), offsets, None if weights is None else weights.reshape(-1))


def join_entries(names: list[str], entries: list[Entries]) -> Pooled:
    """Return features end to end."""
    weighted = tuple(part.weights is not None for part in entries)
    if len(entries) == 1:
        return Pooled(tuple(names), *entries[0], weighted)
    ids, offsets, weights = zip(*entries, strict=True)
    starts = itertools.accumulate((len(part) for part in ids), initial=0)
    shifted = [bounds[:-1] + start for bounds, start in zip(offsets, starts, strict=False)]
    total = [sum(len(part) for part in ids)]
    given = [part for part in weights if part is not None]
    return Pooled(
        tuple(names),
        np.concatenate(ids),
        np.concatenate([*shifted, total]),
        np.concatenate(given) if given else None,
        weighted,
    )


def count_invalid(ids: AnyArray, table: _encodings.Table) -> int:
    """Return how many ids are out of range."""
    first, n_rows = table.first_id, table.n_rows
    return int(np.count_nonzero((ids < first) | (ids >= first + n_rows)))


class Lookup:
    """A lookup: the requests to shards, and how the answers become its result."""

    def __init__(
        self,
        layout: Layout,
        arguments: tuple[Any, Any, Any, bool],
        out: Any,
        return_n_valid: bool,
        num_threads: int | None,
        choose: Callable[[tuple[int, ...]], int],
    ) -> None:
        self._layout = layout
        shapes = layout.shapes
        calls, ids = shapes._read(shapes._state, *arguments)
        self._features = shapes._pooled
        self._n_bags = calls[0].bags.n_bags if calls else 0
        self._out = out
        if out is not None:
            _arguments.check_out(out, (self._n_bags, shapes.dim), _FLOAT32, [], [])
        self._return_n_valid = return_n_valid
        self._choose = choose
        self._chosen: dict[tuple[str, int], int] = {}
        self._whole: dict[int, list[tuple[int, Entries]]] = {}  # by shard: features
        self._unpooled: dict[int, dict[str, AnyArray]] = {}
        self._pieces: dict[int, list[Piece]] = {}
        self._cut: dict[int, _CutLookup] = {}  # by feature with bags
        self._cut_rows: list[tuple[Unpooled, AnyArray, _CutLookup]] = []
        self._n_valid: dict[int, AnyArray] = {}  # of features of tables that are cut
        self.n_invalid: dict[str, int] = {}
        for f, (feature, call) in enumerate(zip(self._features, calls, strict=True)):
            try:
                if type(call.bags) is not Column:
                    call.bags.check(call.n_rows, call.refuse, call.table.first_id)
                self._add_pooled(f, feature, with_arrays(call)[0])
            except (TypeError, ValueError, IndexError):
                with _arguments.prefix_errors(f"feature {feature.name!r}"):
                    raise
        without = [feature for feature in shapes.features if feature.mode == "none"]
        for i, own in enumerate(ids):
            self._add_unpooled(without[i], shapes._state.unpooled[i], own)
        self._ask_blocks()
        self.requests = {
            shard: Request(
                layout.version.generation,
                0,
                self._join(self._whole.get(shard, [])),
                self._unpooled.get(shard, {}),
                self._pieces.get(shard, []),
                return_n_valid,
                num_threads,
            )
            for shard in sorted({*self._whole, *self._unpooled, *self._pieces})
        }

    def _shard_of(self, table: str, block: int) -> int:
        """Return the shard that answers for a block in this lookup."""
        key = table, block
        if key not in self._chosen:
            shards = self._layout.plan.blocks[table][block].shards
            self._chosen[key] = shards[0] if len(shards) == 1 else self._choose(shards)
        return self._chosen[key]

    def _add_pooled(self, f: int, feature: Feature, call: Call) -> None:
        if not call.refuse:
            self.n_invalid[feature.name] = count_invalid(cast(Any, call.bags).used, call.table)
        if self._layout.is_whole(feature.table):
            whole = self._whole.setdefault(self._shard_of(feature.table, 0), [])
            whole.append((f, entries_of(call)))
            return
        counting, positions = counting_entries(call)
        counting = replace(counting, padding=-1)  # the default may be the padding row, and counts
        bags: Any = counting.bags
        if self._return_n_valid:
            n_valid = np.diff(bags.offsets)
            defaults = np.flatnonzero(positions < 0)
            n_valid[np.searchsorted(bags.offsets, defaults, side="right") - 1] = 0
            self._n_valid[f] = n_valid
        reduction: Any = call.mode.name if call.mode.selects else "sum"
        if self._layout.exact:
            reduction = "rows"
        self._cut[f] = _CutLookup(
            *(feature.table, call.table.dim, reduction, bags.indices, bags.offsets, counting)
        )

    def _add_unpooled(self, feature: Feature, unpooled: Unpooled, ids: AnyArray) -> None:
        if not unpooled.refuse:
            self.n_invalid[feature.name] = count_invalid(ids, unpooled.table)
        if self._layout.is_whole(feature.table):
            shard = self._shard_of(feature.table, 0)
            self._unpooled.setdefault(shard, {})[feature.name] = ids
            return
        flat = ids.reshape(-1).astype(np.int64)
        is_valid = (flat >= 0) & (flat < unpooled.table.n_rows)
        if unpooled.stand_in >= 0:
            flat[~is_valid] = unpooled.stand_in
            is_valid[:] = True
        asked = np.flatnonzero(is_valid)
        one_bag = np.array([0, len(asked)])
        cut = _CutLookup(feature.table, unpooled.table.dim, "rows", flat[asked], one_bag)
        places = np.full(ids.shape, -1)
        places.reshape(-1)[asked] = np.arange(len(asked))
        self._cut_rows.append((unpooled, places, cut))

    def _ask_blocks(self) -> None:
        """Ask the shards of all tables that are cut."""
        lookups = [*self._cut.values(), *(cut for _, _, cut in self._cut_rows)]
        plan = self._layout.plan
        cuts = []
        for cut in lookups:
            n_blocks = len(plan.blocks[cut.table])
            n_rows = block_rows(plan.tables[cut.table], n_blocks)
            cuts.append(Cut(cut.ids, cut.offsets, n_rows, n_blocks))
        for cut, blocks in zip(lookups, split_features(cuts), strict=True):
            weights = None if cut.call is None or cut.reduction == "rows" else cut.call.weights
            for i, block in enumerate(blocks):
                if block is None:
                    continue
                shard = self._shard_of(cut.table, i)
                pieces = self._pieces.setdefault(shard, [])
                cut.blocks.append(block)
                cut.places.append((shard, len(pieces)))
                own = None if weights is None else weights[block.positions]
                bounds = None if cut.reduction == "rows" else block.offsets
                pieces.append(Piece(cut.table, i, cut.reduction, block.ids, bounds, own))

    def _join(self, whole: list[tuple[int, Entries]]) -> Pooled | None:
        if not whole:
            return None
        names = [self._features[f].name for f, _ in whole]
        return join_entries(names, [entries for _, entries in whole])

    def merge(self, replies: Mapping[int, Reply]) -> Any:
        """Return the result of the lookup."""
        shapes = self._layout.shapes
        slices = shapes.slices
        out = self._out
        if out is None:
            out = _arguments.new_array(np.empty, (self._n_bags, shapes.dim), _FLOAT32)
        n_valid: Any = None
        if self._return_n_valid:
            n_valid = np.zeros((self._n_bags, len(self._features)), np.int64)
        for shard, whole in self._whole.items():
            start = 0
            for columns in _runs([slices[self._features[f].name] for f, _ in whole]):
                stop = start + columns.stop - columns.start
                out[:, columns] = cast(Any, replies[shard].out)[:, start:stop]
                start = stop
            if self._return_n_valid:
                n_valid[:, [f for f, _ in whole]] = cast(Any, replies[shard].n_valid)
        for f, result in self._merge_cut(replies):
            out[:, slices[self._features[f].name]] = result
            if self._return_n_valid:
                n_valid[:, f] = self._n_valid[f]
        if not shapes._has_unpooled:
            return (out, n_valid) if self._return_n_valid else out
        found: dict[str, AnyArray] = {}
        for shard, own in self._unpooled.items():
            found |= {name: replies[shard].unpooled[name].copy() for name in own}
        for unpooled, places, cut in self._cut_rows:
            found[unpooled.name] = _gather(unpooled, places, cut, replies)
        rows = {f.name: found[f.name] for f in shapes.features if f.name in found}
        return (out, rows, n_valid) if self._return_n_valid else (out, rows)

    def _merge_cut(self, replies: Mapping[int, Reply]) -> Iterator[tuple[int, AnyArray]]:
        """Yield the features of tables that are cut, each with its result."""
        alike: dict[tuple[Reduction, int], list[int]] = {}
        for f, cut in self._cut.items():
            if cut.reduction == "rows":
                yield f, _pool_rows(cut, cut.answers(replies))
            else:
                alike.setdefault((cut.reduction, cut.dim), []).append(f)
        for (reduction, dim), features in alike.items():
            lookups = []
            for f in features:
                cut = self._cut[f]
                parts = list(zip(cut.blocks, cut.answers(replies), strict=True))
                lookups.append(Pieces(cut.call, parts))
            yield from zip(features, merge_pooled(lookups, reduction, dim), strict=True)


def _pool_rows(cut: _CutLookup, answers: list[Any]) -> AnyArray:
    """Return the result of a lookup, given all its rows."""
    bags = cut.call.bags
    if not cut.blocks:
        return np.zeros((bags.n_bags, cut.dim), np.float32)
    pooled: AnyArray = embag.embedding_bag(
        invert(cut.blocks, len(cut.ids)),
        round_rows(join_rows(answers)),
        bags.offsets,
        mode=cut.call.mode.name,
        per_sample_weights=cut.call.weights,
        include_last_offset=True,
        normalize=cut.call.normalizes,
    )
    return pooled


def _gather(
    unpooled: Unpooled, places: AnyArray, cut: _CutLookup, replies: Mapping[int, Reply]
) -> AnyArray:
    """Return the row of each id of a feature without bags; zeros where the place is -1."""
    answers = cut.answers(replies)
    rows = round_rows(join_rows(answers)) if answers else np.zeros((0, cut.dim), np.float32)
    in_order = np.append(invert(cut.blocks, len(cut.ids)), -1)  # -1 is the last
    table = _encodings.as_table(rows, kept=True)
    skipping = unpooled._replace(table=table, refuse=False, stand_in=-1)
    return skipping.gather(np.asarray(in_order[places]), np.zeros(1, np.int64), None)


def _runs(slices: list[slice]) -> list[slice]:
    """Return the same columns in as few slices as possible."""
    runs: list[slice] = []
    for columns in slices:
        if runs and runs[-1].stop == columns.start:
            runs[-1] = slice(runs[-1].start, columns.stop)
        else:
            runs.append(columns)
    return runs
