"""Lookups in the rows of a `QuantizedTable`, which have no gradient.

Eager lookups go straight to embag, and traced ones through an operator, as in `_lookups.py`.

Tested in tests/bridges/test_torch_operators.py and test_replacing_layers.py.
"""

from typing import Any

import torch
from torch.overrides import handle_torch_function, has_torch_function

from embag._arguments import describe
from embag.embedding import embedding
from embag.quantized import QuantizedTable
from embag.torch import _operators
from embag.torch._computation import reduce_quantized
from embag.torch._errors import raise_as_torch
from embag.torch._tensors import (
    as_array,
    as_tensor,
    check,
    check_inputs,
    is_traced,
    num_threads,
)


def look_up_quantized(
    input: Any,
    table: QuantizedTable,
    offsets: Any,
    max_norm: Any,
    norm_type: Any,
    scale_grad_by_freq: Any,
    mode: Any,
    sparse: Any,
    per_sample_weights: Any,
    *options: Any,
) -> torch.Tensor:
    """Look up rows of a quantized table, which has no gradient."""
    for name, value in {"sparse": sparse, "scale_grad_by_freq": scale_grad_by_freq}.items():
        if value:
            raise ValueError(f"{name} must be False for a QuantizedTable, got {describe(value)}")
    if max_norm is not None:
        raise ValueError(f"max_norm must be None for a QuantizedTable, got {describe(max_norm)}")
    lookup = offsets, mode, per_sample_weights, *options
    _check_quantized(input, offsets, per_sample_weights)
    if not torch.compiler.is_compiling() and not is_traced(input, offsets, per_sample_weights):
        return reduce_quantized(input, table, *lookup)
    if table.scales is not None or table.layout != "fused":
        raise ValueError("weight must have bits=8, 4 or 2 and layout 'fused' to be compiled")
    packed = torch.from_numpy(table.packed)
    return _operators.look_up_quantized(input, packed, table.bits, table.dim, *lookup)


def look_up_packed(
    input: Any,
    packed: Any,
    bits: int,
    dim: int,
    offsets: Any,
    mode: Any,
    per_sample_weights: Any,
    *options: Any,
) -> torch.Tensor:
    """Look up the packed rows of a quantized table, in a tensor: for layers."""
    tensors = input, packed, offsets, per_sample_weights
    if has_torch_function(tensors):
        arguments = input, packed, bits, dim, offsets, mode, per_sample_weights, *options
        traced: torch.Tensor = handle_torch_function(look_up_packed, tensors, *arguments)
        return traced
    lookup = offsets, mode, per_sample_weights, *options
    is_compiling = torch.compiler.is_compiling()
    try:
        if not is_compiling:
            device = "meta" if getattr(input, "is_meta", False) else "cpu"
            check(packed, "packed", frozenset({torch.uint8}), "uint8", device)
            _check_quantized(input, offsets, per_sample_weights, device)
            if device == "cpu" and not is_traced(*tensors):
                table = QuantizedTable.from_packed(as_array(packed), bits, dim)
                return reduce_quantized(input, table, *lookup)
        return _operators.look_up_quantized(input, packed, bits, dim, *lookup)
    except (IndexError, ValueError) as error:
        raise_as_torch(error)


def look_up_rows(input: Any, packed: Any, bits: int, dim: int) -> torch.Tensor:
    """Look up the packed row of each id of an input of any shape."""
    arguments = input, packed, bits, dim
    if has_torch_function(arguments[:2]):
        traced: torch.Tensor = handle_torch_function(look_up_rows, arguments[:2], *arguments)
        return traced
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling:
        check_inputs(input, None, None, "meta" if packed.is_meta else "cpu")
    if not (is_compiling or packed.is_meta or is_traced(input, packed)):
        table = QuantizedTable.from_packed(as_array(packed), bits, dim)
        try:
            return as_tensor(embedding(as_array(input), table, num_threads=num_threads()))
        except (IndexError, ValueError) as error:
            raise_as_torch(error)
    options = None, "sum", None, False, None, None, "raise", False
    rows = look_up_packed(input.reshape(-1, 1), packed, bits, dim, *options)
    return rows.reshape(*input.shape, dim)


def _check_quantized(input: Any, offsets: Any, sample: Any, device: str = "cpu") -> None:
    if not torch.compiler.is_compiling():
        check_inputs(input, offsets, sample, device)
    if sample is not None and sample.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "per_sample_weights must not require a gradient with quantized rows, "
            "got requires_grad=True"
        )
