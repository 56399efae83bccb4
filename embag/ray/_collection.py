"""`ShardedCollection`: an `EmbeddingBagCollection` whose tables are on many nodes.

A lookup is a generator of steps: it yields what shards are to be asked, and receives the answers.
So the same steps serve calls that block and calls in an event loop.

    _plan.py         which shard holds which rows
    _lookups.py      what a lookup asks each shard, and the result of the answers
    _updates.py      what an update sends each shard
    _splitting.py    ids by block; results of blocks as one
    _messages.py     requests and replies
    _shard.py        what a shard does
    _actors.py       shards as actors of Ray

Tested in tests/sharding/.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments
from embag._arguments import describe
from embag._columns import vectors
from embag._files.headers import check_format, parse_object, read_index
from embag._files.replacement import replacement
from embag._types import Table
from embag.collection import Feature
from embag.optim import Optimizer
from embag.ray._actors import Actors, ShardError, TimeLimit, nodes, store
from embag.ray._lookups import Layout, Lookup, collection_of_shapes
from embag.ray._messages import (
    FIXED,
    Lost,
    Missing,
    OptimizerSpec,
    PrepareRequest,
    Saved,
    SaveRequest,
    Version,
)
from embag.ray._plan import Plan, TableSpec, check_plan, spec_of
from embag.ray._plan import plan as make_plan
from embag.ray._rows import cut_block
from embag.ray._updates import Update

AnyArray: TypeAlias = NDArray[Any]
# What shards are asked: a method, and its arguments by shard. The answers are sent back, by shard.
_Steps: TypeAlias = Generator[tuple[str, dict[int, tuple[Any, ...]]], dict[int, Any], Any]
_OptimizerLike: TypeAlias = "type[Optimizer] | functools.partial[Optimizer]"

_INDEX = "embag-sharded.json"  # of a save: written last
_FORMAT = 1  # of the index


class ShardedCollection:
    """An `EmbeddingBagCollection` whose tables are on the nodes of a Ray cluster.

    Each shard is an actor that holds whole tables, or blocks of rows of tables that are larger than
    a node. A lookup asks the shards that have its rows, all at once.

    Parameters
    ----------
    tables : mapping of str to path, ndarray, QuantizedTable or RemappedTable
        The tables, by name. A path (.npy or .safetensors) is read on the node of the shard. Other
        tables go through Ray's object store.
    features : sequence of Feature
        The features, as for `EmbeddingBagCollection`.
    plan : Plan, optional
        Which shard holds what, see `embag.ray.plan`. By default it is made for the nodes of the
        cluster and the memory that Ray gives to tasks on each.
    n_shards : int, optional
        Without `plan`: how many shards there are, in turn on the nodes; by default one a node.
    num_threads : int, optional
        The threads of a shard, and the CPUs that Ray reserves for it.
    memory : {"map", "copy"}, optional
        "map": rows stay in the file, or in the object store, and are read when lookups touch them.
        "copy": each shard has them in memory of its own. Updates require that.
    exact : bool, optional
        If True, the rows of a table that is cut are brought here and pooled here, which gives the
        bits of one machine. By default each shard reduces its rows of a bag, and the results are
        added: less to send, but another order of additions.
    invalid : {"raise", "skip"}, optional
        What to do with ids out of range, as in `EmbeddingBagCollection`.
    timeout : float, optional
        The seconds after which a lookup or an update raises. A call may have another.
    load_timeout : float, optional
        The seconds that loading, replacing, saving and restoring may take.

    Attributes
    ----------
    features : tuple of Feature
        The features.
    slices : mapping of str to slice
        The columns of each feature with bags in the result.
    dim : int
        The number of columns of the result.
    plan : Plan
        Which shard holds what.

    Raises
    ------
    ImportError
        If Ray is not installed.
    TypeError, ValueError
        As in `EmbeddingBagCollection` and `embag.ray.plan`; if `plan` is for other tables,
        lacks rows of one, or names a node that the cluster does not have; if a node has fewer CPUs
        than its shards reserve.
    OSError
        If there is no plan, and a file cannot be read here.
    ShardError
        If a shard cannot load its tables, such as for a file that its node lacks.

    See Also
    --------
    embag.ray.plan : See who holds what, before anything is loaded.
    embag.EmbeddingBagCollection : The same on one machine.

    Notes
    -----
    A table that is not cut gives the bits of one machine. Ids are checked here, before anything is
    sent: errors are those of `EmbeddingBagCollection`.

    Ray restarts an actor that dies, on another node if its own is gone, and sends it the lookups
    again. It loads its tables when the first one comes. A lookup returns the whole result, or it
    raises a `ShardError` that names the shard, within `timeout`.

    A pickled collection, such as one that is an argument of a task or an actor, looks up in the
    same shards. `replace`, `update`, `save`, `restore` and `close` are for the process that made
    the collection; when that releases it, or ends, the shards end.

    Any number of threads may call one collection. Where rows have copies, a lookup asks the shard
    with the fewest unanswered calls of this process: Ray does not tell how many calls an actor has
    waiting.

    Examples
    --------
    ::

        ray.init(address="auto")
        tables = {"items": "/data/items.safetensors", "users": "/data/users.safetensors"}
        features = [embag.Feature("clicked", "items", mode="mean"), embag.Feature("user", "users")]
        with embag.ray.ShardedCollection(tables, features) as ebc:
            print(ebc.plan)
            vectors = ebc({"clicked": [[3, 1], [4, 1]], "user": [[5], [9]]})
    """

    _layout: Layout
    _actors: Actors | None
    _memory: str
    _timeout: float
    _load_timeout: float

    def __init__(
        self,
        tables: Mapping[str, str | os.PathLike[str] | Table],
        features: Sequence[Feature],
        *,
        plan: Plan | None = None,
        n_shards: int | None = None,
        num_threads: int = 1,
        memory: Literal["map", "copy"] = "map",
        exact: bool = False,
        invalid: Literal["raise", "skip"] = "raise",
        timeout: float = 30.0,
        load_timeout: float = 600.0,
    ) -> None:
        if not isinstance(tables, Mapping):
            raise TypeError(f"tables must be a mapping, got {describe(tables)}")
        if type(memory) is not str or memory not in ("map", "copy"):
            raise ValueError(f"memory must be 'map' or 'copy', got {describe(memory)}")
        _arguments.check_flags(exact=exact)
        num_threads = _arguments.as_count(num_threads, "num_threads")
        given = {name: _as_source(table, f"tables[{name!r}]") for name, table in tables.items()}
        self._memory = memory
        self._timeout = _as_seconds(timeout, "timeout")
        self._load_timeout = _as_seconds(load_timeout, "load_timeout")
        if plan is None:
            places = list(nodes().items())
            plan = make_plan(given, _spread(places, n_shards))
        else:
            _check_plan(plan, n_shards, given)
        shapes = collection_of_shapes(plan.tables, features, invalid)
        sources = {name: _store(table, plan, name) for name, table in given.items()}
        version = Version(0, sources, plan, (0,) * len(plan.nodes))
        self._layout = Layout(version, shapes, bool(exact))
        arguments = [
            (shard, shapes.features, invalid, memory, num_threads)
            for shard in range(len(plan.nodes))
        ]
        self._actors = Actors.start(arguments, plan.nodes, num_threads)
        self._set_up(is_owner=True)
        try:
            self._run(self._load(version), TimeLimit(self._load_timeout))
        except BaseException:
            self.close()
            raise

    def _set_up(self, is_owner: bool) -> None:
        self._is_owner = is_owner
        self._owning = threading.Lock()  # held by what changes tables
        self._counting = threading.Lock()
        self._n_invalid = {feature.name: 0 for feature in self.features}
        self._latest = self._layout.version.generation  # of all that shards were to load
        self._changed: set[str] = set()  # tables that differ from their sources, by updates
        self._known = [0] * len(self._layout.version.plan.nodes)  # updates of each shard
        self._prepared: tuple[Any, dict[str, np.dtype[Any]]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Not the shapes: their tables take no memory, but would be pickled with all their rows.
        version, exact = self._layout.version, self._layout.exact
        timeouts = self._timeout, self._load_timeout
        arguments = self._actors, self._memory, *timeouts
        return _copy, (version, self.features, self.invalid, exact, *arguments)

    # --- What a collection has ---

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features."""
        return self._layout.shapes.features

    @property
    def slices(self) -> Mapping[str, slice]:
        """The columns of each feature with bags in the result."""
        return self._layout.shapes.slices

    @property
    def dim(self) -> int:
        """The number of columns of the result."""
        return self._layout.shapes.dim

    @property
    def plan(self) -> Plan:
        """Which shard holds what."""
        return self._layout.version.plan

    @property
    def invalid(self) -> str:
        """What happens to ids out of range."""
        return str(self._layout.shapes.invalid)

    @property
    def n_invalid(self) -> dict[str, int]:
        """How many ids of each feature this process has had skipped or replaced."""
        return dict(self._n_invalid)

    def split(self, out: Any) -> dict[str, AnyArray]:
        """Return the result of each feature: see `EmbeddingBagCollection.split`."""
        return self._layout.shapes.split(out)

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"ShardedCollection({len(plan.tables)} tables on {len(plan.nodes)} shards, "
            f"{len(self.features)} features, dim={self.dim})"
        )

    # --- Lookups ---

    def __call__(
        self,
        values: ArrayLike | Mapping[str, Any],
        offsets: ArrayLike | None = None,
        per_sample_weights: ArrayLike | Mapping[str, ArrayLike] | None = None,
        *,
        include_last_offset: bool = False,
        out: NDArray[Any] | None = None,
        num_threads: int | None = None,
        return_n_valid: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Look up all features.

        Parameters
        ----------
        values, offsets, per_sample_weights, include_last_offset, out, return_n_valid
            As in the call of an `EmbeddingBagCollection`.
        num_threads : int, optional
            The largest number of threads in each shard.
        timeout : float, optional
            The seconds after which the call raises, instead of those of the collection.

        Returns
        -------
        ndarray of float32, shape (batch, dim), or tuple
            As the call of an `EmbeddingBagCollection`.

        Raises
        ------
        TypeError, ValueError, IndexError
            As in the call of an `EmbeddingBagCollection`. Nothing has been sent.
        ShardError
            If a shard failed, or did not answer in time.
        RuntimeError
            If the collection is closed, or Ray has been shut down in this process.
        """
        steps = self._look_up(
            (values, offsets, per_sample_weights, include_last_offset),
            *(out, num_threads, return_n_valid),
        )
        return self._run(steps, self._limit(timeout))

    async def lookup(
        self,
        values: ArrayLike | Mapping[str, Any],
        offsets: ArrayLike | None = None,
        per_sample_weights: ArrayLike | Mapping[str, ArrayLike] | None = None,
        *,
        include_last_offset: bool = False,
        out: NDArray[Any] | None = None,
        num_threads: int | None = None,
        return_n_valid: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Look up all features, in an event loop: a call that is awaited.

        Parameters
        ----------
        values, offsets, per_sample_weights, include_last_offset, out, num_threads, \
return_n_valid, timeout
            As in a call.

        Returns
        -------
        ndarray of float32, shape (batch, dim), or tuple
            As a call.

        Raises
        ------
        TypeError, ValueError, IndexError, ShardError, RuntimeError
            As a call.

        Notes
        -----
        While shards work, other tasks of the loop run. Arguments are read and results merged in the
        loop's thread.
        """
        steps = self._look_up(
            (values, offsets, per_sample_weights, include_last_offset),
            *(out, num_threads, return_n_valid),
        )
        limit = self._limit(timeout)
        try:
            method, arguments = next(steps)
            while True:
                try:
                    answers = await self._running().ask_async(method, arguments, limit)
                except ShardError as error:
                    method, arguments = steps.throw(error)
                else:
                    method, arguments = steps.send(answers)
        except StopIteration as stop:
            return stop.value

    def _run(self, steps: _Steps, limit: TimeLimit) -> Any:
        """Take the steps, and return their result."""
        try:
            method, arguments = next(steps)
            while True:
                try:
                    answers = self._running().ask(method, arguments, limit)
                except ShardError as error:
                    method, arguments = steps.throw(error)
                else:
                    method, arguments = steps.send(answers)
        except StopIteration as stop:
            return stop.value

    def _running(self) -> Actors:
        actors = self._actors
        if actors is None:
            raise RuntimeError("the collection is closed")
        actors.check_connection()
        return actors

    def _limit(self, timeout: float | None) -> TimeLimit:
        """Return the time limit of a lookup or an update."""
        return TimeLimit(self._timeout if timeout is None else _as_seconds(timeout, "timeout"))

    def _look_up(
        self,
        arguments: tuple[Any, Any, Any, bool],
        out: Any,
        num_threads: int | None,
        return_n_valid: bool,
    ) -> _Steps:
        if num_threads is not None:
            num_threads = _arguments.as_count(num_threads, "num_threads")
        _arguments.check_flags(return_n_valid=return_n_valid)
        answers = None
        while answers is None:
            layout = self._layout
            choose = self._running().choose
            lookup = Lookup(layout, arguments, out, bool(return_n_valid), num_threads, choose)
            answers = yield from self._ask(layout, "lookup", lookup.requests)
        with self._counting:
            for name, n in lookup.n_invalid.items():
                self._n_invalid[name] += n
        return lookup.merge(answers)

    def _ask(self, layout: Layout, method: str, requests: Mapping[int, Any]) -> _Steps:
        """Return the answers of shards, which are first brought up to date where necessary.

        None if a shard has a newer version: then that is the collection's.
        """
        answers: dict[int, Any] = {}
        while len(answers) < len(requests):
            asked = {
                shard: (request._replace(n_updates=self._known[shard]),)
                for shard, request in requests.items()
                if shard not in answers
            }
            found = yield method, asked
            missing = {s: reply for s, reply in found.items() if type(reply) is Missing}
            lost = {s: reply.n_updates for s, reply in found.items() if type(reply) is Lost}
            answers |= {s: reply for s, reply in found.items() if s not in {*missing, *lost}}
            for reply in missing.values():
                newest = reply.newest
                if newest is not None and newest.generation > layout.version.generation:
                    self._adopt(newest)
                    return None
            if missing:
                lost |= yield from self._load(layout.version, list(missing))
            self._raise_for_lost(lost)
        return answers

    def _load(self, version: Version, shards: list[int] | None = None) -> _Steps:
        """Load a version in shards, and release older ones; return their numbers of updates."""
        asked = range(len(version.plan.nodes)) if shards is None else shards
        counts = yield "load", dict.fromkeys(asked, (version,))
        yield "keep", dict.fromkeys(asked, (version.generation,))
        return counts

    def _adopt(self, version: Version) -> None:
        layout = self._layout
        if version.generation > layout.version.generation:
            shapes = collection_of_shapes(version.plan.tables, self.features, self.invalid)
            self._layout = layout._replace(version=version, shapes=shapes)

    def _raise_for_lost(self, counts: dict[int, int]) -> None:
        """Raise, once, for shards that were restarted and have fewer updates than were made."""
        lost = {shard: n for shard, n in counts.items() if n < self._known[shard]}
        if not lost:
            return
        each = ", ".join(
            f"{self._known[shard] - n} of shard {shard}" for shard, n in sorted(lost.items())
        )
        for shard, n in lost.items():
            self._known[shard] = n
        raise ShardError(
            f"updates were lost, since an actor was restarted: {each}; its tables are those of the "
            "last save, or as they were loaded",
            sorted(lost),
        )

    # --- What changes tables ---

    def _owned(self) -> threading.Lock:
        """Return the lock of the process that made the collection; raise in any other."""
        self._check_owner()
        self._running()
        return self._owning

    def _check_owner(self) -> None:
        if not self._is_owner:
            raise RuntimeError(
                "the tables must be changed by the process that made the collection, "
                "got a pickled copy of it"
            )

    def replace(self, name: str, table: str | os.PathLike[str] | Table) -> None:
        """Replace one table on all shards, while lookups go on.

        A lookup reads the tables of one moment, on all shards, so it never sees a mixture. The new
        table is loaded beside the old one, on the same shards, and cut into as many blocks.

        Parameters
        ----------
        name : str
            The name of the table.
        table : path, ndarray, QuantizedTable or RemappedTable
            The new table, with the same number of columns. A path must be readable here, too.

        Raises
        ------
        TypeError, ValueError
            As in `EmbeddingBagCollection.replace`. ValueError also if the new table does not fit
            beside the old one in a shard. Nothing is replaced then.
        OSError
            If the file cannot be read here.
        ShardError
            If a shard cannot load the table, or takes more than `load_timeout`. Lookups go on in
            the old table.
        RuntimeError
            If this is a pickled copy, or the collection is closed.

        Notes
        -----
        An optimizer of the old table is released with it.
        """
        with self._owned():
            version = self._layout.version
            if not isinstance(name, str):
                raise TypeError(f"name must be a str, got {describe(name)}")
            if name not in version.plan.tables:
                raise ValueError(f"name must be a key of tables, got {describe(name)}")
            given = _as_source(table, "table")
            old, new = version.plan.tables[name], spec_of(given, "table")
            if new.dim != old.dim:
                raise ValueError(
                    f"table must have {old.dim} columns, like the table it replaces, got {new.dim}"
                )
            if new.is_remapped and len(version.plan.blocks[name]) > 1:
                raise ValueError(f"table must not be a RemappedTable, since {name!r} is cut")
            plan = version.plan.replaced(name, new)
            if self._memory == "copy" or not isinstance(given, str):
                _check_fit(plan, version.plan, name)
            source = _store(given, plan, name)
            sources = {**version.sources, name: source}
            self._change(version._replace(sources=sources, plan=plan), [name])
            self._changed.discard(name)

    def _change(self, version: Version, changed: Sequence[str]) -> None:
        """Load another version, with some other tables, on all shards; then let lookups use it."""
        base = version.generation
        # Not that of an attempt that failed: a shard may have loaded it nevertheless.
        self._latest += 1
        version = version._replace(generation=self._latest)
        shapes = collection_of_shapes(version.plan.tables, self.features, self.invalid)
        actors, shards = self._running(), range(len(version.plan.nodes))
        generation = dict.fromkeys(shards, (version.generation,))
        try:
            load = _one_step("load", shards, version, base, changed)
            self._run(load, TimeLimit(self._load_timeout))
        except BaseException:
            actors.tell("drop", generation)
            raise
        self._layout = self._layout._replace(version=version, shapes=shapes)
        actors.tell("keep", generation)  # releases the others

    def update(
        self,
        grad_output: Any,
        values: ArrayLike | Mapping[str, Any],
        offsets: ArrayLike | None = None,
        per_sample_weights: ArrayLike | Mapping[str, ArrayLike] | None = None,
        *,
        optimizers: Mapping[str, _OptimizerLike],
        include_last_offset: bool = False,
        wrt: Literal["weight"] | None = "weight",
        timeout: float | None = None,
    ) -> dict[str, AnyArray] | None:
        """Compute the gradients of the tables, and change the tables where they are.

        Parameters
        ----------
        grad_output, values, offsets, per_sample_weights, include_last_offset, wrt
            As in `EmbeddingBagCollection.update`.
        optimizers : mapping of str to class or functools.partial
            By name of the table: an optimizer of `embag.optim`, with its options, such as
            ``partial(embag.optim.Adagrad, lr=0.05)``. Each shard makes its own for its rows at the
            first update, and keeps its states. Later updates may change the options.
        timeout : float, optional
            The seconds after which the call raises, instead of those of the collection.

        Returns
        -------
        dict of str to ndarray, or None
            As `EmbeddingBagCollection.update`.

        Raises
        ------
        TypeError, ValueError, IndexError
            As in `EmbeddingBagCollection.update`; if the tables are not in memory (``"copy"``) or
            have copies. No table has changed.
        ShardError
            If a shard failed, or did not answer in time. Other shards may have changed their
            tables, so that `restore` is to be called. An update is never sent twice.
        RuntimeError
            If this is a pickled copy, or the collection is closed.

        Notes
        -----
        The bits are those of one machine, with two exceptions, both in a table that is cut: the
        gradients of several features are added in another order, and rows that are rounded
        stochastically are rounded by other random numbers.
        """
        with self._owned():
            if wrt not in ("weight", None):
                raise ValueError(f"wrt must be 'weight' or None, got {describe(wrt)}")
            layout = self._layout
            specs = self._as_optimizers(optimizers)
            given = values, offsets, per_sample_weights, include_last_offset
            parts = layout.shapes._parts(layout.shapes._state, grad_output, *given)
            steps = self._update(layout, parts, specs, wrt)
            return self._run(steps, self._limit(timeout))  # type: ignore[no-any-return]

    def _update(
        self, layout: Layout, parts: Any, specs: dict[str, OptimizerSpec], wrt: Any
    ) -> _Steps:
        dtypes = yield from self._prepare(layout, specs)
        update = Update(layout, parts, specs, dtypes, wrt)
        rows = yield from self._ask(layout, "lookup", update.rows_requests())
        requests = update.requests(rows)
        self._changed |= specs.keys()
        try:
            replies = yield from self._ask(layout, "update", requests)
        except ShardError as error:
            for shard in error.shards:  # said now: not once more at the next lookup
                self._known[shard] = min(self._known[shard], layout.version.n_updates[shard])
            message = f"{error}; other shards may have changed their tables: restore the last save"
            raise ShardError(message, error.shards) from error
        for shard in requests:
            self._known[shard] += 1
        return update.gradients_of_weights(replies) if wrt is None else None

    def _prepare(self, layout: Layout, specs: dict[str, OptimizerSpec]) -> _Steps:
        """Make the optimizers where they are missing; return the dtypes of gradients."""
        key = (
            layout.version.generation,
            {
                name: (spec.kind, {option: spec.options.get(option) for option in FIXED})
                for name, spec in specs.items()
            },
        )
        if self._prepared is None or self._prepared[0] != key:
            plan = layout.version.plan
            shards = {s for name in specs for block in plan.blocks[name] for s in block.shards}
            requests = {
                shard: PrepareRequest(layout.version.generation, 0, specs) for shard in shards
            }
            dtypes: dict[str, np.dtype[Any]] = {}
            for found in (yield from self._ask(layout, "prepare", requests)).values():
                dtypes |= found
            self._prepared = key, dtypes
        return self._prepared[1]

    def _as_optimizers(self, optimizers: Any) -> dict[str, OptimizerSpec]:
        """Return the class and all options of each optimizer, checked."""
        plan = self.plan
        if not isinstance(optimizers, Mapping):
            raise TypeError(f"optimizers must be a mapping, got {describe(optimizers)}")
        if self._memory != "copy":
            raise ValueError("memory must be 'copy' for updates, got 'map'")
        specs = {}
        for name, given in optimizers.items():
            if name not in plan.tables:
                raise ValueError(
                    f"optimizers must have names of tables as keys, got {describe(name)}"
                )
            if any(len(block.shards) > 1 for block in plan.blocks[name]):
                raise ValueError(f"table {name!r} must have no copies for updates, got some")
            with _arguments.prefix_errors(f"optimizers[{name!r}]"):
                specs[name] = _as_optimizer(given, plan.tables[name].dim)
        return specs

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save all tables that updates have changed, with the states of their optimizers.

        Parameters
        ----------
        folder : str or path-like
            A folder that exists, at the same path on all nodes, such as on a shared file system.

        Raises
        ------
        ShardError
            If a shard cannot save, was restarted without the latest updates, or has a block of a
            table of which only other blocks were updated. The folder still holds a whole save: this
            one or the one before.
        ValueError
            If the folder has an index, ``embag-sharded.json``, that `save` did not write.
        OSError
            If the folder cannot be written to.
        RuntimeError
            If this is a pickled copy, or the collection is closed.

        See Also
        --------
        restore : Load it again.

        Notes
        -----
        Each shard writes its blocks to files of its own, of `save_checkpoint`. An index is written
        last, so that the folder holds a whole save at any moment; then the files of the save before
        are deleted. A shard that is restarted later loads the tables of this save.
        """
        with self._owned():
            target = os.path.abspath(os.fspath(folder))
            version = self._layout.version
            number, before = 1, {}
            if os.path.exists(os.path.join(target, _INDEX)):
                old = _read_index(target)
                number, before = old.number + 1, old.blocks
            shards = range(len(version.plan.nodes))
            limit = TimeLimit(self._load_timeout)
            requests = dict.fromkeys(shards, SaveRequest(version.generation, 0, target, number))
            saved = self._run(self._ask(self._layout, "save", requests), limit)
            blocks = _saved_blocks(version.plan, {key for keys in saved.values() for key in keys})
            with replacement(os.path.join(target, _INDEX)) as file:
                found = {"format": _FORMAT, "number": number, "blocks": blocks}
                file.write(json.dumps(found, indent=1).encode())
            sources = {**version.sources, **dict.fromkeys(blocks, Saved(target, number))}
            n_updates = tuple(self._known)
            # A generation with the same tables, so that copies of the collection get the sources.
            self._change(version._replace(sources=sources, n_updates=n_updates), [])
            self._changed.clear()
            if before:
                with contextlib.suppress(ShardError):
                    self._run(_one_step("forget", shards, target, number - 1, before), limit)

    def restore(self, folder: str | os.PathLike[str]) -> None:
        """Load the tables and optimizers of a save, on all shards.

        Parameters
        ----------
        folder : str or path-like
            A folder of `save`, at the same path on all nodes. Its tables must be cut as those of
            this collection are.

        Raises
        ------
        ValueError
            If the folder has no save, or one of other tables or blocks.
        ShardError
            If a shard cannot load its files. Nothing has changed then.
        OSError
            If the folder cannot be read.
        RuntimeError
            If this is a pickled copy, or the collection is closed.

        Notes
        -----
        Tables that were not saved, since no update had changed them, are again as they were loaded.
        """
        with self._owned():
            target = os.path.abspath(os.fspath(folder))
            index = _read_index(target)
            version = self._layout.version
            for name, blocks in index.blocks.items():
                own = [[block.start, block.stop] for block in version.plan.blocks.get(name, ())]
                if blocks != own:
                    raise ValueError(
                        f"table {name!r} must be cut as in {target}, {blocks}, got {own or 'none'}"
                    )
            if self._memory != "copy":
                raise ValueError("memory must be 'copy' for a save, got 'map'")
            saved = dict.fromkeys(index.blocks, Saved(target, index.number))
            sources, n_updates = {**version.sources, **saved}, tuple(self._known)
            changed = [*{*saved, *self._changed}]
            self._change(version._replace(sources=sources, n_updates=n_updates), changed)
            self._changed.clear()

    def close(self) -> None:
        """End the shards. Later calls raise a RuntimeError; a second `close` does nothing.

        Raises
        ------
        RuntimeError
            If this is a pickled copy.
        """
        if self._actors is not None:
            self._check_owner()
            actors, self._actors = self._actors, None
            actors.stop()
            version = self._layout.version._replace(sources={})  # of the object store
            self._layout = self._layout._replace(version=version)

    def __enter__(self) -> ShardedCollection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _copy(
    version: Version,
    features: Sequence[Feature],
    invalid: Any,
    exact: bool,
    actors: Actors,
    memory: Any,
    timeout: float,
    load_timeout: float,
) -> ShardedCollection:
    """Return a collection of another process's shards."""
    copy = object.__new__(ShardedCollection)
    shapes = collection_of_shapes(version.plan.tables, features, invalid)
    copy._layout, copy._actors, copy._memory = Layout(version, shapes, exact), actors, memory
    copy._timeout, copy._load_timeout = timeout, load_timeout
    copy._set_up(is_owner=False)
    return copy


def _one_step(method: str, shards: Any, *arguments: Any) -> _Steps:
    """Call a method of all of these shards."""
    return (yield method, dict.fromkeys(shards, arguments))


def _as_seconds(value: Any, name: str) -> float:
    seconds = _arguments.as_number(value, name)
    if not 0 < seconds < np.inf:
        raise ValueError(f"{name} must be more than 0 and finite, got {seconds}")
    return seconds


# --- Tables and plans -----------------------------------------------------------


def _as_source(table: Any, name: str) -> Any:
    """Return a path from the root, or a table."""
    if isinstance(table, (str, os.PathLike)):
        path = os.fspath(table)
        if not isinstance(path, str):
            raise TypeError(f"{name} must be a path of type str, got {describe(table)}")
        return os.path.abspath(path)
    if type(table) is TableSpec:
        raise TypeError(f"{name} must be a path or a table, got a TableSpec")
    table = vectors.as_array(table, name, kept=True)
    spec_of(table, name)  # raises unless it is a table
    return table


def _store(table: Any, plan: Plan, name: str) -> Any:
    """Return where shards find a table: its path, or each block in the object store."""
    if isinstance(table, str):
        return table
    blocks = plan.blocks[name]
    if len(blocks) == 1:
        return (store(table),)
    return tuple(store(cut_block(table, block.start, block.stop, False)) for block in blocks)


def _spread(places: list[tuple[str, int]], n_shards: int | None) -> list[tuple[str, int]]:
    """Return the node and the bytes of each shard: in turn on the nodes."""
    if n_shards is None:
        return places
    n_shards = _arguments.as_count(n_shards, "n_shards")
    on = [shard % len(places) for shard in range(n_shards)]
    return [(places[i][0], places[i][1] // on.count(i)) for i in on]


def _check_plan(plan: Any, n_shards: Any, tables: dict[str, Any]) -> None:
    """Raise unless the plan is for these tables."""
    if type(plan) is not Plan:
        raise TypeError(f"plan must be a Plan, got {describe(plan)}")
    if n_shards is not None:
        raise ValueError(f"n_shards must be None with a plan, got {describe(n_shards)}")
    check_plan(plan)
    if plan.tables.keys() != tables.keys():
        raise ValueError(
            f"plan must be for the tables {', '.join(map(repr, tables)) or 'none'}, "
            f"got {', '.join(map(repr, plan.tables)) or 'none'}"
        )
    for name, table in tables.items():
        if isinstance(table, str) and not os.path.exists(table):
            continue  # on the nodes of its shards, which check it
        found = spec_of(table, f"tables[{name!r}]")
        if found != plan.tables[name]:
            raise ValueError(f"plan must be for tables[{name!r}], {found}, got {plan.tables[name]}")


def _check_fit(new: Plan, old: Plan, name: str) -> None:
    """Raise unless the blocks of a table fit beside those that they replace."""
    for shard, node in enumerate(old.nodes):
        more = sum(new.block_bytes(name, block) for n, _, block in new.held(shard) if n == name)
        used = old.load(shard).n_bytes
        if more and used + more > node.n_bytes:
            raise ValueError(
                f"table must fit beside the one that it replaces: shard {shard} on {node.name} "
                f"holds {used} bytes of {node.n_bytes}, got {more} more"
            )


# --- Optimizers and saves ---------------------------------------------------------


def _as_optimizer(given: Any, dim: int) -> OptimizerSpec:
    """Return the class of an optimizer and all its options, checked on a table without rows."""
    kind, options = given, {}
    if isinstance(given, functools.partial):
        kind, options = given.func, dict(given.keywords)
        if given.args:
            raise TypeError(f"optimizer must have options by name only, got {given.args!r}")
    if not isinstance(kind, type) or not issubclass(kind, Optimizer) or kind is Optimizer:
        raise TypeError(
            "optimizer must be a class of embag.optim, or a functools.partial of one, "
            f"got {describe(given)}"
        )
    if "frozen" in options:
        raise ValueError("frozen must be left out on shards, got some")
    rounding = {key: options[key] for key in ("stochastic_rounding", "seed") if key in options}
    others = {key: value for key, value in options.items() if key not in rounding}
    empty: Any = kind(np.zeros((0, dim), np.float32), **others)
    return OptimizerSpec(kind, empty._options() | rounding)


def _saved_blocks(plan: Plan, saved: set[tuple[str, int]]) -> dict[str, list[list[int]]]:
    """Return the ids of each block of the tables that were saved, all of whose blocks must be."""
    found = {}
    for name in sorted({name for name, _ in saved}):
        blocks = plan.blocks[name]
        missing = [
            s for i, block in enumerate(blocks) if (name, i) not in saved for s in block.shards
        ]
        if missing:
            raise ShardError(
                f"table {name!r} must be updated in all its blocks to be saved, got no update in "
                f"shards {', '.join(map(str, missing))}: call update or restore",
                missing,
            )
        found[name] = [[block.start, block.stop] for block in blocks]
    return found


class _Index(NamedTuple):
    """The index of a save."""

    number: int
    blocks: dict[str, list[list[int]]]  # of each table, the ids of each block


def _read_index(folder: str) -> _Index:
    path = os.path.join(folder, _INDEX)
    try:
        content = read_index(path)
    except FileNotFoundError:
        raise ValueError(f"folder must hold a save, got no {path}") from None
    with _arguments.prefix_errors(path):
        found = parse_object(content, "index of a save")
        check_format(found.pop("format", None), _FORMAT, "ShardedCollection.save")
        if found.keys() != set(_Index._fields):
            raise ValueError("index must be format, number and blocks, got others")
        index = _Index(**found)
        if type(index.number) is not int or not _are_blocks(index.blocks):
            raise ValueError("index must have a number and blocks of ids, got others")
    return index


def _are_blocks(found: Any) -> bool:
    """Return whether this is the blocks of tables in JSON."""
    return type(found) is dict and all(
        type(blocks) is list
        and all(type(block) is list and [*map(type, block)] == [int, int] for block in blocks)
        for blocks in found.values()
    )
