"""`embedding_bag_backward`: the gradients of `embedding_bag`.

The gradient of a row of the table is the sum of the gradients of the bags that contain it,
one term per position. So the backward pass is a forward pass: it groups the positions by
row (`_grouping.py`), replaces each position by its bag, and reduces. It gathers from
`grad_output` and reduces into the gradient.

    check the arguments           `_call.py`, with all values of ids and offsets
    group positions by row        `_grouping.py`
    replace positions by bags     `_kernels/backward.pxi`
    reduce                        `_kernels/forward.pxi`, the forward kernel

One thread owns each row (or several threads own some of its columns) and adds in the order
of positions. So there are no atomics, and any number of threads gives the same bits.

Tested in tests/gradients/.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments, _call, _encodings, _modes
from embag._bags import ArrayBags
from embag._call import Call
from embag._grouping import Groups, group_by_row
from embag._kernels.dispatch import kernels
from embag._process import threads
from embag._types import Mode
from embag.sparse_rows import SparseRows

# Grouping pays off where it can use this many times the threads that can share the columns
# of a dense gradient. Origin: docs/design.md, "Gradients".
SCATTER_GAIN = 3


class EmbeddingBagGrads(NamedTuple):
    """The gradients of an `embedding_bag` lookup; None for one that was not computed."""

    weight: Any
    """Of the table: an array of its shape, or `SparseRows` with ``sparse=True``."""
    per_sample_weights: Any
    """Of `per_sample_weights`: an array of their shape."""


def embedding_bag_backward(
    grad_output: "ArrayLike",
    input: "ArrayLike",
    weight: NDArray[Any],
    offsets: "ArrayLike | None" = None,
    *,
    scale_grad_by_freq: bool = False,
    mode: Mode = "mean",
    sparse: bool = False,
    per_sample_weights: "ArrayLike | None" = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    max_indices: "ArrayLike | None" = None,
    wrt: Literal["weight", "per_sample_weights"] | None = None,
    num_threads: int | None = None,
) -> EmbeddingBagGrads:
    """Return the gradients of `embedding_bag`, given the gradient of its output.

    Parameters
    ----------
    grad_output : array_like, shape (n_bags, dim)
        The gradient of the output, computed in the dtype of `weight`. It is read in place if
        the entries of each row are adjacent, whatever the distance between rows, so also the
        result of ``np.broadcast_to``.
    input : array_like of int, shape (n_indices,) or (n_bags, bag_size)
        The ids of the lookup. Ragged inputs are not supported.
    weight : ndarray of float32 or float64, shape (n_rows, dim)
        The table. Its values are read for the gradient of `per_sample_weights`, and with
        ``mode="max"`` if `max_indices` is not given.
    offsets : array_like of int, shape (n_bags,) or (n_bags + 1,), optional
        Where each bag starts in `input`.
    scale_grad_by_freq : bool, optional
        If True, divide the gradient of each row by the number of its occurrences in bags. Not
        with ``mode="max"``.
    mode : {"mean", "sum", "max"}, optional
        How the rows of a bag were reduced.
    sparse : bool, optional
        If True, return the gradient of the table as `SparseRows`, which holds only the rows
        that occur. Time and memory then do not depend on n_rows. Not with ``mode="max"``.
    per_sample_weights : array_like, shape of `input`, optional
        The factor of each gathered row. Only with ``mode="sum"``.
    include_last_offset : bool, optional
        If True, `offsets` has one more entry: the end of the last bag. Ids after it are in no
        bag.
    padding_idx : int, optional
        The row that was skipped; a negative number counts from the end. Its gradient is zero,
        or absent with `sparse`.
    max_indices : array_like of int, shape (n_bags, dim), optional
        With ``mode="max"``: the rows of the maxima, from ``embedding_bag(...,
        return_max_indices=True)``. By default they are computed again.
    wrt : {"weight", "per_sample_weights"}, optional
        The only gradient to compute. By default both are computed.
    num_threads : int, optional
        The largest number of threads for this call, instead of `get_num_threads`.

    Returns
    -------
    weight : ndarray or SparseRows, shape (n_rows, dim)
        The gradient of the table, in its dtype. None if `wrt` is "per_sample_weights".
    per_sample_weights : ndarray or None
        The gradient of the weights, in the shape of `input` and the dtype of `weight`: for each
        position the dot product of the row and the gradient of the bag. It is 0 for padding and
        for ids in no bag. None if no weights are given or `wrt` is "weight".

    Raises
    ------
    TypeError
        If an argument has the wrong kind or dtype.
    ValueError
        If a shape, an offset or an option is wrong, or arguments contradict each other.
    IndexError
        If an id is out of range. The message names the first.
    MemoryError
        If there is not enough memory.
    RuntimeError
        If another thread changes an array during the call, and embag notices it.

    See Also
    --------
    embedding_bag : The forward pass.
    SparseRows.add_to : Make a step of gradient descent.

    Notes
    -----
    The gradient of a row starts at 0 and adds its terms in the order of positions, in the dtype
    of the table. `scale_grad_by_freq` divides the sum. With ``mode="mean"`` a term is the
    gradient of the bag, truly divided by the number of ids that are not padding. With
    ``mode="max"`` each entry of the gradient goes to the row of the maximum. Dot products are
    summed in 16 lanes, folded in halves. The result has the same bits (except for the sign and
    payload of a NaN) for any number of threads and at any instruction-set level. Dense and
    sparse gradients have the same bits, too.

    In addition to its result, a sparse gradient takes 16 bytes for each id (24 with
    `per_sample_weights`) and 16 for each row that occurs. A dense gradient with
    `scale_grad_by_freq` takes as much. ``mode="mean"`` takes a copy of `grad_output`, and
    ``mode="max"`` without `max_indices` takes the memory of the forward call that finds them.

    References
    ----------
    The definition is that of ``torch.nn.functional.embedding_bag``.

    Examples
    --------
    Two bags, of rows 1 and 2 and of row 1:

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

    Only the rows in use, and a step of gradient descent:

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
    _arguments.check_flags(scale_grad_by_freq=scale_grad_by_freq, sparse=sparse)
    call = _call.make(
        input,
        _encodings.shape_of(weight),
        offsets,
        mode=mode,
        per_sample_weights=per_sample_weights,
        include_last_offset=include_last_offset,
        padding_idx=padding_idx,
        num_threads=num_threads,
        ragged=False,
    )
    _modes.check_options(call.mode, sparse, scale_grad_by_freq)
    bags: Any = call.bags
    n_indices = bags.indices.size
    sample: Any = call.weights
    winners = None
    _arguments.check_wrt(wrt, sample)
    if max_indices is not None:
        _modes.check_winners(call.mode, max_indices)
        winners = _arguments.as_max_indices(max_indices, bags.n_bags, dim, n_rows)
    grad = _arguments.as_grad_output(grad_output, bags.n_bags, dim, dtype)
    _arguments.check_layouts(
        bags.indices, bags.offsets, bags.includes_last, n_indices, grad, (bags.n_bags, dim), dtype
    )
    if not call.mode.sums or dim == 0:
        # These kernels do not read every id.
        call.check()
    else:
        bags.check_offsets()

    team = threads.team_for((n_indices + bags.n_bags) * dim, call.num_threads)
    backward = _Backward(call, bags, bags.used.size, team, scale_grad_by_freq, sparse)
    grad_weight: NDArray[Any] | SparseRows | None = None
    grad_sample: NDArray[Any] | None = None
    wants_weight = wrt != "per_sample_weights"
    wants_sample = sample is not None and wrt != "weight"
    if wants_weight and call.mode.sums:
        grad_weight = _sum_rows(backward, grad)
    elif wants_weight:
        assert call.mode.selects  # a mode of another kind needs a gradient of its own here
        grad_weight = _scatter_to_winners(backward, grad, weight, winners)
    if wants_sample:
        grad_sample = _dot_rows(backward, grad, weight)
    if (wants_weight and grad_weight is None) or (wants_sample and grad_sample is None):
        _call.blame(call)
    return EmbeddingBagGrads(grad_weight, grad_sample)


class _Backward(NamedTuple):
    """The state that the steps below share. A step returns None if an id is invalid."""

    call: Call
    bags: ArrayBags
    n_positions: int  # in bags
    team: threads.Team
    scale_grad_by_freq: bool
    sparse: bool

    @property
    def bag_arrays(self) -> tuple[Any, Any, bool]:
        """The bags, as the kernels take them."""
        return self.bags.indices, self.bags.offsets, self.bags.includes_last

    @property
    def sample(self) -> Any:
        """The weights of the rows, an array or None."""
        return self.call.weights

    @property
    def n_rows(self) -> int:
        """The number of rows of the table."""
        return self.call.n_rows


def _divide_by_sizes(backward: _Backward, grad: NDArray[Any]) -> NDArray[Any] | None:
    """Return the gradient that each bag passes to its rows where the result is their mean."""
    quotients = _arguments.new_array(np.empty, grad.shape, grad.dtype)
    done = threads.run(
        kernels.divide_by_sizes,
        backward.team,
        grad,
        *backward.bag_arrays,
        backward.call.padding,
        quotients,
    )
    return quotients if done else None


def _column_team(backward: _Backward, grad: NDArray[Any]) -> threads.Team:
    """Return the threads that share the columns of a dense gradient.

    Each takes at least a cache line.
    """
    n_lines: int = (grad.shape[1] * grad.itemsize + 63) // 64
    return backward.team.at_most(max(1, n_lines))


def _sum_rows(backward: _Backward, grad: NDArray[Any]) -> NDArray[Any] | SparseRows | None:
    """Return the gradient of the table where every row of a bag contributes."""
    if backward.call.mode.divides and backward.n_positions > 0:
        quotients = _divide_by_sizes(backward, grad)
        if quotients is None:
            return None
        grad = quotients
    column_team = _column_team(backward, grad)
    many_threads = backward.team.n > SCATTER_GAIN * column_team.n
    if backward.sparse or backward.scale_grad_by_freq or many_threads:
        return _sum_by_row(backward, grad)
    result = _arguments.new_array(np.zeros, (backward.n_rows, grad.shape[1]), grad.dtype)
    done = threads.run(
        kernels.scatter,
        column_team,
        grad,
        *backward.bag_arrays,
        backward.sample,
        backward.call.padding,
        result,
    )
    return result if done else None


def _sum_by_row(backward: _Backward, grad: NDArray[Any]) -> NDArray[Any] | SparseRows | None:
    """Group positions by row and sum the terms of each row."""
    groups = group_by_row(
        backward.bags.indices,
        backward.n_positions,
        backward.n_rows,
        backward.call.padding,
        backward.team,
        by_bag=backward.sample is None,
        offsets=backward.bags.offsets,
        include_last_offset=backward.bags.includes_last,
    )
    if groups is None:
        return None
    factors = None
    if backward.sample is not None:
        factors = threads.run(
            kernels.look_up_weights,
            backward.team,
            *backward.bag_arrays,
            backward.sample,
            groups.members,
            backward.n_positions,
        )
        if factors is None:
            return None
    dim = grad.shape[1]
    if backward.sparse:
        result = _arguments.new_array(np.empty, (len(groups.rows), dim), grad.dtype)
    else:
        result = _arguments.new_array(np.zeros, (backward.n_rows, dim), grad.dtype)
    reduction = kernels.DIVIDED_SUM if backward.scale_grad_by_freq else kernels.MODE_CODES["sum"]
    out_rows = None if backward.sparse else groups.rows
    if not _reduce_groups(groups, grad, factors, reduction, result, out_rows, backward.team):
        return None
    if backward.sparse:
        return SparseRows._of_groups(groups.rows, result, (backward.n_rows, dim))
    return result


def _reduce_groups(
    groups: Groups,
    grad: NDArray[Any],
    factors: NDArray[Any] | None,
    reduction: int,
    result: NDArray[Any],
    out_rows: NDArray[np.int64] | None,
    team: threads.Team,
) -> bool:
    """Fill `result` by a lookup in `grad`: each group is a bag whose ids are bags."""
    table = _encodings.as_table(grad)
    done: bool = threads.run(
        kernels.reduce_bags,
        team,
        table.rows,
        table.code,
        table.dim,
        (groups.members,),
        (groups.starts,),
        True,
        (factors,),
        reduction,
        -1,
        None,
        result,
        table.code,
        None,
        out_rows,
    )
    return done


def _scatter_to_winners(
    backward: _Backward, grad: NDArray[Any], weight: NDArray[Any], winners: NDArray[np.int64] | None
) -> NDArray[Any] | None:
    """Add each entry of the gradient to the row that its maximum came from."""
    if winners is None:
        winners = np.empty(backward.call.shape, np.int64)
        maxima = np.empty(backward.call.shape, grad.dtype)
        table = _encodings.as_table(weight)
        _call.run(dataclasses.replace(backward.call, table=table), maxima, winners)
    result = _arguments.new_array(np.zeros, (backward.n_rows, grad.shape[1]), grad.dtype)
    team = _column_team(backward, grad)
    done = threads.run(kernels.scatter_max, team, grad, winners, backward.call.padding, result)
    return result if done else None


def _dot_rows(backward: _Backward, grad: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any] | None:
    """Return the dot product of each position's row and the gradient of its bag."""
    result = _arguments.new_array(np.zeros, backward.bags.indices.shape, weight.dtype)
    done = threads.run(
        kernels.dot_rows,
        backward.team,
        _arguments.as_table(weight),
        *backward.bag_arrays,
        grad,
        backward.n_positions,
        backward.call.padding,
        result,
    )
    return result if done else None
