"""A lookup in a table, and its gradients, computed by embag: tensors in, tensors out.

`_lookups.py` calls them for eager code, `_operators.py` for everything that torch traces.

Tested in tests/bridges/test_torch_bridge.py and test_low_precision_tensors.py.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch

from embag import functional
from embag._types import Invalid
from embag.backward import embedding_bag_backward
from embag.quantized import QuantizedTable
from embag.sparse_rows import SparseRows
from embag.torch._tensors import LOW, as_array, as_sparse_tensor, as_tensor, num_threads, sums_dtype


def reduce(
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
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the output and, with `wants_winners`, the rows of the maxima."""
    # max_norm writes to it, so it must not be a copy.
    table = as_array(weight, in_place=max_norm is not None)
    if per_sample_weights is not None:
        per_sample_weights = as_array(per_sample_weights, sums_dtype(weight))
    result = functional.embedding_bag(
        as_array(input),
        table,
        as_array(offsets),
        max_norm,
        norm_type,
        scale_grad_by_freq,
        mode,
        sparse,
        per_sample_weights,
        include_last_offset,
        padding_idx,
        return_max_indices=wants_winners and mode in ("max", "min"),
        num_threads=num_threads(),
        out_dtype=table.dtype if weight.dtype in LOW else None,
        default_idx=default_idx,
        invalid=invalid,
        normalize=normalize,
    )
    if max_norm is not None:
        torch.autograd.graph.increment_version(weight)
    if isinstance(result, tuple):
        return as_tensor(result[0]), torch.from_numpy(result[1])
    return as_tensor(result), None


def reduce_quantized(
    input: torch.Tensor,
    table: QuantizedTable,
    offsets: torch.Tensor | None,
    mode: Any,
    per_sample_weights: torch.Tensor | None,
    include_last_offset: bool,
    padding_idx: int | None,
    default_idx: int | None,
    invalid: Invalid,
    normalize: bool,
) -> torch.Tensor:
    """Return the output for a quantized table: float32."""
    result = functional.embedding_bag(
        as_array(input),
        table,
        as_array(offsets),
        mode=mode,
        per_sample_weights=as_array(per_sample_weights, torch.float32),
        include_last_offset=include_last_offset,
        padding_idx=padding_idx,
        num_threads=num_threads(),
        default_idx=default_idx,
        invalid=invalid,
        normalize=normalize,
    )
    return as_tensor(result)


def gradients(
    update: Callable[..., Any] | None,
    needs_weight: bool,
    needs_sample: bool,
    shape: torch.Size,
    grad_output: torch.Tensor,
    input: torch.Tensor,
    offsets: torch.Tensor | None,
    per_sample_weights: torch.Tensor | None,
    weight: torch.Tensor | None,
    max_indices: torch.Tensor | None,
    options: dict[str, Any],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients of the table and of the weights, those that are needed.

    With `update`, call it instead of computing the gradient of the table. `weight` may be None if
    only its `shape` matters.
    """
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


def map_one_by_one(function: Callable[..., Any], info: Any, in_dims: Any, *arguments: Any) -> Any:
    """Call a function for each example of a ``vmap``: a rule for autograd functions and operators.

    The function returns a tensor or None for each of two results.
    """
    results = [
        function(
            *(
                value.select(dim, i) if isinstance(dim, int) else value
                for value, dim in zip(arguments, in_dims, strict=True)
            )
        )
        for i in range(info.batch_size)
    ]
    stacked = [
        None if parts[0] is None else torch.stack(parts) for parts in zip(*results, strict=True)
    ]
    return tuple(stacked), tuple(None if part is None else 0 for part in stacked)
