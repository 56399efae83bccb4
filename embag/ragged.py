"""`empty_bags`: which bags of an input have no ids.

`_columns/` reads ragged inputs. Tested in tests/columns/.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments
from embag._bags import as_array_bags
from embag._columns import readers
from embag._columns.pieces import Column
from embag._types import Ids


def empty_bags(
    input: Ids,
    offsets: ArrayLike | None = None,
    *,
    lengths: ArrayLike | None = None,
    include_last_offset: bool = False,
) -> NDArray[np.bool_]:
    """Return which bags are empty: `embedding_bag` returns zeros for them.

    Parameters
    ----------
    input : array_like of int, or a ragged input
        As in `embedding_bag`.
    offsets, lengths, include_last_offset : optional
        As in `embedding_bag`.

    Returns
    -------
    ndarray of bool, shape (n_bags,)
        True for a bag without ids: an empty list, a null list, a list of nulls. Padding and ids
        out of range count as ids.

    Raises
    ------
    TypeError, ValueError
        As in `embedding_bag`.

    See Also
    --------
    to_arrow : Make the results of these bags null, with `mask`.

    Examples
    --------
    >>> import embag
    >>> embag.empty_bags([[3, 1], [], [4]])
    array([False,  True, False])
    >>> embag.empty_bags([3, 1, 4], [0, 2, 2])
    array([False,  True, False])
    """
    ids = readers.as_input(input, "input")
    if type(ids) is Column:
        readers.check_no_offsets(offsets, lengths)
        return ids.empty()
    _arguments.check_flags(include_last_offset=include_last_offset)
    bags = as_array_bags(ids, offsets, lengths, include_last_offset)
    empty: NDArray[np.bool_] = _arguments.new_array(np.empty, (bags.n_bags,), np.dtype(np.bool_))
    bags.check_offsets()
    ends = bags.ends
    empty[...] = bags.indices.shape[1] == 0 if ends is None else np.diff(ends) == 0
    return empty
