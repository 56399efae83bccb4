"""`empty_bags`, the public part of ragged columns: _ragged.py and _containers.py read them.

Tested in tests/test_columns.py.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments, _containers, _ragged
from embag._dispatch import kernels


def empty_bags(
    input: Any,
    offsets: ArrayLike | None = None,
    *,
    lengths: ArrayLike | None = None,
    include_last_offset: bool = False,
) -> NDArray[np.bool_]:
    """Return which bags have nothing in them: `embedding_bag` gives zeros for these.

    Parameters
    ----------
    input : array_like of int, or a ragged column
        As for `embedding_bag`.
    offsets, lengths, include_last_offset : optional
        As for `embedding_bag`.

    Returns
    -------
    ndarray of bool, shape (n_bags,)
        True for a bag without entries: an empty list, a null one, one of nothing but
        nulls. Padding, and ids that are no rows, are entries.

    Raises
    ------
    TypeError, ValueError
        As `embedding_bag`.

    Examples
    --------
    >>> import embag
    >>> embag.empty_bags([[3, 1], [], [4]])
    array([False,  True, False])
    >>> embag.empty_bags([3, 1, 4], [0, 2, 2])
    array([False,  True, False])
    """
    indices = _containers.as_input(input, "input")
    if type(indices) is _ragged.Column:
        _containers.check_alone(offsets, lengths)
        return indices.empty()
    _arguments.check_flags(include_last_offset=include_last_offset)
    bounds = None
    if lengths is not None:
        bounds = _arguments.as_offsets(lengths, indices, offsets, include_last_offset)
        include_last_offset = True
    elif offsets is not None:
        bounds = _arguments.as_index_array(offsets, "offsets")
    n_bags = kernels.count_bags(indices, bounds, include_last_offset)
    if n_bags < 0:
        _arguments.raise_for_shapes(indices, bounds, include_last_offset)
    empty: NDArray[np.bool_] = _arguments.new_array(np.empty, (n_bags,), np.dtype(np.bool_))
    if bounds is None:
        empty[...] = indices.shape[1] == 0
    else:
        _arguments.check_offsets(bounds, indices.size, offsets)
        ends = bounds if include_last_offset else np.append(bounds, indices.size)
        empty[...] = np.diff(ends) == 0
    return empty
