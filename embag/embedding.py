"""`embedding` and `embedding_backward`: rows of a table, without bags.

A lookup without bags is one with a bag for each id: the maximum of one row is the row itself,
bit by bit. So these functions shape the arguments, and `embedding_bag` does the work.

Tested in tests/lookups/test_embedding.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from embag import _arguments, _encodings
from embag._columns import readers
from embag._columns.pieces import Column
from embag._kernels.dispatch import kernels
from embag._types import Invalid, Table
from embag.backward import embedding_bag_backward
from embag.functional import embedding_bag
from embag.sparse_rows import SparseRows


def embedding(
    input: ArrayLike,
    weight: Table,
    *,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    out: NDArray[Any] | None = None,
    out_dtype: DTypeLike | None = None,
    invalid: Invalid = "raise",
    num_threads: int | None = None,
) -> NDArray[Any]:
    """Gather rows of a table.

    Parameters
    ----------
    input : array_like of int
        The ids, of any shape: which rows to gather, each in ``0 .. n_rows - 1``. Contiguous int32
        and int64 arrays are read in place.
    weight : ndarray of float32, float64, float16 or bfloat16, or QuantizedTable
        The table, of shape (n_rows, dim). See `embedding_bag`.
    padding_idx : int, optional
        A row without a gradient; a negative number counts from the end. It is gathered like
        any other.
    max_norm : float, optional
        At least 0. Each row that occurs and has a larger norm is scaled once, in `weight` itself.
        Only for float32 and float64 tables.
    norm_type : float, optional
        The p of this p-norm: greater than 0, or ``inf``.
    out : ndarray, shape ``input.shape + (dim,)``, optional
        The array to write the result to: C-contiguous, of the dtype of the result, sharing no
        memory with any input.
    out_dtype : data-type, optional
        The dtype of the result: float32, float16 or bfloat16; for a float64 table float64.
    invalid : {"raise", "skip"} or int, optional
        What to do with ids out of range: raise an IndexError, give zeros, or gather this row.
    num_threads : int, optional
        The largest number of threads for this call, instead of `get_num_threads`.

    Returns
    -------
    ndarray, shape ``input.shape + (dim,)``
        The rows; `out` if it was given. The default dtype is float64 for a float64 table and
        float32 for any other.

    Raises
    ------
    TypeError
        If an argument has the wrong kind or dtype, or `input` is ragged.
    ValueError
        If a shape or an option is wrong.
    IndexError
        If an id is out of range. The message names the first.
    MemoryError
        If there is not enough memory.
    RuntimeError
        If another thread changes an array during the call, and embag notices it.

    See Also
    --------
    embedding_bag : Gather rows and reduce them per bag.
    embedding_backward : The gradient.

    References
    ----------
    The definition is that of ``torch.nn.functional.embedding``.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> table = np.array([[0, 1], [10, 11], [20, 21]], np.float32)
    >>> embag.embedding([[0, 2], [2, 1]], table)
    array([[[ 0.,  1.],
            [20., 21.]],
    <BLANKLINE>
           [[20., 21.],
            [10., 11.]]], dtype=float32)
    """
    ids = _as_ids(input)
    table = _encodings.as_table(weight)
    _arguments.as_row(padding_idx, "padding_idx", table.n_rows)
    shape = (*ids.shape, table.dim)
    target = None
    if out is not None:
        dtype = _encodings.as_out_dtype(out_dtype, table.sums_dtype)
        names, arrays = ("input", "input", "weight", "weight"), (input, ids, weight, table.rows)
        _arguments.check_out(out, shape, dtype, names, arrays)
        target = np.ndarray.view(out, np.ndarray).reshape(ids.size, table.dim)
    with _places_in(input, ids, table.n_rows):
        rows = embedding_bag(
            ids.reshape(-1, 1),
            weight,
            max_norm=max_norm,
            norm_type=norm_type,
            mode="max",
            out=target,
            out_dtype=out_dtype,
            invalid=invalid,
            num_threads=num_threads,
        )
    return rows.reshape(shape) if out is None else out


def embedding_backward(
    grad_output: ArrayLike,
    input: ArrayLike,
    weight: NDArray[Any],
    *,
    padding_idx: int | None = None,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    invalid: Invalid = "raise",
    num_threads: int | None = None,
) -> NDArray[Any] | SparseRows:
    """Return the gradient of the table, given the gradient of the output of `embedding`.

    Parameters
    ----------
    grad_output : array_like, shape ``input.shape + (dim,)``
        The gradient of the output, computed in the dtype of `weight`.
    input : array_like of int
        The ids of the lookup, of any shape.
    weight : ndarray of float32 or float64, shape (n_rows, dim)
        The table. Its values are not read.
    padding_idx : int, optional
        A row without a gradient; a negative number counts from the end.
    scale_grad_by_freq : bool, optional
        If True, divide the gradient of each row by the number of its occurrences.
    sparse : bool, optional
        If True, return `SparseRows`, which holds only the rows that occur.
    invalid : {"raise", "skip"} or int, optional
        What was done with ids out of range: see `embedding`.
    num_threads : int, optional
        The largest number of threads for this call, instead of `get_num_threads`.

    Returns
    -------
    ndarray or SparseRows, shape (n_rows, dim)
        The sum of the gradients of each row, in the order of positions.

    Raises
    ------
    TypeError, ValueError, IndexError, MemoryError, RuntimeError
        As in `embedding`.

    See Also
    --------
    embedding : The forward pass.
    SparseRows.add_to : Make a step of gradient descent.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> table = np.zeros((3, 2), np.float32)
    >>> embag.embedding_backward([[1, 2], [10, 20]], [2, 2], table)
    array([[ 0.,  0.],
           [ 0.,  0.],
           [11., 22.]], dtype=float32)
    """
    ids = _as_ids(input)
    _arguments.check_table(weight)
    n_rows, dim = weight.shape
    grad = np.asarray(grad_output)
    if grad.shape != (*ids.shape, dim):
        raise ValueError(f"grad_output must have shape {(*ids.shape, dim)}, got {grad.shape}")
    with _places_in(input, ids, n_rows):
        grads = embedding_bag_backward(
            grad.reshape(ids.size, dim),
            ids.reshape(-1, 1),
            weight,
            scale_grad_by_freq=scale_grad_by_freq,
            mode="sum",
            sparse=sparse,
            padding_idx=padding_idx,
            num_threads=num_threads,
            invalid=invalid,
        )
    result: NDArray[Any] | SparseRows = grads.weight
    return result


def _as_ids(input: Any) -> NDArray[Any]:
    """Return ids of any shape as the kernels read them."""
    try:
        return _arguments.as_indices(input, "input")
    except (TypeError, ValueError):
        if type(readers.as_input(input, "input")) is Column:
            raise TypeError(
                "input must be an array of integers, got a ragged input; "
                "flatten it, or use embedding_bag to reduce its lists"
            ) from None
        raise


@contextlib.contextmanager
def _places_in(given: Any, ids: NDArray[Any], n_rows: int) -> Iterator[None]:
    """Name the place of the first id out of range in the ids as given, in errors about it."""
    try:
        yield
    except IndexError:
        k = kernels.first_bad_index(ids, n_rows)
        if k < 0:
            raise
        place = tuple(int(i) for i in np.unravel_index(k, ids.shape))
        shown = f"[{', '.join(map(str, place))}]" if place else ""
        seen = _arguments.integer_at(given, place)
        _arguments.raise_out_of_range(f"input{shown}", seen, n_rows)
