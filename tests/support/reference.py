"""The definition of both passes in plain loops: the reference of the tests.

It shares no code with the kernels and checks nothing. It adds rows one after the other in
the dtype of the table, as the kernels promise, so results can be compared bit by bit. A
float16 or bfloat16 table is defined as `table.astype(np.float32)`. The reference is tested
against literals in tests/lookups/test_reference.py.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embag.quantized import QuantizedTable

RUN = 32  # positions of a bag between additions of the biases


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
    invalid: str | int = "raise",
    default_idx: int | None = None,
    normalize: bool = False,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the reduced bags and, where the mode selects rows, the winning rows (else -1)."""
    n_rows, dim = weight.shape
    bags = bags_of(np.asarray(input), offsets, include_last_offset)
    flat = np.asarray(input).reshape(-1)
    if isinstance(invalid, int):
        flat = np.where((flat >= 0) & (flat < n_rows), flat, invalid % n_rows)
    elif invalid == "skip":
        bags = [[k for k in bag if 0 <= int(flat[k]) < n_rows] for bag in bags]
    if max_norm is not None:
        renorm(weight, {int(flat[k]) for bag in bags for k in bag}, max_norm, norm_type)
    padding = None if padding_idx is None else padding_idx % n_rows
    out = np.zeros((len(bags), dim), weight.dtype)
    max_indices = np.full((len(bags), dim), -1, np.int64)
    one = weight.dtype.type(1)
    for b, bag in enumerate(bags):
        kept = [int(flat[k]) for k in bag if int(flat[k]) != padding]
        factors = [one] * len(kept)
        if per_sample_weights is not None:
            given = np.asarray(per_sample_weights).reshape(-1)
            factors = [weight.dtype.type(given[k]) for k in bag if int(flat[k]) != padding]
        if not kept and default_idx is not None:
            kept, factors = [default_idx % n_rows], [one]
        for r, factor in zip(kept, factors, strict=True):
            row = weight[r]
            if mode in ("max", "min"):
                take = max_indices[b] == -1
                better = row > out[b] if mode == "max" else row < out[b]
                take |= better | (np.isnan(row) & ~np.isnan(out[b]))
                out[b][take] = row[take]
                max_indices[b][take] = r
            elif per_sample_weights is not None:
                out[b] = out[b] + factor * row
            else:
                out[b] = out[b] + row
        if mode in ("mean", "sqrtn") and kept:
            out[b] = divided(out[b], mode, factors)
        if normalize:
            out[b] = normalized(out[b])
    return out, max_indices


def divided(total: NDArray[Any], mode: str, factors: list[Any]) -> NDArray[Any]:
    """Return a sum divided by its weights, or by the root of the sum of their squares."""
    divisor = 0.0
    for factor in factors:
        divisor += float(factor) ** (1 if mode == "mean" else 2)
    divisor = total.dtype.type(divisor if mode == "mean" else math.sqrt(divisor))
    return total / divisor if divisor != 0 else np.zeros_like(total)


def normalized(row: NDArray[Any]) -> NDArray[Any]:
    """Return a row divided by its Euclidean norm, summed in eight lanes in float64."""
    wide = row.astype(np.float64)
    largest = np.abs(wide).max(initial=0.0) if row.dtype == np.float64 else 1.0
    with np.errstate(all="ignore"):
        if largest == 0 or not math.isfinite(largest):
            norm = largest
        else:
            lanes = [0.0] * 8
            for d, x in enumerate(wide / largest):
                lanes[d % 8] += x * x
            norm = largest * math.sqrt(sum(lanes))
        return row if norm == 0 else (wide / norm).astype(row.dtype)


def quantized_embedding_bag(
    input: NDArray[Any],
    table: QuantizedTable,
    offsets: NDArray[Any] | None = None,
    mode: str = "mean",
    per_sample_weights: NDArray[Any] | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    invalid: str | int = "raise",
    default_idx: int | None = None,
    normalize: bool = False,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the result of `embedding_bag` for a table of `scale * q + bias`."""
    q, scale, bias = unpack(table.packed, table.bits, table.dim, table.layout)
    n_rows, dim = q.shape
    bags = bags_of(np.asarray(input), offsets, include_last_offset)
    flat = np.asarray(input).reshape(-1)
    padding = None if padding_idx is None else padding_idx % n_rows
    out = np.zeros((len(bags), dim), np.float32)
    with np.errstate(all="ignore"):
        if mode in ("max", "min"):
            return embedding_bag(
                input,
                scale[:, None] * q + bias[:, None],
                offsets,
                mode=mode,
                include_last_offset=include_last_offset,
                padding_idx=padding_idx,
                invalid=invalid,
                default_idx=default_idx,
                normalize=normalize,
            )
        if isinstance(invalid, int):
            flat = np.where((flat >= 0) & (flat < n_rows), flat, invalid % n_rows)
        for b, bag in enumerate(bags):
            factors = []
            biases = np.float32(0)
            for place, k in enumerate(bag, start=1):
                r = int(flat[k])
                if r != padding and (invalid == "raise" or 0 <= r < n_rows):
                    factor = np.float32(1)
                    if per_sample_weights is not None:
                        factor = np.float32(np.asarray(per_sample_weights).reshape(-1)[k])
                    factors.append(factor)
                    out[b] = fma(q[r], factor * scale[r], out[b])
                    biases = biases + factor * bias[r]
                if place % RUN == 0 or place == len(bag):
                    out[b] = out[b] + biases
                    biases = np.float32(0)
            if not factors and default_idx is not None:
                r = default_idx % n_rows
                out[b] = fma(q[r], scale[r], out[b]) + bias[r]
                factors = [np.float32(1)]
            if mode in ("mean", "sqrtn") and factors:
                out[b] = divided(out[b], mode, factors)
            if normalize:
                out[b] = normalized(out[b])
    return out, np.full((len(bags), dim), -1, np.int64)


def unpack(
    packed: NDArray[np.uint8], bits: int, dim: int, layout: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return the integers (n_rows, dim), the scales and the biases of packed rows."""
    n_bytes = (dim * bits + 7) // 8
    dtype = np.float32 if layout == "fused" and bits == 8 else np.float16
    if layout == "fused":
        entries, factors = packed[:, :n_bytes], packed[:, n_bytes:]
    else:
        entries, factors = packed[:, 4 : 4 + n_bytes], packed[:, :4]
    q = np.zeros((len(packed), dim), np.float32)
    for d in range(dim):
        byte, shift = divmod(d * bits, 8)
        q[:, d] = entries[:, byte] >> shift & (2**bits - 1)
    with np.errstate(all="ignore"):  # NaN may signal
        scale, bias = np.ascontiguousarray(factors).view(dtype).astype(np.float32).T
    return q, scale, bias


def fma(q: NDArray[np.float32], scale: np.float32, c: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return q * scale + c rounded once; q are integers of at most 8 bits."""
    product = q.astype(np.float64) * np.float64(scale)  # 8 + 24 bits: exact
    addend = c.astype(np.float64)
    total = product + addend
    # The exact error of that rounding.
    part = total - product
    error = (product - (total - part)) + (addend - part)
    # If there is an error, the exact sum is between `total` and a neighbour. The one of these
    # two whose last bit is 1 is on the same side of every float32, and of every midpoint, as
    # the exact sum, so it rounds to the same float32.
    neighbour = np.nextafter(total, np.copysign(np.inf, error))
    is_even = total.view(np.uint64) & 1 == 0
    inexact = np.isfinite(total) & (error != 0)
    return np.where(inexact & is_even, neighbour, total).astype(np.float32)


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
    """Return the dense gradient of `weight`, and that of the weights (of ones, if None)."""
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
) -> list[Sequence[int]]:
    """Return the positions of each bag, counted in C order."""
    if offsets is None:
        n_bags, size = input.shape
        return [range(b * size, (b + 1) * size) for b in range(n_bags)]
    stops = [int(offset) for offset in offsets[1:]]
    if not include_last_offset and len(offsets) > 0:
        stops.append(len(input))
    return [range(int(start), stop) for start, stop in zip(offsets, stops, strict=False)]


def renorm(weight: NDArray[Any], rows: set[int], max_norm: float, norm_type: float) -> None:
    """Scale those of the given rows whose norm exceeds `max_norm`, in place."""
    for r in rows:
        norm = np.linalg.norm(weight[r].astype(np.float64), norm_type)
        if norm > max_norm:
            weight[r] = weight[r] * (max_norm / (norm + 1e-7))


def mapped_embedding_bag(
    input: NDArray[Any],
    table: Any,
    offsets: NDArray[Any] | None = None,
    mode: str = "mean",
    per_sample_weights: NDArray[Any] | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    invalid: str | int = "raise",
    default_idx: int | None = None,
    normalize: bool = False,
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the result of `embedding_bag` for a RemappedTable, or a symmetric table.

    Each entry becomes a row and a factor. A sum is then the weighted sum of rows, and a maximum
    that of scaled rows.
    """
    inner, index_map, scales, first = table, None, None, 0
    if not isinstance(table, QuantizedTable):
        inner, index_map, scales = table.table, table.index_map, table.scales
        first = table.first_id
    row_scales = getattr(inner, "scales", None)
    n_ids = len(table)
    rows_table = inner
    is_packed = isinstance(inner, QuantizedTable) and row_scales is None
    if isinstance(inner, QuantizedTable) and row_scales is not None:
        rows_table = inner.packed
    if not is_packed:
        sums = np.float64 if rows_table.dtype == np.float64 else np.float32
        with np.errstate(all="ignore"):
            rows_table = np.ndarray.view(rows_table, np.ndarray).astype(sums)
    sums = np.float32 if is_packed else rows_table.dtype.type
    is_scaled = scales is not None or row_scales is not None

    def place_of(number: int) -> int:
        return number - first if number >= 0 else n_ids + number

    padding = None if padding_idx is None else place_of(padding_idx)
    stand_in = place_of(invalid) if isinstance(invalid, int) else None

    def entry(place: int, weight: Any) -> tuple[int, Any]:
        row = place if index_map is None else int(index_map[place])
        factor = sums(weight)
        if row >= 0 and scales is not None:
            factor = factor * scales[place]
        # Maxima are those of decoded rows, each multiplied by the scale of its id.
        if row >= 0 and row_scales is not None and mode not in ("max", "min"):
            factor = factor * sums(row_scales[row] if row_scales.ndim else row_scales)
        return row, factor

    flat = np.asarray(input).reshape(-1)
    given = np.ones(len(flat), sums)
    if per_sample_weights is not None:
        given = np.asarray(per_sample_weights).reshape(-1).astype(sums)
    rows, factors = np.full(len(flat), -1, np.int64), np.zeros(len(flat), sums)
    ids = np.full(len(flat), -1, np.int64)
    with np.errstate(all="ignore"):
        for k, number in enumerate(flat):
            place = int(number) - first
            if not 0 <= place < n_ids:
                place = stand_in
            if place is not None and place != padding:
                rows[k], factors[k] = entry(place, given[k])
                ids[k] = place + first

        def reduce(rows: Any, factors: Any, offsets: Any, weighted: bool, last: bool) -> Any:
            options: dict[str, Any] = {"include_last_offset": last, "invalid": "skip"}
            if mode in ("max", "min"):
                values = rows_table
                if not len(inner):
                    values = np.zeros((0, table.shape[1]), sums)
                    return embedding_bag(rows, values, offsets, mode=mode, **options)
                if is_packed:
                    q, scale, bias = unpack(inner.packed, inner.bits, inner.dim, inner.layout)
                    values = scale[:, None] * q + bias[:, None]
                elif row_scales is not None:
                    values = row_scales.reshape(-1, 1) * values
                values = values[rows] * factors[:, None] if scales is not None else values[rows]
                numbers = np.where(rows < 0, -1, np.arange(len(rows)))
                return embedding_bag(numbers, values, offsets, mode=mode, **options)
            options |= {"mode": "sum", "per_sample_weights": factors if weighted else None}
            if is_packed:
                return quantized_embedding_bag(rows, inner, offsets, **options)
            return embedding_bag(rows, rows_table, offsets, **options)

        if offsets is None:
            bags = bags_of(np.asarray(input), None, False)
            offsets = np.array([0, *(bag.stop for bag in bags)], np.int64)
            include_last_offset = True
        bags = bags_of(flat, offsets, include_last_offset)
        weighted = is_scaled or per_sample_weights is not None
        out, winners = reduce(rows, factors, offsets, weighted, include_last_offset)
        winners = np.where(winners < 0, -1, ids[winners]) if len(ids) else winners
        for b, bag in enumerate(bags):
            counted = [given[k] for k in bag if rows[k] >= 0]
            if not counted and default_idx is not None:
                row, factor = entry(place_of(default_idx), 1)
                if row >= 0:
                    out[b], _ = reduce(
                        np.array([row]), np.array([factor]), np.array([0]), is_scaled, False
                    )
                    winners[b] = (
                        -1 if mode in ("sum", "mean", "sqrtn") else (place_of(default_idx) + first)
                    )
            elif counted and mode in ("mean", "sqrtn"):
                out[b] = divided(out[b], mode, counted)
            if normalize:
                out[b] = normalized(out[b])
    return out, winners
