"""Group positions by row or by segment, with a radix sort (`_kernels/grouping.pxi`).

`group_by_row` finds the positions of `input` that name each row: the gradient of a row is a sum
over them. Time and memory do not grow with the number of rows of the table.
`group_by_segment` finds the positions of each bag in long format.

Tested in tests/gradients/ and tests/lookups/test_segment_ids.py.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embag import _arguments
from embag._kernels.dispatch import kernels
from embag._process import threads


class Groups(NamedTuple):
    """The positions that name each row, or the bags of these positions.

    The members of ``rows[i]`` are ``members[starts[i]:starts[i + 1]]``, in the order of
    positions. All three arrays are contiguous int64.
    """

    rows: NDArray[np.int64]  # (n_groups,) ascending and unique
    starts: NDArray[np.int64]  # (n_groups + 1,)
    members: NDArray[np.int64]  # (n_positions - positions of the padding row,)


def group_by_row(
    input: NDArray[Any],
    n_positions: int,
    n_rows: int,
    padding: int = -1,
    team: threads.Team = threads.SERIAL,
    *,
    by_bag: bool = False,
    offsets: NDArray[Any] | None = None,
    include_last_offset: bool = False,
) -> Groups | None:
    """Group the first `n_positions` ids of an index array by the row that they name.

    Ids of the row `padding` are skipped. The members of a group are positions, or with `by_bag`
    the bags of these positions, given by `offsets` or the shape of `input`. Returns None if an
    id is out of range. The result does not depend on `team`.

    Uses 16 bytes for each position and 16 for each row that occurs; 8 and 16 of them are the
    result.
    """
    bags = offsets, include_last_offset, by_bag
    try:
        groups = threads.run(kernels.group_by_row, team, input, *bags, n_positions, n_rows, padding)
        return None if groups is None else Groups(*groups)
    except OverflowError:
        # Row and position do not fit one 64-bit key, as with 2**40 rows and 2**24 positions.
        # So the rows that occur are numbered first: there are at most as many as positions.
        used = input if input.ndim == 2 else input[:n_positions]
    occurring, numbers = np.unique(used, return_inverse=True)
    if kernels.first_bad_index(occurring, n_rows) >= 0:
        return None
    number_of_padding = -1
    if padding >= 0 and padding in occurring:
        number_of_padding = int(np.searchsorted(occurring, padding))
    groups = threads.run(
        kernels.group_by_row,
        team,
        numbers.reshape(used.shape),
        *bags,
        n_positions,
        len(occurring),
        number_of_padding,
    )
    if groups is None:
        return None
    numbers, starts, members = groups
    return Groups(occurring.astype(np.int64)[numbers], starts, members)


class Segments(NamedTuple):
    """The positions of each segment: ``order[offsets[s]:offsets[s + 1]]``, ascending."""

    order: NDArray[np.int64] | None  # (n_positions,); None: all positions, ascending
    offsets: NDArray[np.int64]  # (n_segments + 1,)


def group_by_segment(segment_ids: NDArray[Any], n_segments: int) -> Segments | None:
    """Group positions by segment.

    `segment_ids` is a 1-D index array. Returns None if an id is out of range. Another thread may
    change the array meanwhile: the offsets are valid nevertheless. It uses one thread: the sort
    takes a quarter of the time of a lookup, and several threads would often wait for each other.
    """
    ids = segment_ids
    order = None
    if (ids[1:] < ids[:-1]).any():
        groups = group_by_row(ids, len(ids), n_segments)
        if groups is None:
            return None
        order, starts, segments = groups.members, groups.starts, groups.rows
    else:
        first = np.flatnonzero(ids[1:] != ids[:-1]) + 1
        starts = np.concatenate([np.zeros(min(1, len(ids)), np.int64), first, [len(ids)]])
        segments = ids[starts[:-1]]
    # Empty segments begin where the next segment does.
    repeats = np.diff(segments, prepend=-1, append=n_segments)
    if (repeats < 1).any():
        return None
    offsets = _arguments.new_array(
        lambda *_: np.repeat(starts, repeats), (n_segments + 1,), np.dtype(np.int64)
    )
    return Segments(order, offsets)
