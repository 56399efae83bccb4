"""`embedding_bag`: five steps from arguments to result.

    check the arguments       _arguments.py
    decide how to run         _threads.py
    allocate the output       here; the only allocation that grows with the call
    run the kernel            _core.pyx, at the level that _dispatch.py chose
    a bad index or offset?    _arguments.py looks for the first one and raises
"""

from typing import Any, Literal, overload

import numpy as np

from embag import _arguments, _threads
from embag._dispatch import kernels

AnyArray = _arguments.AnyArray
Mode = Literal["sum", "mean", "max"]

_EUCLIDEAN = 2.0
_SUM = "sum"  # an interned literal: the same object as the caller's, nearly always


def embedding_bag(
    input: Any,
    weight: AnyArray,
    offsets: Any = None,
    max_norm: float | None = None,
    norm_type: float = _EUCLIDEAN,
    scale_grad_by_freq: bool = False,
    mode: Mode = "mean",
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    *,
    out: AnyArray | None = None,
    return_max_indices: bool = False,
    num_threads: int | None = None,
) -> AnyArray | tuple[AnyArray, AnyArray]:
    indices = input if kernels.is_index_array(input) else _arguments.as_index_array(input, "input")
    table = weight if kernels.is_table(weight) else _arguments.as_table(weight)
    bounds = offsets
    if offsets is not None and not kernels.is_index_array(offsets):
        bounds = _arguments.as_index_array(offsets, "offsets")
    if not (scale_grad_by_freq is sparse is include_last_offset is return_max_indices is False):
        _arguments.check_flags(
            scale_grad_by_freq=scale_grad_by_freq,
            sparse=sparse,
            include_last_offset=include_last_offset,
            return_max_indices=return_max_indices,
        )
    n_bags = _arguments.count_bags(indices, bounds, include_last_offset)
    if mode is not _SUM or return_max_indices:
        _arguments.check_mode(mode, sparse, scale_grad_by_freq, return_max_indices)
    n_rows, dim = table.shape
    sample = None
    if per_sample_weights is not None:
        sample = _arguments.as_sample_weights(per_sample_weights, indices, mode, table.dtype)
    padding = -1
    if padding_idx is not None:
        padding = _arguments.as_padding_row(padding_idx, n_rows)
    if norm_type is not _EUCLIDEAN:
        norm_type = _arguments.as_norm_type(norm_type)
    if max_norm is not None:
        max_norm = _arguments.as_max_norm(max_norm, weight)
    if num_threads is not None:
        num_threads = _threads.check_count(num_threads, "num_threads")
    n_threads = _threads.threads_for(indices.size * dim, num_threads)

    if out is None:
        result = np.empty((n_bags, dim), table.dtype)
    else:
        inputs = (indices, weight, bounds, sample)
        if not kernels.is_output(out, table, n_bags, inputs):
            _arguments.check_out(out, (n_bags, dim), table.dtype, inputs)
        result = out
    max_indices = np.empty((n_bags, dim), np.int64) if return_max_indices else None

    if max_norm is not None or out is not None or dim == 0:
        _arguments.raise_for_positions(indices, bounds, include_last_offset, n_rows, input)
    if max_norm is not None:
        table = _renorm(...)
    if not kernels.embedding_bag(
        table, indices, bounds, include_last_offset, sample, mode, padding, n_threads, result, max_indices
    ):
        _arguments.raise_for_positions(indices, bounds, include_last_offset, n_rows, input)
        _arguments.raise_for_change()
    return result if max_indices is None else (result, max_indices)
