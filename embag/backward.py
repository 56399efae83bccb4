"""`embedding_bag_backward`: the gradients of `embedding_bag`.

The gradient of a row of the table is the sum of the gradients of the bags that it is
in, once for each position. So the backward pass is a forward pass: group the positions
by row (`_grouping.py`), put each position's bag in its place, and reduce. What it
gathers from is `grad_output`, what it reduces into is the gradient.

    check the arguments           `_arguments.py`, their values too
    group positions by row        `_grouping.py`
    positions to bags             `_backward.pxi`
    reduce                        `_forward.pxi`: the forward kernel

Each row is owned by one thread, or its columns by several, and added up in the order of
positions: no atomics, and the same bits for any number of threads.

Tested in tests/test_gradients.py.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments, _threads
from embag._dispatch import kernels
from embag._grouping import group_by_row
from embag.functional import Mode, embedding_bag
from embag.sparse_rows import SparseRows

# How many times as many threads make up for grouping, where a dense gradient could be
# added up in place. Origin: docs/design.md, "Gradients".
SCATTER_GAIN = 3


class EmbeddingBagGrads(NamedTuple):
    """The gradients of a call of `embedding_bag`; None for one that there is not."""

    weight: Any
    """Of the table: an array of its shape, or with ``sparse=True`` its `SparseRows`."""
    per_sample_weights: Any
    """Of the weights: an array of their shape."""


def embedding_bag_backward(
    grad_output: ArrayLike,
    input: ArrayLike,
    weight: NDArray[Any],
    offsets: ArrayLike | None = None,
    *,
    scale_grad_by_freq: bool = False,
    mode: Mode = "mean",
    sparse: bool = False,
    per_sample_weights: ArrayLike | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    max_indices: ArrayLike | None = None,
    wrt: Literal["weight", "per_sample_weights"] | None = None,
    num_threads: int | None = None,
) -> EmbeddingBagGrads:
    """Return the gradients of `embedding_bag` for the gradient of its output.

    Parameters
    ----------
    grad_output : array_like, shape (n_bags, dim)
        The gradient of the output; computed in the dtype of `weight`. Read in place
        where the entries of a row are adjacent, whatever the distance between rows, so
        also from ``np.broadcast_to``.
    input : array_like of int, shape (n_indices,) or (n_bags, bag_size)
        The rows that were gathered.
    weight : ndarray of float32 or float64, shape (n_rows, dim)
        The table. Its values are read for the gradient of `per_sample_weights`, and with
        ``mode="max"`` unless `max_indices` is given.
    offsets : array_like of int, shape (n_bags,) or (n_bags + 1,), optional
        Where each bag starts in `input`.
    scale_grad_by_freq : bool, optional
        Divide the gradient of each row by how often it occurs in a bag.
    mode : {"mean", "sum", "max"}, optional
        The reduction.
    sparse : bool, optional
        Return the rows that occur, as `SparseRows`: then nothing costs time or memory in
        proportion to n_rows. Not with ``mode="max"``.
    per_sample_weights : array_like, shape of `input`, optional
        The factors of the rows, with ``mode="sum"`` only.
    include_last_offset : bool, optional
        `offsets` has one entry more: where the last bag ends. What follows in `input`
        is in no bag.
    padding_idx : int, optional
        A row that was left out, which may be counted from the end. Its gradient is zero,
        or absent with `sparse`.
    max_indices : array_like of int, shape (n_bags, dim), optional
        With ``mode="max"``: what ``embedding_bag(..., return_max_indices=True)``
        returned. Without it the maxima are looked for again.
    wrt : {"weight", "per_sample_weights"}, optional
        The one gradient to compute. By default, all there are.
    num_threads : int, optional
        The most threads for this call, in the place of `get_num_threads`.

    Returns
    -------
    weight : ndarray or SparseRows, shape (n_rows, dim)
        The gradient of the table, of its dtype.
    per_sample_weights : ndarray or None
        The gradient of the weights, of the shape of `input` and the dtype of `weight`:
        the dot product of the bag's gradient and the row. 0 at padding and in no bag.

    Raises
    ------
    TypeError
        For an argument of the wrong kind or dtype.
    ValueError
        For a wrong shape, offset or option, or arguments that do not go together.
    IndexError
        For an index out of range: the message names the first.
    MemoryError
        If there is not enough memory.
    RuntimeError
        If an array is changed during the call by other code, and embag noticed.

    See Also
    --------
    embedding_bag : the forward pass.
    SparseRows.add_to : a step of gradient descent.

    Notes
    -----
    What a row is given is added in the order of positions, starting from 0, in the
    precision of the table, and then divided if `scale_grad_by_freq`. The mean's
    gradient is the bag's, truly divided by its number of entries. A maximum's goes
    whole to the row that won. Dot products are summed in 16 lanes, folded in halves.
    The result has the same bits (a NaN's sign and payload aside) for any number of
    threads and at any instruction-set level; dense and sparse gradients too.

    Beside its result, a sparse gradient takes 16 bytes for each entry of `input` (24 with
    `per_sample_weights`) and 16 for each row that occurs; so does a dense one with
    `scale_grad_by_freq`. ``mode="mean"`` takes a copy of `grad_output`, and
    ``mode="max"`` without `max_indices` the memory of the forward call that finds them.

    References
    ----------
    The definition is that of ``torch.nn.functional.embedding_bag``.

    Examples
    --------
    Two bags, rows 1 and 2, and row 1 again:

    >>> import numpy as np
    >>> import embag
    >>> weight = np.zeros((4, 2), np.float32)
    >>> grads = embag.embedding_bag_backward(
    ...     [[1, 2], [10, 20]], [1, 2, 1], weight, [0, 2], mode="sum"
    ... )
    >>> grads.weight
    array([[ 0.,  0.],
           [11., 22.],
           [ 1.,  2.],
           [ 0.,  0.]], dtype=float32)

    The rows in use alone, and a step of gradient descent:

    >>> grads = embag.embedding_bag_backward(
    ...     [[1, 2], [10, 20]], [1, 2, 1], weight, [0, 2], mode="sum", sparse=True
    ... )
    >>> grads.weight.indices
    array([1, 2])
    >>> grads.weight.add_to(weight, -0.5)
    >>> weight[1]
    array([ -5.5, -11. ], dtype=float32)
    """
    _arguments.check_table(weight)
    (n_rows, dim), dtype = weight.shape, weight.dtype
    _arguments.check_flags(
        scale_grad_by_freq=scale_grad_by_freq,
        sparse=sparse,
        include_last_offset=include_last_offset,
    )
    _arguments.check_mode(mode, sparse, scale_grad_by_freq)
    padding = -1 if padding_idx is None else _arguments.as_padding_row(padding_idx, n_rows)
    if num_threads is not None:
        num_threads = _arguments.as_count(num_threads, "num_threads")
    indices = _arguments.as_indices(input, "input")
    bounds = None if offsets is None else _arguments.as_indices(offsets, "offsets")
    n_indices, n_bags = indices.size, kernels.count_bags(indices, bounds, include_last_offset)
    if n_bags < 0:
        _arguments.raise_for_shapes(indices, bounds, include_last_offset)
    sample = winners = None
    if per_sample_weights is not None:
        sample = _arguments.as_sample_weights(per_sample_weights, indices, mode, dtype)
    _arguments.check_wrt(wrt, sample)
    if max_indices is not None:
        winners = _arguments.as_max_indices(max_indices, n_bags, dim, n_rows, mode)
    grad = _arguments.as_grad_output(grad_output, n_bags, dim, dtype)
    _arguments.check_layouts(
        indices, bounds, include_last_offset, n_indices, grad, (n_bags, dim), dtype
    )
    if mode == "max" or dim == 0:
        # The kernels of these do not look at every index.
        _arguments.check_positions(indices, bounds, include_last_offset, n_rows, input, offsets)
    else:
        _arguments.check_offsets(bounds, n_indices, offsets)

    n_positions = _arguments.positions_in_bags(indices, bounds, include_last_offset).size
    n_threads = _threads.threads_for((n_indices + n_bags) * dim, num_threads)
    call = _Call(indices, bounds, include_last_offset, n_positions, padding, n_rows, n_threads)

    grad_weight: NDArray[Any] | SparseRows | None = None
    grad_sample: NDArray[Any] | None = None
    wants_weight = wrt != "per_sample_weights"
    wants_sample = sample is not None and wrt != "weight"
    if wants_weight and mode == "max":
        grad_weight = _scatter_to_winners(call, grad, weight, winners)
    elif wants_weight:
        given = _divide_by_sizes(call, grad) if mode == "mean" and n_positions > 0 else grad
        if given is not None:
            grad_weight = _sum_rows(call, given, sample, scale_grad_by_freq, sparse)
    if wants_sample:
        grad_sample = _dot_rows(call, grad, weight)
    if (wants_weight and grad_weight is None) or (wants_sample and grad_sample is None):
        _arguments.check_positions(indices, bounds, include_last_offset, n_rows, input, offsets)
        _arguments.raise_for_change()
    return EmbeddingBagGrads(grad_weight, grad_sample)


class _Call(NamedTuple):
    """What the ways to a gradient have in common. Each returns None for a bad index."""

    indices: NDArray[Any]
    offsets: NDArray[Any] | None
    include_last_offset: bool
    n_positions: int  # how many entries of indices are in bags
    padding: int  # a row, or -1
    n_rows: int
    n_threads: int


def _divide_by_sizes(call: _Call, grad: NDArray[Any]) -> NDArray[Any] | None:
    """Return what a bag gives each of its rows where its result is their mean."""
    quotients = kernels.empty_output(len(grad), grad)
    done = _threads.run(
        kernels.divide_by_sizes,
        call.n_threads,
        grad,
        call.indices,
        call.offsets,
        call.include_last_offset,
        call.padding,
        quotients,
    )
    return quotients if done else None


def _column_threads(call: _Call, grad: NDArray[Any]) -> int:
    """Return how many threads can share the columns of a dense gradient: a line's worth each."""
    n_lines: int = (grad.shape[1] * grad.itemsize + 63) // 64
    return min(call.n_threads, max(1, n_lines))


def _sum_rows(
    call: _Call,
    grad: NDArray[Any],
    sample: NDArray[Any] | None,
    scale_grad_by_freq: bool,
    sparse: bool,
) -> NDArray[Any] | SparseRows | None:
    """Sum what each row is given."""
    n_column_threads = _column_threads(call, grad)
    if sparse or scale_grad_by_freq or call.n_threads > SCATTER_GAIN * n_column_threads:
        return _sum_by_row(call, grad, sample, scale_grad_by_freq, sparse)
    result = _arguments.new_array(np.zeros, (call.n_rows, grad.shape[1]), grad.dtype)
    done = _threads.run(
        kernels.scatter,
        n_column_threads,
        grad,
        call.indices,
        call.offsets,
        call.include_last_offset,
        sample,
        call.padding,
        result,
    )
    return result if done else None


def _sum_by_row(
    call: _Call,
    grad: NDArray[Any],
    sample: NDArray[Any] | None,
    scale_grad_by_freq: bool,
    sparse: bool,
) -> NDArray[Any] | SparseRows | None:
    """Group positions by row and sum what each row is given."""
    groups = group_by_row(
        call.indices,
        call.n_positions,
        call.n_rows,
        call.padding,
        call.n_threads,
        by_bag=sample is None,
        offsets=call.offsets,
        include_last_offset=call.include_last_offset,
    )
    if groups is None:
        return None
    factors = None
    if sample is not None:
        factors = _threads.run(
            kernels.look_up_weights,
            call.n_threads,
            call.indices,
            call.offsets,
            call.include_last_offset,
            sample,
            groups.members,
            call.n_positions,
        )
        if factors is None:
            return None
    shape = (call.n_rows, grad.shape[1])
    if sparse:
        result = kernels.empty_output(len(groups.rows), grad)
    else:
        result = _arguments.new_array(np.zeros, shape, grad.dtype)
    done = _threads.run(
        kernels.embedding_bag,
        call.n_threads,
        grad,
        groups.members,
        groups.starts,
        True,
        factors,
        "mean" if scale_grad_by_freq else "sum",
        -1,
        None,
        result,
        None,
        None if sparse else groups.rows,
    )
    if not done:
        return None
    return SparseRows._of_groups(groups.rows, result, shape) if sparse else result


def _scatter_to_winners(
    call: _Call, grad: NDArray[Any], weight: NDArray[Any], winners: NDArray[np.int64] | None
) -> NDArray[Any] | None:
    """Give the gradient of each entry of the output to the row that won there."""
    if winners is None:
        _, winners = embedding_bag(
            call.indices,
            weight,
            call.offsets,
            mode="max",
            include_last_offset=call.include_last_offset,
            padding_idx=call.padding if call.padding >= 0 else None,
            return_max_indices=True,
            num_threads=call.n_threads,
        )
    result = _arguments.new_array(np.zeros, (call.n_rows, grad.shape[1]), grad.dtype)
    n_threads = _column_threads(call, grad)
    done = _threads.run(kernels.scatter_max, n_threads, grad, winners, call.padding, result)
    return result if done else None


def _dot_rows(call: _Call, grad: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any] | None:
    """Return the dot product of each position's row and its bag's gradient."""
    result = _arguments.new_array(np.zeros, call.indices.shape, weight.dtype)
    done = _threads.run(
        kernels.dot_rows,
        call.n_threads,
        _arguments.as_table(weight),
        call.indices,
        call.offsets,
        call.include_last_offset,
        grad,
        call.n_positions,
        call.padding,
        result,
    )
    return result if done else None
