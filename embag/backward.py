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
from embag._grouping import Groups, group_by_row
from embag.functional import Mode, embedding_bag
from embag.sparse_rows import SparseRows


class EmbeddingBagGrads(NamedTuple):
    """The gradients of a call of `embedding_bag`; None for one that there is not."""

    weight: NDArray[Any] | SparseRows | None
    """Of the table: an array of its shape, or with ``sparse=True`` its rows in use."""
    per_sample_weights: NDArray[Any] | None
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

    Beside its result, a call for the gradient of the table takes 24 bytes for each
    entry of `input` at most (and the size of a table's entry with `per_sample_weights`),
    16 for each row that occurs, and with ``mode="mean"`` a copy of `grad_output`.

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
    indices = _arguments.as_indices(input, "input")
    bounds = None if offsets is None else _arguments.as_indices(offsets, "offsets")
    _arguments.check_table(weight)
    _arguments.check_flags(
        scale_grad_by_freq=scale_grad_by_freq,
        sparse=sparse,
        include_last_offset=include_last_offset,
    )
    n_bags = kernels.count_bags(indices, bounds, include_last_offset)
    if n_bags < 0:
        _arguments.raise_for_shapes(indices, bounds, include_last_offset)
    _arguments.check_mode(mode, sparse, scale_grad_by_freq)
    n_rows, dim = weight.shape
    sample = None
    if per_sample_weights is not None:
        sample = _arguments.as_sample_weights(per_sample_weights, indices, mode, weight.dtype)
    padding = -1 if padding_idx is None else _arguments.as_padding_row(padding_idx, n_rows)
    grad = _arguments.as_grad_output(grad_output, n_bags, dim, weight.dtype)
    winners = None
    if max_indices is not None:
        winners = _arguments.as_max_indices(max_indices, n_bags, dim, n_rows, mode)
    _arguments.check_wrt(wrt, sample)
    if num_threads is not None:
        num_threads = _threads.check_count(num_threads, "num_threads")
    _arguments.check_positions(indices, bounds, include_last_offset, n_rows, input, offsets)

    n_threads = _threads.threads_for((indices.size + n_bags) * dim, num_threads)
    n_positions = indices.size
    if include_last_offset and bounds is not None:
        n_positions = int(bounds[-1])

    grad_weight: NDArray[Any] | SparseRows | None = None
    if mode == "max":
        if winners is None:
            _, winners = embedding_bag(
                indices,
                weight,
                bounds,
                mode="max",
                include_last_offset=include_last_offset,
                padding_idx=padding_idx,
                return_max_indices=True,
                num_threads=num_threads,
            )
        grad_weight = _arguments.zeros((n_rows, dim), weight.dtype)
        if not kernels.scatter_max(grad, winners, padding, n_threads, grad_weight):
            _arguments.raise_for_change()
    elif wrt != "per_sample_weights":
        groups = group_by_row(indices, n_positions, n_rows, padding, n_threads)
        if groups is None:
            _arguments.raise_for_change()
        factors = kernels.positions_to_bags(
            indices, bounds, include_last_offset, sample, groups.positions, n_positions, n_threads
        )
        if factors is False:
            _arguments.raise_for_change()
        if mode == "mean":
            counts = np.bincount(groups.positions, minlength=n_bags)
            grad = grad / np.maximum(counts, 1).astype(grad.dtype)[:, None]
        grad_weight = _sum_rows(
            grad, groups, factors, n_rows, scale_grad_by_freq, sparse, n_threads
        )

    grad_sample = None
    if sample is not None and wrt != "weight":
        grad_sample = _arguments.zeros(indices.shape, weight.dtype)
        table = _arguments.as_table(weight)
        if not kernels.dot_rows(
            table,
            indices,
            bounds,
            include_last_offset,
            grad,
            n_positions,
            padding,
            n_threads,
            grad_sample,
        ):
            _arguments.raise_for_change()
    return EmbeddingBagGrads(grad_weight, grad_sample)


def _sum_rows(
    grad: NDArray[Any],
    groups: Groups,
    factors: NDArray[Any] | None,
    n_rows: int,
    scale_grad_by_freq: bool,
    sparse: bool,
    n_threads: int,
) -> NDArray[Any] | SparseRows:
    """Sum what each row is given; the groups' positions are bags by now."""
    rows, starts, bags = groups
    shape = (n_rows, grad.shape[1])
    if sparse:
        result = kernels.empty_output(len(rows), grad)
    elif 2 * len(rows) < n_rows:
        result = _arguments.zeros(shape, grad.dtype)
    else:
        # Most rows are written anyway: clearing the others alone saves a pass.
        result = kernels.empty_output(n_rows, grad)
        kernels.zero_other_rows(rows, result, n_threads)
    done = kernels.embedding_bag(
        grad,
        bags,
        starts,
        True,
        factors,
        "mean" if scale_grad_by_freq else "sum",
        -1,
        n_threads,
        result,
        None,
        None if sparse else rows,
    )
    if not done:
        _arguments.raise_for_change()
    return SparseRows(rows, result, shape) if sparse else result
