"""`embedding` and `embedding_backward`: rows of a table, without bags.

The kernels copy or decode a row for each id (_kernels/gather.pxi). One compiled function does the
common lookup, and returns None for any other. The gradient is that of a lookup with a bag for
each id.

Tested in tests/lookups/test_embedding.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from embag import _arguments, _encodings
from embag._columns import readers, vectors
from embag._columns.pieces import Column
from embag._kernels.dispatch import kernels
from embag._process import threads
from embag._tensors import as_ndarray
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
    weight : ndarray, QuantizedTable or RemappedTable
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

    Notes
    -----
    The result has the bits of ``weight[input]``. Rows of low-precision tables are decoded to
    float32, unless `out_dtype` is the dtype of `weight`. A call that raises has not modified
    `weight` or `out`, unless it is the RuntimeError.

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
    rows = kernels.plain_gather(
        *(threads.runs_alone, threads.ENTRIES_PER_THREAD),
        *(input, weight, padding_idx, max_norm, norm_type, out, out_dtype, invalid, num_threads),
    )
    if rows is not None:
        return rows  # type: ignore[no-any-return]
    ids = as_ids(input)
    weight = vectors.as_array(weight, "weight")  # once
    table = _encodings.as_table(weight, kept=max_norm is not None)
    whose: Any = table.n_rows, "weight's", table.first_id
    _arguments.as_row(padding_idx, "padding_idx", *whose)
    _arguments.as_norm_type(norm_type)
    refuse, stand_in = _arguments.as_invalid(invalid, *whose)
    if num_threads is not None:
        num_threads = _arguments.as_count(num_threads, "num_threads")
    dtype = _encodings.as_out_dtype(out_dtype, table.sums_dtype)
    shape = (*ids.shape, table.dim)
    if out is None:
        result = _arguments.new_array(np.empty, shape, dtype)
    else:
        memory = [weight, *table.memory()]
        names = ["input", "input", *["weight"] * len(memory)]
        _arguments.check_out(out, shape, dtype, names, [input, ids, *memory])
        result = np.ndarray.view(out, np.ndarray)
    counter = None if refuse else np.zeros(1, np.int64)
    if out is not None or max_norm is not None or table.dim == 0:
        # Nothing may be written if an id is invalid; and rows without columns are not read.
        check_ids(input, ids, table, refuse=refuse, stand_in=stand_in)
    rounds = dtype != table.sums_dtype and (table.encoding.is_plain or table.has_scaled_ids)
    if max_norm is not None or rounds:
        # `embedding_bag` scales and rounds rows. The maximum of one row is the row itself.
        readable = weight
        if max_norm is None and _arguments.is_array(weight) and table.rows is not weight:
            readable = table.rows.view(weight.dtype)  # not copied again
        with _name_places(input, ids, table):
            embedding_bag(
                ids.reshape(-1, 1),
                readable,
                max_norm=max_norm,
                norm_type=norm_type,
                mode="max",
                out=result.reshape(ids.size, table.dim),
                out_dtype=out_dtype,
                invalid=invalid,
                num_threads=num_threads,
            )
    elif not gather(table, ids, result, counter, stand_in, num_threads):
        check_ids(input, ids, table, refuse=refuse, stand_in=stand_in)
        _arguments.raise_for_change()
    return result if out is None else out


def gather(
    table: _encodings.Table,
    ids: NDArray[Any],
    result: NDArray[Any],
    counter: NDArray[np.int64] | None,
    stand_in: int,
    num_threads: int | None,
    *,
    normalizes: bool = False,
) -> bool:
    """Write the row of each id to `result`; return False if an id is invalid.

    With a `counter`, ids out of range are valid, and their number is added to it. They give the
    row `stand_in`, or zeros if that is -1.
    """
    target, code = _encodings.as_result(result)
    team = threads.team_for(2 * ids.size * table.dim, num_threads)
    return threads.run(
        kernels.gather,
        team,
        *(table.rows, table.code, table.dim, ids, target, code, counter, stand_in, normalizes),
        *(table.mapping, table.scales),
    )


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
    ids = as_ids(input)
    weight = as_ndarray(weight, "weight")
    _arguments.check_table(weight)
    dim = weight.shape[1]
    grad = np.asarray(as_ndarray(grad_output, "grad_output"))
    if grad.shape != (*ids.shape, dim):
        raise ValueError(f"grad_output must have shape {(*ids.shape, dim)}, got {grad.shape}")
    with _name_places(input, ids, _encodings.shape_of(weight)):
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


def as_ids(input: Any, name: str = "input") -> NDArray[Any]:
    """Return ids of any shape as the kernels read them."""
    try:
        # NumPy reads Arrow columns through their library, which trusts their offsets.
        if hasattr(type(input), "__arrow_c_array__") or hasattr(type(input), "__arrow_c_stream__"):
            _refuse_ragged(input, name)
        return _arguments.as_indices(input, name)
    except (TypeError, ValueError):
        _refuse_ragged(input, name)
        raise


def _refuse_ragged(input: Any, name: str) -> None:
    if type(readers.as_input(input, name)) is Column:
        raise TypeError(
            f"{name} must be an array of integers, got a ragged input; "
            "flatten it, or use embedding_bag to reduce its lists"
        ) from None


def check_ids(
    given: Any,
    ids: NDArray[Any],
    table: _encodings.Table,
    name: str = "input",
    *,
    refuse: bool = True,
    stand_in: int = -1,
) -> None:
    """Raise for the first id out of range; the message has its position in the ids as given.

    Without `refuse`, ids out of range are valid. `stand_in` is the id that stands for them.
    """
    k = kernels.first_bad_index(ids, table.n_rows, table.first_id)
    if k >= 0 and refuse:
        place = tuple(int(i) for i in np.unravel_index(k, ids.shape))
        shown = f"[{', '.join(map(str, place))}]" if place else ""
        seen = _arguments.integer_at(given, place)
        _arguments.raise_out_of_range(f"{name}{shown}", seen, table.n_rows, first_id=table.first_id)
    table.check_map(ids)
    if stand_in >= 0:
        table.check_map(np.array([stand_in]))


@contextlib.contextmanager
def _name_places(given: Any, ids: NDArray[Any], table: _encodings.Table) -> Iterator[None]:
    """Report ids out of range by their positions in the ids as given."""
    try:
        yield
    except IndexError:
        check_ids(given, ids, table)
        raise
