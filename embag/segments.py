"""`segment_reduce` and its gradient: reduce the rows of an array, each in a segment.

It is a lookup whose ids are the numbers of the rows, in the order of segments.

Tested in tests/lookups/test_segments.py.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from embag import _arguments, _bags, _call, _encodings, _modes
from embag._arguments import SegmentsLabel
from embag._bags import ArrayBags, IdsLabel
from embag._call import Call
from embag._tensors import as_ndarray
from embag._types import Mode, Table
from embag.backward import gradients_of_arrays

_SEGMENTS = SegmentsLabel("row of data", "n_segments")
_POSITIONS = IdsLabel("segment_ids", "segment_ids'")


class SegmentReduceGrads(NamedTuple):
    """The gradients of a `segment_reduce`; None for one that was not computed."""

    data: Any
    """The gradient of `data`, of its shape."""
    per_sample_weights: Any
    """The gradient of `per_sample_weights`, of their shape."""


def segment_reduce(
    data: Table,
    segment_ids: "ArrayLike",
    n_segments: int | None = None,
    mode: Mode = "sum",
    *,
    per_sample_weights: "ArrayLike | None" = None,
    out: NDArray[Any] | None = None,
    return_max_indices: bool = False,
    num_threads: int | None = None,
    out_dtype: "DTypeLike | None" = None,
) -> Any:
    """Reduce the rows of an array per segment.

    Parameters
    ----------
    data : ndarray or QuantizedTable
        The rows, of shape (n_rows, dim): an array of any dtype that `embedding_bag` accepts. It is
        read in place or copied as the table of `embedding_bag` is.
    segment_ids : array_like of int, shape (n_rows,)
        The segment of each row, in any order, each in ``0 .. n_segments - 1``.
    n_segments : int, optional
        The number of segments. By default it is the largest segment id plus 1, so empty segments
        at the end are not in the result.
    mode : {"sum", "mean", "sqrtn", "max", "min"}, optional
        How the rows of a segment are reduced, as in `embedding_bag`.
    per_sample_weights : array_like, shape (n_rows,), optional
        A factor for each row. Not with ``mode="max"`` and ``mode="min"``.
    out : ndarray, shape (n_segments, dim), optional
        The array to write the result to. It is C-contiguous, has the dtype of the result and
        shares no memory with any input.
    return_max_indices : bool, optional
        If True, also return the row that each maximum or minimum comes from. Only with
        ``mode="max"`` and ``mode="min"``.
    num_threads : int, optional
        The largest number of threads for this call, instead of `get_num_threads`.
    out_dtype : data-type, optional
        The dtype of the result: float32, float16 or bfloat16; for float64 rows float64.

    Returns
    -------
    ndarray, shape (n_segments, dim)
        The reduced segments; `out` if it was given. The default dtype is float64 for float64 rows
        and float32 for any other. A segment without rows is zeros.
    max_indices : ndarray of int64, shape (n_segments, dim)
        With `return_max_indices`: the row that each maximum comes from, -1 for empty segments.

    Raises
    ------
    TypeError
        If an argument has the wrong kind or dtype.
    ValueError
        If a shape, a segment id or an option is wrong. The message names the first segment id
        out of range.
    MemoryError
        If there is not enough memory.
    RuntimeError
        If another thread changes an array during the call, and embag notices it.

    See Also
    --------
    embedding_bag : Gather rows of a table by their ids and reduce them.
    segment_reduce_backward : The gradients.

    Notes
    -----
    A sum starts at 0 and adds rows in the order of positions, so the result of ``mode="sum"`` has
    the bits of ``numpy.add.at`` on zeros in the dtype of sums.

    In addition to its result, a call takes offsets and 8 bytes for each row; 16, if segment ids
    decrease anywhere.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> data = np.array([[0, 1], [10, 11], [20, 21], [30, 31]], np.float32)
    >>> embag.segment_reduce(data, [2, 0, 2, 0])
    array([[40., 42.],
           [ 0.,  0.],
           [20., 22.]], dtype=float32)
    >>> embag.segment_reduce(data, [0, 0, 1, 1], mode="mean", per_sample_weights=[1, 3, 1, 1])
    array([[ 7.5,  8.5],
           [25. , 26. ]], dtype=float32)
    """
    _arguments.check_flags(return_max_indices=return_max_indices)
    data = as_ndarray(data, "data")
    table = _encodings.as_table(data, "data")
    if table.mapping is not None:
        raise TypeError("data must be an array or a QuantizedTable, got a RemappedTable")
    call = _make(table, segment_ids, n_segments, mode, per_sample_weights, num_threads)
    _modes.check_options(call.mode, False, False, return_max_indices)
    dtype = _encodings.as_out_dtype(out_dtype, table.sums_dtype)
    result = _call.as_result(out, call, dtype, data, "data")
    winners = None
    if return_max_indices:
        winners = _arguments.new_array(np.empty, call.shape, np.dtype(np.int64))
    _call.run(call, _call.Outputs(result, winners))
    return result if winners is None else (result, winners)


def segment_reduce_backward(
    grad_output: "ArrayLike",
    data: NDArray[Any],
    segment_ids: "ArrayLike",
    n_segments: int | None = None,
    mode: Mode = "sum",
    *,
    per_sample_weights: "ArrayLike | None" = None,
    max_indices: "ArrayLike | None" = None,
    wrt: Literal["data", "per_sample_weights"] | None = None,
    num_threads: int | None = None,
) -> SegmentReduceGrads:
    """Return the gradients of `segment_reduce`, given the gradient of its output.

    Parameters
    ----------
    grad_output : array_like, shape (n_segments, dim)
        The gradient of the output, computed in the dtype of `data`.
    data : ndarray of float32 or float64, shape (n_rows, dim)
        The rows. Their values are read for the gradient of `per_sample_weights`, and with
        ``mode="max"`` and ``mode="min"`` if `max_indices` is not given.
    segment_ids : array_like of int, shape (n_rows,)
        The segment of each row.
    n_segments : int, optional
        The number of segments; by default the largest segment id plus 1.
    mode : {"sum", "mean", "sqrtn", "max", "min"}, optional
        How the rows of a segment were reduced.
    per_sample_weights : array_like, shape (n_rows,), optional
        The factor of each row. Not with ``mode="max"`` and ``mode="min"``.
    max_indices : array_like of int, shape (n_segments, dim), optional
        With ``mode="max"`` and ``mode="min"``: the rows that the entries came from, as
        ``segment_reduce(..., return_max_indices=True)`` returns them. By default they are
        computed again.
    wrt : {"data", "per_sample_weights"}, optional
        The only gradient to compute. By default both are computed.
    num_threads : int, optional
        The largest number of threads for this call, instead of `get_num_threads`.

    Returns
    -------
    data : ndarray, shape (n_rows, dim)
        The gradient of the rows, in their dtype. None if `wrt` is "per_sample_weights".
    per_sample_weights : ndarray of shape (n_rows,), or None
        The gradient of the weights, in the dtype of `data`. None if no weights are given or `wrt`
        is "data".

    Raises
    ------
    TypeError, ValueError, IndexError, MemoryError, RuntimeError
        As in `segment_reduce`. IndexError if an entry of `max_indices` is out of range.

    See Also
    --------
    segment_reduce : The forward pass.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> data = np.zeros((3, 2), np.float32)
    >>> embag.segment_reduce_backward([[1, 2], [10, 20]], data, [1, 0, 1]).data
    array([[10., 20.],
           [ 1.,  2.],
           [10., 20.]], dtype=float32)
    """
    data = as_ndarray(data, "data")
    _arguments.check_table(data, "data")
    table = _encodings.shape_of(data)
    call = _make(table, segment_ids, n_segments, mode, per_sample_weights, num_threads)
    weights: Any = call.weights
    _arguments.check_wrt(wrt, weights, "data")
    of: Any = "weight" if wrt == "data" else wrt
    grads = gradients_of_arrays(call, grad_output, data, max_indices, of)
    return SegmentReduceGrads(*grads)


def _make(
    table: _encodings.Table,
    segment_ids: Any,
    n_segments: Any,
    mode: Any,
    per_sample_weights: Any,
    num_threads: Any,
) -> Call:
    """Check the arguments, and return the lookup of all rows, in the order of segments."""
    known = _modes.as_mode(mode)
    if num_threads is not None:
        num_threads = _arguments.as_count(num_threads, "num_threads")
    order, offsets, n_segments = _bags.as_segments(segment_ids, table.n_rows, n_segments, _SEGMENTS)
    positions = np.arange(table.n_rows) if order is None else order
    bags, weights = _bags.add_weights(
        ArrayBags(
            positions,
            offsets,
            True,
            n_segments,
            _POSITIONS,
            given=None,
            given_offsets=None,
            given_segments=segment_ids,
            order=order,
        ),
        per_sample_weights,
        known,
        table.n_rows,
        table.sums_dtype,
    )
    return Call(
        table,
        bags,
        weights,
        known,
        num_threads=num_threads,
        given_weights=per_sample_weights,
    )
