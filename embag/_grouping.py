"""Group positions by row: find the positions of `input` that name each row.

The gradient of a row is a sum over these positions. A radix sort finds them
(`_kernels/grouping.pxi`). Time and memory do not grow with the number of rows of the table.

Tested in tests/gradients/.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
