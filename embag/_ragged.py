"""Ragged columns: what they are, and the pieces in which the kernels read them.

Whatever holds lists becomes a `Column` of chunks, without a copy where there is something to
point at: Arrow's lists (_arrow.pyx), scipy's CSR matrices, awkward arrays, torch's nested
tensors, TensorFlow's ragged tensors. None of these packages is imported here. Lists of lists
and arrays of arrays are copied into one chunk.

A chunk goes to the kernels as it is, one piece, if its lists lie end to end and its items are
int32 or int64. What is in the way (other integers, nulls, ListViews out of order) is
converted in blocks of some bags, so that memory stays bounded.

Tested in tests/test_columns.py.
"""

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embag import _arguments, _arrow
from embag._arguments import describe
from embag._dispatch import kernels

AnyArray: TypeAlias = NDArray[Any]

BLOCK_BAGS = 1 << 16
BLOCK_ITEMS = 1 << 20

_BAGS = (list, tuple, np.ndarray)  # what may be a list in a list

_FORMATS = {"b": "booleans", "u": "strings", "U": "strings", "vu": "strings", "+s": "structs"}


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
        if self.items_valid is not None or (self.sizes is not None and self.n > 0):
            return False
        if self.valid is None:
            return True
        # Lists that are null have no items, but there may be some behind them.
        nulls = np.flatnonzero(~self.valid.unpack(0, self.n))
        if self.offsets is None:
            return len(nulls) == 0
        return not (self.offsets[nulls] != self.offsets[nulls + 1]).any()

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
        return Chunk(self.n, items, offsets, sizes, self.list_size, valid, items_valid)


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
        starts, stops = self._ranges(start, chunk)
        whole = np.concatenate(([0], np.cumsum(stops - starts)))
        items, kept = _gather(chunk.items, chunk.items_valid, starts, whole)
        sample = None
        if factors is not None:
            sample = self._converted_weights(start, factors, whole, kept, dtype)
        offsets = whole
        if kept is not None:
            items = items[kept]
            offsets = np.concatenate(([0], np.cumsum(kept)))[whole]
        indices = _arguments.as_index_array(items, self.name)
        return Piece(start, chunk.n, indices, offsets, sample, kept, whole)

    def _converted_weights(
        self,
        start: int,
        factors: Chunk,
        whole: AnyArray,
        kept: AnyArray | None,
        dtype: np.dtype[Any] | None,
    ) -> AnyArray:
        starts, stops = self._ranges(start, factors)
        differ = stops - starts != np.diff(whole)
        if differ.any():
            b = int(differ.argmax())
            raise ValueError(
                f"per_sample_weights must have as many entries in each list as {self.name}, "
                f"got {stops[b] - starts[b]} in list {start + b}, which has "
                f"{whole[b + 1] - whole[b]} there"
            )
        sample, known = _gather(factors.items, factors.items_valid, starts, whole)
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
        with np.errstate(all="ignore"):  # numbers too large for the dtype become infinite
            return np.require(sample, dtype, ["C", "A"])

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
        raise IndexError(
            f"{self.name}[{piece.start + b}][{item}] = {seen} "
            f"is out of range for a table of {n_rows} rows"
        )

    def n_entries(self) -> AnyArray:
        """Return how many items each list has, nulls aside."""
        counts = np.zeros(self.n_bags, np.int64)
        start = 0
        for chunk in self.chunks:
            for first, last in self._blocks(start, chunk) if chunk.items.size else ():
                starts, stops = self._ranges(start + first, chunk.cut(first, last))
                whole = np.concatenate(([0], np.cumsum(stops - starts)))
                _, kept = _gather(chunk.items, chunk.items_valid, starts, whole)
                if kept is not None:
                    whole = np.concatenate(([0], np.cumsum(kept)))[whole]
                counts[start + first : start + last] = np.diff(whole)
            start += chunk.n
        return counts

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
    """Yield neighbouring pieces that have about so many items in all."""
    some: list[Piece] = []
    n = 0
    for piece in pieces:
        some.append(piece)
        n += piece.n_used
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
    elif not kernels.is_index_array(offsets):
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
    else:
        first, last, other = int(offsets[0]), int(offsets[-1]), int(factors.offsets[0])
        if first == other:
            same = factors.offsets is offsets or np.array_equal(offsets, factors.offsets)
            items, sample = items[: max(0, last)], sample[: max(0, last)]
        else:
            # The kernel has one place for an index and its weight.
            same = np.array_equal(offsets - first, factors.offsets - other)
            items, sample = items[first:last], sample[other : other + last - first]
            offsets = offsets - first
        if not same or len(items) != len(sample):
            return None
    if not (sample.flags.c_contiguous and sample.flags.aligned):
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


# --- What is ragged -----------------------------------------------------------


def as_input(value: Any, name: str) -> Any:  # Column | AnyArray
    """Return a ragged column as a `Column`, anything else as an array the kernels read."""
    column = as_column(value, name)
    if column is not None:
        if column.dtype.kind not in "iu":
            raise TypeError(f"{name} must be lists of integers, got lists of {column.dtype}")
        return column
    return _arguments.as_index_array(value, name)


def check_matrix(column: Column, n_rows: int) -> None:
    """Raise for a matrix that the table cannot be multiplied with."""
    if column.n_columns is not None and column.n_columns != n_rows:
        raise ValueError(
            f"{column.name} must have as many columns as the table has rows, {n_rows}, where it "
            f"is a matrix, got {column.n_columns}"
        )


def column_of(array: AnyArray, offsets: AnyArray | None, n_bags: int, name: str) -> Column:
    """Return an array, 2-D or with offsets of which the last ends the last bag, as a column."""
    list_size = array.shape[1] if offsets is None else 0
    return Column([Chunk(n_bags, array.reshape(-1), offsets, list_size=list_size)], name)


def check_alone(offsets: Any, lengths: Any) -> None:
    """Raise for what would tell the bags of a ragged column once more."""
    for name, seen in (("offsets", offsets), ("lengths", lengths)):
        if seen is not None:
            raise ValueError(f"{name} must be None where input is ragged, got {describe(seen)}")


def is_plain(array: Any) -> bool:
    """Return whether this is an array of numbers, or other things that are not ragged."""
    return type(array) is np.ndarray and array.dtype != object


def alike(indices: Any, weights: Any, mode: Any, name: str) -> tuple[Any, Any]:
    """Return ids and weights, both as columns if the weights are ragged, where they can be.

    Lists that happen to be of one length are an array to NumPy; their weights need not be.
    """
    if type(mode) is not str or mode != "sum":
        return indices, weights
    if type(indices) is Column or indices.ndim == 2:
        column = as_column(weights, "per_sample_weights")
        if column is not None:
            weights = column
            if type(indices) is not Column:
                indices = column_of(indices, None, len(indices), name)
    return indices, weights


def as_weights(value: Any, column: Column, mode: str, dtype: np.dtype[Any]) -> Column | None:
    """Return weights of a ragged column as one, checked but for the lengths of its lists.

    By themselves only a matrix has some: its data, for sums.
    """
    if value is None:
        if column.weights is None or mode != "sum":
            return None
        _arguments.check_castable(f"the data of {column.name}", column.weights.dtype, dtype)
        return column.weights
    name = "per_sample_weights"
    _arguments.check_weighted(mode, value)
    if column.weights is not None:
        raise ValueError(
            f"{name} must be None where {column.name} is a matrix, whose data are the weights, "
            f"got {describe(value)}"
        )
    weights = as_column(value, name, always=True)
    if weights is None:
        raise ValueError(
            f"{name} must be ragged where {column.name} is, with as many entries in each list, "
            f"got {describe(value)}"
        )
    _arguments.check_castable(name, weights.dtype, dtype)
    if weights.n_bags != column.n_bags:
        raise ValueError(
            f"{name} must have as many lists as {column.name}, which has {column.n_bags}, "
            f"got {weights.n_bags}"
        )
    return weights


def as_column(value: Any, name: str, always: bool = False) -> Column | None:
    """Return what is ragged as a `Column`; None for anything else.

    Rectangles of numbers, such as ``[[1, 2], [3, 4]]``, are ragged only if `always`.
    """
    kind = type(value)
    if kind is Column:
        column: Column = value
        return column
    if issubclass(kind, (np.ndarray, list, tuple)):
        return _of_sequences(value, name, always)
    read = _READERS.get(str(kind.__module__).partition(".")[0])
    chunks = None if read is None else read(value, name)
    if chunks is not None:
        return chunks
    if isinstance(getattr(value, "dtype", None), np.dtype):  # a Series of pandas, say
        return _of_sequences(np.asarray(value), name, always)
    if hasattr(kind, "__arrow_c_array__") or hasattr(kind, "__arrow_c_stream__"):
        return _of_arrow(value, name)
    return None


def _of_arrow(value: Any, name: str) -> Column | None:
    try:
        lists, items, read = _arrow.read_lists(value)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{name} must be a column, got {describe(value)}: {error}") from error
    if read is None:
        if lists == "+s":
            raise TypeError(f"{name} must be one column, got {describe(value)} of several")
        return None
    chunks = []
    for n, valid, offsets, sizes, list_size, found, items_valid in read:
        if found is None:
            seen = _FORMATS.get(items, f"Arrow's type {items!r}")
            raise TypeError(f"{name} must be lists of numbers, got lists of {seen}")
        lists_mask, items_mask = (bits and Mask(*bits) for bits in (valid, items_valid))
        if isinstance(found, int):  # that many nulls
            numbers = np.zeros(found, np.int32)
            items_mask = Mask.of(np.zeros(found, np.bool_))
        else:
            numbers = found
        chunks.append(Chunk(n, numbers, offsets, sizes, list_size, lists_mask, items_mask))
    return Column(chunks, name)


def _of_sequences(value: Any, name: str, always: bool) -> Column | None:
    """Read lists of lists, or an array of arrays: the one way that copies all."""
    array = value
    if not _arguments.is_array(value):
        first = next((entry for entry in value if entry is not None), None)
        if not isinstance(first, _BAGS) and (first is not None or not value):
            return None
        try:
            array = np.asarray(value)
        except ValueError:  # NumPy's word for ragged
            array = None
    array = None if array is None else np.ndarray.view(array, np.ndarray)
    if array is not None and array.dtype != object:
        if not (always and array.ndim == 2):
            return None
        n, list_size = array.shape
        return Column([Chunk(n, array.reshape(-1), list_size=list_size)], name)
    if array is not None and array.ndim == 1 and _arguments.is_array(value):
        bags: list[Any] = list(array)
        if bags and not any(bag is None or isinstance(bag, _BAGS) for bag in bags):
            return None
    elif array is None or array.ndim <= 2:
        bags = list(value)
    else:
        return None
    lengths = np.zeros(len(bags) + 1, np.int64)
    flat: list[Any] = []
    for b, bag in enumerate(bags):
        if bag is None or (isinstance(bag, float) and math.isnan(bag)):  # so pandas has a null
            continue
        if not isinstance(bag, _BAGS):
            raise TypeError(f"{name}[{b}] must be a list or an array, got {describe(bag)}")
        flat.append(bag)
        lengths[b + 1] = len(bag)
    return Column([_joined(flat, np.cumsum(lengths), name)], name)


def _joined(bags: list[Any], offsets: AnyArray, name: str) -> Chunk:
    """Return lists as one chunk; None in them is a null."""
    valid = None
    try:
        if all(is_plain(bag) for bag in bags):
            items = np.concatenate(bags) if bags else np.zeros(0, np.int64)
        else:
            # Integers of Python's own: NumPy takes a mixture of its types for floats.
            each = (bag.tolist() if type(bag) is np.ndarray else bag for bag in bags)
            flat = list(itertools.chain.from_iterable(each))
            if None in flat:
                valid = Mask.of(np.array([item is not None for item in flat]))
                flat = [0 if item is None else item for item in flat]
            items = np.array(flat) if flat else np.zeros(0, np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} must be lists of numbers, got others: {error}") from error
    if items.ndim != 1 or items.dtype.kind not in "iuf" or len(items) != offsets[-1]:
        seen = items.dtype if items.ndim == 1 else f"arrays of shape {items.shape[1:]}"
        raise TypeError(f"{name} must be lists of numbers, got lists of {seen}")
    return Chunk(len(offsets) - 1, items, offsets, items_valid=valid)


def _of_scipy(value: Any, name: str) -> Column | None:
    form = getattr(value, "format", None)
    if form is None:
        return None
    if form != "csr" or value.ndim != 2:
        raise TypeError(f"{name} must be a CSR matrix where it is sparse, got {form}: see tocsr()")
    n = value.shape[0]
    indices, offsets, data = map(np.asarray, (value.indices, value.indptr, value.data))
    column = Column([Chunk(n, indices, offsets)], name)
    column.weights = Column([Chunk(n, data, offsets)], name)
    column.n_columns = value.shape[1]
    return column


def _of_awkward(value: Any, name: str) -> Column | None:
    ak = sys.modules["awkward"]
    if not isinstance(value, ak.Array):
        return None
    if value.ndim != 2:
        raise TypeError(f"{name} must be lists of numbers, got awkward's type {value.type}")
    layout = value.layout
    if not (layout.is_list and layout.content.is_numpy):
        # Nulls, an index between lists and items, or no items at all: converted.
        flat = ak.flatten(value, axis=1)
        known = ~np.asarray(ak.is_none(flat))
        kept = np.asarray(ak.drop_none(flat))
        items = np.zeros(len(known), kept.dtype if len(kept) else np.int64)
        items[known] = kept
        counts = np.asarray(ak.fill_none(ak.num(value, axis=1), 0))
        offsets = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        return Column([Chunk(len(counts), items, offsets, items_valid=Mask.of(known))], name)
    items = np.asarray(layout.content.data)
    if layout.is_regular:
        return Column([Chunk(len(layout), items, list_size=layout.size)], name)
    starts, stops = np.asarray(layout.starts), np.asarray(layout.stops)
    if hasattr(layout, "offsets"):
        return Column([Chunk(len(starts), items, np.asarray(layout.offsets))], name)
    return Column([Chunk(len(starts), items, starts, stops - starts)], name)


def _of_torch(value: Any, name: str) -> Column | None:
    torch = sys.modules["torch"]
    if not (isinstance(value, torch.Tensor) and value.is_nested):
        return None
    if value.layout != torch.jagged or value.dim() != 2:
        raise TypeError(f"{name} must be nested with torch.jagged, and 2-D, got another layout")
    items, offsets = value.values().detach().numpy(), value.offsets().numpy()
    lengths = value.lengths()
    if lengths is None:
        return Column([Chunk(len(offsets) - 1, items, offsets)], name)
    return Column([Chunk(len(lengths), items, offsets[: len(lengths)], lengths.numpy())], name)


def _of_tensorflow(value: Any, name: str) -> Column | None:
    if not hasattr(value, "ragged_rank"):
        return None
    if value.ragged_rank != 1 or value.flat_values.shape.rank != 1:
        raise TypeError(f"{name} must be lists of numbers, got a ragged tensor of {value.shape}")
    offsets = value.row_splits.numpy()
    return Column([Chunk(len(offsets) - 1, value.flat_values.numpy(), offsets)], name)


# By the package that a type is of.
_READERS: dict[str, Callable[[Any, str], Column | None]] = {
    "scipy": _of_scipy,
    "awkward": _of_awkward,
    "torch": _of_torch,
    "tensorflow": _of_tensorflow,
}
