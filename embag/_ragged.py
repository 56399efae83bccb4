"""Ragged columns, and the pieces in which the kernels read them.

A `Column` is chunks of lists, pointed at where they lie (_containers.py makes them). A chunk
goes to the kernels as it is, one piece, if its lists lie end to end and its items are int32 or
int64. What is in the way (other integers, nulls, ListViews out of order) is converted in blocks
of some bags, so that memory stays bounded.

Tested in tests/test_columns.py.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embag import _arguments
from embag._dispatch import kernels

AnyArray: TypeAlias = NDArray[Any]

BLOCK_BAGS = 1 << 16
BLOCK_ITEMS = 1 << 20


class Mask(NamedTuple):
    """Which of some entries are valid: a bit each."""

    bits: AnyArray  # bytes, whose lowest bit comes first
    first: int  # the bit of the first entry

    @classmethod
    def of(cls, valid: AnyArray) -> "Mask":
        """Pack a bool for each entry."""
        return cls(np.packbits(valid, bitorder="little"), 0)

    def cut(self, start: int) -> "Mask":
        """Return the mask of the entries from `start` on."""
        return Mask(self.bits, self.first + start)

    def unpack(self, start: int, n: int) -> NDArray[np.bool_]:
        """Return n entries, from `start` on."""
        byte, bit = divmod(self.first + start, 8)
        some = np.unpackbits(self.bits[byte : byte + (bit + n + 7) // 8], bitorder="little")
        return some[bit : bit + n].view(np.bool_)


class Chunk(NamedTuple):
    """Lists of items in one piece of memory.

    List b is a range of `items`, told by one of

    offsets             from offsets[b] to offsets[b + 1]
    offsets, sizes      sizes[b] items from offsets[b] on
    list_size           list_size items from list_size * b on
    """

    n: int
    items: AnyArray
    offsets: AnyArray | None = None
    sizes: AnyArray | None = None
    list_size: int = 0
    valid: Mask | None = None  # a list that is not has no items
    items_valid: Mask | None = None
    all_null: bool = False  # all items are, whatever they hold

    def cut(self, start: int, stop: int) -> "Chunk":
        """Return some of the lists."""
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
        """Return where lists start and stop in `items`, in int64; not checked."""
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

    def lie_end_to_end(self) -> bool:
        """Return whether the kernels can read the lists where they are, but for the items' type."""
        if self.items_valid is not None or self.all_null:
            return False
        if self.sizes is not None and self.n > 0:
            return False
        if self.valid is None:
            return True
        # Lists that are null have no items, but there may be some behind them.
        for first in range(0, self.n, BLOCK_BAGS):
            nulls = ~self.valid.unpack(first, min(BLOCK_BAGS, self.n - first))
            if self.offsets is not None:
                some = self.offsets[first : first + len(nulls) + 1]
                nulls &= some[1:] != some[:-1]
            if nulls.any():
                return False
        return True

    def arrays(self) -> list[AnyArray]:
        """Return all its memory."""
        masks = [mask and mask.bits for mask in (self.valid, self.items_valid)]
        return [a for a in (self.items, self.offsets, self.sizes, *masks) if a is not None]

    def copy(self) -> "Chunk":
        """Return the lists in other memory."""
        valid, items_valid = (
            mask and mask._replace(bits=mask.bits.copy()) for mask in (self.valid, self.items_valid)
        )
        items, offsets, sizes = (
            None if array is None else array.copy()
            for array in (self.items, self.offsets, self.sizes)
        )
        assert items is not None
        return self._replace(
            items=items, offsets=offsets, sizes=sizes, valid=valid, items_valid=items_valid
        )


class Piece(NamedTuple):
    """What the kernels read at once: some bags of a column."""

    start: int  # the first bag
    n: int
    indices: AnyArray  # (n_indices,), or (n, list_size)
    offsets: AnyArray | None  # (n + 1,), of which the first may be any
    sample: AnyArray | None
    kept: AnyArray | None = None  # which items of the lists `indices` are, if not all
    given_offsets: AnyArray | None = None  # those of all items, then

    @property
    def arrays(self) -> tuple[AnyArray, AnyArray | None, AnyArray | None]:
        """What the kernels take: indices, offsets, weights."""
        return self.indices, self.offsets, self.sample

    @property
    def first(self) -> int:
        """Where the first bag starts in `indices`."""
        return 0 if self.offsets is None else int(self.offsets[0])

    @property
    def used(self) -> AnyArray:
        """The part of `indices` that is in bags, end to end."""
        if self.offsets is None:
            return self.indices.reshape(-1)
        return self.indices[self.first : int(self.offsets[-1])]

    @property
    def n_used(self) -> int:
        """How many these are; whatever the offsets hold."""
        return len(self.used)


class Column:
    """A ragged column."""

    def __init__(self, chunks: list[Chunk], name: str) -> None:
        self.name = name
        self.n_bags = sum(chunk.n for chunk in chunks)
        self.dtype = chunks[0].items.dtype if chunks else np.dtype(np.int64)
        self.chunks = [_simplest(chunk) for chunk in chunks if chunk.n > 0]
        # Of a CSR matrix: its data, and how many rows what it is multiplied with has.
        self.weights: Column | None = None
        self.n_columns: int | None = None

    def pieces(
        self, weights: "Column | None" = None, dtype: np.dtype[Any] | None = None
    ) -> Iterator[Piece]:
        """Yield the column as the kernels read it, with the weights in that dtype."""
        start = 0
        columns = [self] if weights is None else [self, weights]
        for chunk, *others in cut_alike(columns):
            factors = others[0] if others else None
            whole = _whole(start, chunk, factors, dtype)
            if whole is not None:
                yield whole
            else:
                for first, last in self._blocks(start, chunk):
                    some = None if factors is None else factors.cut(first, last)
                    yield self._converted(start + first, chunk.cut(first, last), some, dtype)
            start += chunk.n

    def piece(
        self, start: int, chunk: Chunk, factors: Chunk | None, dtype: np.dtype[Any] | None
    ) -> Piece:
        """Return a chunk of the column in one piece, converted if it must be."""
        whole = _whole(start, chunk, factors, dtype)
        return self._converted(start, chunk, factors, dtype) if whole is None else whole

    def _blocks(self, start: int, chunk: Chunk) -> Iterator[tuple[int, int]]:
        """Yield ranges of lists that have not many items, unless it is one list."""
        for first in range(0, chunk.n, BLOCK_BAGS):
            last = min(first + BLOCK_BAGS, chunk.n)
            starts, stops = self._ranges(start + first, chunk.cut(first, last))
            ends = np.cumsum(stops - starts)
            b, done = 0, 0
            while b < last - first:
                e = max(b + 1, int(np.searchsorted(ends, done + BLOCK_ITEMS, side="right")))
                yield first + b, first + e
                b, done = e, int(ends[e - 1])

    def _converted(
        self, start: int, chunk: Chunk, factors: Chunk | None, dtype: np.dtype[Any] | None
    ) -> Piece:
        """Return some lists as the kernels read them, in new arrays where it must be."""
        items, kept, whole, offsets = self._end_to_end(start, chunk)
        sample = None
        if factors is not None:
            starts = self._weight_starts(start, factors, whole)
            if chunk.all_null:
                sample = np.zeros(0, dtype)
            else:
                sample = self._converted_weights(start, factors, starts, whole, kept, dtype)
        if kept is not None:
            items = items[kept]
        indices = _arguments.as_index_array(items, self.name)
        return Piece(start, chunk.n, indices, offsets, sample, kept, whole)

    def _end_to_end(
        self, start: int, chunk: Chunk
    ) -> tuple[AnyArray, AnyArray | None, AnyArray, AnyArray]:
        """Return the items of lists, which of them are no nulls, and offsets with and without."""
        starts, stops = self._ranges(start, chunk)
        whole = np.concatenate(([0], np.cumsum(stops - starts)))
        if chunk.all_null:
            return chunk.items[:0], None, whole, np.zeros_like(whole)
        items, kept = _gather(chunk.items, chunk.items_valid, starts, whole)
        offsets = whole
        if kept is not None:
            offsets = np.concatenate(([0], np.cumsum(kept)))[whole]
        return items, kept, whole, offsets

    def _weight_starts(self, start: int, factors: Chunk, whole: AnyArray) -> AnyArray:
        """Return where lists of weights start: they have as many entries as those of ids."""
        starts, stops = self._ranges(start, factors)
        differ = stops - starts != np.diff(whole)
        if differ.any():
            b = int(differ.argmax())
            raise ValueError(
                f"per_sample_weights must have as many entries in each list as {self.name}, "
                f"got {stops[b] - starts[b]} in list {start + b}, which has "
                f"{whole[b + 1] - whole[b]} there"
            )
        return starts

    def _converted_weights(
        self,
        start: int,
        factors: Chunk,
        starts: AnyArray,
        whole: AnyArray,
        kept: AnyArray | None,
        dtype: np.dtype[Any] | None,
    ) -> AnyArray:
        sample, known = _gather(factors.items, factors.items_valid, starts, whole)
        if factors.all_null:
            known = np.zeros(len(sample), np.bool_)
        if known is not None:
            unknown = ~known if kept is None else kept & ~known
            if unknown.any():
                b = int(np.searchsorted(whole, unknown.argmax(), side="right")) - 1
                raise ValueError(
                    f"per_sample_weights must not be null where {self.name} is not, "
                    f"got a null in list {start + b}"
                )
        if kept is not None:
            sample = sample[kept]
        assert dtype is not None
        return _arguments.cast(sample, dtype)

    def _ranges(self, start: int, chunk: Chunk) -> tuple[AnyArray, AnyArray]:
        """Return where lists start and stop, checked; `start` is the first one's number."""
        starts, stops = chunk.ranges()
        bad = (starts < 0) | (starts > stops) | (stops > len(chunk.items))
        if bad.any():
            b = int(bad.argmax())
            raise ValueError(
                f"{self.name} must have lists that lie in its {len(chunk.items)} items, "
                f"got list {start + b} from {starts[b]} to {stops[b]}"
            )
        return starts, stops

    def check(self, n_rows: int, refuse: bool) -> None:
        """Raise for the first list that is nowhere, else for the first id that is no row."""
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
            k = kernels.first_bad_index(used, n_rows)
            if k >= 0:
                self._raise_for_index(piece, k, int(used[k]), n_rows)

    def _raise_for_index(self, piece: Piece, k: int, seen: int, n_rows: int) -> NoReturn:
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
        raise IndexError(
            f"{self.name}[{piece.start + b}][{item}] = {seen} "
            f"is out of range for a table of {n_rows} rows"
        )

    def _integer_at(self, b: int, item: int) -> int:
        """Return an item of a list as it was before its conversion."""
        for chunk in self.chunks:
            if b < chunk.n:
                break
            b -= chunk.n
        starts, _ = chunk.cut(b, b + 1).ranges()
        return int(chunk.cut(b, b + 1).items[starts[0] + item])

    def empty(self) -> NDArray[np.bool_]:
        """Return which lists have no items, nulls aside."""
        empty = np.ones(self.n_bags, np.bool_)
        start = 0
        for chunk in self.chunks:
            for first, last in self._blocks(start, chunk) if chunk.items.size else ():
                *_, offsets = self._end_to_end(start + first, chunk.cut(first, last))
                empty[start + first : start + last] = np.diff(offsets) == 0
            start += chunk.n
        return empty

    def arrays(self) -> list[AnyArray]:
        """Return all its memory."""
        return [array for chunk in self.chunks for array in chunk.arrays()]

    def apart_from(self, table: AnyArray) -> "Column":
        """Return the column apart from the memory of `table`, which will change."""
        chunks = [
            chunk.copy() if any(np.may_share_memory(a, table) for a in chunk.arrays()) else chunk
            for chunk in self.chunks
        ]
        return Column(chunks, self.name)


def together(pieces: Iterator[Piece], n_items: int) -> Iterator[list[Piece]]:
    """Yield neighbouring pieces that have about so many items and bags in all."""
    some: list[Piece] = []
    n = 0
    for piece in pieces:
        some.append(piece)
        n += piece.n_used + piece.n
        if n >= n_items:
            yield some
            some, n = [], 0
    if some:
        yield some


def _gather(
    items: AnyArray, valid: Mask | None, starts: AnyArray, bounds: AnyArray
) -> tuple[AnyArray, AnyArray | None]:
    """Return the items of lists end to end, and which of them are valid, if not all."""
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


def _simplest(chunk: Chunk) -> Chunk:
    """Return a chunk of empty lists as that: there may be more of them than can be counted."""
    if chunk.offsets is None and chunk.list_size == 0:
        return Chunk(chunk.n, np.zeros(0, np.int64))
    return chunk


def _whole(
    start: int, chunk: Chunk, factors: Chunk | None, dtype: np.dtype[Any] | None
) -> Piece | None:
    """Return lists where they lie, as one piece; None if something must be converted."""
    items, offsets = chunk.items, chunk.offsets
    if not (kernels.is_index_array(items) and chunk.lie_end_to_end()):
        return None
    if offsets is None:
        items = items.reshape(chunk.n, chunk.list_size)
    elif kernels.is_index_array(offsets):
        # A slice has the items of its whole: what lies behind the last list is no work.
        items = items[: max(0, int(offsets[-1]))]
    else:
        return None
    if factors is None:
        return Piece(start, chunk.n, items, offsets, None)
    sample = factors.items
    if not (sample.dtype == dtype and factors.lie_end_to_end()):
        return None
    if offsets is None or factors.offsets is None:
        if offsets is not factors.offsets or chunk.list_size != factors.list_size:
            return None
        sample = sample.reshape(items.shape)
    elif factors.offsets is offsets or np.array_equal(offsets, factors.offsets):
        # The kernel has one place for an index and its weight.
        sample = sample[: len(items)]
    else:
        return None
    if len(items) != len(sample) or not (sample.flags.c_contiguous and sample.flags.aligned):
        return None
    return Piece(start, chunk.n, items, offsets, sample)


def cut_alike(columns: list[Column]) -> Iterator[list[Chunk]]:
    """Yield chunks of columns with equally many bags, cut where any has a cut."""
    if all(len(column.chunks) == 1 for column in columns):
        yield [column.chunks[0] for column in columns]
        return
    ends = sorted({end for c in columns for end in np.cumsum([chunk.n for chunk in c.chunks])})
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
