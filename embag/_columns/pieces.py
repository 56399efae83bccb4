"""Ragged inputs, and the pieces in which the kernels read them.

A `Column` is a sequence of chunks of lists, read in place (readers.py makes them). A chunk
becomes one piece without a copy if its lists are contiguous and its items are int32 or int64.
Other chunks (other integers, nulls, dictionaries, ListViews out of order) are converted in
blocks of bags, so that memory stays bounded.

Tested in tests/columns/.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embag import _arguments
from embag._kernels.dispatch import kernels

AnyArray: TypeAlias = NDArray[Any]

BLOCK_BAGS = 1 << 16
BLOCK_ITEMS = 1 << 20


class Mask(NamedTuple):
    """Which entries are valid: a bit for each."""

    bits: AnyArray  # bytes; the lowest bit comes first
    first: int  # the bit of the first entry
    also: "Mask | None" = None  # entries must be valid in this mask, too

    @classmethod
    def of(cls, valid: AnyArray) -> "Mask":
        """Pack a bool for each entry."""
        return cls(np.packbits(valid, bitorder="little"), 0)

    def cut(self, start: int) -> "Mask":
        """Return the mask of the entries from `start` on."""
        return Mask(self.bits, self.first + start, self.also and self.also.cut(start))

    def unpack(self, start: int, n: int) -> NDArray[np.bool_]:
        """Return n bools, from entry `start` on."""
        byte, bit = divmod(self.first + start, 8)
        unpacked = np.unpackbits(self.bits[byte : byte + (bit + n + 7) // 8], bitorder="little")
        valid = unpacked[bit : bit + n].view(np.bool_)
        return valid if self.also is None else valid & self.also.unpack(start, n)

    def arrays(self) -> list[AnyArray]:
        """Return all arrays of the mask."""
        return [self.bits, *(() if self.also is None else self.also.arrays())]

    def copy(self) -> "Mask":
        """Return the mask with arrays of its own."""
        return self._replace(bits=self.bits.copy(), also=self.also and self.also.copy())


class Dictionary(NamedTuple):
    """The values that codes stand for."""

    values: AnyArray
    valid: NDArray[np.bool_] | None  # which of them are not null; None if all are


class Chunk(NamedTuple):
    """Lists of items in one array.

    List b is a range of `items`, given by one of

    offsets             from offsets[b] to offsets[b + 1]
    offsets, sizes      sizes[b] items from offsets[b] on
    list_size           list_size items from list_size * b on
    """

    n: int
    items: AnyArray
    offsets: AnyArray | None = None
    sizes: AnyArray | None = None
    list_size: int = 0
    valid: Mask | None = None  # an invalid list has no items
    items_valid: Mask | None = None
    all_null: bool = False  # all items are null, whatever their values
    dictionary: Dictionary | None = None  # the items are codes, positions in it

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the items."""
        return (self.items if self.dictionary is None else self.dictionary.values).dtype

    def cut(self, start: int, stop: int) -> "Chunk":
        """Return the lists from `start` to `stop`."""
        cut = self._replace(n=stop - start, valid=self.valid and self.valid.cut(start))
        if self.offsets is None:
            first = start * self.list_size
            items = self.items[first : stop * self.list_size]
            return cut._replace(
                items=items, items_valid=self.items_valid and self.items_valid.cut(first)
            )
        if self.sizes is None:
            return cut._replace(offsets=self.offsets[start : stop + 1])
        return cut._replace(offsets=self.offsets[start:stop], sizes=self.sizes[start:stop])

    def ranges(self) -> tuple[AnyArray, AnyArray]:
        """Return where lists start and stop in `items`, as int64, unchecked."""
        if self.offsets is None:
            bounds = np.arange(self.n + 1, dtype=np.int64) * self.list_size
            starts, stops = bounds[:-1], bounds[1:]
        elif self.sizes is None:
            bounds = self.offsets.astype(np.int64)
            starts, stops = bounds[:-1], bounds[1:]
        else:
            starts = self.offsets.astype(np.int64)
            stops = starts + self.sizes
        if self.valid is not None:
            stops = np.where(self.valid.unpack(0, self.n), stops, starts)
        return starts, stops

    def is_contiguous(self) -> bool:
        """Return whether the lists follow one another in `items` and no item is null.

        The kernels can then read them in place, if the types of items and offsets allow it.
        """
        if self.items_valid is not None or self.all_null or self.dictionary is not None:
            return False
        if self.sizes is not None and self.n > 0:
            return False
        if self.valid is None:
            return True
        # Null lists count as empty, but their offsets may span items.
        for first in range(0, self.n, BLOCK_BAGS):
            nulls = ~self.valid.unpack(first, min(BLOCK_BAGS, self.n - first))
            if self.offsets is not None:
                bounds = self.offsets[first : first + len(nulls) + 1]
                nulls &= bounds[1:] != bounds[:-1]
            if nulls.any():
                return False
        return True

    def arrays(self) -> list[AnyArray]:
        """Return all arrays of the chunk."""
        arrays = [a for a in (self.items, self.offsets, self.sizes) if a is not None]
        for mask in (self.valid, self.items_valid):
            arrays += [] if mask is None else mask.arrays()
        return arrays if self.dictionary is None else [*arrays, self.dictionary.values]

    def copy(self) -> "Chunk":
        """Return the lists with arrays of their own."""
        valid, items_valid = (mask and mask.copy() for mask in (self.valid, self.items_valid))
        dictionary = self.dictionary
        if dictionary is not None:
            dictionary = dictionary._replace(values=dictionary.values.copy())
        items, offsets, sizes = (
            None if array is None else array.copy()
            for array in (self.items, self.offsets, self.sizes)
        )
        assert items is not None
        return self._replace(
            items=items,
            offsets=offsets,
            sizes=sizes,
            valid=valid,
            items_valid=items_valid,
            dictionary=dictionary,
        )


class Piece(NamedTuple):
    """The bags that a kernel reads at once."""

    start: int  # the first bag
    n: int
    indices: AnyArray  # (n_indices,), or (n, list_size)
    offsets: AnyArray | None  # (n + 1,); the first need not be 0
    sample: AnyArray | None  # the weights
    kept: AnyArray | None = None  # a bool for each item of the lists, unless all are in `indices`
    given_offsets: AnyArray | None = None  # the offsets of all items, where `kept` is given
    includes_last: bool = True  # otherwise n offsets, and the last bag runs to the end

    @property
    def arrays(self) -> tuple[AnyArray, AnyArray | None, AnyArray | None]:
        """The arguments of the kernels: indices, offsets, weights."""
        return self.indices, self.offsets, self.sample

    @property
    def first(self) -> int:
        """Where the first bag starts in `indices`."""
        return 0 if self.offsets is None or len(self.offsets) == 0 else int(self.offsets[0])

    @property
    def used(self) -> AnyArray:
        """The part of `indices` that is in bags, as a 1-D array."""
        if self.offsets is None:
            return self.indices.reshape(-1)
        stop = int(self.offsets[-1]) if self.includes_last else None
        return self.indices[self.first : stop]

    @property
    def n_used(self) -> int:
        """The number of ids in bags; offsets need not be valid."""
        return len(self.used)


class Column:
    """A ragged input: chunks of lists, a bag in each list."""

    def __init__(self, chunks: list[Chunk], name: str, is_flat: bool = False) -> None:
        self.name = name
        self.is_flat = is_flat  # plain numbers: each is a list
        self.n_bags = sum(chunk.n for chunk in chunks)
        self.dtype = chunks[0].dtype if chunks else np.dtype(np.int64)
        self.chunks = [_drop_empty_items(chunk) for chunk in chunks if chunk.n > 0]
        # The weights of a column that holds ids and weights, or the data of a CSR matrix.
        self.weights: Column | None = None
        self.n_columns: int | None = None  # of a CSR matrix
        self.array_shape: tuple[int, ...] | None = None  # of the 2-D array that this was

    def pieces(
        self, weights: "Column | None" = None, dtype: np.dtype[Any] | None = None
    ) -> Iterator[Piece]:
        """Yield the column as the kernels read it, with the weights in `dtype`."""
        start = 0
        columns = [self] if weights is None else [self, weights]
        for chunk, *others in zip_chunks(columns):
            factors = others[0] if others else None
            in_place = _read_in_place(start, chunk, factors, dtype)
            if in_place is not None:
                yield in_place
            else:
                for first, last in self._blocks(start, chunk):
                    block = chunk.cut(first, last)
                    block_factors = None if factors is None else factors.cut(first, last)
                    yield self._convert(start + first, block, block_factors, dtype)
            start += chunk.n

    def piece(
        self, start: int, chunk: Chunk, factors: Chunk | None, dtype: np.dtype[Any] | None
    ) -> Piece:
        """Return a chunk of the column as one piece, converted if necessary."""
        in_place = _read_in_place(start, chunk, factors, dtype)
        return self._convert(start, chunk, factors, dtype) if in_place is None else in_place

    def _blocks(self, start: int, chunk: Chunk) -> Iterator[tuple[int, int]]:
        """Yield ranges of at most BLOCK_BAGS lists and BLOCK_ITEMS items, or of one long list."""
        for first in range(0, chunk.n, BLOCK_BAGS):
            last = min(first + BLOCK_BAGS, chunk.n)
            starts, stops = self._ranges(start + first, chunk.cut(first, last))
            ends = np.cumsum(stops - starts)
            b, done = 0, 0
            while b < last - first:
                e = max(b + 1, int(np.searchsorted(ends, done + BLOCK_ITEMS, side="right")))
                yield first + b, first + e
                b, done = e, int(ends[e - 1])

    def _convert(
        self, start: int, chunk: Chunk, factors: Chunk | None, dtype: np.dtype[Any] | None
    ) -> Piece:
        """Return lists as the kernels read them, copied where necessary."""
        items, kept, given_offsets, offsets = self._concatenate_lists(start, chunk)
        sample = None
        if factors is not None:
            starts = self._weight_starts(start, factors, given_offsets)
            if chunk.all_null:
                sample = np.zeros(0, dtype)
            else:
                sample = self._convert_weights(start, factors, starts, given_offsets, kept, dtype)
        if kept is not None:
            items = items[kept]
        indices = _arguments.as_index_array(items, self.name)
        return Piece(start, chunk.n, indices, offsets, sample, kept, given_offsets)

    def _concatenate_lists(
        self, start: int, chunk: Chunk
    ) -> tuple[AnyArray, AnyArray | None, AnyArray, AnyArray]:
        """Return the items of lists end to end, and the offsets of lists among them.

        Returns (items, kept, given_offsets, offsets): `kept` says which items are not null,
        None if all are; `given_offsets` count all items, `offsets` those that are kept.
        """
        starts, stops = self._ranges(start, chunk)
        given_offsets = np.concatenate(([0], np.cumsum(stops - starts)))
        if chunk.all_null:
            return chunk.items[:0], None, given_offsets, np.zeros_like(given_offsets)
        items, kept = self._gather(self.name, start, chunk, starts, given_offsets)
        offsets = given_offsets
        if kept is not None:
            offsets = np.concatenate(([0], np.cumsum(kept)))[given_offsets]
        return items, kept, given_offsets, offsets

    def _gather(
        self, name: str, start: int, chunk: Chunk, starts: AnyArray, offsets: AnyArray
    ) -> tuple[AnyArray, AnyArray | None]:
        """Return the items of lists end to end, and which are not null; None if all are.

        Lists start at `starts` in the items of the chunk, and at `offsets` in the result.
        """
        items, kept = _gather_items(chunk.items, chunk.items_valid, starts, offsets)
        if chunk.dictionary is None:
            return items, kept
        values, valid = chunk.dictionary
        bad = (items < 0) | (items >= len(values))
        if kept is not None:
            bad &= kept
            items = np.where(kept, items, 0)  # the code of a null may be any number
        if bad.any():
            k = int(bad.argmax())
            b = int(np.searchsorted(offsets, k, side="right")) - 1
            raise ValueError(
                f"{name} must have codes of its dictionary of {len(values)} values, "
                f"got {items[k]} in list {start + b}"
            )
        if len(values) == 0:  # all codes are of nulls
            return np.zeros(len(items), values.dtype), kept
        if valid is not None:
            kept = valid[items] if kept is None else kept & valid[items]
        return values[items], kept

    @property
    def _weights_name(self) -> str:
        return "per_sample_weights" if self.weights is None else self.weights.name

    def _weight_starts(self, start: int, factors: Chunk, offsets: AnyArray) -> AnyArray:
        """Return where lists of weights start; raise unless they are as long as those of ids."""
        starts, stops = self._ranges(start, factors)
        differ = stops - starts != np.diff(offsets)
        if differ.any():
            b = int(differ.argmax())
            raise ValueError(
                f"{self._weights_name} must have as many entries in each list as {self.name}, "
                f"got {stops[b] - starts[b]} in list {start + b}, which has "
                f"{offsets[b + 1] - offsets[b]} there"
            )
        return starts

    def _convert_weights(
        self,
        start: int,
        factors: Chunk,
        starts: AnyArray,
        offsets: AnyArray,
        kept: AnyArray | None,
        dtype: np.dtype[Any] | None,
    ) -> AnyArray:
        """Return the weights of the kept ids; raise if one of these is null."""
        sample, known = self._gather(self._weights_name, start, factors, starts, offsets)
        if factors.all_null:
            known = np.zeros(len(sample), np.bool_)
        if known is not None:
            unknown = ~known if kept is None else kept & ~known
            if unknown.any():
                b = int(np.searchsorted(offsets, unknown.argmax(), side="right")) - 1
                raise ValueError(
                    f"{self._weights_name} must not be null where {self.name} is not, "
                    f"got a null in list {start + b}"
                )
        if kept is not None:
            sample = sample[kept]
        assert dtype is not None
        return _arguments.cast(sample, dtype)

    def _ranges(self, start: int, chunk: Chunk) -> tuple[AnyArray, AnyArray]:
        """Return where lists start and stop, checked; `start` is the number of the first list."""
        starts, stops = chunk.ranges()
        bad = (starts < 0) | (starts > stops) | (stops > len(chunk.items))
        if bad.any():
            b = int(bad.argmax())
            raise ValueError(
                f"{self.name} must have lists that lie in its {len(chunk.items)} items, "
                f"got list {start + b} from {starts[b]} to {stops[b]}"
            )
        return starts, stops

    def check(self, n_rows: int, refuse: bool, first_id: int = 0) -> None:
        """Raise for the first invalid list, otherwise for the first id out of range.

        Ids are checked only with `refuse`.
        """
        start = 0
        for chunk in self.chunks:
            if chunk.offsets is not None:
                for _ in self._blocks(start, chunk):
                    pass
            start += chunk.n
        if not refuse:
            return
        for piece in self.pieces():
            used = piece.used
            k = kernels.first_bad_index(used, n_rows, first_id)
            if k >= 0:
                self._raise_for_index(piece, k, int(used[k]), n_rows, first_id)

    def _raise_for_index(
        self, piece: Piece, k: int, seen: int, n_rows: int, first_id: int
    ) -> NoReturn:
        if self.dtype == np.uint64:
            seen %= 2**64
        if piece.offsets is None:
            b, item = divmod(k, piece.indices.shape[1])
        else:
            k += piece.first
            bounds: AnyArray = piece.offsets
            if piece.kept is not None and piece.given_offsets is not None:
                k, bounds = int(np.flatnonzero(piece.kept)[k]), piece.given_offsets
            b = int(np.searchsorted(bounds, k, side="right")) - 1
            item = k - int(bounds[b])
        if self.dtype == object:  # of integers beyond int64
            seen = self._integer_at(piece.start + b, item)
        place = f"{self.name}[{piece.start + b}][{item}]"
        _arguments.raise_out_of_range(place, seen, n_rows, first_id=first_id)

    def _integer_at(self, b: int, item: int) -> int:
        """Return an item of list b before its conversion."""
        for chunk in self.chunks:
            if b < chunk.n:
                break
            b -= chunk.n
        starts, _ = chunk.cut(b, b + 1).ranges()
        return int(chunk.cut(b, b + 1).items[starts[0] + item])

    def empty(self) -> NDArray[np.bool_]:
        """Return which lists have no items other than nulls."""
        empty = np.ones(self.n_bags, np.bool_)
        start = 0
        for chunk in self.chunks:
            for first, last in self._blocks(start, chunk) if chunk.items.size else ():
                *_, offsets = self._concatenate_lists(start + first, chunk.cut(first, last))
                empty[start + first : start + last] = np.diff(offsets) == 0
            start += chunk.n
        return empty

    def count_out_of_range(self, n_rows: int) -> NDArray[np.int64]:
        """Return how many ids of each list are out of range for a table."""
        counts = np.zeros(self.n_bags, np.int64)
        start = 0
        for chunk in self.chunks:
            for first, last in () if chunk.all_null else self._blocks(start, chunk):
                items, kept, offsets, _ = self._concatenate_lists(
                    start + first, chunk.cut(first, last)
                )
                bad = ((items < 0) | (items >= n_rows)).astype(np.bool_)
                if kept is not None:
                    bad &= kept
                sums = np.concatenate(([0], np.cumsum(bad)))
                counts[start + first : start + last] = np.diff(sums[offsets])
            start += chunk.n
        return counts

    def memory(self, role: str = "ids") -> list[tuple[str, AnyArray]]:
        """Return all arrays of the column, each with its role in the call."""
        return [(role, array) for chunk in self.chunks for array in chunk.arrays()]

    @property
    def bounds_kind(self) -> int:
        """The kernels' code for what the first and the last offset of a piece mean."""
        kind: int = kernels.PART
        return kind

    def detach_from(self, table: AnyArray) -> "Column":
        """Return the same column in memory that the table does not share."""
        chunks = [
            chunk.copy() if any(np.may_share_memory(a, table) for a in chunk.arrays()) else chunk
            for chunk in self.chunks
        ]
        column = Column(chunks, self.name, self.is_flat)
        column.weights = self.weights
        return column


def batch_pieces(pieces: Iterator[Piece], n_items: int) -> Iterator[list[Piece]]:
    """Yield batches of consecutive pieces with about `n_items` items and bags each."""
    batch: list[Piece] = []
    n = 0
    for piece in pieces:
        batch.append(piece)
        n += piece.n_used + piece.n
        if n >= n_items:
            yield batch
            batch, n = [], 0
    if batch:
        yield batch


def _gather_items(
    items: AnyArray, valid: Mask | None, starts: AnyArray, bounds: AnyArray
) -> tuple[AnyArray, AnyArray | None]:
    """Return the items of lists end to end, and which are valid; None if all are.

    Lists start at `starts` in `items`, and at `bounds` in the result.
    """
    lengths = np.diff(bounds)
    total = int(bounds[-1])
    full = np.flatnonzero(lengths)
    if len(full) == 0:
        return items[:0], None
    first = int(starts[full[0]])
    if (starts[full] - bounds[full] == first).all():
        kept = None if valid is None else valid.unpack(first, total)
        taken = items[first : first + total]
    else:
        positions = np.repeat(starts - bounds[:-1], lengths) + np.arange(total)
        taken = items[positions]
        kept = None
        if valid is not None:
            low = int(positions.min())
            kept = valid.unpack(low, int(positions.max()) + 1 - low)[positions - low]
    return taken, None if kept is None or kept.all() else kept


def _drop_empty_items(chunk: Chunk) -> Chunk:
    """Return lists of size 0 without items and masks; other chunks unchanged.

    There may be more such lists than could be processed one by one.
    """
    if chunk.offsets is None and chunk.list_size == 0:
        return Chunk(chunk.n, np.zeros(0, np.int64))
    return chunk


def _read_in_place(
    start: int, chunk: Chunk, factors: Chunk | None, dtype: np.dtype[Any] | None
) -> Piece | None:
    """Return lists as one piece without a copy; None if they must be converted."""
    items, offsets = chunk.items, chunk.offsets
    if not (kernels.is_index_array(items) and chunk.is_contiguous()):
        return None
    if offsets is None:
        items = items.reshape(chunk.n, chunk.list_size)
    elif kernels.is_index_array(offsets):
        # A slice of a column keeps all items of the column. Those behind the last list do not
        # count as work.
        items = items[: max(0, int(offsets[-1]))]
    else:
        return None
    if factors is None:
        return Piece(start, chunk.n, items, offsets, None)
    sample = factors.items
    if not (sample.dtype == dtype and factors.is_contiguous()):
        return None
    if offsets is None or factors.offsets is None:
        if offsets is not factors.offsets or chunk.list_size != factors.list_size:
            return None
        sample = sample.reshape(items.shape)
    elif factors.offsets is offsets or np.array_equal(offsets, factors.offsets):
        # The kernel reads an id and its weight at the same position.
        sample = sample[: len(items)]
    else:
        return None
    if len(items) != len(sample) or not (sample.flags.c_contiguous and sample.flags.aligned):
        return None
    return Piece(start, chunk.n, items, offsets, sample)


def zip_chunks(columns: list[Column]) -> Iterator[list[Chunk]]:
    """Yield the same bags of each column as a chunk; chunks are cut where any column is.

    All columns have the same number of bags.
    """
    if all(len(column.chunks) == 1 for column in columns):
        yield [column.chunks[0] for column in columns]
        return
    ends = sorted({end for c in columns for end in accumulate(chunk.n for chunk in c.chunks)})
    rest = [iter(column.chunks) for column in columns]
    at = [0] * len(columns)
    now: list[Any] = [None] * len(columns)
    start = 0
    for end in ends:
        parts = []
        for i in range(len(columns)):
            if now[i] is None or at[i] == now[i].n:
                now[i], at[i] = next(rest[i]), 0
            parts.append(now[i].cut(at[i], at[i] + end - start))
            at[i] += end - start
        yield parts
        start = end
