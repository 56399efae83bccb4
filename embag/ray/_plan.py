"""`plan`: which shard holds which rows. Nothing is loaded, and Ray is not needed.

Tables are placed one after the other, the largest first, each on the shard where it adds least to
the fullest of two: the bytes, and the rows read. A table that fits no shard is cut into blocks of
equally many rows.

Tested in tests/sharding/test_plan.py, test_any_plan.py and test_plans_made_by_hand.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from embag import _arguments, _encodings
from embag._arguments import describe
from embag._types import Table
from embag.remapped import RemappedTable
from embag.tables import open_table

# A table is cut at most into this many blocks for each shard: each lookup asks for each.
_MOST_BLOCKS = 8


class TableSpec(NamedTuple):
    """The size of a table.

    Parameters
    ----------
    n_rows : int
        The number of ids.
    dim : int
        The entries of a row.
    n_bytes : int
        The bytes of the table.
    first_id : int, optional
        The lowest id. Only a `RemappedTable` has another than 0.
    is_remapped : bool, optional
        If True, the table is a `RemappedTable`, which is not cut.

    Examples
    --------
    >>> import embag.ray
    >>> embag.ray.TableSpec(1_000_000_000, 64, n_bytes=1_000_000_000 * 72)  # 8 bits an entry
    TableSpec(n_rows=1000000000, dim=64, n_bytes=72000000000, first_id=0, is_remapped=False)
    """

    n_rows: int
    dim: int
    n_bytes: int
    first_id: int = 0
    is_remapped: bool = False


class Block(NamedTuple):
    """Some rows of a table, or all, and the shards that hold them."""

    start: int  # the first id
    stop: int
    shards: tuple[int, ...]


class Node(NamedTuple):
    """The node of a shard, and the bytes that the shard may hold."""

    name: str
    n_bytes: int


class Load(NamedTuple):
    """What a shard holds and answers."""

    n_bytes: int
    traffic: float  # the share of all rows read


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """Which shard holds which rows of which tables. `plan` makes it; printing it shows it.

    Attributes
    ----------
    nodes : tuple of Node
        Of each shard, the node and the bytes that it may hold.
    tables : mapping of str to TableSpec
        The sizes of the tables.
    blocks : mapping of str to tuple of Block
        The blocks of each table, in the order of ids. A table that is not cut has one.
    traffic : mapping of str to float
        The share of each table of all rows read.
    """

    nodes: tuple[Node, ...]
    tables: Mapping[str, TableSpec]
    blocks: Mapping[str, tuple[Block, ...]]
    traffic: Mapping[str, float]

    def held(self, shard: int) -> Iterator[tuple[str, int, Block]]:
        """Yield the blocks of a shard: the table's name, the number of the block, the block."""
        for name, blocks in self.blocks.items():
            for number, block in enumerate(blocks):
                if shard in block.shards:
                    yield name, number, block

    def block_bytes(self, name: str, block: Block) -> int:
        """Return the bytes of a block."""
        spec = self.tables[name]
        return _share(spec.n_bytes, block.stop - block.start, spec.n_rows)

    def replaced(self, name: str, spec: TableSpec) -> Plan:
        """Return the plan for another table, on the same shards, cut into as many blocks."""
        old = self.blocks[name]
        rows = zip(old, _cut(spec, len(old)), strict=True)
        blocks = tuple(
            Block(spec.first_id + start, spec.first_id + stop, block.shards)
            for block, (start, stop) in rows
        )
        return replace(
            self, tables={**self.tables, name: spec}, blocks={**self.blocks, name: blocks}
        )

    def load(self, shard: int) -> Load:
        """Return the bytes and the share of all rows read of a shard."""
        n_bytes, traffic = 0, 0.0
        for name, _, block in self.held(shard):
            n_rows = max(1, self.tables[name].n_rows)
            n_bytes += self.block_bytes(name, block)
            part = (block.stop - block.start) / n_rows if len(self.blocks[name]) > 1 else 1
            traffic += self.traffic[name] * part / len(block.shards)
        return Load(n_bytes, traffic)

    def __repr__(self) -> str:
        lines = [f"Plan: {len(self.tables)} tables on {len(self.nodes)} shards"]
        for shard, node in enumerate(self.nodes):
            n_bytes, traffic = self.load(shard)
            used = 100 * n_bytes / node.n_bytes if node.n_bytes else 0
            lines.append(
                f"shard {shard} on {node.name}: {_in_units(n_bytes)} of "
                f"{_in_units(node.n_bytes)} ({used:.0f} %), {100 * traffic:.1f} % of the rows read"
            )
            lines += [f"    {self._describe(*held)}" for held in self.held(shard)]
        return "\n".join(lines)

    def _describe(self, name: str, number: int, block: Block) -> str:
        n_blocks = len(self.blocks[name])
        place = f"{block.stop - block.start} rows"
        if n_blocks > 1:
            place = f"rows {block.start} to {block.stop - 1}, block {number + 1} of {n_blocks}"
        copies = f", one of {len(block.shards)} copies" if len(block.shards) > 1 else ""
        return f"{name}: {place}{copies}, {_in_units(self.block_bytes(name, block))}"


def plan(
    tables: Mapping[str, str | os.PathLike[str] | Table | TableSpec],
    nodes: Mapping[str, int] | Sequence[tuple[str, int]],
    traffic: Mapping[str, float] | None = None,
    *,
    copies: Mapping[str, int] | None = None,
) -> Plan:
    """Decide which shard holds which rows.

    Parameters
    ----------
    tables : mapping of str to path, table or TableSpec
        The tables, by name: files that this process can read, tables, or their sizes.
    nodes : mapping of str to int, or sequence of (str, int)
        The bytes of tables that each node may hold, by its name: an address or the id of a node
        of Ray, see `embag.ray.nodes`. Each entry is a shard, so a node that occurs twice has two.
    traffic : mapping of str to float, optional
        How many rows of each table are read, in any unit: of a request, or of a day. By default
        the same number of each.
    copies : mapping of str to int, optional
        On how many shards each row of a table is, 1 by default. A lookup asks one of them.

    Returns
    -------
    Plan
        The plan. Print it to see which shard holds what, its bytes and its share of the rows read.

    Raises
    ------
    TypeError
        If an argument has the wrong kind.
    ValueError
        If the tables do not fit, a name is unknown, or a file is not a table.
    OSError
        If a file cannot be read.

    See Also
    --------
    ShardedCollection : Loads the tables as planned.

    Notes
    -----
    Tables are placed one after the other, the largest first (of bytes or of traffic), each on the
    shard that is then least full, in bytes or in traffic, whichever is more. A table is cut into
    blocks of equally many rows only if it fits no shard as a whole. A `RemappedTable` is never cut.

    Examples
    --------
    >>> import numpy as np
    >>> import embag.ray
    >>> tables = {
    ...     "items": np.zeros((1000, 64), np.float32),
    ...     "users": np.zeros((300, 64), np.float32),
    ...     "cities": np.zeros((50, 64), np.float32),
    ... }
    >>> reads = {"items": 8, "users": 1, "cities": 1}
    >>> embag.ray.plan(tables, {"10.0.0.1": 250_000, "10.0.0.2": 250_000}, reads)
    Plan: 3 tables on 2 shards
    shard 0 on 10.0.0.1: 205 kB of 250 kB (82 %), 50.0 % of the rows read
        items: rows 0 to 499, block 1 of 2, 128 kB
        users: 300 rows, 76.8 kB
    shard 1 on 10.0.0.2: 141 kB of 250 kB (56 %), 50.0 % of the rows read
        items: rows 500 to 999, block 2 of 2, 128 kB
        cities: 50 rows, 12.8 kB
    """
    specs = _as_specs(tables)
    places = _as_nodes(nodes)
    n_copies = _as_numbers(copies, "copies", specs, 1)
    for name, n in n_copies.items():
        if not 1 <= _arguments.as_count(n, f"copies[{name!r}]") <= len(places):
            raise ValueError(
                f"copies[{name!r}] must be at most the number of shards, {len(places)}, got {n}"
            )
    shares = _as_shares(_as_numbers(traffic, "traffic", specs, 1.0))
    return _pack(specs, places, shares, n_copies)


def _pack(
    specs: dict[str, TableSpec],
    nodes: tuple[Node, ...],
    shares: dict[str, float],
    n_copies: dict[str, int],
) -> Plan:
    """Place all tables; cut those that do not fit."""
    n_bytes = sum(spec.n_bytes * n_copies[name] for name, spec in specs.items())
    capacity = sum(node.n_bytes for node in nodes)
    if n_bytes > capacity:
        raise ValueError(
            f"tables must fit: they take {_in_units(n_bytes)}, "
            f"got nodes with {_in_units(capacity)} in all"
        )
    n_blocks = dict.fromkeys(specs, 1)
    while True:
        placed = _place(specs, nodes, shares, n_copies, n_blocks)
        if not isinstance(placed, _TooLarge):
            return Plan(nodes, specs, placed, shares)
        name, free = placed
        spec = specs[name]
        most = 1 if spec.is_remapped else max(1, min(_MOST_BLOCKS * len(nodes), spec.n_rows))
        # Numbers that do not fit now never do: tables that are placed before it stay there.
        counts = range(n_blocks[name] + 1, most + 1)
        found = next((n for n in counts if _may_fit(spec, n, n_copies[name], free)), None)
        if found is None:
            cut = "and is not cut, since it is a RemappedTable" * spec.is_remapped
            raise ValueError(
                f"tables must fit: {name!r} takes {_in_units(spec.n_bytes)} "
                f"{cut or f'and may be cut into at most {most} blocks'}, "
                f"got nodes with {', '.join(_in_units(node.n_bytes) for node in nodes)}"
            )
        n_blocks[name] = found


class _TooLarge(NamedTuple):
    """A table that does not fit beside those that are placed before it."""

    name: str
    free: list[int]  # bytes of each shard


def _may_fit(spec: TableSpec, n_blocks: int, n_copies: int, free: list[int]) -> bool:
    """Return whether shards have room for the blocks of a table, without a shorter last one."""
    n_rows = block_rows(spec, n_blocks)
    n_bytes = _share(spec.n_bytes, n_rows, spec.n_rows)
    n_full = spec.n_rows // n_rows
    return sum(min(n_full, each // n_bytes) for each in free) >= n_full * n_copies


def _place(
    specs: dict[str, TableSpec],
    nodes: tuple[Node, ...],
    shares: dict[str, float],
    n_copies: dict[str, int],
    n_blocks: dict[str, int],
) -> dict[str, tuple[Block, ...]] | _TooLarge:
    """Return the blocks of all tables, or the first table that does not fit."""
    used, read = [0] * len(nodes), [0.0] * len(nodes)
    total = max(1, sum(spec.n_bytes for spec in specs.values()))

    def size(name: str) -> float:
        return max(specs[name].n_bytes / total, shares[name]) / n_blocks[name]

    placed: dict[str, tuple[Block, ...]] = {}
    for name in sorted(specs, key=size, reverse=True):
        spec, blocks = specs[name], []
        free = [node.n_bytes - used[s] for s, node in enumerate(nodes)]
        for start, stop in _cut(spec, n_blocks[name]):
            n_bytes = _share(spec.n_bytes, stop - start, spec.n_rows)
            rows_read = shares[name] / n_blocks[name] / n_copies[name]
            fits = [s for s, node in enumerate(nodes) if used[s] + n_bytes <= node.n_bytes]

            def fullness(
                s: int, n_bytes: int = n_bytes, rows_read: float = rows_read
            ) -> tuple[float, float]:
                in_bytes = (used[s] + n_bytes) / max(1, nodes[s].n_bytes)
                return max(in_bytes, (read[s] + rows_read) * len(nodes)), in_bytes

            chosen = sorted(fits, key=fullness)[: n_copies[name]]
            if len(chosen) < n_copies[name]:
                return _TooLarge(name, free)
            for s in chosen:
                used[s] += n_bytes
                read[s] += rows_read
            blocks.append(Block(spec.first_id + start, spec.first_id + stop, tuple(sorted(chosen))))
        placed[name] = tuple(blocks)
    return {name: placed[name] for name in specs}


def _cut(spec: TableSpec, n_blocks: int) -> Iterator[tuple[int, int]]:
    """Yield the rows of each block: equally many, but for the last."""
    n_rows = block_rows(spec, n_blocks)
    for i in range(n_blocks):
        yield min(i * n_rows, spec.n_rows), min((i + 1) * n_rows, spec.n_rows)


def block_rows(spec: TableSpec, n_blocks: int) -> int:
    """Return the rows of each block but the last: id ``i`` is in block ``i // block_rows``."""
    return max(1, -(-spec.n_rows // n_blocks))


def check_plan(plan: Plan) -> None:
    """Raise unless a plan, which may be made by hand, has every row on shards."""
    with _arguments.prefix_errors("plan"):
        n_shards = len(_as_nodes(plan.nodes))
        specs = _as_specs(plan.tables)
        for field in ("blocks", "traffic"):
            given = getattr(plan, field)
            if not isinstance(given, Mapping):
                raise TypeError(f"{field} must be a mapping, got {describe(given)}")
            if given.keys() != specs.keys():
                raise ValueError(
                    f"{field} must have the keys of tables, {', '.join(map(repr, specs))}, "
                    f"got {', '.join(map(repr, given)) or 'none'}"
                )
        for name, spec in specs.items():
            if type(plan.tables[name]) is not TableSpec:
                raise TypeError(
                    f"tables[{name!r}] must be a TableSpec, got {describe(plan.tables[name])}"
                )
            _check_blocks(plan.blocks[name], f"blocks[{name!r}]", spec, n_shards)


def _check_blocks(blocks: Any, name: str, spec: TableSpec, n_shards: int) -> None:
    if not isinstance(blocks, tuple):
        raise TypeError(f"{name} must be a tuple, got {describe(blocks)}")
    if not blocks:
        raise ValueError(f"{name} must be at least one block, got none")
    if spec.is_remapped and len(blocks) > 1:
        raise ValueError(
            f"{name} must be one block, since a RemappedTable is not cut, got {len(blocks)}"
        )
    # Lookups divide ids by the number of rows of a block.
    for i, (block, (start, stop)) in enumerate(zip(blocks, _cut(spec, len(blocks)), strict=True)):
        if not isinstance(block, Block):
            raise TypeError(f"{name}[{i}] must be a Block, got {describe(block)}")
        if block[:2] != (spec.first_id + start, spec.first_id + stop):
            raise ValueError(
                f"{name}[{i}] must have the ids {spec.first_id + start}:{spec.first_id + stop}, "
                f"since each block but the last has {block_rows(spec, len(blocks))} rows, "
                f"got {block.start}:{block.stop}"
            )
        known = [shard for shard in range(n_shards) if shard in block.shards]
        if not known or len(known) < len(block.shards):
            raise ValueError(
                f"{name}[{i}] must be on different shards from 0 to {n_shards - 1}, "
                f"got {block.shards}"
            )


def _share(n_bytes: int, n_rows: int, n_all: int) -> int:
    return n_bytes if n_rows == n_all else -(-n_bytes * n_rows // n_all)


def spec_of(table: Any, name: str) -> TableSpec:
    """Return the size of a table: of a file, of a table in memory, or as given."""
    if type(table) is TableSpec:
        return _check_spec(table, name)
    if isinstance(table, (str, os.PathLike)):
        return _spec_of_file(table)
    encoded = _encodings.as_table(table, name, kept=True)
    n_bytes = sum(array.nbytes for array in encoded.memory())
    return TableSpec(
        encoded.n_rows, encoded.dim, n_bytes, encoded.first_id, type(table) is RemappedTable
    )


def _spec_of_file(path: Any) -> TableSpec:
    """Return the size of the table in a file, whose rows are not read."""
    with open_table(path) as (_, place):
        n_rows, dim = place.shape
        if place.packing is not None:
            dim = place.packing.dim
        first_id, arrays = place.parts
        index_map = arrays.get("index_map")
        if index_map is not None:
            n_rows = len(index_map)
        n_bytes = place.n_bytes + sum(array.nbytes for array in arrays.values())
        return TableSpec(n_rows, dim, n_bytes, first_id or 0, first_id is not None)


def _check_spec(spec: TableSpec, name: str) -> TableSpec:
    for field in ("n_rows", "dim", "n_bytes", "first_id"):
        value = _arguments.as_integer(getattr(spec, field), f"{name}.{field}")
        if not 0 <= value < 2**62:
            raise ValueError(f"{name}.{field} must be at least 0 and less than 2**62, got {value}")
    _arguments.check_flags(is_remapped=spec.is_remapped)
    if spec.first_id and not spec.is_remapped:
        raise ValueError(f"{name}.first_id must be 0 unless is_remapped, got {spec.first_id}")
    n_rows, dim, n_bytes, first_id = map(int, spec[:4])
    return TableSpec(n_rows, dim, n_bytes, first_id, bool(spec.is_remapped))


def _as_specs(tables: Any) -> dict[str, TableSpec]:
    if not isinstance(tables, Mapping):
        raise TypeError(f"tables must be a mapping, got {describe(tables)}")
    for name in tables:
        if not isinstance(name, str):
            raise TypeError(f"tables must have keys of type str, got {describe(name)}")
    return {name: spec_of(table, f"tables[{name!r}]") for name, table in tables.items()}


def _as_nodes(nodes: Any) -> tuple[Node, ...]:
    pairs = list(nodes.items()) if isinstance(nodes, Mapping) else nodes
    if isinstance(pairs, (str, bytes)) or not isinstance(pairs, Sequence):
        raise TypeError(f"nodes must be a mapping or a sequence of pairs, got {describe(nodes)}")
    taken = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise TypeError(f"nodes[{i}] must be a pair (name, bytes), got {describe(pair)}")
        n_bytes = _arguments.as_integer(pair[1], f"the bytes of node {pair[0]!r}")
        if n_bytes < 0:
            raise ValueError(f"the bytes of node {pair[0]!r} must be at least 0, got {n_bytes}")
        taken.append(Node(pair[0], int(n_bytes)))
    if not taken:
        raise ValueError("nodes must be at least one, got none")
    return tuple(taken)


def _as_numbers(given: Any, argument: str, tables: Mapping[str, Any], default: Any) -> Any:
    """Return the number of each table; `default` where none is given."""
    if given is None:
        return dict.fromkeys(tables, default)
    if not isinstance(given, Mapping):
        raise TypeError(f"{argument} must be a mapping, got {describe(given)}")
    for name in given:
        if name not in tables:
            raise ValueError(f"{argument} must have names of tables as keys, got {describe(name)}")
    return {name: given.get(name, default) for name in tables}


def _as_shares(traffic: dict[str, Any]) -> dict[str, float]:
    """Return the share of each table of all rows read."""
    read = {}
    for name, value in traffic.items():
        read[name] = _arguments.as_number(value, f"traffic[{name!r}]")
        if not 0 <= read[name] < np.inf:
            raise ValueError(f"traffic[{name!r}] must be at least 0 and finite, got {value}")
    total = sum(read.values())
    return {name: value / total if total else 0.0 for name, value in read.items()}


def _in_units(n_bytes: int) -> str:
    """Return a number of bytes with three digits, in decimal units."""
    value, units = float(n_bytes), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"
