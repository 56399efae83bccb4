"""`embedding_bag` for tensors: an autograd function around the functions of embag.

Tested in tests/bridges/test_torch_bridge.py and test_low_precision_tensors.py.
"""

import operator
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.overrides import handle_torch_function, has_torch_function

from embag._arguments import describe
from embag._types import Invalid
from embag.quantized import QuantizedTable
from embag.torch import _operators
from embag.torch._computation import gradients, map_one_by_one, reduce
from embag.torch._errors import raise_as_torch
from embag.torch._quantized_lookups import look_up_quantized
from embag.torch._tensors import PLAIN, check_inputs, check_table, is_traced


def embedding_bag(
    input: torch.Tensor,
    weight: torch.Tensor | QuantizedTable,
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
        The ids: which rows to gather. 1-D ids need `offsets`; each row of 2-D ids is a bag, and
        each row of a nested tensor with ``torch.jagged``.
    weight : Tensor of float32, float64, float16 or bfloat16, or QuantizedTable
        The table, of shape (n_rows, dim). bfloat16 needs the package ``ml_dtypes``. A
        `QuantizedTable` has no gradient, and its results are of float32.
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
        with ``mode="max"`` and ``mode="min"``. In ``weight.grad``, torch keeps the rows and drops
        the mark that they are coalesced.
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
    most `embag.get_num_threads`.

    Where torch traces (``torch.compile``, ``torch.export``, ``torch.fx``, fake and meta tensors), a
    lookup is an operator of torch. A compiled graph cannot contain sparse gradients, nor the steps
    of a layer with an optimizer: these make a graph break. Under ``vmap`` the examples are looked
    up one by one. Autocast changes nothing.

    An IndexError or a ValueError raised here is a RuntimeError as well, as torch's are.

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


_SAMPLE = 5  # the place of `per_sample_weights` among the options


def look_up(
    input: Any, weight: Any, offsets: Any, *options: Any, update: Callable[..., Any] | None = None
) -> torch.Tensor:
    """Call the autograd function, or the operators where torch traces.

    With `update`, `weight` has no gradient. The backward pass calls `update` instead, with the
    arguments of `embag.optim.Optimizer.update`.
    """
    try:
        if type(input) not in PLAIN and isinstance(input, torch.Tensor) and input.is_nested:
            input, offsets, options = _flatten(input, offsets, options)
        if isinstance(weight, QuantizedTable):
            return look_up_quantized(input, weight, offsets, *options)
        tensors = input, weight, offsets, options[_SAMPLE]
        if update is None and has_torch_function(tensors):
            return _hand_over(tensors, options)
        if not torch.compiler.is_compiling():
            on_meta = getattr(weight, "is_meta", False) and getattr(input, "is_meta", False)
            device = "meta" if on_meta else "cpu"
            check_table(weight, device=device)
            check_inputs(input, offsets, options[_SAMPLE], device)
            if update is None and (on_meta or is_traced(*tensors)):
                return _operators.look_up(input, weight, offsets, *options)
            if torch.is_inference_mode_enabled() and not _transforms():
                # No gradient can be needed. A small call takes half the time this way.
                return reduce(False, input, weight, offsets, *options)[0]
            return _look_up_with_gradients(update, input, weight, offsets, *options)
    except (IndexError, ValueError) as error:
        raise_as_torch(error)
    reason = _why_not_compiled(weight, options, update)
    if reason is None:
        return _operators.look_up(input, weight, offsets, *options)
    torch._dynamo.graph_break(msg=reason)  # with fullgraph=True, an error
    # A decorator would import the compiler, which takes a second, in every program.
    eager = torch.compiler.disable(look_up)
    return eager(input, weight, offsets, *options, update=update)


def _look_up_with_gradients(
    update: Any, input: torch.Tensor, weight: torch.Tensor, offsets: Any, *options: Any
) -> torch.Tensor:
    if update is not None:
        # A leaf of this lookup alone, so that autograd calls the backward pass.
        weight = weight.detach().requires_grad_()
    # Computed here, because inside the function gradients are always disabled.
    wants_winners = torch.is_grad_enabled() and weight.requires_grad
    result: torch.Tensor = _EmbeddingBag.apply(
        update, wants_winners, input, weight, offsets, *options
    )[0]
    return result


def _why_not_compiled(weight: torch.Tensor, options: Any, update: Any) -> str | None:
    """Return why a compiled graph cannot contain a lookup, or None if it can."""
    if update is not None:
        return "embag.torch.EmbeddingBag: its optimizer makes steps outside of compiled graphs"
    if options[4] and torch.is_grad_enabled() and weight.requires_grad:
        return "embag.torch: sparse must be False, compiled graphs have no sparse gradients"
    return None


def _hand_over(tensors: Any, options: Any) -> torch.Tensor:
    """Let the class of an argument decide what a call means, such as a proxy of ``torch.fx``."""
    *of_torch, default_idx, invalid, normalize = options
    result: torch.Tensor = handle_torch_function(
        embedding_bag,
        tensors,
        *tensors[:3],
        *of_torch,
        default_idx=default_idx,
        invalid=invalid,
        normalize=normalize,
    )
    return result


def _flatten(input: Any, offsets: Any, options: Any) -> tuple[Any, Any, Any]:
    """Return the ids, offsets and options of a nested tensor, flat."""
    if input.dim() != 2:
        raise ValueError(f"input must be 2-D if it is nested, got {input.dim()} dimensions")
    if offsets is not None:
        raise ValueError(f"offsets must be None for a nested input, got {describe(offsets)}")
    if input.lengths() is not None:
        raise ValueError("input must be nested without holes, got lengths beside offsets")
    sample, bounds = options[_SAMPLE], input.offsets()
    if sample is not None:
        if not isinstance(sample, torch.Tensor) or sample.layout is not torch.jagged:
            raise TypeError(
                f"per_sample_weights must be nested as input is, got {describe(sample)}"
            )
        if sample.offsets() is not bounds and not torch.equal(sample.offsets(), bounds):
            raise ValueError("per_sample_weights must have the lengths of input, got others")
        sample = sample.values()
    flat = list(options)
    flat[_SAMPLE : _SAMPLE + 2] = sample, True  # `include_last_offset`
    return input.values(), bounds, flat


def _transforms() -> bool:
    """Return whether a transform of ``torch.func`` is active, which autograd functions know."""
    return torch._C._are_functorch_transforms_active()  # type: ignore[no-any-return]


# The indices of `weight` and `per_sample_weights` among the arguments of the function below.
_DIFFERENTIABLE = (3, 10)


class _EmbeddingBag(torch.autograd.Function):
    @staticmethod
    def forward(
        update: Callable[..., Any] | None,
        wants_winners: bool,
        input: torch.Tensor,
        weight: torch.Tensor,
        offsets: torch.Tensor | None,
        *options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return reduce(wants_winners, input, weight, offsets, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        update, _, input, weight, offsets, *options = inputs
        winners = output[1]
        if winners is not None:
            ctx.mark_non_differentiable(winners)
        _, _, scale_grad_by_freq, mode, sparse, sample, include_last_offset, *rows = options
        padding_idx, default_idx, invalid, normalize = rows
        # Saved tensors must not change before the backward pass. As in torch, the table may
        # (an optimizer's step), unless the gradient needs its values.
        table = weight if normalize or ctx.needs_input_grad[_DIFFERENTIABLE[1]] else None
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

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        needs = *(ctx.needs_input_grad[i] for i in _DIFFERENTIABLE), ctx.shape
        arguments = *needs, grad_output, *ctx.saved_tensors, ctx.options
        has_memory = torch._C._dispatch_keys(grad_output).has(torch._C.DispatchKey.CPU)
        if ctx.update is None and (is_traced(grad_output) or not (has_memory or _transforms())):
            # Also the batches of `torch.autograd.grad(..., is_grads_batched=True)`.
            found = _operators.gradients(*arguments)
        else:
            found = _Gradients.apply(ctx.update, *arguments)
        by_place = dict(zip(_DIFFERENTIABLE, found, strict=True))
        return tuple(by_place.get(i) for i in range(len(ctx.needs_input_grad)))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        if arguments[5] is not None:
            raise ValueError(f"max_norm must be None under vmap, got {describe(arguments[5])}")
        return map_one_by_one(_EmbeddingBag.apply, info, in_dims, *arguments)


class _Gradients(torch.autograd.Function):
    """The gradients, as a function of everything they depend on.

    So any way to differentiate them again ends in the error below.
    """

    @staticmethod
    def forward(*arguments: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return gradients(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> NoReturn:
        raise RuntimeError(
            "embag.torch.embedding_bag must be differentiated at most once, got twice"
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return map_one_by_one(_Gradients.apply, info, in_dims, *arguments)
