"""`embedding_bag`: five steps from arguments to result.

check the arguments           `_arguments.py`; what is ragged: `_containers.py`
decide how to run             `_threads.py`
allocate the output           here: the only memory that grows with the call
run the kernel                `_core.pyx`, at the level that `_dispatch.py` chose
a bad index or offset?        `_arguments.py` looks for the first one and raises

Tested in tests/: by property, a file each.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from embag import _arguments, _containers, _encodings, _ragged, _threads
from embag._dispatch import kernels
from embag.quantized import QuantizedTable

Mode = Literal["sum", "mean", "max"]
Invalid = Literal["raise", "skip"]

# The checks of a call with these very objects can be left out: a microsecond is the
# budget of a call.
_EUCLIDEAN = 2.0
_SUM = "sum"
_RAISE = "raise"
_INT64 = np.dtype(np.int64)

# The names of what `out` must lie apart from: each as given and as converted.
_INPUTS = ("input",) * 2 + ("weight",) * 2 + ("offsets",) * 2 + ("per_sample_weights",) * 2


@overload
def embedding_bag(
    input: ArrayLike,
    weight: NDArray[Any] | QuantizedTable,
    offsets: ArrayLike | None = ...,
    max_norm: float | None = ...,
    norm_type: float = ...,
    scale_grad_by_freq: bool = ...,
    mode: Mode = ...,
    sparse: bool = ...,
    per_sample_weights: ArrayLike | None = ...,
    include_last_offset: bool = ...,
    padding_idx: int | None = ...,
    *,
    lengths: ArrayLike | None = ...,
    out: NDArray[Any] | None = ...,
    return_max_indices: Literal[False] = ...,
    num_threads: int | None = ...,
    out_dtype: DTypeLike | None = ...,
    invalid: Invalid = ...,
    return_n_invalid: Literal[False] = ...,
) -> NDArray[Any]: ...
@overload
def embedding_bag(
    input: ArrayLike,
    weight: NDArray[Any] | QuantizedTable,
    offsets: ArrayLike | None = ...,
    max_norm: float | None = ...,
    norm_type: float = ...,
    scale_grad_by_freq: bool = ...,
    mode: Mode = ...,
    sparse: bool = ...,
    per_sample_weights: ArrayLike | None = ...,
    include_last_offset: bool = ...,
    padding_idx: int | None = ...,
    *,
    lengths: ArrayLike | None = ...,
    out: NDArray[Any] | None = ...,
    return_max_indices: bool = ...,
    num_threads: int | None = ...,
    out_dtype: DTypeLike | None = ...,
    invalid: Invalid = ...,
    return_n_invalid: bool = ...,
) -> Any: ...
def embedding_bag(
    input: ArrayLike,
    weight: NDArray[Any] | QuantizedTable,
    offsets: ArrayLike | None = None,
    max_norm: float | None = None,
    norm_type: float = _EUCLIDEAN,
    scale_grad_by_freq: bool = False,
    mode: Mode = "mean",
    sparse: bool = False,
    per_sample_weights: ArrayLike | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    *,
    lengths: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    return_max_indices: bool = False,
    num_threads: int | None = None,
    out_dtype: DTypeLike | None = None,
    invalid: Invalid = "raise",
    return_n_invalid: bool = False,
) -> Any:
    """Gather rows of a table and reduce them per bag.

    Parameters
    ----------
    input : array_like of int, shape (n_indices,) or (n_bags, bag_size), or a ragged column
        The rows to gather, each in ``0 .. n_rows - 1``. 1-D with `offsets` or `lengths`; 2-D
        has a bag in each row. Contiguous int32 and int64 arrays are read in place, others are
        converted. A ragged column has a bag in each list: an Arrow column of lists of any
        library, a CSR matrix of scipy, an awkward array, a nested tensor of torch, a ragged
        one of TensorFlow, a sequence of lists, arrays, series or tensors.
    weight : ndarray of float32, float64, float16 or bfloat16, or QuantizedTable
        The table, of shape (n_rows, dim). Read in place where the entries of a row are
        adjacent, whatever the distance between rows; memory maps and read-only arrays
        will do. Any other layout (Fortran order, misaligned) is copied at each call.
        bfloat16 is the dtype of the package ``ml_dtypes``.
    offsets : array_like of int, shape (n_bags,) or (n_bags + 1,), optional
        Where each bag starts in `input`: 0 first, never decreasing. The last bag runs to
        the end of `input`.
    max_norm : float, optional
        At least 0. Rows that occur in a bag and whose norm exceeds it are scaled by
        ``max_norm / (norm + 1e-7)`` in `weight` itself, each once, before the reduction.
        For float32 and float64 only.
    norm_type : float, optional
        The p of that norm: greater than 0, or ``inf``.
    scale_grad_by_freq, sparse : bool, optional
        For the gradient. They change nothing here, but must not come with
        ``mode="max"``.
    mode : {"mean", "sum", "max"}, optional
        The reduction.
    per_sample_weights : array_like, shape of `input`, optional
        Factors for the rows, with ``mode="sum"`` only; computed in the dtype of
        sums. Ragged as `input`, where that is. A CSR matrix has its own: its data.
    include_last_offset : bool, optional
        `offsets` has one entry more: where the last bag ends. What follows in `input`
        is in no bag and not read.
    padding_idx : int, optional
        A row, which may be counted from the end. Entries of `input` equal to it are
        left out, also of the mean's divisor.
    lengths : array_like of int, shape (n_bags,), optional
        How many entries of `input` each bag has, in the place of `offsets`: all together.
    out : ndarray, shape (n_bags, dim), optional
        Where to put the result: C-contiguous, of the result's dtype, apart from all
        inputs.
    return_max_indices : bool, optional
        With ``mode="max"``, also return the rows that the maxima are from.
    num_threads : int, optional
        The most threads for this call, in the place of `get_num_threads`; not shared with
        calls at the same time, as that is.
    out_dtype : data-type, optional
        The result's dtype: float32, float16 or bfloat16, to which sums in float32 are
        rounded (to nearest, ties to even). float64 for a float64 table.
    invalid : {"raise", "skip"}, optional
        What is done about entries of `input` that are no rows of the table. "raise":
        IndexError. "skip": they are left out, as padding is; `input` is not written to.
    return_n_invalid : bool, optional
        Also return how many were left out.

    Returns
    -------
    ndarray, shape (n_bags, dim)
        The reduced bags; `out` if it was given. By default float64 for a float64 table
        and float32 for all others. Zeros for a bag that is empty or holds nothing but
        padding and entries left out.
    max_indices : ndarray of int64, shape (n_bags, dim)
        With `return_max_indices`: the winning row for each entry, -1 for empty bags.
    n_invalid : int
        With `return_n_invalid`: how many entries that are in a bag were left out because
        they are no rows; 0 with ``invalid="raise"``.

    Raises
    ------
    TypeError
        For an argument of the wrong kind or dtype.
    ValueError
        For a wrong shape, offset or option, or arguments that do not go together.
    IndexError
        For an index out of range, with ``invalid="raise"``: the message names the first.
    MemoryError
        If there is no memory for the output.
    RuntimeError
        If an array is changed during the call by other code, and embag noticed.

    See Also
    --------
    aligned_copy : tables in memory that is faster to gather from.
    quantize : tables of 8, 4 or 2 bits an entry.
    empty_bags : which bags have nothing in them.
    to_arrow : the result as an Arrow column.
    set_num_threads, num_threads : the limit of the process, and of a block.

    Notes
    -----
    Sums start at 0 and add in the order of positions, in float64 for a float64 table and
    in float32 for all others. Of a `QuantizedTable`, ``scale * q`` is added by a fused
    multiply-add, and the sum of the biases after every 32 positions of a bag and at its
    end. A mean is the sum divided by the number of entries. A weighted row is multiplied, then
    added. A maximum keeps the first of equal values; a NaN in a bag gives NaN. The
    result has the same bits (a NaN's sign and payload aside) for any number of threads and at
    any instruction-set level.

    A call that raises has not touched `weight` or `out`, unless it is the RuntimeError for
    arrays that another thread changed. The memory that a call takes is its result, and
    the copies of arguments that cannot be read in place: of a ragged column's in blocks of
    about a million ids. `max_norm` also takes a sorted
    copy of `input`, `out_dtype` for a float32 table the float32 result, and
    `return_max_indices` for a table of narrower entries the rows in use in float32. The
    mask of a masked array is not looked at.

    References
    ----------
    The definition is that of ``torch.nn.functional.embedding_bag``.

    Examples
    --------
    Three bags of a table of four rows: rows 1 and 2, none, rows 3, 0 and 3.

    >>> import numpy as np
    >>> import embag
    >>> weight = np.array([[0, 1], [10, 11], [20, 21], [30, 31]], np.float32)
    >>> embag.embedding_bag([1, 2, 3, 0, 3], weight, [0, 2, 2], mode="sum")
    array([[30., 32.],
           [ 0.,  0.],
           [60., 63.]], dtype=float32)

    Bags of one size need no offsets:

    >>> embag.embedding_bag([[0, 1], [2, 3]], weight)
    array([[ 5.,  6.],
           [25., 26.]], dtype=float32)

    Nor does what is ragged; a null list is an empty bag, and a null id is left out:

    >>> embag.embedding_bag([[1, 2], None, [3, None]], weight)
    array([[15., 16.],
           [ 0.,  0.],
           [30., 31.]], dtype=float32)

    Ids that are newer than the table can be left out, and counted:

    >>> embag.embedding_bag([[0, 1], [2, 9]], weight, invalid="skip", return_n_invalid=True)
    (array([[ 5.,  6.],
           [20., 21.]], dtype=float32), 1)
    """
    indices: Any = input
    if not kernels.is_index_array(input):
        indices = _containers.as_input(input, "input")
    if per_sample_weights is not None and not _containers.is_plain(per_sample_weights):
        indices, per_sample_weights = _containers.alike(indices, per_sample_weights, mode, "input")
    if type(indices) is _ragged.Column:
        return _pool_column(
            indices,
            weight,
            offsets,
            lengths,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            per_sample_weights,
            include_last_offset,
            padding_idx,
            out,
            return_max_indices,
            num_threads,
            out_dtype,
            invalid,
            return_n_invalid,
        )
    bounds: Any = offsets
    if not (offsets is None or kernels.is_index_array(offsets)):
        bounds = _arguments.as_index_array(offsets, "offsets")
    if kernels.is_table(weight):
        table: Any = weight
        encoded = None
        n_rows, dim = weight.shape
    else:
        encoded = _encodings.as_table(weight)
        table = encoded.rows
        n_rows, dim = len(table), encoded.dim
    if not (scale_grad_by_freq is sparse is include_last_offset is return_max_indices is False):
        _arguments.check_flags(
            scale_grad_by_freq=scale_grad_by_freq,
            sparse=sparse,
            include_last_offset=include_last_offset,
            return_max_indices=return_max_indices,
        )
    if lengths is not None:
        bounds = _arguments.as_offsets(lengths, indices, offsets, include_last_offset)
        include_last_offset = True
    if return_n_invalid is not False:
        _arguments.check_flags(return_n_invalid=return_n_invalid)
    n_invalid = None
    if invalid is not _RAISE:
        _arguments.check_invalid(invalid)
        if invalid == "skip":
            n_invalid = np.zeros(1, np.int64)
    n_bags = kernels.count_bags(indices, bounds, include_last_offset)
    if n_bags < 0:
        _arguments.raise_for_shapes(indices, bounds, include_last_offset)
    if mode is not _SUM or return_max_indices:
        _arguments.check_mode(mode, sparse, scale_grad_by_freq, return_max_indices)
    sample = None
    if per_sample_weights is not None:
        sums_dtype = encoded.sums_dtype if encoded else table.dtype
        sample = _arguments.as_sample_weights(per_sample_weights, indices, mode, sums_dtype)
    padding = -1
    if padding_idx is not None:
        padding = _arguments.as_padding_row(padding_idx, n_rows)
    if norm_type is not _EUCLIDEAN:
        norm_type = _arguments.as_norm_type(norm_type)
    if max_norm is not None:
        max_norm = _arguments.as_max_norm(max_norm, weight)
    if num_threads is not None:
        num_threads = _arguments.as_count(num_threads, "num_threads")
    direct = encoded is None and out_dtype is None  # the kernel of plain floats does it all
    if not direct:
        dtype = sums_dtype = encoded.sums_dtype if encoded else table.dtype
        if out_dtype is not None:
            dtype = _encodings.as_out_dtype(out_dtype, sums_dtype)
        direct = (encoded is None or encoded.is_plain) and dtype is sums_dtype

    n_threads = _threads.threads_for((indices.size + n_bags) * dim, num_threads)
    reduce = kernels.embedding_bag
    if n_threads > 1:
        reduce = partial(_threads.run, reduce)

    if out is not None:
        # Both as given and as converted: either may be a view of the other's memory.
        inputs = (input, indices, weight, table, offsets, bounds, per_sample_weights, sample)
        if not (direct and kernels.is_output(out, table, n_bags, inputs)):
            dtype = table.dtype if direct else dtype
            _arguments.check_out(out, (n_bags, dim), dtype, _INPUTS, inputs)
        result = out
    elif direct:
        result = kernels.empty_output(n_bags, table)
    else:
        result = _arguments.new_array(np.empty, (n_bags, dim), dtype)
    max_indices = np.empty((n_bags, dim), np.int64) if return_max_indices else None

    if max_norm is not None:
        # The table will change: whatever lies in its memory is read as it is now.
        indices, bounds, sample = (
            array.copy() if array is not None and np.may_share_memory(array, weight) else array
            for array in (indices, bounds, sample)
        )
    if max_norm is not None or out is not None or dim == 0 or not (direct or max_indices is None):
        # Nothing may be written before every position is known to be good.
        _arguments.check_positions(
            indices, bounds, include_last_offset, n_rows, input, offsets, n_invalid is None
        )
    if max_norm is not None:
        used = _arguments.positions_in_bags(indices, bounds, include_last_offset)
        _renorm(weight, used, max_norm, norm_type, n_invalid is None, n_threads)
        if table is not weight:
            table = _arguments.as_table(weight)

    if direct:
        done = reduce(
            n_threads,
            table,
            indices,
            bounds,
            include_last_offset,
            sample,
            mode,
            padding,
            n_invalid,
            result,
            max_indices,
        )
    else:
        bags = (indices, bounds, include_last_offset, sample)
        call = (n_threads, table, *bags, mode, padding, n_invalid)
        encoded = encoded or _encodings.as_table(table)
        done = _reduce_encoded(reduce, encoded, call, result, max_indices)
    if not done:
        _arguments.check_positions(
            indices, bounds, include_last_offset, n_rows, input, offsets, n_invalid is None
        )
        _arguments.raise_for_change()
    if not return_n_invalid:
        return result if max_indices is None else (result, max_indices)
    count = 0 if n_invalid is None else int(n_invalid[0])
    return (result, count) if max_indices is None else (result, max_indices, count)


def _pool_column(
    column: _ragged.Column,
    weight: Any,
    offsets: Any,
    lengths: Any,
    max_norm: Any,
    norm_type: Any,
    scale_grad_by_freq: Any,
    mode: Any,
    sparse: Any,
    per_sample_weights: Any,
    include_last_offset: Any,
    padding_idx: Any,
    out: Any,
    return_max_indices: Any,
    num_threads: Any,
    out_dtype: Any,
    invalid: Any,
    return_n_invalid: Any,
) -> Any:
    """`embedding_bag` of a ragged column: the same steps, and a kernel's run for each piece."""
    _containers.check_alone(offsets, lengths)
    encoded = _encodings.as_table(weight)
    n_rows, dim = len(encoded.rows), encoded.dim
    _containers.check_matrix(column, n_rows)
    _arguments.check_flags(
        scale_grad_by_freq=scale_grad_by_freq,
        sparse=sparse,
        include_last_offset=include_last_offset,
        return_max_indices=return_max_indices,
        return_n_invalid=return_n_invalid,
    )
    _arguments.check_invalid(invalid)
    _arguments.check_mode(mode, sparse, scale_grad_by_freq, return_max_indices)
    weights = _containers.as_weights(per_sample_weights, column, mode, encoded.sums_dtype)
    padding = -1 if padding_idx is None else _arguments.as_padding_row(padding_idx, n_rows)
    norm_type = _arguments.as_norm_type(norm_type)
    if max_norm is not None:
        max_norm = _arguments.as_max_norm(max_norm, weight)
    if num_threads is not None:
        num_threads = _arguments.as_count(num_threads, "num_threads")
    dtype = encoded.sums_dtype
    if out_dtype is not None:
        dtype = _encodings.as_out_dtype(out_dtype, dtype)

    shape = (column.n_bags, dim)
    if out is None:
        result = _arguments.new_array(np.empty, shape, dtype)
    else:
        columns = {"input": column, "per_sample_weights": weights}
        arrays = [("weight", weight), ("weight", encoded.rows)]
        for name, part in columns.items():
            arrays += [(name, array) for array in (part.arrays() if part else ())]
        names, inputs = zip(*arrays, strict=True)
        _arguments.check_out(out, shape, dtype, names, inputs)
        result = out
    max_indices = _arguments.new_array(np.empty, shape, _INT64) if return_max_indices else None

    refuse = invalid == "raise"
    if max_norm is not None:
        column = column.apart_from(weight)
        weights = weights and weights.apart_from(weight)
    if max_norm is not None or out is not None or dim == 0:
        # Nothing may be written before every position is known to be good.
        column.check(n_rows, refuse)
        if weights is not None:
            for _ in column.pieces(weights, encoded.sums_dtype):
                pass
    if max_norm is not None:
        used = [np.unique(piece.used) for piece in column.pieces()]
        n_threads = _threads.threads_for(sum(map(len, used)) * dim, num_threads)
        if used:
            _renorm(weight, np.concatenate(used), max_norm, norm_type, refuse, n_threads)
        encoded = _encodings.as_table(weight)

    n_invalid = 0
    # The kernel that tells the winning rows takes one piece.
    n_together = _ragged.BLOCK_ITEMS if max_indices is None else 0
    for pieces in _ragged.together(column.pieces(weights, encoded.sums_dtype), n_together):
        bags = slice(pieces[0].start, pieces[-1].start + pieces[-1].n)
        n_entries = sum(piece.n_used + piece.n for piece in pieces) * dim
        n_threads = _threads.threads_for(n_entries, num_threads)
        counter = None if refuse else np.zeros(1, np.int64)
        read: Any = pieces[0].arrays
        kernel: Any = kernels.embedding_bag
        winners = None
        if max_indices is None:
            read = zip(*(piece.arrays for piece in pieces), strict=True)
            kernel = kernels.embedding_bags
        else:
            winners = max_indices[bags]
        indices, offsets, samples = read
        bags_of = (indices, offsets, kernels.PART, samples)
        call = (n_threads, encoded.rows, *bags_of, mode, padding, counter)
        if not _reduce_encoded(partial(_threads.run, kernel), encoded, call, result[bags], winners):
            column.check(n_rows, refuse)
            _arguments.raise_for_change()
        n_invalid += 0 if counter is None else int(counter[0])
    returned: list[Any] = [result]
    if max_indices is not None:
        returned.append(max_indices)
    if return_n_invalid:
        returned.append(n_invalid)
    return result if len(returned) == 1 else tuple(returned)


def _reduce_encoded(
    reduce: Callable[..., bool],
    encoded: _encodings.Table,
    call: tuple[Any, ...],
    result: NDArray[Any],
    max_indices: NDArray[np.int64] | None,
) -> bool:
    """Run a call whose table is not of plain floats, or whose result is to be rounded."""
    if encoded.is_plain:
        return _reduce_and_round(reduce, call, result, max_indices)
    if max_indices is not None:
        return _max_of_encoded(reduce, encoded, call, result, max_indices)
    target, code = _encodings.as_result(result)
    return reduce(*call, target, None, None, encoded.encoding, encoded.dim, code)


def _max_of_encoded(
    reduce: Callable[..., bool],
    encoded: _encodings.Table,
    call: tuple[Any, ...],
    result: NDArray[Any],
    max_indices: NDArray[np.int64],
) -> bool:
    """Run a call for maxima and their rows: seldom of such tables, so the used are decoded."""
    n_threads, table, indices, bounds, include_last_offset, sample, mode, padding, n_invalid = call
    used = _arguments.positions_in_bags(indices.reshape(-1), bounds, include_last_offset)
    rows, places = np.unique(used, return_inverse=True)
    # What is out of range stays so: before the rows in use, or behind them.
    in_range = _arguments.rows_in_range(rows, len(table))
    rows, places = rows[in_range], places - in_range.start
    positions = np.zeros(indices.shape, np.int64)
    start = int(bounds[0]) if include_last_offset and bounds is not None else 0
    positions.reshape(-1)[start : start + len(used)] = places.reshape(-1)
    if padding >= 0:
        place = int(np.searchsorted(rows, padding))
        padding = place if place < len(rows) and rows[place] == padding else -1
    rows = rows.astype(np.int64, copy=False)
    values = _arguments.new_array(np.empty, (len(rows), encoded.dim), encoded.sums_dtype)
    if not encoded.decode(rows, values, n_threads):
        return False
    bags = (positions, bounds, include_last_offset, sample)
    call = (n_threads, values, *bags, mode, padding, n_invalid)
    if not _reduce_and_round(reduce, call, result, max_indices):
        return False
    if len(rows):
        max_indices[...] = np.where(max_indices < 0, -1, rows[max_indices])
    return True


def _reduce_and_round(
    reduce: Callable[..., bool],
    call: tuple[Any, ...],
    result: NDArray[Any],
    max_indices: NDArray[np.int64] | None,
) -> bool:
    """Run a call on a table of plain floats; round to nearest, ties to even."""
    dtype, sums = call[1].dtype, result
    if result.dtype != dtype:
        sums = _arguments.new_array(np.empty, result.shape, dtype)
    done = reduce(*call, sums, max_indices)
    if done and sums is not result:
        with np.errstate(all="ignore"):
            np.ndarray.view(result, np.ndarray)[...] = sums
    return done


def _renorm(
    weight: Any,
    used: NDArray[Any],
    max_norm: float,
    norm_type: float,
    refuse: bool,
    n_threads: int,
) -> None:
    """Scale the rows in `used` whose norm exceeds `max_norm`, each once, in place.

    What is no row is refused, or left out.
    """
    rows = np.unique(used).astype(np.int64, copy=False)
    if not refuse:
        rows = rows[_arguments.rows_in_range(rows, len(weight))]
    if kernels.first_bad_index(rows, len(weight)) >= 0:
        _arguments.raise_for_change()
    if kernels.is_table(weight):
        _threads.run(kernels.renorm, n_threads, weight, rows, max_norm, norm_type)
    else:
        copies = np.ascontiguousarray(weight[rows])
        ids = np.arange(len(rows))
        _threads.run(kernels.renorm, n_threads, copies, ids, max_norm, norm_type)
        weight[rows] = copies
