"""`embedding_bag`: its documentation, and the choice between two implementations.

`plain_call` in `_kernels/calls.pxi` is one compiled function that checks the arguments,
allocates the result and fills it. It handles the common lookups and returns None for any
other, valid or not. `_call.py` then does the same in Python, for any arguments.

Tested in tests/lookups/ and tests/columns/.
"""

from __future__ import annotations

from typing import Any, Literal, overload

from numpy.typing import ArrayLike, DTypeLike, NDArray

from embag import _call
from embag._kernels.dispatch import kernels
from embag._process import threads
from embag._types import Ids, Invalid, Mode, SampleWeights, Table


@overload
def embedding_bag(
    input: Ids,
    weight: Table,
    offsets: ArrayLike | None = ...,
    max_norm: float | None = ...,
    norm_type: float = ...,
    scale_grad_by_freq: bool = ...,
    mode: Mode = ...,
    sparse: bool = ...,
    per_sample_weights: SampleWeights | None = ...,
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
    default_idx: int | None = ...,
    return_n_valid: Literal[False] = ...,
    normalize: bool = ...,
    segment_ids: ArrayLike | None = ...,
    n_bags: int | None = ...,
) -> NDArray[Any]: ...
@overload
def embedding_bag(
    input: Ids,
    weight: Table,
    offsets: ArrayLike | None = ...,
    max_norm: float | None = ...,
    norm_type: float = ...,
    scale_grad_by_freq: bool = ...,
    mode: Mode = ...,
    sparse: bool = ...,
    per_sample_weights: SampleWeights | None = ...,
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
    default_idx: int | None = ...,
    return_n_valid: bool = ...,
    normalize: bool = ...,
    segment_ids: ArrayLike | None = ...,
    n_bags: int | None = ...,
) -> Any: ...
def embedding_bag(
    input: Ids,
    weight: Table,
    offsets: ArrayLike | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: Mode = "mean",
    sparse: bool = False,
    per_sample_weights: SampleWeights | None = None,
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
    default_idx: int | None = None,
    return_n_valid: bool = False,
    normalize: bool = False,
    segment_ids: ArrayLike | None = None,
    n_bags: int | None = None,
) -> Any:
    """Gather rows of a table and reduce them per bag.

    Parameters
    ----------
    input : array_like of int, shape (n_indices,) or (n_bags, bag_size), or a ragged input
        The ids: which rows to gather, each in ``0 .. n_rows - 1``. 1-D ids need `offsets`,
        `lengths` or `segment_ids`; each row of 2-D ids is a bag. Contiguous int32 and int64
        arrays are read in place; other integers are converted. Each list of a ragged input is a
        bag. Ragged inputs are list and map columns of Arrow (from any library), CSR matrices of
        SciPy, awkward arrays, nested tensors of torch, ragged tensors of TensorFlow, and sequences
        of lists, arrays, series or tensors. Tensors of other libraries in host memory (of torch,
        JAX, any with DLPack) are read in place here and as any other argument except `out`.
    weight : ndarray, QuantizedTable or RemappedTable
        The table, of shape (n_rows, dim): an array of float32, float64, float16, bfloat16, int8,
        uint8, float8_e4m3fn or float8_e5m2, or an object of these classes. An array is read in
        place if the entries of each row are adjacent, whatever the distance between rows. It may
        be read-only or memory-mapped. Any other layout (Fortran order, misaligned) is copied at
        each call. bfloat16 and the 8-bit floats are dtypes of the package ``ml_dtypes``. A
        FixedSizeList column of Arrow, an Array column of polars and a pandas frame of numbers are
        tables, too.
    offsets : array_like of int, shape (n_bags,) or (n_bags + 1,), optional
        Where each bag starts in `input`. The first offset is 0, and offsets never decrease.
        The last bag ends at the end of `input`.
    max_norm : float, optional
        At least 0. Each row that occurs in a bag and has a larger norm is scaled once, in
        `weight` itself, by ``max_norm / (norm + 1e-7)``, before the reduction. Only for
        float32 and float64 tables.
    norm_type : float, optional
        The p of this p-norm: greater than 0, or ``inf``.
    scale_grad_by_freq, sparse : bool, optional
        Options of the gradient. They do not change the result. Both must be False with
        ``mode="max"`` and ``mode="min"``.
    mode : {"mean", "sum", "sqrtn", "max", "min"}, optional
        How the rows of a bag are reduced. "mean" is the sum divided by the number of rows, or
        with weights by the sum of the weights; "sqrtn" is the sum divided by the root of the
        number of rows, or with weights by the root of the sum of their squares. If that is 0,
        the result is zeros.
    per_sample_weights : array_like, shape of `input`, optional
        A factor for each gathered row, computed in the dtype of sums. Not with ``mode="max"``
        and ``mode="min"``. For a ragged `input` the weights are ragged too. Must be
        None for a CSR matrix, whose data are the weights, and for an Arrow column that holds ids
        and weights: maps, lists of structs, or structs of two lists.
    include_last_offset : bool, optional
        If True, `offsets` has one more entry: the end of the last bag. Ids after it are in no
        bag and are not read.
    padding_idx : int, optional
        A row; a negative number counts from the end. Ids equal to it are skipped: they
        contribute nothing, and the divisor of a mean does not count them.
    lengths : array_like of int, shape (n_bags,), optional
        The number of ids in each bag, instead of `offsets`. They sum to ``len(input)``.
    out : ndarray, shape (n_bags, dim), optional
        The array to write the result to. It is C-contiguous, has the dtype of the result and
        shares no memory with any input.
    return_max_indices : bool, optional
        If True, also return the row that each maximum or minimum comes from. Only with
        ``mode="max"`` and ``mode="min"``.
    num_threads : int, optional
        The largest number of threads for this call, instead of `get_num_threads`. Concurrent
        calls share the threads of `get_num_threads`, but not these.
    out_dtype : data-type, optional
        The dtype of the result: float32, float16 or bfloat16. Sums in float32 are rounded to
        it, to nearest, ties to even. For a float64 table it is float64.
    invalid : {"raise", "skip"} or int, optional
        What to do with ids out of range. "raise" raises an IndexError. "skip" skips them like
        padding. A number is a row that stands for all of them. `input` is not modified.
    return_n_invalid : bool, optional
        If True, also return the number of ids out of range.
    default_idx : int, optional
        The row of a bag in which no id counts, with weight 1; a negative number counts from the
        end. By default the result of such a bag is zeros.
    return_n_valid : bool, optional
        If True, also return how many ids count in each bag.
    normalize : bool, optional
        If True, divide each row of the result by its Euclidean norm, computed in float64. A row
        of zeros stays.
    segment_ids : array_like of int, shape (n_indices,), optional
        The bag of each position of a 1-D `input`, in any order, instead of `offsets`. Additions
        keep the order of positions within a bag.
    n_bags : int, optional
        The number of bags, with `segment_ids`. By default it is the largest segment id plus 1,
        so empty bags at the end are not in the result.

    Returns
    -------
    ndarray, shape (n_bags, dim)
        The reduced bags; `out` if it was given. The default dtype is float64 for a float64
        table and float32 for any other. A bag without ids, or with skipped ids only, is
        zeros.
    max_indices : ndarray of int64, shape (n_bags, dim)
        With `return_max_indices`: the row that each maximum comes from, -1 for empty bags.
    n_invalid : int
        With `return_n_invalid`: the number of ids in bags that were skipped or replaced because
        they are out of range. 0 with ``invalid="raise"``.
    n_valid : ndarray of int64, shape (n_bags,)
        With `return_n_valid`: how many ids of each bag are neither padding nor skipped.

    Raises
    ------
    TypeError
        If an argument has the wrong kind or dtype.
    ValueError
        If a shape, an offset, a segment id or an option is wrong, arguments contradict each
        other, or a column of vectors has nulls.
    IndexError
        If an id is out of range and `invalid` is "raise". The message names the first.
    MemoryError
        If there is not enough memory.
    RuntimeError
        If another thread changes an array during the call, and embag notices it.

    Warns
    -----
    PerformanceWarning
        If `weight` has more than 1 MiB and is copied because of its layout or its chunks.

    See Also
    --------
    aligned_copy : Copy a table into memory that is faster to gather from.
    quantize : Make a table with 8, 4 or 2 bits an entry.
    RemappedTable : Map ids to the rows of a table.
    empty_bags : Find the bags without ids.
    to_arrow : Convert the result to an Arrow column.
    set_num_threads : Limit the threads of the process.
    num_threads : Limit the threads of a block.

    Notes
    -----
    A sum starts at 0 and adds rows in the order of positions, in float64 for a float64 table
    and in float32 for any other. A weighted row is multiplied, then added. For a
    `QuantizedTable`, ``scale * q`` is added by a fused multiply-add; the biases are summed
    apart and added after every 32 positions of a bag and at its end. In a symmetric table, which
    has no biases, ``scale * q`` is rounded, then added. A mean is the sum divided by the number of
    ids that are not skipped, or by the sum of the weights. A maximum keeps the first of equal
    values; a NaN in a bag gives NaN. The result has the same bits (except for the sign and payload
    of a NaN) for any number of threads and at any instruction-set level.

    A call that raises has not modified `weight` or `out`. The exception is the RuntimeError
    for arrays that another thread changed.

    A call takes memory for its result and for copies of the arguments that cannot be read in
    place. Segment ids are converted to offsets. If they decrease anywhere, that takes 16 bytes for
    each position and copies of `input` and the weights. Ragged inputs are copied in blocks of about
    a million ids. `max_norm` also takes a sorted copy of `input`. For a float32 table, another
    `out_dtype` takes a float32 copy of the result. For a table of narrower entries, or a
    RemappedTable, `return_max_indices` takes a decoded copy of the rows in use.

    The mask of a masked array is ignored.

    References
    ----------
    The definition is that of ``torch.nn.functional.embedding_bag``.

    Examples
    --------
    Three bags of ids, the second one empty:

    >>> import numpy as np
    >>> import embag
    >>> weight = np.array([[0, 1], [10, 11], [20, 21], [30, 31]], np.float32)
    >>> embag.embedding_bag([1, 2, 3, 0, 3], weight, [0, 2, 2], mode="sum")
    array([[30., 32.],
           [ 0.,  0.],
           [60., 63.]], dtype=float32)

    Bags of equal size need no offsets:

    >>> embag.embedding_bag([[0, 1], [2, 3]], weight)
    array([[ 5.,  6.],
           [25., 26.]], dtype=float32)

    Ragged inputs need no offsets. A null list is an empty bag, and a null id is skipped:

    >>> embag.embedding_bag([[1, 2], None, [3, None]], weight)
    array([[15., 16.],
           [ 0.,  0.],
           [30., 31.]], dtype=float32)

    In long format, each id comes with its bag:

    >>> embag.embedding_bag([1, 3, 2], weight, segment_ids=[2, 0, 2], mode="sum")
    array([[30., 31.],
           [ 0.,  0.],
           [30., 32.]], dtype=float32)

    Ids out of range can be skipped and counted:

    >>> embag.embedding_bag([[0, 1], [2, 9]], weight, invalid="skip", return_n_invalid=True)
    (array([[ 5.,  6.],
           [20., 21.]], dtype=float32), 1)
    """
    if segment_ids is None and n_bags is None:
        result = kernels.plain_call(
            threads.runs_alone,
            threads.ENTRIES_PER_THREAD,
            input,
            weight,
            offsets,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            per_sample_weights,
            include_last_offset,
            padding_idx,
            lengths,
            out,
            return_max_indices,
            num_threads,
            out_dtype,
            invalid,
            return_n_invalid,
            default_idx,
            return_n_valid,
            normalize,
        )
        if result is not None:
            return result
    return _call.embedding_bag(
        input,
        weight,
        offsets,
        max_norm,
        norm_type,
        scale_grad_by_freq,
        mode,
        sparse,
        per_sample_weights,
        include_last_offset,
        padding_idx,
        lengths,
        out,
        return_max_indices,
        num_threads,
        out_dtype,
        invalid,
        return_n_invalid,
        default_idx,
        return_n_valid,
        normalize,
        segment_ids,
        n_bags,
    )
