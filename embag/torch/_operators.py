"""Operators of torch for everything that traces: compilers, export, fake tensors, transforms.

An operator has a kernel (embag), a fake kernel (the shapes of the result), gradients and a rule for
`vmap`. Dispatching to one takes longer than a small lookup, so eager calls go without.

    embag::embedding_bag                the lookup
    embag::embedding_bag_backward       its gradients
    embag::embedding_bag_renorm         the scaling of `max_norm`, in place
    embag::embedding_bag_quantized      a lookup in the packed rows of a `QuantizedTable`

Tested in tests/bridges/test_torch_operators.py.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from embag import functional
from embag._modes import as_mode
from embag._types import Invalid
from embag.quantized import QuantizedTable
from embag.torch import _computation
from embag.torch._errors import raise_as_torch
from embag.torch._tensors import TABLES, TABLES_RULE, as_array, num_threads, sums_dtype


def look_up(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    max_norm: float | None,
    norm_type: float,
    scale_grad_by_freq: bool,
    mode: str,
    sparse: bool,
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
    padding_idx: int | None,
    default_idx: int | None,
    invalid: Invalid,
    normalize: bool,
) -> Tensor:
    """Call the operators for a lookup."""
    if torch.autograd.forward_ad._current_level >= 0:
        # Operators would lose the tangents.
        raise NotImplementedError(
            "embag.torch.embedding_bag must be differentiated in backward mode, got forward mode"
        )
    rows = padding_idx, default_idx, *_split(invalid)
    if max_norm is not None:
        with torch.no_grad():
            _renorm(
                weight.detach(), input, offsets, max_norm, norm_type, include_last_offset, *rows
            )
    result: Tensor = _embedding_bag(
        input,
        weight,
        offsets,
        per_sample_weights,
        mode,
        scale_grad_by_freq,
        sparse,
        include_last_offset,
        *rows,
        normalize,
    )[0]
    return result


def look_up_quantized(
    input: Tensor,
    packed: Tensor,
    bits: int,
    dim: int,
    offsets: Tensor | None,
    mode: str,
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
    padding_idx: int | None,
    default_idx: int | None,
    invalid: Invalid,
    normalize: bool,
) -> Tensor:
    """Call the operator for a lookup in the packed rows of a `QuantizedTable`."""
    result: Tensor = _quantized(
        input,
        packed,
        bits,
        dim,
        offsets,
        per_sample_weights,
        mode,
        include_last_offset,
        padding_idx,
        default_idx,
        *_split(invalid),
        normalize,
    )
    return result


def gradients(
    needs_weight: bool,
    needs_sample: bool,
    shape: Any,
    grad_output: Tensor,
    input: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    weight: Tensor | None,
    max_indices: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor | None, Tensor | None]:
    """Call the operator for the gradients."""
    of_weight, of_sample = _backward(
        grad_output,
        input,
        offsets,
        per_sample_weights,
        weight,
        max_indices,
        shape,
        needs_weight,
        needs_sample,
        options["mode"],
        options["scale_grad_by_freq"],
        options["sparse"],
        options["include_last_offset"],
        options["padding_idx"],
        options["default_idx"],
        *_split(options["invalid"]),
        options["normalize"],
    )
    return of_weight if needs_weight else None, of_sample if needs_sample else None


def _split(invalid: Invalid) -> tuple[str, int | None]:
    """Return `invalid` as two arguments: those of operators have one type."""
    return (invalid, None) if isinstance(invalid, str) else ("row", invalid)


def _join(kind: str, row: int | None) -> Any:
    return kind if row is None else row


def _n_bags(input: Tensor, offsets: Tensor | None, include_last_offset: bool) -> Any:
    """Return the number of bags, or raise as the kernel would."""
    if offsets is None:
        if input.dim() != 2:
            raise ValueError(
                f"input must be 2-D without offsets and lengths, got {input.dim()} dimensions"
            )
        return input.shape[0]
    if input.dim() != 1 or offsets.dim() != 1:
        raise ValueError(
            f"input and offsets must be 1-D, got {input.dim()} and {offsets.dim()} dimensions"
        )
    return offsets.shape[0] - bool(include_last_offset)


def _check_table(weight: Tensor) -> None:
    """Raise for a table that eager lookups refuse."""
    if weight.dtype not in TABLES:
        raise TypeError(f"weight must be {TABLES_RULE}, got {weight.dtype}")
    if weight.dim() != 2:
        raise ValueError(f"weight must be 2-D (n_rows, dim), got shape {tuple(weight.shape)}")


def _check_device(like: Tensor, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != like.device:
            raise ValueError(f"{name} must be on {like.device} as weight, got {tensor.device}")


# --- The lookup -------------------------------------------------------------------


@torch.library.custom_op("embag::embedding_bag", mutates_args=())
def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mode: str,
    scale_grad_by_freq: bool,
    sparse: bool,
    include_last_offset: bool,
    padding_idx: int | None,
    default_idx: int | None,
    invalid: str,
    invalid_row: int | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Return the output, and the rows of the maxima or nothing."""
    _check_table(weight)
    try:
        result, winners = _computation.reduce(
            True,
            input,
            weight,
            offsets,
            None,
            2.0,
            scale_grad_by_freq,
            mode,
            sparse,
            per_sample_weights,
            include_last_offset,
            padding_idx,
            default_idx,
            _join(invalid, invalid_row),
            normalize,
        )
    except (IndexError, ValueError) as error:
        raise_as_torch(error)
    return result, _nothing(winners)


def _nothing(tensor: Tensor | None) -> Tensor:
    """Return a tensor that an operator can return: an empty one for None."""
    return torch.empty(0, dtype=torch.int64) if tensor is None else tensor


@_embedding_bag.register_fake
def _(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mode: str,
    scale_grad_by_freq: bool,
    sparse: bool,
    include_last_offset: bool,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    as_mode(mode)
    _check_table(weight)
    _check_device(weight, input=input, offsets=offsets, per_sample_weights=per_sample_weights)
    shape = _n_bags(input, offsets, include_last_offset), weight.shape[1]
    winners = shape if mode in ("max", "min") else (0,)
    return weight.new_empty(shape), input.new_empty(winners, dtype=torch.int64)


_ARGUMENTS = 13
_WEIGHT, _SAMPLE = 1, 3  # the places of `weight` and `per_sample_weights` above


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    input, weight, offsets, sample, mode, scale, sparse, last, padding, default, *rest = inputs
    invalid, invalid_row, normalize = rest
    needs_table = normalize or (sample is not None and ctx.needs_input_grad[_SAMPLE])
    winners = output[1] if mode in ("max", "min") else None
    if winners is not None:
        ctx.mark_non_differentiable(winners)
    ctx.save_for_backward(input, offsets, sample, weight if needs_table else None, winners)
    ctx.shape = weight.shape
    ctx.options = {
        "scale_grad_by_freq": scale,
        "mode": mode,
        "sparse": sparse,
        "include_last_offset": last,
        "padding_idx": padding,
        "default_idx": default,
        "invalid": _join(invalid, invalid_row),
        "normalize": normalize,
    }


def _differentiate(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    results: list[Tensor | None] = [None] * _ARGUMENTS
    needs = ctx.needs_input_grad
    input, offsets, sample, table, winners = ctx.saved_tensors
    results[_WEIGHT], results[_SAMPLE] = gradients(
        needs[_WEIGHT],
        needs[_SAMPLE],
        ctx.shape,
        grad_output,
        input,
        offsets,
        sample,
        table,
        winners,
        ctx.options,
    )
    return tuple(results)


_embedding_bag.register_autograd(_differentiate, setup_context=_save)


# --- Its gradients ----------------------------------------------------------------


@torch.library.custom_op("embag::embedding_bag_backward", mutates_args=())
def _backward(
    grad_output: Tensor,
    input: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    weight: Tensor | None,
    max_indices: Tensor | None,
    shape: list[int],
    needs_weight: bool,
    needs_sample: bool,
    mode: str,
    scale_grad_by_freq: bool,
    sparse: bool,
    include_last_offset: bool,
    padding_idx: int | None,
    default_idx: int | None,
    invalid: str,
    invalid_row: int | None,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the table and of the weights; nothing for one not needed."""
    if weight is None and (needs_sample or normalize):
        raise ValueError("weight must be given for these gradients, got None")
    of_weight, of_sample = _computation.gradients(
        None,
        needs_weight,
        needs_sample,
        torch.Size(shape),
        grad_output,
        input,
        offsets,
        per_sample_weights,
        weight,
        max_indices,
        {
            "scale_grad_by_freq": scale_grad_by_freq,
            "mode": mode,
            "sparse": sparse,
            "include_last_offset": include_last_offset,
            "padding_idx": padding_idx,
            "default_idx": default_idx,
            "invalid": _join(invalid, invalid_row),
            "normalize": normalize,
        },
    )
    return _nothing(of_weight), _nothing(of_sample)


@_backward.register_fake
def _(
    grad_output: Tensor,
    input: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    weight: Tensor | None,
    max_indices: Tensor | None,
    shape: list[int],
    needs_weight: bool,
    needs_sample: bool,
    mode: str,
    scale_grad_by_freq: bool,
    sparse: bool,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    if sparse and needs_weight:
        raise ValueError("sparse must be False where torch traces the gradient, got True")
    nothing = input.new_empty(0, dtype=torch.int64)
    of_weight = grad_output.new_empty(shape) if needs_weight else nothing
    if not needs_sample:
        return of_weight, nothing
    return of_weight, grad_output.new_empty(input.shape, dtype=sums_dtype(grad_output))


def _refuse_twice(ctx: Any, *_: Any) -> Any:
    raise RuntimeError("embag.torch.embedding_bag must be differentiated at most once, got twice")


_backward.register_autograd(_refuse_twice)


# --- vmap -------------------------------------------------------------------------


_embedding_bag.register_vmap(partial(_computation.map_one_by_one, _embedding_bag))
_backward.register_vmap(partial(_computation.map_one_by_one, _backward))


# --- max_norm ---------------------------------------------------------------------


@torch.library.custom_op("embag::embedding_bag_renorm", mutates_args=("weight",))
def _renorm(
    weight: Tensor,
    input: Tensor,
    offsets: Tensor | None,
    max_norm: float,
    norm_type: float,
    include_last_offset: bool,
    padding_idx: int | None,
    default_idx: int | None,
    invalid: str,
    invalid_row: int | None,
) -> None:
    """Scale the rows in use to `max_norm`, as a lookup does."""
    try:
        functional.embedding_bag(
            as_array(input),
            as_array(weight, in_place=True),
            as_array(offsets),
            max_norm,
            norm_type,
            mode="sum",
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
            num_threads=num_threads(),
            invalid=_join(invalid, invalid_row),
            default_idx=default_idx,
        )
    except (IndexError, ValueError) as error:
        raise_as_torch(error)


@_renorm.register_fake
def _(*_: Any) -> None:
    return None


# --- Quantized tables -------------------------------------------------------------


@torch.library.custom_op("embag::embedding_bag_quantized", mutates_args=())
def _quantized(
    input: Tensor,
    packed: Tensor,
    bits: int,
    dim: int,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mode: str,
    include_last_offset: bool,
    padding_idx: int | None,
    default_idx: int | None,
    invalid: str,
    invalid_row: int | None,
    normalize: bool,
) -> Tensor:
    """Return the output of a lookup in packed rows: float32."""
    try:
        return _computation.reduce_quantized(
            input,
            QuantizedTable.from_packed(as_array(packed), bits, dim),
            offsets,
            mode,
            per_sample_weights,
            include_last_offset,
            padding_idx,
            default_idx,
            _join(invalid, invalid_row),
            normalize,
        )
    except (IndexError, ValueError) as error:
        raise_as_torch(error)


@_quantized.register_fake
def _(
    input: Tensor,
    packed: Tensor,
    bits: int,
    dim: int,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    mode: str,
    include_last_offset: bool,
    *_: Any,
) -> Tensor:
    as_mode(mode)
    _check_device(packed, input=input, offsets=offsets, per_sample_weights=per_sample_weights)
    shape = _n_bags(input, offsets, include_last_offset), dim
    return packed.new_empty(shape, dtype=torch.float32)


def _refuse_gradient(ctx: Any, *_: Any) -> Any:
    raise RuntimeError(
        "per_sample_weights must not require a gradient with quantized rows, got requires_grad=True"
    )


_quantized.register_autograd(_refuse_gradient)
