"""`embedding_bag_backward`: the gradients of `embedding_bag`.

The gradient of a row of the table is the sum of the gradients of the bags that contain it,
one term per position. So the backward pass is a forward pass: it groups the positions by
row (`_grouping.py`), replaces each position by its bag, and reduces. It gathers from
`grad_output` and reduces into the gradient.

    check the arguments           `_call.py`, with all values of ids and offsets
    group positions by row        `_terms.py`, `_grouping.py`
    replace positions by bags     `_kernels/backward.pxi`
    reduce                        `_terms.py`, by the forward kernel

One thread owns each row (or several threads own some of its columns) and adds in the order
of positions. So there are no atomics, and any number of threads gives the same bits.

Tested in tests/gradients/.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments, _call, _encodings, _modes
from embag._bags import ArrayBags
from embag._call import Call
from embag._entries import at_positions, counting_entries, divide, with_arrays
from embag._kernels.dispatch import kernels
from embag._process import threads
from embag._tensors import as_ndarray
from embag._terms import Terms
from embag._types import Ids, Invalid, Mode, SampleWeights
from embag.remapped import RemappedTable
from embag.sparse_rows import SparseRows

# Grouping pays off where it can use this many times the threads that can share the columns
# of a dense gradient. Origin: docs/design.md, "Gradients".
SCATTER_GAIN = 3


# The form of the gradient of a table: an array, `SparseRows`, or `Terms` that are still to be
# checked and added (where the mode does not add rows: `SparseRows`).
Form: TypeAlias = Literal["dense", "sparse", "terms"]
Gradient: TypeAlias = NDArray[Any] | SparseRows | Terms


class EmbeddingBagGrads(NamedTuple):
    """The gradients of an `embedding_bag` lookup; None for one that was not computed."""

    weight: Any
    """Of the table: an array of its shape, or `SparseRows` with ``sparse=True``."""
    per_sample_weights: Any
    """Of `per_sample_weights`: an array of their shape; of a ragged input, one of all entries."""


def embedding_bag_backward(
    grad_output: "ArrayLike",
    input: "Ids",
    weight: "NDArray[Any] | RemappedTable",
    offsets: "ArrayLike | None" = None,
    *,
    scale_grad_by_freq: bool = False,
    mode: Mode = "mean",
    sparse: bool = False,
    per_sample_weights: "SampleWeights | None" = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    max_indices: "ArrayLike | None" = None,
    wrt: Literal["weight", "per_sample_weights"] | None = None,
    num_threads: int | None = None,
    invalid: Invalid = "raise",
    default_idx: int | None = None,
    normalize: bool = False,
    segment_ids: "ArrayLike | None" = None,
    n_bags: int | None = None,
    lengths: "ArrayLike | None" = None,
) -> EmbeddingBagGrads:
    """Return the gradients of `embedding_bag`, given the gradient of its output.

    Parameters
    ----------
    grad_output : array_like, shape (n_bags, dim)
        The gradient of the output, computed in the dtype of sums. It is read in place if the
        entries of each row are adjacent, whatever the distance between rows, so also the result
        of ``np.broadcast_to``.
    input : array_like of int, shape (n_indices,) or (n_bags, bag_size), or ragged
        The ids of the lookup, as `embedding_bag` takes them: an array, or lists of any library.
    weight : ndarray of float32, float64, float16 or bfloat16, or RemappedTable
        The table. Its values are read for the gradient of `per_sample_weights`, with
        `normalize`, and with ``mode="max"`` and ``mode="min"`` if `max_indices` is not given.
        For a RemappedTable of such an array, the gradient is that of the array.
    offsets : array_like of int, shape (n_bags,) or (n_bags + 1,), optional
        Where each bag starts in `input`.
    scale_grad_by_freq : bool, optional
        If True, divide the gradient of each row by the number of its occurrences in bags. Not
        with ``mode="max"`` and ``mode="min"``.
    mode : {"mean", "sum", "sqrtn", "max", "min"}, optional
        How the rows of a bag were reduced.
    sparse : bool, optional
        If True, return the gradient of the table as `SparseRows`, which holds only the rows
        that occur, or with ``mode="max"`` and ``mode="min"`` those that an entry came from. Time
        and memory then do not depend on n_rows.
    per_sample_weights : array_like, shape of `input`, or ragged, optional
        The factor of each gathered row. Not with ``mode="max"`` and ``mode="min"``. A CSR matrix,
        and a column of ids with weights, have weights of their own.
    include_last_offset : bool, optional
        If True, `offsets` has one more entry: the end of the last bag. Ids after it are in no
        bag.
    padding_idx : int, optional
        The row that was skipped; a negative number counts from the end. Its gradient is zero,
        or absent with `sparse`.
    max_indices : array_like of int, shape (n_bags, dim), optional
        With ``mode="max"`` and ``mode="min"``: the rows that the entries came from, as
        ``embedding_bag(..., return_max_indices=True)`` returns them. By default they are
        computed again. Not with a RemappedTable.
    wrt : {"weight", "per_sample_weights"}, optional
        The only gradient to compute. By default both are computed.
    num_threads : int, optional
        The largest number of threads for this call, instead of `get_num_threads`.
    invalid : {"raise", "skip"} or int, optional
        What was done with ids out of range: see `embedding_bag`.
    default_idx : int, optional
        The row of a bag in which no id counts. The gradient of such a bag is its own, unless it
        is the padding row.
    normalize : bool, optional
        Whether each row of the output was divided by its norm. A row of zeros passes nothing on.
    segment_ids : array_like of int, shape (n_indices,), optional
        The bag of each position, in any order, instead of `offsets`.
    n_bags : int, optional
        The number of bags, with `segment_ids`; by default the largest segment id plus 1.
    lengths : array_like of int, shape (n_bags,), optional
        The number of ids in each bag, instead of `offsets`.

    Returns
    -------
    weight : ndarray or SparseRows, shape (n_rows, dim)
        The gradient of the table, in the dtype of sums: float64 for a float64 table, float32 for
        any other. None if `wrt` is "per_sample_weights".
    per_sample_weights : ndarray or None
        The gradient of the weights, in the shape of `input` and the dtype of sums: for each
        position of a sum the dot product of the row and the gradient of the bag. It is 0 for
        padding, for skipped ids and for ids in no bag. None if the lookup has no weights or `wrt`
        is "weight".

        For a ragged input it is a 1-D array: a number for each entry that the lists hold, in their
        order, with 0 for nulls. Null lists hold no entries. Lists of Python integers of one length
        are 2-D input.

    Raises
    ------
    TypeError
        If an argument has the wrong kind or dtype.
    ValueError
        If a shape, an offset, a segment id or an option is wrong, or arguments contradict each
        other.
    IndexError
        If an id is out of range. The message names the first.
    MemoryError
        If there is not enough memory.
    RuntimeError
        If another thread changes an array during the call, and embag notices it.

    Warns
    -----
    PerformanceWarning
        If the values of a `weight` of more than 1 MiB are read, and must be copied for its layout.

    See Also
    --------
    embedding_bag : The forward pass.
    SparseRows.add_to : Make a step of gradient descent.

    Notes
    -----
    The gradient of a row starts at 0 and adds its terms in the order of positions (with
    `segment_ids` in the order of bags), in the dtype of sums. `scale_grad_by_freq` divides
    the sum. With ``mode="mean"`` a term is the gradient of the bag, truly divided by the number of
    ids that are not padding. With ``mode="max"`` each entry of the gradient goes to the row of the
    maximum. Dot products are summed in 16 lanes, folded in halves. The result has the same bits
    (except for the sign and payload of a NaN) for any number of threads and at any
    instruction-set level. Dense and sparse gradients have the same bits, too.

    In addition to its result, a sparse gradient takes 16 bytes for each id (24 with
    `per_sample_weights`) and 16 for each row that occurs. A dense gradient with
    `scale_grad_by_freq` takes as much. ``mode="mean"`` takes a copy of `grad_output`, and
    ``mode="max"`` without `max_indices` takes the memory of the forward call that finds them.
    For a RemappedTable, the rows of the ids that occur are copied, and terms are added by id first,
    and then by row, in the order of ids. The rows of a float16 or bfloat16 table are copied for the
    gradient of `per_sample_weights`. A ragged input takes 8 bytes for each
    bag, another 8 for each entry if it has weights, and copies of ids and weights that are not in
    one contiguous array of a dtype that can be read in place.

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

    Lists of ids and weights. The gradient of the weights is flat:

    >>> grads = embag.embedding_bag_backward(
    ...     [[1, 2], [10, 20]],
    ...     [[1], [3, None, 1]],
    ...     weight,
    ...     mode="sum",
    ...     per_sample_weights=[[2.0], [1.0, None, 0.5]],
    ... )
    >>> grads.weight[1]
    array([ 7., 14.], dtype=float32)
    >>> grads.per_sample_weights
    array([ -27.5,    0. ,    0. , -275. ], dtype=float32)
    """
    _arguments.check_flags(sparse=sparse)
    weight = as_ndarray(weight, "weight")
    call = call_of(
        input,
        weight,
        offsets,
        mode=mode,
        per_sample_weights=per_sample_weights,
        include_last_offset=include_last_offset,
        padding_idx=padding_idx,
        lengths=lengths,
        num_threads=num_threads,
        invalid=invalid,
        default_idx=default_idx,
        normalize=normalize,
        segment_ids=segment_ids,
        n_bags=n_bags,
    )
    form: Form = "sparse" if sparse else "dense"
    return gradients_of(call, grad_output, weight, max_indices, wrt, scale_grad_by_freq, form)


def table_of(weight: Any, name: str = "weight") -> _encodings.Table:
    """Return a table that has gradients, checked; an array is never copied."""
    rows = rows_of(weight, name)
    table: _encodings.Table = _encodings.shape_of(rows) if rows is weight else weight._encoded
    return table


def rows_of(weight: Any, name: str = "weight") -> Any:
    """Return the array of the rows of a table that has gradients, checked."""
    is_remapped = issubclass(type(weight), RemappedTable)
    rows = weight.table if is_remapped else weight
    _arguments.check_table(
        rows,
        f"{name}.table" if is_remapped else name,
        dtypes=_encodings.FLOATS_RULE,
        is_known=_encodings.is_float,
    )
    return rows


def call_of(input: Any, weight: Any, offsets: Any, **options: Any) -> Call:
    """Return the lookup that gradients are of; its options are those of `_call.make`."""
    return _call.make(input, table_of(weight), offsets, **options)


def gradients_of(
    given: Call,
    grad_output: Any,
    weight: Any,
    max_indices: Any = None,
    wrt: Any = None,
    scale_grad_by_freq: bool = False,
    form: Form = "dense",
) -> EmbeddingBagGrads:
    """Return the gradients of a lookup in a table; the gradient of the table in some form."""
    _arguments.check_flags(scale_grad_by_freq=scale_grad_by_freq)
    call, flattened = with_arrays(given)
    options = wrt, scale_grad_by_freq, form
    if not issubclass(type(weight), RemappedTable):
        grads = gradients_of_arrays(call, grad_output, np.asarray(weight), max_indices, *options)
    elif max_indices is not None:
        raise ValueError(
            "max_indices must be None where weight is a RemappedTable, "
            f"got {_arguments.describe(max_indices)}"
        )
    else:
        grads = _gradients_of_remapped(call, grad_output, weight, *options)
    of_weights = grads.per_sample_weights
    if flattened is None or of_weights is None:
        return grads
    entries = at_positions(of_weights, flattened.positions, flattened.shape)
    return grads._replace(per_sample_weights=entries)


def gradients_of_arrays(
    call: Call,
    grad_output: Any,
    weight: NDArray[Any],
    max_indices: Any,
    wrt: Any,
    scale_grad_by_freq: bool = False,
    form: Form = "dense",
) -> EmbeddingBagGrads:
    """Check the other arguments of a backward pass, and return the gradients of the lookup."""
    (n_rows, dim), dtype = weight.shape, call.table.sums_dtype
    _modes.check_options(call.mode, False, scale_grad_by_freq)
    bags: Any = call.bags
    n_indices = bags.indices.size
    winners = None
    sample: Any = call.weights
    _arguments.check_wrt(wrt, sample)
    if max_indices is not None:
        _modes.check_winners(call.mode, max_indices)
        winners = _arguments.as_max_indices(max_indices, bags.n_bags, dim, n_rows)
    grad = _arguments.as_grad_output(grad_output, bags.n_bags, dim, dtype)
    _arguments.check_layouts(
        bags.indices, bags.offsets, bags.includes_last, n_indices, grad, (bags.n_bags, dim), dtype
    )
    if not call.mode.sums or dim == 0 or call.normalizes or call.default >= 0:
        # These kernels do not read every id.
        call.check()
    else:
        bags.check_offsets()
    return _gradients(call, grad, weight, winners, wrt, scale_grad_by_freq, form)


def _gradients(
    call: Call,
    grad: NDArray[Any],
    weight: NDArray[Any],
    winners: NDArray[np.int64] | None,
    wrt: str | None,
    scale_grad_by_freq: bool,
    form: Form,
) -> EmbeddingBagGrads:
    """Return the requested gradients. The arguments have been checked, but not every id."""
    bags: Any = call.bags
    positions, order, shape = None, bags.order, bags.indices.shape
    n_entries = (bags.indices.size + bags.n_bags) * grad.shape[1]
    team = threads.team_for(n_entries, call.num_threads)
    if not call.refuse or call.default >= 0:
        call, positions = counting_entries(call)
        bags = call.bags
    backward = _Backward(call, bags, bags.used.size, team, scale_grad_by_freq, form)
    wants_weight = wrt != "per_sample_weights"
    wants_sample = call.weights is not None and wrt != "weight"
    if call.normalizes or wants_sample or (call.mode.selects and winners is None):
        table = _encodings.as_table(weight)  # copied at most once
        backward = backward._replace(call=dataclasses.replace(call, table=table))
    if call.normalizes:
        grad = _through_normalization(backward, grad)
    grad_weight: Gradient | None = None
    grad_sample: NDArray[Any] | None = None
    quotients, divisors = grad, None
    if call.mode.divides and backward.n_positions > 0:
        quotients, divisors = divide(call, grad, backward.team)
    if wants_weight and call.mode.sums:
        grad_weight = _sum_rows(backward, quotients)
    elif wants_weight:
        assert call.mode.selects  # a mode of another kind needs a gradient of its own here
        grad_weight = _scatter_to_winners(backward, grad, winners)
    if wants_sample:
        grad_sample = _grad_of_weights(backward, grad, divisors)
        if grad_sample is not None and positions is not None:
            grad_sample = at_positions(grad_sample, positions, shape)
        if grad_sample is not None and order is not None:
            grad_sample = at_positions(grad_sample, order, shape)
    if (wants_weight and grad_weight is None) or (wants_sample and grad_sample is None):
        _call.blame(call)
    return EmbeddingBagGrads(grad_weight, grad_sample)


def _gradients_of_remapped(
    call: Call,
    grad_output: Any,
    weight: RemappedTable,
    wrt: Any,
    scale_grad_by_freq: bool,
    form: Form,
) -> EmbeddingBagGrads:
    """Return the gradients of a lookup in a RemappedTable.

    The scaled rows of the ids that occur form a table. Its gradient is computed first, and then
    added to the rows of the inner table.
    """
    rows: Any = weight.table
    sparse = form != "dense"
    _modes.check_options(call.mode, False, scale_grad_by_freq)
    sample: Any = call.weights
    _arguments.check_wrt(wrt, sample)
    call.check()
    mapping: Any = call.table.mapping
    if call.default >= 0 and mapping.is_pruned(np.array(call.default)):
        call = dataclasses.replace(call, default=-1)  # the result is zeros
    given: Any = call.bags
    counting, positions = counting_entries(call)
    bags: Any = counting.bags
    sample = counting.weights
    ids, numbers = np.unique(bags.indices, return_inverse=True)
    values = _arguments.new_array(np.empty, (len(ids), call.table.dim), call.table.sums_dtype)
    team = threads.team_for(values.size, call.num_threads)
    if not call.table.decode(ids, values, team):
        _arguments.raise_for_change()
    grads = embedding_bag_backward(
        grad_output,
        numbers.reshape(-1),
        values,
        bags.offsets,
        mode=cast(Mode, call.mode.name),
        sparse=True,
        per_sample_weights=sample,
        include_last_offset=True,
        wrt=wrt,
        num_threads=call.num_threads,
        normalize=call.normalizes,
    )
    of_weights = grads.per_sample_weights
    if of_weights is not None:
        of_weights = at_positions(of_weights, positions, given.indices.shape)
        if given.order is not None:
            of_weights = at_positions(of_weights, given.order, given.indices.shape)
    if grads.weight is None:
        return EmbeddingBagGrads(None, of_weights)
    # The default may be the padding row: it has a value, but no gradient.
    passes = ids[grads.weight.indices] != call.padding
    places = ids[grads.weight.indices[passes]] - weight.first_id
    terms = grads.weight.values[passes]
    if weight.scales is not None:
        terms = terms * weight.scales[places][:, None]
    if weight.index_map is not None:
        places = weight.index_map[places]
    of_rows = embedding_bag_backward(
        terms,
        places.reshape(-1, 1),
        rows,
        mode="sum",
        sparse=sparse,
        wrt="weight",
        num_threads=call.num_threads,
    ).weight
    if scale_grad_by_freq:
        occurring = bags.indices[bags.indices != call.padding] - weight.first_id
        if weight.index_map is not None:
            occurring = weight.index_map[occurring]
        used, counts = np.unique(occurring, return_counts=True)
        if sparse:
            of_rows.values[:] /= counts[:, None]
        else:
            of_rows[used] /= counts[:, None]
    return EmbeddingBagGrads(of_rows, of_weights)


class _Backward(NamedTuple):
    """The state that the steps below share. A step returns None if an id is invalid."""

    call: Call
    bags: ArrayBags
    n_positions: int  # in bags
    team: threads.Team
    scale_grad_by_freq: bool
    form: Form

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


def _through_normalization(backward: _Backward, grad: NDArray[Any]) -> NDArray[Any]:
    """Return the gradient of the results before they are divided by their norms."""
    wide = _results(backward).astype(np.float64)
    with np.errstate(all="ignore"):
        norms = np.sqrt(np.einsum("bd,bd->b", wide, wide))[:, None]
        units = wide / norms
        along = np.einsum("bd,bd->b", units, grad.astype(np.float64))[:, None]
        passed = np.where(norms == 0, 0, (grad - along * units) / norms)
    return passed.astype(grad.dtype)


def _results(backward: _Backward, winners: NDArray[np.int64] | None = None) -> NDArray[Any]:
    """Return the results of the lookup before they are normalized; fill the winning rows."""
    call = dataclasses.replace(backward.call, normalizes=False)
    results = _arguments.new_array(np.empty, call.shape, call.table.sums_dtype)
    _call.run(call, _call.Outputs(results, winners))
    return results


def _column_team(backward: _Backward, grad: NDArray[Any]) -> threads.Team:
    """Return the threads that share the columns of a dense gradient.

    Each takes at least a cache line.
    """
    n_lines: int = (grad.shape[1] * grad.itemsize + 63) // 64
    return backward.team.at_most(max(1, n_lines))


def _sum_rows(backward: _Backward, grad: NDArray[Any]) -> Gradient | None:
    """Return the gradient of the table where every row of a bag contributes."""
    column_team = _column_team(backward, grad)
    many_threads = backward.team.n > SCATTER_GAIN * column_team.n
    if backward.form != "dense" or backward.scale_grad_by_freq or many_threads:
        terms = Terms(
            grad,
            backward.bags,
            backward.n_positions,
            backward.sample,
            backward.call.padding,
            backward.scale_grad_by_freq,
            backward.n_rows,
        )
        if backward.form == "terms":
            return terms
        return terms.summed(backward.team, backward.form == "sparse")
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


def _scatter_to_winners(
    backward: _Backward, grad: NDArray[Any], winners: NDArray[np.int64] | None
) -> Gradient | None:
    """Add each entry of the gradient to the row that it came from."""
    if winners is None:
        winners = np.empty(backward.call.shape, np.int64)
        _results(backward, winners)
    n_rows, rows, padding = backward.n_rows, None, backward.call.padding
    if backward.form != "dense":
        # -1 stands for no row; if it occurs, it sorts first.
        rows, numbers = np.unique(np.where(winners == padding, -1, winners), return_inverse=True)
        n_left_out = int((rows < 0).sum())
        rows, winners = rows[n_left_out:], numbers.reshape(winners.shape) - n_left_out
        n_rows, padding = len(rows), -1
    result = _arguments.new_array(np.zeros, (n_rows, grad.shape[1]), grad.dtype)
    team = _column_team(backward, grad)
    done = threads.run(
        kernels.scatter_max, team, grad, np.ascontiguousarray(winners), padding, result
    )
    if not done or rows is None:
        return result if done else None
    return SparseRows._of_groups(rows, result, (backward.n_rows, grad.shape[1]))


def _grad_of_weights(
    backward: _Backward, grad: NDArray[Any], divisors: NDArray[Any] | None
) -> NDArray[Any] | None:
    """Return the gradient of each position's weight; None if an id is invalid."""
    products = _dot_rows(backward, grad)
    if products is None or divisors is None:
        return products
    call, results = backward.call, _results(backward)
    shares = np.einsum("bd,bd->b", grad.astype(np.float64), results.astype(np.float64))
    flat, ids = products.reshape(-1), backward.bags.indices.reshape(-1)
    bags = _bag_of_positions(backward.bags)
    counts = np.flatnonzero((bags >= 0) & (ids != call.padding))
    counts = counts[divisors[bags[counts]] != 0]
    bags = bags[counts]
    divisor = divisors[bags].astype(np.float64)
    if call.mode.name == "mean":
        terms = (flat[counts] - shares[bags]) / divisor
    else:
        weights = backward.sample.reshape(-1)[counts].astype(np.float64)
        terms = (flat[counts] - weights * shares[bags] / divisor) / divisor
    flat[:] = 0
    flat[counts] = terms
    return products


def _bag_of_positions(bags: ArrayBags) -> NDArray[np.int64]:
    """Return the bag of each position; -1 for those in no bag."""
    n = bags.indices.size
    ends = bags.ends
    if ends is None:
        return np.repeat(np.arange(bags.n_bags), bags.indices.shape[1])
    result = np.full(n, -1, np.int64)
    sizes = np.diff(ends)
    result[int(ends[0]) : int(ends[-1])] = np.repeat(np.arange(bags.n_bags), sizes)
    return result


def _dot_rows(backward: _Backward, grad: NDArray[Any]) -> NDArray[Any] | None:
    """Return the dot product of each position's row and the gradient of its bag."""
    bags, padding, table = backward.bags, backward.call.padding, backward.call.table
    rows, indices = table.rows, bags.indices
    result = _arguments.new_array(np.zeros, indices.shape, table.sums_dtype)
    if not table.encoding.is_plain:
        # The kernel reads plain rows. So the rows in use are decoded, under new numbers.
        used = indices.reshape(-1)[: backward.n_positions]
        ids, numbers = np.unique(used, return_inverse=True)
        rows = _arguments.new_array(np.empty, (len(ids), table.dim), table.sums_dtype)
        if not table.decode(ids, rows, backward.team):
            return None
        indices = np.zeros(indices.shape, np.int64)
        indices.reshape(-1)[: backward.n_positions] = numbers.reshape(-1)
        padding = int(np.searchsorted(ids, padding)) if padding in ids else -1
    done = threads.run(
        kernels.dot_rows,
        backward.team,
        rows,
        indices,
        bags.offsets,
        bags.includes_last,
        grad,
        backward.n_positions,
        padding,
        result,
    )
    return result if done else None
