"""Group positions by row: find the positions of `input` that name each row.

The gradient of a row needs all positions that name it; so does whatever else works on
rows rather than positions (optimizers, deduplication, sharding). The work is done by a
radix sort in `_grouping.pxi`; nothing here costs time or memory in proportion to the
number of rows of the table.

Tested in tests/test_grouping.py.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embag import _threads
from embag._dispatch import kernels


class Groups(NamedTuple):
    """The positions that name each row, or their bags.

    Those of ``rows[i]`` are ``members[starts[i]:starts[i + 1]]``, in the order of
    positions. All three are contiguous int64.
    """

    rows: NDArray[np.int64]  # (n_groups,) ascending, each once
    starts: NDArray[np.int64]  # (n_groups + 1,)
    members: NDArray[np.int64]  # (n_positions,) less those of the padding row


def group_by_row(
    input: NDArray[Any],
    n_positions: int,
    n_rows: int,
    padding: int = -1,
    n_threads: int = 1,
    *,
    by_bag: bool = False,
    offsets: NDArray[Any] | None = None,
    include_last_offset: bool = False,
) -> Groups | None:
    """Group the first `n_positions` entries of an index array by the row that they name.

    Entries that name the row `padding` are left out. The members of a group are
    positions; or with `by_bag` the bags that these are in, which `offsets` or the shape
    of `input` tells. None if an entry is out of range. Takes 16 bytes for each position
    and 16 for each row that occurs, of which 8 and 16 remain in the result. The result
    does not depend on `n_threads`.
    """
    bags = offsets, include_last_offset, by_bag
    try:
        groups = _threads.run(
            kernels.group_by_row, n_threads, input, *bags, n_positions, n_rows, padding
        )
        return None if groups is None else Groups(*groups)
    except OverflowError:
        # Too large to sort as one integer: 2**40 rows and 2**24 positions. What occurs is
        # numbered first; the numbers are no more than the positions.
        used = input if input.ndim == 2 else input[:n_positions]
    occurring, numbers = np.unique(used, return_inverse=True)
    if kernels.first_bad_index(occurring, n_rows) >= 0:
        return None
    number_of_padding = -1
    if padding >= 0 and padding in occurring:
        number_of_padding = int(np.searchsorted(occurring, padding))
    groups = _threads.run(
        kernels.group_by_row,
        n_threads,
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
