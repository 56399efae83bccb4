"""The definition of both passes in plain loops: slow, obvious, the tests' oracle.

It shares no code with the kernels and checks nothing. Rows are added one after the
other in the table's dtype, as the kernels promise to, so results can be compared bit by
bit. Its own literals are in tests/test_reference.py.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def embedding_bag(
    input: NDArray[Any],
    weight: NDArray[Any],
    offsets: NDArray[Any] | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    mode: str = "mean",
    per_sample_weights: NDArray[Any] | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the reduced bags and, for ``mode="max"``, the winning rows (else -1)."""
    n_rows, dim = weight.shape
    bags = bags_of(np.asarray(input), offsets, include_last_offset)
    flat = np.asarray(input).reshape(-1)
    if max_norm is not None:
        renorm(weight, {int(flat[k]) for bag in bags for k in bag}, max_norm, norm_type)
    padding = None if padding_idx is None else padding_idx % n_rows
    out = np.zeros((len(bags), dim), weight.dtype)
    max_indices = np.full((len(bags), dim), -1, np.int64)
    for b, bag in enumerate(bags):
        kept = [k for k in bag if int(flat[k]) != padding]
        for k in kept:
            row = weight[int(flat[k])]
            if mode == "max":
                take = max_indices[b] == -1
                take |= (row > out[b]) | (np.isnan(row) & ~np.isnan(out[b]))
                out[b][take] = row[take]
                max_indices[b][take] = flat[k]
            elif per_sample_weights is not None:
                factor = np.asarray(per_sample_weights).reshape(-1)[k].astype(weight.dtype)
                out[b] = out[b] + factor * row
            else:
                out[b] = out[b] + row
        if mode == "mean" and kept:
            out[b] = out[b] / weight.dtype.type(len(kept))
    return out, max_indices


def embedding_bag_backward(
    grad_output: NDArray[Any],
    input: NDArray[Any],
    weight: NDArray[Any],
    offsets: NDArray[Any] | None = None,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    per_sample_weights: NDArray[Any] | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the dense gradient of `weight`, and that of weights (of ones, if None)."""
    dtype = weight.dtype
    n_rows, dim = weight.shape
    bags = bags_of(np.asarray(input), offsets, include_last_offset)
    flat = np.asarray(input).reshape(-1)
    padding = None if padding_idx is None else padding_idx % n_rows
    grad_weight = np.zeros((n_rows, dim), dtype)
    grad_sample = np.zeros(flat.shape, dtype)
    counts = np.zeros(n_rows, np.int64)
    _, winners = embedding_bag(
        input,
        weight,
        offsets,
        mode=mode,
        include_last_offset=include_last_offset,
        padding_idx=padding_idx,
    )
    for b, bag in enumerate(bags):
        kept = [k for k in bag if int(flat[k]) != padding]
        given = grad_output[b].astype(dtype)
        for k in kept:
            r = int(flat[k])
            counts[r] += 1
            grad_sample[k] = dot(given, weight[r])
            if mode == "mean":
                grad_weight[r] = grad_weight[r] + given / dtype.type(len(kept))
            elif mode == "sum" and per_sample_weights is not None:
                factor = np.asarray(per_sample_weights).reshape(-1)[k].astype(dtype)
                grad_weight[r] = grad_weight[r] + factor * given
            elif mode == "sum":
                grad_weight[r] = grad_weight[r] + given
        if mode == "max" and kept:
            for d in range(dim):
                grad_weight[winners[b, d], d] += given[d]
    if scale_grad_by_freq:
        used = counts > 0
        grad_weight[used] = grad_weight[used] / counts[used, None].astype(dtype)
    return grad_weight, grad_sample.reshape(np.shape(input))


def dot(x: NDArray[Any], y: NDArray[Any]) -> Any:
    """Return the sum of products in 16 lanes, folded in halves."""
    lanes = np.zeros(16, x.dtype)
    for start in range(0, len(x), 16):
        products = x[start : start + 16] * y[start : start + 16]
        lanes = lanes + np.pad(products, (0, 16 - len(products)))
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def bags_of(
    input: NDArray[Any], offsets: NDArray[Any] | None, include_last_offset: bool
) -> list[range]:
    """Return the positions of each bag, counted in C order."""
    if offsets is None:
        n_bags, size = input.shape
        return [range(b * size, (b + 1) * size) for b in range(n_bags)]
    stops = [int(offset) for offset in offsets[1:]]
    if not include_last_offset and len(offsets) > 0:
        stops.append(len(input))
    return [range(int(start), stop) for start, stop in zip(offsets, stops, strict=False)]


def renorm(weight: NDArray[Any], rows: set[int], max_norm: float, norm_type: float) -> None:
    """Scale the named rows whose norm exceeds `max_norm`, in place."""
    for r in rows:
        norm = np.linalg.norm(weight[r].astype(np.float64), norm_type)
        if norm > max_norm:
            weight[r] = weight[r] * (max_norm / (norm + 1e-7))
