"""The bags of a lookup: its ids, how they form bags, and their weights.

Bags come as arrays (`ArrayBags`) or as a ragged input (`_columns.pieces.Column`). Both yield
the pieces that the kernels read, find the first invalid offset or id, and list their memory, so
callers need not distinguish them.

Tested in tests/lookups/ and tests/columns/.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embag import _arguments
from embag._columns import readers
from embag._columns.pieces import Column, Piece
from embag._grouping import group_by_segment
from embag._kernels.dispatch import kernels
from embag._modes import Mode, check_weighted

AnyArray = NDArray[Any]


class IdsLabel(NamedTuple):
    """How messages name the ids of a lookup."""

    name: str
    possessive: str


INPUT = IdsLabel("input", "input's")
FEATURE_IDS = IdsLabel("ids", "the ids'")  # of a feature; may come as a pair (ids, offsets)
VALUES = IdsLabel("values", "values'")  # of all features, end to end


class ArrayBags(NamedTuple):
    """Bags of an array of ids, checked except for the values of ids and offsets."""

    indices: AnyArray
    offsets: AnyArray | None
    includes_last: bool  # the last offset is the end of the last bag
    n_bags: int
    # For messages: the label of the ids, the arrays before conversion, and where `indices`
    # starts in them.
    label: IdsLabel
    given: Any
    given_offsets: Any
    start: int = 0
    # With segment ids: these before conversion, and the position in `input` of each entry of
    # `indices`; None if both are in the same order.
    given_segments: Any = None
    order: NDArray[np.int64] | None = None

    def pieces(
        self, weights: AnyArray | None = None, dtype: np.dtype[Any] | None = None
    ) -> Iterator[Piece]:
        """Yield all bags as one piece."""
        yield Piece(
            0, self.n_bags, self.indices, self.offsets, weights, includes_last=self.includes_last
        )

    @property
    def bounds_kind(self) -> int:
        """The kernels' code for what the last offset means."""
        return int(self.includes_last)

    @property
    def used(self) -> AnyArray:
        """The ids that are in a bag."""
        if self.includes_last and self.offsets is not None:
            return self.indices[int(self.offsets[0]) : int(self.offsets[-1])]
        return self.indices

    def check(self, n_rows: int, refuse: bool, first_id: int = 0) -> None:
        """Raise for the first invalid offset, otherwise for the first id out of range.

        Ids are checked only with `refuse`. Messages quote the arrays before conversion.
        """
        self.check_offsets()
        if not refuse:
            return
        k = kernels.first_bad_index(self.used, n_rows, first_id)
        if k < 0:
            return
        if self.order is not None:
            k = self._first_bad_in_order(n_rows, first_id)
        place = tuple(int(i) for i in np.unravel_index(k, self.indices.shape))
        bag = place[0]
        if self.offsets is not None:
            bag = int(np.searchsorted(self.offsets, k, side="right")) - 1
            place = (place[0] + self.start if self.order is None else int(self.order[k]),)
        shown = ", ".join(map(str, place))
        seen = _arguments.integer_at(self.given, place)
        _arguments.raise_out_of_range(
            f"{self.label.name}[{shown}]", seen, n_rows, f"bag {bag}", first_id
        )

    def _first_bad_in_order(self, n_rows: int, first_id: int) -> int:
        """Return the entry of `indices` that is the first out-of-range id in `input`."""
        assert self.order is not None
        is_bad = (self.indices < first_id) | (self.indices >= first_id + n_rows)
        bad = np.flatnonzero(is_bad)
        return int(bad[self.order[bad].argmin()])

    def check_offsets(self) -> None:
        """Raise for the first invalid offset. Offsets made of segment ids are valid."""
        if self.given_segments is not None:
            return
        _arguments.check_offsets(
            self.offsets, self.indices.size, self.given_offsets, self.label.name
        )

    @property
    def ends(self) -> AnyArray | None:
        """The offsets with the end of the last bag; None for 2-D ids."""
        if self.offsets is None or self.includes_last:
            return self.offsets
        return np.append(self.offsets, self.indices.size)

    def memory(self) -> list[tuple[str, Any]]:
        """Return the arrays of the bags, before and after conversion, each with its role."""
        memory = [
            ("ids", self.given),
            ("ids", self.indices),
            ("offsets", self.given_offsets),
            ("offsets", self.offsets),
        ]
        if self.given_segments is not None:
            memory.append(("segment_ids", self.given_segments))
        return memory

    def detach_from(self, table: AnyArray) -> "ArrayBags":
        """Return the same bags in memory that the table does not share."""
        return self._replace(
            indices=copy_if_shared(self.indices, table),
            offsets=copy_if_shared(self.offsets, table),
        )

    def as_columns(self, weights: AnyArray | None) -> tuple[Column, Column | None]:
        """Return the same bags and their weights as ragged inputs."""
        self.check_offsets()
        bounds = self.ends
        column = readers.column_from_array(self.indices, bounds, self.n_bags, self.label.name)
        if weights is None:
            return column, None
        return column, readers.column_from_array(weights, bounds, self.n_bags, "per_sample_weights")


Bags: TypeAlias = ArrayBags | Column
Weights: TypeAlias = AnyArray | Column | None


def as_bags(
    input: Any,
    offsets: Any,
    lengths: Any,
    include_last_offset: bool,
    label: IdsLabel = INPUT,
    segment_ids: Any = None,
    n_bags: Any = None,
) -> Bags:
    """Return the bags of a lookup, checked except for the values of ids and offsets.

    For a feature, a column of integers without offsets has one id in each bag. Segment ids are
    checked and grouped.
    """
    by_segment = segment_ids is not None or n_bags is not None
    if by_segment:
        _arguments.check_segment_options(segment_ids, n_bags, offsets, lengths, include_last_offset)
    ids: Any = input
    if not kernels.is_index_array(input):
        flat = label is FEATURE_IDS and offsets is None
        ids = readers.as_input(input, label.name, flat)
    if type(ids) is Column:
        readers.check_no_offsets(offsets, lengths, segment_ids)
        return ids
    if by_segment:
        return as_segment_bags(ids, segment_ids, n_bags, input)
    return as_array_bags(ids, offsets, lengths, include_last_offset, label, input)


def as_array_bags(
    indices: AnyArray,
    offsets: Any,
    lengths: Any,
    include_last_offset: bool,
    label: IdsLabel = INPUT,
    given: Any = None,
) -> ArrayBags:
    """Return the bags of an index array; messages quote `given`, the ids before conversion."""
    bounds, includes_last = None, bool(include_last_offset)
    if lengths is not None:
        bounds = _arguments.as_offsets(lengths, indices, offsets, include_last_offset)
        includes_last = True
    elif offsets is not None:
        bounds = _arguments.as_indices(offsets, "offsets")
    elif indices.ndim == 1 and label is FEATURE_IDS:
        raise ValueError(
            f"ids must be 2-D or come with offsets, as a pair (ids, offsets), "
            f"got shape {indices.shape}"
        )
    n_bags = kernels.count_bags(indices, bounds, includes_last)
    if n_bags < 0:
        _arguments.raise_for_shapes(indices, bounds, includes_last, label.name)
    return ArrayBags(indices, bounds, includes_last, n_bags, label, given, offsets)


def as_segment_bags(indices: AnyArray, segment_ids: Any, n_bags: Any, given: Any) -> ArrayBags:
    """Return the bags of 1-D ids, given the bag of each; `given` as in `as_array_bags`."""
    if indices.ndim != 1:
        raise ValueError(f"input must be 1-D where segment_ids is given, got shape {indices.shape}")
    order, offsets, n_bags = as_segments(segment_ids, len(indices), n_bags)
    if order is not None:
        # Reordering ids of 4 bytes is several times as fast as ids of 8 bytes, if the former fit
        # in the last-level cache.
        narrow = indices.astype(np.int32)
        indices = (narrow if (narrow == indices).all() else indices)[order]
    return ArrayBags(
        indices,
        offsets,
        True,
        n_bags,
        INPUT,
        given,
        None,
        given_segments=segment_ids,
        order=order,
    )


def as_segments(
    segment_ids: Any,
    n: int,
    n_segments: Any,
    label: _arguments.SegmentsLabel = _arguments.BAGS,
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64], int]:
    """Return the order of `n` positions by segment, the segments' offsets, and their number."""
    ids, n_segments = _arguments.as_segment_ids(segment_ids, n, n_segments, label)
    segments = group_by_segment(ids, n_segments)
    if segments is None:
        _arguments.raise_for_segment(ids, segment_ids, n_segments, label)
    return segments.order, segments.offsets, n_segments


def add_weights(
    bags: Bags,
    per_sample_weights: Any,
    mode: Mode,
    n_rows: int,
    dtype: np.dtype[Any],
) -> tuple[Bags, Weights]:
    """Return bags and their weights in this dtype, checked except for the weights' values.

    2-D ids with ragged weights become a ragged input. A matrix has weights of its own, and must
    have `n_rows` columns, as many as the table has rows.
    """
    if type(bags) is ArrayBags:
        if per_sample_weights is None:
            return bags, None
        check_weighted(mode, per_sample_weights)
        factors = None
        if bags.offsets is None:
            factors = readers.as_ragged_weights(per_sample_weights)
        if factors is None:
            weights = _arguments.as_sample_weights(
                per_sample_weights, bags.indices, dtype, bags.label.possessive
            )
            return bags, weights if bags.order is None else weights[bags.order]
        per_sample_weights = factors
        bags = readers.column_from_array(bags.indices, None, bags.n_bags, bags.label.name)
    column: Any = bags
    readers.check_matrix(column, n_rows)
    return column, readers.as_weights(per_sample_weights, column, mode, dtype)


class Flattened(NamedTuple):
    """A ragged input as arrays, without its nulls."""

    bags: ArrayBags
    weights: AnyArray | None
    positions: NDArray[np.int64]  # of each weight among the entries that the lists hold
    shape: tuple[int, ...]  # of these entries


def flatten(column: Column, weights: Column | None, dtype: np.dtype[Any]) -> Flattened:
    """Return the bags of a ragged input as arrays, with the weights in `dtype`."""
    ids: list[AnyArray] = []
    samples: list[AnyArray] = []
    positions: list[AnyArray] = []
    n_entries = 0
    offsets = _arguments.new_array(np.zeros, (column.n_bags + 1,), np.dtype(np.int64))
    for piece in column.pieces(weights, dtype):
        used = piece.used
        ids.append(used)
        sizes = piece.indices.shape[-1] if piece.offsets is None else np.diff(piece.offsets)
        offsets[piece.start + 1 : piece.start + piece.n + 1] = sizes
        if piece.sample is not None:
            samples.append(piece.sample.reshape(-1)[piece.first : piece.first + len(used)])
            kept = np.arange(len(used)) if piece.kept is None else np.flatnonzero(piece.kept)
            positions.append(n_entries + kept)
        n_entries += len(used) if piece.given_offsets is None else int(piece.given_offsets[-1])
    np.cumsum(offsets, out=offsets)
    indices = _concatenate(ids)
    bags = ArrayBags(indices, offsets, True, column.n_bags, INPUT, indices, offsets)
    sample = None if weights is None else _concatenate(samples, dtype)
    shape = column.array_shape or (n_entries,)
    return Flattened(bags, sample, _concatenate(positions), shape)


def _concatenate(parts: list[AnyArray], dtype: Any = np.int64) -> AnyArray:
    """Return arrays end to end, in one of them if there is no other; of no arrays, none."""
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype), *parts])


def copy_if_shared(array: AnyArray | None, table: AnyArray) -> Any:
    """Return an array, copied if it may share memory with a table that will change."""
    if array is not None and np.may_share_memory(array, table):
        return array.copy()
    return array
