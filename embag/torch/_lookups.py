"""`embedding_bag` for tensors: an autograd function around the functions of embag.

Tested in tests/bridges/test_torch_bridge.py and test_low_precision_tensors.py.
"""

import operator
from collections.abc import Callable
from typing import Any, Literal

import torch

from embag import functional
from embag._types import Invalid
from embag.backward import embedding_bag_backward
from embag.sparse_rows import SparseRows
from embag.torch._tensors import (
    FACTORS,
    INTEGERS,
    as_array,
    as_sparse_tensor,
    as_tensor,
    check,
    check_table,
    num_threads,
    sums_dtype,
)


def embedding_bag(
    input: torch.Tensor,
    weight: torch.Tensor,
    offsets: torch.Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: torch.Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    *,
    default_idx: int | None = None,
    invalid: Invalid = "raise",
    normalize: bool = False,
) -> torch.Tensor:
    """Gather rows of a table and reduce them per bag, with gradients.

    This replaces ``torch.nn.functional.embedding_bag`` for tensors on the CPU. It has the same
    arguments in the same order, and three more by keyword. The semantics are those of
    `embag.embedding_bag`.

    Parameters
    ----------
    input : Tensor of int, shape (n_indices,) or (n_bags, bag_size)
        The ids: which rows to gather. 1-D ids need `offsets`; each row of 2-D ids is a bag.
    weight : Tensor of float32, float64, float16 or bfloat16, shape (n_rows, dim)
        The table. bfloat16 needs the package ``ml_dtypes``.
    offsets : Tensor of int, shape (n_bags,) or (n_bags + 1,), optional
        Where each bag starts in `input`.
    max_norm : float, optional
        Each row that occurs in a bag and has a larger norm is scaled down in `weight` itself,
        before the reduction. The scaling has no gradient.
    norm_type : float, optional
        The p of this p-norm: greater than 0, or ``inf``.
    scale_grad_by_freq : bool, optional
        If True, divide the gradient of each row by the number of its occurrences in bags. Not
        with ``mode="max"`` and ``mode="min"``.
    mode : {"mean", "sum", "sqrtn", "max", "min"}, optional
        How the rows of a bag are reduced.
    sparse : bool, optional
        If True, the gradient of `weight` is a coalesced sparse tensor of the rows that occur. Not
        with ``mode="max"`` and ``mode="min"``.
    per_sample_weights : Tensor, shape of `input`, optional
        A factor for each gathered row, computed in the dtype of sums. Not with ``mode="max"`` and
        ``mode="min"``. Its gradient has its own dtype.
    include_last_offset : bool, optional
        If True, `offsets` has one more entry: the end of the last bag.
    padding_idx : int, optional
        A row that is skipped and has no gradient; a negative number counts from the end.
    default_idx : int, optional
        The row of a bag in which no id counts; a negative number counts from the end. It gets
        the gradient of the bag.
    invalid : {"raise", "skip"} or int, optional
        What to do with ids out of range: raise an IndexError, skip them like padding, or look up
        this row.
    normalize : bool, optional
        If True, divide each row of the result by its Euclidean norm.

    Returns
    -------
    Tensor, shape (n_bags, dim)
        The reduced bags, in the dtype of `weight`. The result can be differentiated once, with
        respect to `weight` and `per_sample_weights`, in backward mode.

    Raises
    ------
    TypeError
        If an argument is not a tensor, or has the wrong kind or dtype.
    ValueError
        If a tensor is sparse or not on the CPU, a shape, an offset or an option is wrong, or
        arguments contradict each other.
    IndexError
        If an id is out of range and `invalid` is "raise". The message names the first.
    MemoryError
        If there is not enough memory.
    ImportError
        If `weight` is of bfloat16 and ``ml_dtypes`` is not installed.
    RuntimeError
        If another thread changes a tensor during the call, and embag notices it. If a tensor that
        backward needs was changed after forward, as always in torch.

    See Also
    --------
    embag.embedding_bag : The same for arrays, with all rules.
    embag.embedding_bag_backward : The gradients.
    EmbeddingBag : The module.

    Notes
    -----
    Tensors are read in place like arrays. The result and the gradients are in the memory that
    embag returned; only the row numbers of a sparse gradient are copied. Weights of another
    dtype are converted first. A call uses at most ``torch.get_num_threads()`` threads, and at
    most `embag.get_num_threads`. ``torch.compile`` makes a graph break at a call.

    Rows of float16 and bfloat16 are summed in float32, and the result is rounded once. The
    gradient of such a table is summed in float32 as well, and rounded once to the dtype of
    `weight`. `max_norm` needs float32 or float64.

    Examples
    --------
    >>> import torch
    >>> import embag.torch
    >>> weight = torch.arange(8.0).reshape(4, 2).requires_grad_()
    >>> input, offsets = torch.tensor([1, 2, 1]), torch.tensor([0, 2])
    >>> bags = embag.torch.embedding_bag(input, weight, offsets, mode="sum")
    >>> bags.tolist()
    [[6.0, 8.0], [2.0, 3.0]]
    >>> bags.sum().backward()
    >>> weight.grad.tolist()
    [[0.0, 0.0], [2.0, 2.0], [1.0, 1.0], [0.0, 0.0]]
    """
    return look_up(
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
        default_idx,
        invalid,
        normalize,
    )


def look_up(
    input: Any, weight: Any, offsets: Any, *options: Any, update: Callable[..., Any] | None = None
) -> torch.Tensor:
    """Check the tensors and call the autograd function.

    With `update`, `weight` has no gradient. The backward pass calls `update` instead, with the
    arguments of `embag.optim.Optimizer.update`.
    """
    call = _look_up
    if torch.compiler.is_compiling():
        # A decorator would import the compiler, which takes a second, in every program.
        call = torch.compiler.disable(call)
    return call(update, input, weight, offsets, *options)


def _look_up(update: Any, input: Any, weight: Any, offsets: Any, *options: Any) -> torch.Tensor:
    sample = options[5]
    check(input, "input", INTEGERS, "integers")
    check_table(weight)
    if offsets is not None:
        check(offsets, "offsets", INTEGERS, "integers")
    if sample is not None:
        check(sample, "per_sample_weights", FACTORS, "real numbers")
    if torch.is_inference_mode_enabled():
        # No gradient can be needed. A small call takes half the time this way.
        return as_tensor(_reduce(False, input, weight, offsets, *options)[0])
    if update is not None:
        # A leaf of this lookup alone, so that autograd calls the backward pass.
        weight = weight.detach().requires_grad_()
    # Passed along, because inside the function gradients are always disabled.
    result: torch.Tensor = _EmbeddingBag.apply(
        torch.is_grad_enabled(), update, input, weight, offsets, *options
    )
    return result


def _reduce(
    wants_winners: bool,
    input: torch.Tensor,
    weight: torch.Tensor,
    offsets: torch.Tensor | None,
    max_norm: float | None,
    norm_type: float,
    scale_grad_by_freq: bool,
    mode: Any,
    sparse: bool,
    per_sample_weights: torch.Tensor | None,
    include_last_offset: bool,
    padding_idx: int | None,
    default_idx: int | None,
    invalid: Invalid,
    normalize: bool,
) -> tuple[Any, Any]:
    """Return the arrays of the output and, with `wants_winners`, of the rows of the maxima."""
    # max_norm writes to it, so it must not be a copy.
    table = as_array(weight, in_place=max_norm is not None)
    result = functional.embedding_bag(
        as_array(input),
        table,
        as_array(offsets),
        max_norm,
        norm_type,
        scale_grad_by_freq,
        mode,
        sparse,
        as_array(per_sample_weights, sums_dtype(weight)),
        include_last_offset,
        padding_idx,
        return_max_indices=wants_winners and mode in ("max", "min"),
        num_threads=num_threads(),
        out_dtype=table.dtype,
        default_idx=default_idx,
        invalid=invalid,
        normalize=normalize,
    )
    if max_norm is not None:
        torch.autograd.graph.increment_version(weight)
    return result if isinstance(result, tuple) else (result, None)


# The indices of `weight` and `per_sample_weights` among the arguments of the function below.
_DIFFERENTIABLE = (3, 10)


class _EmbeddingBag(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        grad_enabled: bool,
        update: Callable[..., Any] | None,
        input: torch.Tensor,
        weight: torch.Tensor,
        offsets: torch.Tensor | None,
        *options: Any,
    ) -> torch.Tensor:
        needs_weight, needs_sample = (ctx.needs_input_grad[i] for i in _DIFFERENTIABLE)
        _, _, scale_grad_by_freq, mode, sparse, sample, include_last_offset, *rows = options
        padding_idx, default_idx, invalid, normalize = rows
        result, winners = _reduce(grad_enabled and needs_weight, input, weight, offsets, *options)
        if winners is not None:
            winners = torch.from_numpy(winners)
        # Saved tensors must not change before the backward pass. As in torch, the table may
        # (an optimizer's step), unless the gradient needs its values.
        table = weight if needs_sample or normalize else None
        ctx.save_for_backward(input, offsets, sample, table, winners)
        ctx.update = update
        ctx.shape = weight.shape
        ctx.options = {
            "scale_grad_by_freq": scale_grad_by_freq,
            "mode": mode,
            "sparse": sparse,
            "include_last_offset": include_last_offset,
            # Already checked; as ints they cannot change any more.
            "padding_idx": None if padding_idx is None else operator.index(padding_idx),
            "default_idx": None if default_idx is None else operator.index(default_idx),
            "invalid": invalid if isinstance(invalid, str) else operator.index(invalid),
            "normalize": bool(normalize),
        }
        return as_tensor(result)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needs = *(ctx.needs_input_grad[i] for i in _DIFFERENTIABLE), ctx.shape, ctx.options
        gradients = _Gradients.apply(ctx.update, needs, grad_output, *ctx.saved_tensors)
        by_place = dict(zip(_DIFFERENTIABLE, gradients, strict=True))
        return tuple(by_place.get(i) for i in range(len(ctx.needs_input_grad)))


class _Gradients(torch.autograd.Function):
    """The gradients, as a function of everything they depend on.

    So any way to differentiate them again ends in the error below.
    """

    @staticmethod
    def forward(
        ctx: Any,
        update: Callable[..., Any] | None,
        needs: tuple[bool, bool, torch.Size, dict[str, Any]],
        grad_output: torch.Tensor,
        input: torch.Tensor,
        offsets: torch.Tensor | None,
        per_sample_weights: torch.Tensor | None,
        weight: torch.Tensor | None,
        max_indices: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        needs_weight, needs_sample, shape, options = needs
        lookup = {
            "offsets": as_array(offsets),
            "per_sample_weights": as_array(per_sample_weights, sums_dtype(grad_output)),
            "max_indices": as_array(max_indices),
            "num_threads": num_threads(),
            **options,
        }
        wrt: Literal["weight", "per_sample_weights"] | None = None
        if not (needs_weight and needs_sample):
            wrt = "weight" if needs_weight else "per_sample_weights"
        if update is not None:
            del lookup["sparse"]  # an update has no gradient of the table
            of_sample = update(as_array(grad_output), as_array(input), wrt=wrt, **lookup)
            return None, None if of_sample is None else torch.from_numpy(of_sample)
        if weight is None:
            # Only the shape and the dtype count: one number stands for the table.
            weight = grad_output.new_zeros(()).expand(shape)
        grads = embedding_bag_backward(
            as_array(grad_output), as_array(input), as_array(weight), wrt=wrt, **lookup
        )
        of_weight = of_sample = None
        if isinstance(grads.weight, SparseRows):
            of_weight = as_sparse_tensor(grads.weight, grad_output.dtype)
        elif grads.weight is not None:
            of_weight = torch.from_numpy(grads.weight).to(grad_output.dtype)
        if grads.per_sample_weights is not None:
            # In the dtype of sums; autograd casts it to that of the weights.
            of_sample = torch.from_numpy(grads.per_sample_weights)
        return of_weight, of_sample

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise RuntimeError(
            "embag.torch.embedding_bag must be differentiated at most once, got twice"
        )
