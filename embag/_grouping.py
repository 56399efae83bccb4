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

from embag._dispatch import kernels


class Groups(NamedTuple):
    """The positions that name each row.

    Those of ``rows[i]`` are ``positions[starts[i]:starts[i + 1]]``, ascending. All three
    are contiguous int64.
    """

    rows: NDArray[np.int64]  # (n_groups,) ascending, each once
    starts: NDArray[np.int64]  # (n_groups + 1,)
    positions: NDArray[np.int64]  # (n_positions,) less those of the padding row


def group_by_row(
    input: NDArray[Any], n_positions: int, n_rows: int, padding: int = -1, n_threads: int = 1
) -> Groups | None:
    """Group the first `n_positions` entries of an index array by the row that they name.

    Entries that name the row `padding` are left out. None if an entry is out of range.
    Takes 16 bytes for each position and 16 for each row that occurs, of which 8 and 16
    remain in the result. The result does not depend on `n_threads`.
    """
    row_bits = max(n_rows - 1 + (padding >= 0), 0).bit_length()
    position_bits = max(n_positions - 1, 0).bit_length()
    if row_bits + position_bits <= 64:
        groups = kernels.group_by_row(input, n_positions, n_rows, padding, n_threads)
        return None if groups is None else Groups(*groups)
    # Too large to sort as one integer: 2**40 rows and 2**24 positions. What occurs is
    # numbered first; the numbers are no more than the positions.
    used = input.reshape(-1)[:n_positions]
    occurring, numbers = np.unique(used, return_inverse=True)
    if kernels.first_bad_index(occurring, n_rows) >= 0:
        return None
    number_of_padding = -1
    if padding >= 0 and padding in occurring:
        number_of_padding = int(np.searchsorted(occurring, padding))
    groups = kernels.group_by_row(
        numbers, n_positions, len(occurring), number_of_padding, n_threads
    )
    return Groups(occurring.astype(np.int64)[groups[0]], *groups[1:])
