"""What a `ShardedCollection` and its shards send each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from numpy.typing import NDArray

from embag.optim import Optimizer
from embag.ray._plan import Plan

AnyArray: TypeAlias = NDArray[Any]

# How a shard answers for a block: rows reduced per bag, or the rows themselves.
Reduction: TypeAlias = Literal["sum", "max", "min", "rows"]


class Saved(NamedTuple):
    """A table that was trained and saved: each block in a file of `save_checkpoint`."""

    folder: str
    number: int  # of the save


class Version(NamedTuple):
    """What all shards have loaded, or are to load. Another `replace` makes another."""

    generation: int
    # By table: a path, saved blocks, or a reference to each block in Ray's object store.
    sources: Mapping[str, str | Saved | tuple[Any, ...]]
    plan: Plan
    n_updates: tuple[int, ...]  # of each shard, in the saved tables


class Pooled(NamedTuple):
    """Lookups in whole tables: features with bags, end to end."""

    names: tuple[str, ...]
    values: AnyArray
    offsets: AnyArray  # one more than there are bags of all features
    weights: AnyArray | None  # of the weighted features, end to end
    weighted: tuple[bool, ...]


class Piece(NamedTuple):
    """A lookup in a block of a table."""

    table: str
    block: int
    reduction: Reduction
    ids: AnyArray
    offsets: AnyArray | None  # None for "rows"
    weights: AnyArray | None


class Request(NamedTuple):
    """What a lookup asks a shard."""

    generation: int
    n_updates: int  # at least so many updates are to be in the tables
    pooled: Pooled | None
    unpooled: dict[str, AnyArray]  # ids of features without bags, in whole tables
    pieces: list[Piece]
    return_n_valid: bool
    num_threads: int | None


class Reply(NamedTuple):
    """The answer to a `Request`."""

    out: AnyArray | None  # (batch, columns of the features in order)
    n_valid: AnyArray | None
    unpooled: dict[str, AnyArray]
    pieces: list[Any]  # an array for each piece; a table for "rows"


class PieceUpdate(NamedTuple):
    """The gradients of bags of ids in a block of a table, to be added up."""

    table: str
    block: int
    grad: AnyArray  # (n_bags, dim)
    ids: AnyArray
    offsets: AnyArray
    weights: AnyArray | None


# The options that an optimizer cannot change, since its states or its bits depend on them.
FIXED = frozenset({"momentum", "stochastic_rounding", "seed"})


class OptimizerSpec(NamedTuple):
    """The class of an optimizer, and its options."""

    kind: type[Optimizer]
    options: dict[str, Any]


class PrepareRequest(NamedTuple):
    """The optimizers that a shard is to make. It returns the dtypes of gradients, by table."""

    generation: int
    n_updates: int
    optimizers: dict[str, OptimizerSpec]


class UpdateRequest(NamedTuple):
    """What an update asks a shard."""

    generation: int
    n_updates: int
    pooled: Pooled | None
    unpooled: dict[str, AnyArray]
    grad_output: AnyArray | None  # of the features of `pooled`
    unpooled_grads: dict[str, AnyArray]
    pieces: list[PieceUpdate]
    optimizers: dict[str, OptimizerSpec]  # of the tables that change
    wrt: Literal["weight"] | None


class SaveRequest(NamedTuple):
    """Where a shard is to save its blocks. It returns those that updates have changed."""

    generation: int
    n_updates: int
    folder: str
    number: int


class Missing(NamedTuple):
    """The shard has not loaded the generation that was asked for."""

    newest: Version | None  # that it is to use; None after a restart


class Lost(NamedTuple):
    """The shard was restarted, and has fewer updates than were made."""

    n_updates: int
