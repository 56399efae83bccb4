"""`Shard`: the blocks of tables that one actor of Ray holds, and the lookups in them.

It is an ordinary class: Ray makes an actor of it (_actors.py). After a restart it has loaded
nothing; its callers notice that and send what is to be loaded (`Missing`).

Tested in tests/sharding/test_versions.py, test_saves.py and test_copies.py.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import numpy as np

import embag
from embag._arguments import prefix_errors
from embag.checkpoints import load_checkpoint, save_checkpoint
from embag.collection import EmbeddingBagCollection, Feature
from embag.optim import Optimizer
from embag.ray._messages import (
    FIXED,
    AnyArray,
    Lost,
    Missing,
    OptimizerSpec,
    Piece,
    PieceUpdate,
    Pooled,
    PrepareRequest,
    Reply,
    Request,
    Saved,
    SaveRequest,
    UpdateRequest,
    Version,
)
from embag.ray._plan import Block, TableSpec, spec_of
from embag.ray._rows import copy_table, cut_block, round_rows, take_rows
from embag.tables import load_table

Key = tuple[str, int]  # the name of a table, and the number of a block

_MOST_COLLECTIONS = 64


class Held(NamedTuple):
    """A block that a shard holds."""

    table: str
    number: int
    block: Block
    is_whole: bool

    @property
    def key(self) -> Key:
        """The key of the block in the shard's tables."""
        return self.table, self.number


class _Loaded:
    """The tables of a version, with their optimizers, and collections of them."""

    def __init__(
        self,
        version: Version,
        held: dict[Key, Held],
        tables: dict[Key, Any],
        optimizers: dict[Key, Optimizer],
        features: Sequence[Feature],
    ) -> None:
        self.version = version
        self.held = held
        self.tables = tables
        self.optimizers = optimizers
        self._features = {feature.name: feature for feature in features}
        self._collections: dict[tuple[str, ...], EmbeddingBagCollection] = {}

    def collection(self, names: tuple[str, ...], invalid: Any) -> EmbeddingBagCollection:
        """Return a collection of features of whole tables."""
        found = self._collections.get(names)
        if found is None:
            if len(self._collections) == _MOST_COLLECTIONS:  # where copies vary who is asked
                self._collections = {}
            features = [self._features[name] for name in names]
            tables = {feature.table: self.tables[feature.table, 0] for feature in features}
            found = EmbeddingBagCollection(tables, features, invalid=invalid)
            self._collections[names] = found
        return found


class Shard:
    """The blocks of tables of one actor."""

    def __init__(
        self,
        number: int,
        features: Sequence[Feature],
        invalid: Literal["raise", "skip"],
        memory: Literal["map", "copy"],
        num_threads: int,
    ) -> None:
        self._number = number
        self._features = features
        self._invalid: Any = invalid
        self._memory = memory
        self._num_threads = num_threads
        self._loading = threading.Lock()
        self._loaded: dict[int, _Loaded] = {}  # by generation
        self._current = -1  # the generation that callers without one are to use
        # How many there were since the tables were made; fewer after a restart.
        self._n_updates = 0

    # --- Loading ---

    def load(self, version: Version, base: int | None = None, changed: Sequence[str] = ()) -> int:
        """Load a version beside those that are loaded; return the number of updates so far.

        If the generation `base` is loaded, only the tables in `changed` are loaded: the others are
        those of `base`, with all updates.
        """
        with self._loading, embag.num_threads(self._num_threads):
            if version.generation not in self._loaded:
                known = None if base is None else self._loaded.get(base)
                loaded = self._load(version, known, changed)
                if known is None:
                    self._n_updates = version.n_updates[self._number]
                self._loaded = {**self._loaded, version.generation: loaded}
            return self._n_updates

    def _load(self, version: Version, known: _Loaded | None, changed: Sequence[str]) -> _Loaded:
        plan = version.plan
        held = {
            (name, number): Held(name, number, block, len(plan.blocks[name]) == 1)
            for name, number, block in plan.held(self._number)
        }
        tables: dict[Key, Any] = {}
        optimizers: dict[Key, Optimizer] = {}
        for key, item in held.items():
            if known is not None and item.table not in changed:
                tables[key] = known.tables[key]
                trained = known.optimizers.get(key)
            else:
                source = version.sources[item.table]
                tables[key], trained = self._load_block(item, source, plan.tables[item.table])
            if trained is not None:
                optimizers[key] = trained
        return _Loaded(version, held, tables, optimizers, self._features)

    def keep(self, generation: int) -> None:
        """Use a generation, if it is loaded, and release older ones."""
        with self._loading:
            if generation in self._loaded:
                self._current = max(self._current, generation)
                self._loaded = {g: found for g, found in self._loaded.items() if g >= generation}

    def drop(self, generation: int) -> None:
        """Release a generation that is not to be used."""
        with self._loading:
            self._loaded = {g: found for g, found in self._loaded.items() if g != generation}

    def _missing(self) -> Missing:
        current = self._loaded.get(self._current)
        return Missing(None if current is None else current.version)

    def _load_block(self, held: Held, source: Any, spec: TableSpec) -> tuple[Any, Optimizer | None]:
        """Return the table of a block, and its optimizer if it was saved with one."""
        start, stop, _ = held.block
        if type(source) is Saved:
            optimizer = _load_optimizer(saved_path(*source, held.table, start, stop))
            if optimizer.table.shape != (stop - start, spec.dim):
                raise ValueError(
                    f"table {held.table!r} must have {stop - start} rows of {spec.dim} entries "
                    f"in {source.folder}, got shape {optimizer.table.shape}"
                )
            return optimizer.table, optimizer
        if not isinstance(source, str):
            block = get_object(source[held.number])
            return (copy_table(block) if self._memory == "copy" else block), None
        is_copied = self._memory == "copy"
        table = load_table(source, "copy" if held.is_whole and is_copied else "map")
        found = spec_of(table, held.table)
        if found != spec:
            raise ValueError(
                f"table {held.table!r} must be as planned, {spec}, got {found} in {source}"
            )
        if not held.is_whole:
            table = cut_block(table, start, stop, is_copied)
        return table, None

    # --- Lookups ---

    def lookup(self, request: Request) -> Reply | Missing | Lost:
        """Answer a request, or say why that is not possible."""
        loaded = self._loaded.get(request.generation)
        if loaded is None:
            return self._missing()
        if self._n_updates < request.n_updates:
            return Lost(self._n_updates)
        with embag.num_threads(request.num_threads or self._num_threads):
            out = n_valid = None
            if request.pooled is not None:
                out, n_valid = self._pool(loaded, request.pooled, request.return_n_valid)
            rows: dict[str, AnyArray] = {}
            for name, ids in request.unpooled.items():
                collection = loaded.collection((name,), self._invalid)
                rows[name] = collection({name: ids})[1][name]
            pieces = [self._answer(loaded, piece) for piece in request.pieces]
        return Reply(out, n_valid, rows, pieces)

    def _pool(
        self, loaded: _Loaded, pooled: Pooled, return_n_valid: bool
    ) -> tuple[AnyArray, AnyArray | None]:
        collection = loaded.collection(pooled.names, self._invalid)
        if pooled.weights is None or all(pooled.weighted):
            arguments: Any = (pooled.values, pooled.offsets, pooled.weights)
        else:
            by_name, weights = by_names(pooled)
            arguments = (by_name, None, weights)
        result = collection(
            *arguments,
            include_last_offset=isinstance(arguments[0], dict),
            return_n_valid=return_n_valid,
        )
        return result if return_n_valid else (result, None)

    def _answer(self, loaded: _Loaded, piece: Piece) -> Any:
        key = piece.table, piece.block
        table, rows = loaded.tables[key], piece.ids - loaded.held[key].block.start
        if piece.reduction == "rows":
            return take_rows(table, rows)
        if isinstance(table, np.ndarray) and table.dtype == np.float64:
            # A collection rounds entries before it adds them.
            table, rows = round_rows(take_rows(table, rows)), np.arange(len(rows))
        return embag.embedding_bag(
            rows,
            table,
            piece.offsets,
            mode=piece.reduction,
            per_sample_weights=piece.weights,
            include_last_offset=True,
        )

    # --- Training ---

    def prepare(self, request: PrepareRequest) -> dict[str, np.dtype[Any]] | Missing | Lost:
        """Make the optimizers of tables; return the dtypes of their gradients."""
        loaded = self._loaded.get(request.generation)
        if loaded is None:
            return self._missing()
        if self._n_updates < request.n_updates:
            return Lost(self._n_updates)
        made = self._make_optimizers(loaded, request.optimizers)
        loaded.optimizers |= made
        return {table: optimizer._encoding.sums_dtype for (table, _), optimizer in made.items()}

    def update(self, request: UpdateRequest) -> dict[str, AnyArray] | Missing | Lost:
        """Change tables; return the gradients of weights, by feature."""
        loaded = self._loaded.get(request.generation)
        if loaded is None:
            return self._missing()
        if self._n_updates < request.n_updates:
            return Lost(self._n_updates)
        with embag.num_threads(self._num_threads):
            optimizers = self._make_optimizers(loaded, request.optimizers)
            loaded.optimizers |= optimizers
            grads: dict[str, AnyArray] = {}
            if request.pooled is not None or request.unpooled:
                grads = self._update_whole(loaded, request, optimizers)
            for key, optimizer in optimizers.items():
                held = loaded.held[key]
                if not held.is_whole:
                    pieces = [p for p in request.pieces if (p.table, p.block) == key]
                    _update_block(optimizer, pieces, held.block.start)
            self._n_updates += 1
        return grads

    def _update_whole(
        self, loaded: _Loaded, request: UpdateRequest, optimizers: dict[Key, Optimizer]
    ) -> dict[str, AnyArray]:
        """Update whole tables, all at once."""
        values: dict[str, Any] = dict(request.unpooled)
        weights: dict[str, AnyArray] = {}
        names: tuple[str, ...] = ()
        if request.pooled is not None:
            names = request.pooled.names
            by_name, weights = by_names(request.pooled)
            values |= by_name
        looked_up = {*names, *request.unpooled}
        # In their order: gradients of features that share a table are added in this order.
        features = (one.name for one in self._features if one.name in looked_up)
        collection = loaded.collection(tuple(features), self._invalid)
        grad: Any = request.grad_output
        if request.unpooled:
            if grad is None:
                grad = np.zeros((0, 0), np.float32)
            grad = (grad, request.unpooled_grads)
        tables = {feature.table for feature in collection.features}
        found = collection.update(
            grad,
            values,
            None,
            weights,
            optimizers={name: optimizers[name, 0] for name in tables},
            include_last_offset=True,
            wrt=request.wrt,
        )
        return found or {}

    def _make_optimizers(
        self, loaded: _Loaded, specs: dict[str, OptimizerSpec]
    ) -> dict[Key, Optimizer]:
        """Return the optimizers of the blocks of some tables, with the options of this update."""
        optimizers = {}
        for key, held in loaded.held.items():
            if held.table not in specs:
                continue
            spec = specs[held.table]
            with prefix_errors(f"optimizers[{held.table!r}]"):
                known = loaded.optimizers.get(key)
                if known is None:
                    known = spec.kind(loaded.tables[key], **spec.options)
                change_options(known, spec)
            optimizers[key] = known
        return optimizers

    def save(self, request: SaveRequest) -> list[Key] | Missing | Lost:
        """Save each block that updates have changed, with its optimizer; return their keys."""
        with self._loading:
            loaded = self._loaded.get(request.generation)
            if loaded is None:
                return self._missing()
            if self._n_updates < request.n_updates:
                return Lost(self._n_updates)
            trained = {key: rule for key, rule in loaded.optimizers.items() if rule.n_steps}
            for key, optimizer in trained.items():
                start, stop, _ = loaded.held[key].block
                path = saved_path(request.folder, request.number, key[0], start, stop)
                save_checkpoint(path, {"table": optimizer})
            return list(trained)

    def forget(self, folder: str, number: int, blocks: dict[str, list[list[int]]]) -> None:
        """Delete the files of an earlier save that are here."""
        for table, each in blocks.items():
            for start, stop in each:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(saved_path(folder, number, table, start, stop))


def saved_path(folder: str, number: int, table: str, start: int, stop: int) -> str:
    """Return the file of a block in a save."""
    name = f"{quote(table, safe='')}-{start}-{stop}-save{number}.safetensors"
    return os.path.join(folder, name)


def by_names(pooled: Pooled) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    """Return ids and weights end to end as those of each feature."""
    values: dict[str, Any] = {}
    weights: dict[str, AnyArray] = {}
    n_bags = (len(pooled.offsets) - 1) // len(pooled.names)
    n_weights = 0
    for f, name in enumerate(pooled.names):
        bounds = pooled.offsets[f * n_bags : (f + 1) * n_bags + 1]
        start, stop = int(bounds[0]), int(bounds[-1])
        values[name] = pooled.values[start:stop], bounds - start
        if pooled.weights is not None and pooled.weighted[f]:
            weights[name] = pooled.weights[n_weights : n_weights + stop - start]
            n_weights += stop - start
    return values, weights


def change_options(optimizer: Optimizer, spec: OptimizerSpec) -> None:
    """Give an optimizer other options, such as a learning rate."""
    if type(optimizer) is not spec.kind or any(
        getattr(optimizer, name) != spec.options[name] for name in FIXED & spec.options.keys()
    ):
        given = ", ".join(f"{name}={value!r}" for name, value in spec.options.items())
        raise ValueError(
            "optimizer must stay of its class, with the same momentum and rounding, got "
            f"{spec.kind.__name__}({given}) after {optimizer!r}"
        )
    for name in spec.options.keys() - FIXED:
        setattr(optimizer, name, spec.options[name])


def _update_block(optimizer: Optimizer, pieces: list[PieceUpdate], first_id: int) -> None:
    """Change the rows of a block by the sum of some gradients."""
    table: Any = optimizer.table
    grads = [np.zeros((0, table.shape[1]), np.float32), *(piece.grad for piece in pieces)]
    ids = [np.zeros(0, np.int64), *(piece.ids - first_id for piece in pieces)]
    sizes = [np.zeros(1, np.int64), *(np.diff(piece.offsets) for piece in pieces)]
    weights = None
    if any(piece.weights is not None for piece in pieces):
        each = (np.ones(len(p.ids), np.float32) if p.weights is None else p.weights for p in pieces)
        weights = np.concatenate([*each])
    optimizer.update(
        np.concatenate(grads),
        np.concatenate(ids),
        np.cumsum(np.concatenate(sizes)),
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )


def _load_optimizer(path: str) -> Optimizer:
    items = load_checkpoint(path)
    if items.keys() != {"table"} or not isinstance(items["table"], Optimizer):
        raise ValueError(f"{path} must be a block that ShardedCollection.save wrote")
    return items["table"]


def get_object(reference: Any) -> Any:
    """Return an object of Ray's object store."""
    import ray  # noqa: PLC0415

    return ray.get(reference)
