"""Checks and conversions of arguments, with every message about the arrays of a call.

A message reads `<argument> must <rule>, got <what was seen>`. Wrong types and dtypes raise
TypeError; wrong shapes, relations and options ValueError; ids out of range IndexError.

The predicates of the kernels (`kernels.is_table`, `kernels.is_index_array`) decide in about
40 ns whether an array can be read in place. Only other arrays are converted or refused here.

The kernels check the values of ids and offsets as they read them. If a kernel fails, `_bags.py`
and `_columns/pieces.py` find the first invalid one.

Tested in tests/lookups/.
"""

import contextlib
import math
import numbers
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from embag._kernels.dispatch import kernels
from embag._tensors import as_ndarray

AnyArray = NDArray[Any]

_INT64 = np.dtype(np.int64)
_FLOAT64 = np.dtype(np.float64)
_BOOLS = frozenset((bool, np.bool_))

# There is one offset more, and their number must fit int64.
MOST_SEGMENTS = 2**63 - 2


def describe(value: Any) -> str:
    """Return a value for a message: short values in full, others by their type."""
    kind = type(value)  # `__class__` may be overridden
    if issubclass(kind, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    if value is None or issubclass(kind, (bool, numbers.Number, np.bool_)):
        return repr(value.item() if issubclass(kind, np.generic) else value)
    if issubclass(kind, str) and len(value) <= 40:
        return repr(value)
    if is_array(value) and value.ndim == 0:
        return "a 0-d array"
    return kind.__name__


def is_array(value: Any) -> bool:
    """Return whether this is an ndarray, even if its `__class__` is overridden."""
    return issubclass(type(value), np.ndarray)


def check_array(value: Any, name: str, kinds: str = "a numpy.ndarray") -> None:
    """Raise unless this is an ndarray; the message says how to convert it."""
    if is_array(value):
        return
    kind, remedy = type(value), ""
    if hasattr(kind, "numpy"):  # a tensor of torch or TensorFlow
        detached = ".detach()" if getattr(value, "requires_grad", False) is True else ""
        remedy = f": pass {name}{detached}.numpy()"
    elif hasattr(kind, "__array__"):
        remedy = f": pass np.asarray({name})"
    raise TypeError(f"{name} must be {kinds}, got {describe(value)}{remedy}")


@contextlib.contextmanager
def prefix_errors(place: str) -> Iterator[None]:
    """Prefix the messages of errors in the block with a place, such as a feature's name."""
    try:
        yield
    except (TypeError, ValueError, IndexError) as error:
        kind = next(k for k in (TypeError, ValueError, IndexError) if isinstance(error, k))
        raise kind(f"{place}: {error}" if place else str(error)) from None


def _is_plain(dtype: np.dtype[Any]) -> bool:
    return dtype.char in "fd" and dtype.isnative


def check_table(
    weight: Any,
    name: str = "weight",
    *,
    kinds: str = "a numpy.ndarray",
    dtypes: str = "float32 or float64 in native byte order",
    is_known: Callable[[np.dtype[Any]], bool] = _is_plain,
) -> None:
    """Raise unless this is a 2-D array of a known dtype.

    `is_known` decides about the dtype; messages name the accepted types as `kinds` and
    `dtypes`.
    """
    check_array(weight, name, kinds)
    if not is_known(weight.dtype):
        raise TypeError(
            f"{name} must be {dtypes}, "
            f"got {weight.dtype.str if weight.dtype.char in 'efdg' else weight.dtype}"
        )
    if weight.ndim != 2:
        raise ValueError(f"{name} must be 2-D (n_rows, dim), got shape {weight.shape}")


def as_table(weight: Any) -> AnyArray:
    """Return a float32 or float64 table as the kernels read it, copied if necessary."""
    check_table(weight)
    table: AnyArray = weight
    if not kernels.is_table(weight):
        table = np.array(weight, order="C", subok=False)
    return table


def _as_array(value: Any, name: str, kind: str) -> AnyArray:
    """Return an ndarray as it is (without a mask), tensors in place, others by `np.asarray`."""
    if type(value) is np.ndarray:
        return value
    value = as_ndarray(value, name)
    if is_array(value):
        return np.ndarray.view(value, np.ndarray)
    package = str(type(value).__module__).partition(".")[0]
    if package == "pyarrow" and getattr(getattr(value, "type", None), "num_fields", None):
        # pyarrow trusts the offsets of a column of lists, which may end the process.
        raise TypeError(f"{name} must be an array of {kind}, got {describe(value)} of {value.type}")
    try:
        n_nulls = count_nulls(value)
        array = np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"{name} must be an array of {kind}, got {describe(value)}: {error}"
        ) from error
    if n_nulls:
        raise ValueError(f"{name} must have no nulls where it is not ragged, got {n_nulls}")
    return array


def count_nulls(value: Any) -> int:
    """Return the number of nulls in a series or an Arrow array; NumPy would read them as NaN."""
    if hasattr(value, "columns") or isinstance(getattr(value, "dtype", None), np.dtype):
        return 0
    if hasattr(value, "null_count"):  # a number in pyarrow, a method in polars
        return int(value.null_count() if callable(value.null_count) else value.null_count)
    return int(np.sum(value.isna())) if hasattr(value, "isna") else 0


def _from_objects(
    objects: AnyArray,
    name: str,
    kind: str,
    dtype: np.dtype[Any],
    convert: Callable[[Any], float],
) -> AnyArray:
    """Convert an array of Python objects entry by entry.

    `convert` raises TypeError for an object that is not a number of the right kind.
    """
    array = np.empty(objects.shape, dtype)
    for place, value in np.ndenumerate(objects):
        try:
            array[place] = convert(value)
        except TypeError:
            at = f"{name}[{', '.join(map(str, place))}] = " if place else ""
            raise TypeError(f"{name} must be {kind}, got {at}{describe(value)}") from None
    return array


def _clip(value: Any) -> int:
    """Clip an integer to int64, so that a larger one stays out of range of every table."""
    if type(value) in _BOOLS:
        raise TypeError
    return min(max(operator.index(value), -(2**63)), 2**63 - 1)


def to_float(value: Any) -> float:
    """Return a real number as a float; one too large becomes infinite."""
    if not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def as_numbers(value: Any, name: str) -> AnyArray:
    """Return an array of numbers; it is float64 if integers are too large for NumPy."""
    array = _as_array(value, name, "numbers")
    if array.dtype == object:
        return _from_objects(array, name, "numbers", _FLOAT64, to_float)
    return array


def cast(array: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
    """Return numbers as the kernels read them: of this dtype, contiguous.

    Numbers too large become infinite, numbers too small become 0, without a warning.
    """
    with np.errstate(all="ignore"):
        return np.require(array, dtype, ["C", "A"])


def as_indices(indices: Any, name: str) -> AnyArray:
    """Return integers as the kernels read them, copied only if necessary."""
    if type(indices) is not np.ndarray or not kernels.is_index_array(indices):
        return as_index_array(indices, name)
    return indices


def as_index_array(indices: Any, name: str) -> AnyArray:
    """Return integers as the kernels read them: int32 or int64, contiguous, native."""
    array = _as_array(indices, name, "integers")
    if array.dtype == object:
        array = _from_objects(array, name, "integers", _INT64, _clip)
    elif issubclass(type(indices), (list, tuple)) and not _BOOLS.isdisjoint(map(type, indices)):
        array = array.astype(np.bool_)  # NumPy would read a bool among integers as an integer
    elif array.dtype.kind == "f" and not hasattr(type(indices), "__array__"):
        # NumPy reads [] as float64, and also integers some of which are beyond int64.
        with contextlib.suppress(TypeError):
            objects = np.array(indices, object)
            array = _from_objects(objects, name, "integers", _INT64, _clip)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        # Values beyond int64 become negative, and so stay out of range.
        array = array.astype(array.dtype.newbyteorder("="), copy=False).view(_INT64)
    elif array.dtype.kind == "u" or array.dtype.itemsize < 4:
        array = array.astype(_INT64)
    if not kernels.is_index_array(array):
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", subok=False)
    return array


def as_grad_output(grad_output: Any, n_bags: int, dim: int, dtype: np.dtype[Any]) -> AnyArray:
    """Return the gradient as the kernels read it: of this dtype, with adjacent columns.

    A row that `np.broadcast_to` repeats stays one row in memory.
    """
    array = as_numbers(grad_output, "grad_output")
    check_castable("grad_output", array.dtype, dtype)
    if array.shape != (n_bags, dim):
        raise ValueError(
            f"grad_output must have the output's shape {(n_bags, dim)}, got {array.shape}"
        )
    if array.dtype == dtype and kernels.is_table(array):
        return array
    repeated = n_bags > 1 and array.strides[0] == 0
    copy = cast(array[:1] if repeated else array, dtype)
    return np.broadcast_to(copy, (n_bags, dim)) if repeated else copy


def as_max_indices(max_indices: Any, n_bags: int, dim: int, n_rows: int) -> AnyArray:
    """Return the winning rows as the kernels read them: int64, contiguous, -1 for empty bags."""
    given = _as_array(max_indices, "max_indices", "integers")
    array = as_index_array(max_indices, "max_indices").astype(np.int64, copy=False)
    if array.shape != (n_bags, dim):
        raise ValueError(
            f"max_indices must have the output's shape {(n_bags, dim)}, got {array.shape}"
        )
    least = 0 if given.dtype.kind == "u" else -1  # the largest uint64 became negative
    bad = (array < least) | (array >= n_rows)
    if bad.any():
        b, d = map(int, np.unravel_index(int(bad.argmax()), bad.shape))
        raise_out_of_range(f"max_indices[{b}, {d}]", integer_at(max_indices, (b, d)), n_rows)
    return array


def check_layouts(
    indices: AnyArray,
    offsets: AnyArray | None,
    include_last_offset: bool,
    n_indices: int,
    grad: AnyArray,
    output: tuple[int, int],
    dtype: np.dtype[Any],
) -> None:
    """Raise if a layout has changed: converting an argument may have run other code."""
    n_bags = kernels.count_bags(indices, offsets, include_last_offset)
    unchanged = indices.size == n_indices and n_bags == output[0]
    if not unchanged or grad.shape != output or grad.dtype != dtype:
        raise RuntimeError("arrays must not change during the call, got a change of layout")


def check_wrt(wrt: Any, sample: AnyArray | None, rows: str = "weight") -> None:
    """Raise unless `wrt` names a gradient that exists; `rows` is the name of the table."""
    if wrt is None or (type(wrt) is str and wrt == rows):
        return
    if type(wrt) is not str or wrt != "per_sample_weights":
        raise ValueError(f"wrt must be '{rows}', 'per_sample_weights' or None, got {describe(wrt)}")
    if sample is None:
        raise ValueError("per_sample_weights must be given where wrt names it, got None")


def raise_for_shapes(
    input: AnyArray, offsets: AnyArray | None, include_last_offset: bool, name: str = "input"
) -> NoReturn:
    """Raise for ids and offsets whose shapes do not form bags."""
    if offsets is None:
        if input.ndim == 1:
            raise ValueError(f"offsets must be given where {name} is 1-D, got None")
        raise ValueError(f"{name} must be 1-D or 2-D, got shape {input.shape}")
    if input.ndim != 1:
        raise ValueError(f"{name} must be 1-D where offsets is given, got shape {input.shape}")
    if offsets.ndim != 1:
        raise ValueError(f"offsets must be 1-D, got shape {offsets.shape}")
    needed = "include_last_offset is True" if include_last_offset else f"{name} has {len(input)}"
    raise ValueError(f"offsets must have at least 1 entry where {needed}, got {len(offsets)}")


def check_flags(**flags: Any) -> None:
    """Raise unless every one of the named arguments is a bool."""
    for name, flag in flags.items():
        if not isinstance(flag, (bool, np.bool_)):
            raise TypeError(f"{name} must be a bool, got {describe(flag)}")


def as_invalid(
    invalid: Any, n_rows: int, whose: str = "weight's", first_id: int = 0
) -> tuple[bool, int]:
    """Return whether ids out of range are refused, and the row that replaces them, or -1."""
    if type(invalid) is str and invalid in ("raise", "skip"):
        return invalid == "raise", -1
    try:
        row = None if invalid is None else as_integer(invalid, "invalid")
    except TypeError:
        row = None
    if row is None:
        raise ValueError(f"invalid must be 'raise', 'skip' or a row, got {describe(invalid)}")
    return False, as_row(row, "invalid", n_rows, whose, first_id)


def check_castable(name: str, seen: np.dtype[Any], dtype: np.dtype[Any]) -> None:
    """Raise unless NumPy's "same_kind" rule allows the cast."""
    if not np.can_cast(seen, dtype, "same_kind"):
        raise TypeError(f"{name} must cast to {dtype} as 'same_kind', got dtype {seen}")


def as_sample_weights(
    per_sample_weights: Any,
    input: AnyArray,
    dtype: np.dtype[Any],
    whose: str = "input's",
) -> AnyArray:
    """Return the weights as the kernels read them: of this dtype, contiguous.

    They must have the shape of `input`, which messages call `whose` shape.
    """
    name = "per_sample_weights"
    array = as_numbers(per_sample_weights, name)
    check_castable(name, array.dtype, dtype)
    if array.shape != input.shape:
        raise ValueError(f"{name} must have {whose} shape {input.shape}, got {array.shape}")
    return cast(array, dtype)


def as_integer(value: Any, name: str) -> int:
    """Return an integer as an int; bools are refused."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {describe(value)}") from None


def as_path(value: Any, name: str) -> str:
    """Return the path of a file or a folder as a str."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise TypeError(f"{name} must be a str or an os.PathLike of one, got {describe(value)}")
    return path


def as_count(value: Any, name: str) -> int:
    """Return a count of at least 1 as an int."""
    if type(value) is int and value > 0:
        return value
    count = as_integer(value, name)
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {describe(count)}")
    return count


def as_row(value: Any, name: str, n_rows: int, whose: str = "weight's", first_id: int = 0) -> int:
    """Return the row that an argument names, counted from the start; -1 for None."""
    if value is None:
        return -1
    row = as_integer(value, name)
    stop = first_id + n_rows
    if not (-n_rows <= row < 0 or first_id <= row < stop):
        ids = f" of the ids {first_id} to {stop - 1}" if first_id > 0 else ""
        raise ValueError(f"{name} must name one of {whose} {n_rows} rows{ids}, got {describe(row)}")
    return row if row >= 0 else stop + row


def as_number(value: Any, name: str) -> float:
    """Return a real number as a float."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit a float64, got a larger number") from None


def as_max_norm(max_norm: Any, weight: Any) -> float:
    """Return `max_norm` as a float; raise unless `weight` can be scaled in place."""
    bound = as_number(max_norm, "max_norm")
    if not is_array(weight) or weight.dtype.char not in "fd":
        kind = weight.dtype if is_array(weight) else describe(weight)
        raise ValueError(
            f"max_norm must be None where weight is not float32 or float64, got a {kind} table"
        )
    if not bound >= 0:
        raise ValueError(f"max_norm must be at least 0, got {bound}")
    if not weight.flags.writeable:
        raise ValueError("weight must be writeable where max_norm is given, got a read-only array")
    return bound


def as_norm_type(norm_type: Any) -> float:
    """Return `norm_type` as a float, which may be infinite."""
    p = as_number(norm_type, "norm_type")
    if not p > 0:
        raise ValueError(f"norm_type must be greater than 0, got {p}")
    return p


def as_table_shape(shape: Any) -> tuple[int, int]:
    """Return (n_rows, dim) as two ints."""
    try:
        n_rows, dim = (operator.index(n) for n in shape)
    except (TypeError, ValueError, NotImplementedError):  # a 2-D memoryview raises the last
        raise TypeError(f"shape must be two integers, got {describe(shape)}") from None
    if not 0 <= min(n_rows, dim) <= max(n_rows, dim) < 2**63:
        raise ValueError(
            f"shape must be two sizes of at least 0, got {describe(n_rows)}, {describe(dim)}"
        )
    return n_rows, dim


def new_array(
    make: Callable[..., AnyArray], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> AnyArray:
    """Return a new array of `np.empty` or `np.zeros`; raise MemoryError if it is too large."""
    try:
        return make(shape, dtype)
    except ValueError:  # NumPy raises it where the number of bytes overflows
        raise MemoryError(f"cannot allocate an array of shape {shape}") from None


def check_out(
    out: Any,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    names: Sequence[str],
    inputs: Sequence[Any],
) -> None:
    """Raise unless the result can be written to `out`, which shares no memory with `inputs`."""
    check_array(out, "out")
    if out.dtype != dtype:
        raise TypeError(f"out must have the result's dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if not out.flags.c_contiguous or not out.flags.aligned:
        raise ValueError(f"out must be C-contiguous and aligned, got strides {out.strides}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    for name, array in zip(names, inputs, strict=True):
        if is_array(array) and shares_memory(out, array):
            raise ValueError(f"out must share no memory with {name}, got an overlap")


def span(array: AnyArray) -> tuple[int, int]:
    """Return the first address of an array, and the first one behind it."""
    start: int = array.ctypes.data
    if array.size == 0:
        return start, start
    reaches = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    ends = sum(min(0, reach) for reach in reaches), sum(max(0, reach) for reach in reaches)
    return start + ends[0], start + ends[1] + array.itemsize


def shares_memory(out: AnyArray, array: AnyArray) -> bool:
    """Return whether the arrays share a byte, or whether that is too hard to decide."""
    try:
        return np.shares_memory(out, array, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def as_offsets(lengths: Any, input: AnyArray, offsets: Any, include_last_offset: bool) -> AnyArray:
    """Return the offsets of bags of these lengths, with the end of the last bag."""
    if offsets is not None:
        raise ValueError(f"offsets must be None where lengths is given, got {describe(offsets)}")
    if include_last_offset:
        raise ValueError("include_last_offset must be False where lengths is given, got True")
    if input.ndim != 1:
        raise ValueError(f"input must be 1-D where lengths is given, got shape {input.shape}")
    sizes = as_index_array(lengths, "lengths")
    if sizes.ndim != 1:
        raise ValueError(f"lengths must be 1-D, got shape {sizes.shape}")
    bad = (sizes < 0) | (sizes > len(input))  # so the sum below cannot overflow
    if bad.any():
        b = int(bad.argmax())
        raise ValueError(
            f"lengths must be 0 to {len(input)}, the entries of input, "
            f"got lengths[{b}] = {integer_at(lengths, b)}"
        )
    bounds = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=bounds[1:])
    if bounds[-1] != len(input):
        raise ValueError(
            f"lengths must add up to the {len(input)} entries of input, got {bounds[-1]}"
        )
    return bounds


class SegmentsLabel(NamedTuple):
    """How messages call the entries of segments, and the number of segments."""

    positions: str
    n: str


BAGS = SegmentsLabel("position of input", "n_bags")


def check_segment_options(
    segment_ids: Any, n_bags: Any, offsets: Any, lengths: Any, include_last_offset: Any
) -> None:
    """Raise unless `segment_ids` is given without offsets or lengths."""
    if segment_ids is None:
        raise ValueError("segment_ids must be given where n_bags is given, got None")
    for name, seen in (("offsets", offsets), ("lengths", lengths)):
        if seen is not None:
            raise ValueError(
                f"{name} must be None where segment_ids is given, got {describe(seen)}"
            )
    if include_last_offset:
        raise ValueError("include_last_offset must be False where segment_ids is given, got True")


def as_segment_ids(
    segment_ids: Any, n: int, n_segments: Any, label: SegmentsLabel = BAGS
) -> tuple[AnyArray, int]:
    """Return the segment of each of `n` positions, and how many segments there are.

    By default, the number is the largest segment id plus 1. The values of `segment_ids` are not
    checked.
    """
    ids = as_indices(segment_ids, "segment_ids")
    if ids.shape != (n,):
        raise ValueError(
            f"segment_ids must have shape ({n},), one for each {label.positions}, got {ids.shape}"
        )
    if n_segments is None:
        return ids, min(int(ids.max(initial=-1)) + 1, MOST_SEGMENTS)
    count = as_integer(n_segments, label.n)
    if not 0 <= count <= MOST_SEGMENTS:
        raise ValueError(f"{label.n} must be 0 to {MOST_SEGMENTS}, got {describe(count)}")
    return ids, count


def raise_for_segment(
    segment_ids: AnyArray, given: Any, n_segments: int, label: SegmentsLabel = BAGS
) -> NoReturn:
    """Raise for the first segment id out of range; the message quotes `given`."""
    k = kernels.first_bad_index(segment_ids, n_segments)
    if k < 0:
        raise_for_change()
    raise ValueError(
        f"segment_ids must be at least 0 and less than {label.n} = {n_segments}, "
        f"got segment_ids[{k}] = {integer_at(given, k)}"
    )


def rows_in_range(rows: AnyArray, n_rows: int, first_id: int = 0) -> slice:
    """Return the slice of these sorted integers that are in range."""
    start, stop = np.searchsorted(rows, [first_id, first_id + n_rows])
    return slice(int(start), int(stop))


def check_offsets(
    offsets: AnyArray | None, n_indices: int, given_offsets: Any, input_name: str = "input"
) -> None:
    """Raise for the first invalid offset; messages quote `given_offsets`."""
    if offsets is not None:
        i = kernels.first_bad_offset(offsets, n_indices)
        if i >= 0:
            _raise_for_offset(given_offsets, i, n_indices, input_name)


def integer_at(given: Any, place: int | tuple[int, ...]) -> int:
    """Return an integer of an argument as it was before conversion."""
    given = as_ndarray(given, "given")
    # Without `object`, NumPy would round large integers of a list.
    dtype = None if hasattr(type(given), "__array__") else object
    return int(np.asarray(given, dtype)[place])


def _raise_for_offset(offsets: Any, i: int, n_indices: int, input_name: str) -> NoReturn:
    value = integer_at(offsets, i)
    seen = f"got offsets[{i}] = {value}"
    if i == 0 and value != 0:
        raise ValueError(f"offsets must start at 0, {seen}")
    if i > 0 and value < (previous := integer_at(offsets, i - 1)):
        raise ValueError(f"offsets must not decrease, {seen} after offsets[{i - 1}] = {previous}")
    raise ValueError(f"offsets must not exceed the {n_indices} entries of {input_name}, {seen}")


def raise_out_of_range(
    place: str, seen: int, n_rows: int, bag: str = "", first_id: int = 0
) -> NoReturn:
    """Raise for an id out of range; `place` is its position, `bag` names its bag."""
    bag = f" ({bag})" if bag else ""
    ids = f", of the ids {first_id} to {first_id + n_rows - 1}" if first_id > 0 else ""
    raise IndexError(f"{place} = {seen} is out of range for a table of {n_rows} rows{ids}{bag}")


def raise_for_change() -> NoReturn:
    """Raise for arrays that a kernel found invalid and that are valid now."""
    raise RuntimeError("arrays must not change during the call, got a change of their values")
