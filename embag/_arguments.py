"""Arguments in, checked arrays out, or an error: every message about a call's arrays.

A message reads `<argument> must <rule>, got <what was seen>`. TypeError is for dtypes
and kinds, ValueError for shapes, relations and options, IndexError for index values.

Array arguments have a fast way and a slow way: the kernels' own predicates
(`kernels.is_table`, `kernels.is_index_array`) tell in some 40 ns that an array can be
read as it is; only what cannot comes here to be converted or refused.

Values of indices and offsets are checked by the kernels, as they read them. When one
reports failure, `check_positions` looks for the first position to blame.

Tested in tests/test_errors.py.
"""

import contextlib
import math
import numbers
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from embag._dispatch import kernels

AnyArray = NDArray[Any]

_INT64 = np.dtype(np.int64)
_FLOAT64 = np.dtype(np.float64)
_BOOLS = frozenset((bool, np.bool_))


def describe(value: Any) -> str:
    """Tell what was seen: a short value in full, anything else by its type."""
    kind = type(value)  # not what `__class__` says
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
    """Return whether this is an ndarray, whatever its `__class__` says."""
    return issubclass(type(value), np.ndarray)


def check_array(value: Any, name: str, kinds: str = "a numpy.ndarray") -> None:
    """Raise unless this is an ndarray; the message says how others become one."""
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
def where(place: str) -> Iterator[None]:
    """Begin the messages of errors in the block with a place, such as a feature's name."""
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
    """Raise unless this is a table: its dtype and its rank are good.

    Where other tables are taken too, `kinds` and `dtypes` say so and `is_known` tells.
    """
    check_array(weight, name, kinds)
    if not is_known(weight.dtype):
        raise TypeError(
            f"{name} must be {dtypes}, "
            f"got {weight.dtype.str if weight.dtype.kind == 'f' else weight.dtype}"
        )
    if weight.ndim != 2:
        raise ValueError(f"{name} must be 2-D (n_rows, dim), got shape {weight.shape}")


def as_table(weight: Any) -> AnyArray:
    """Return `weight` as the kernels read it: itself, or a copy with adjacent columns."""
    check_table(weight)
    table: AnyArray = weight
    if not kernels.is_table(weight):
        table = np.array(weight, order="C", subok=False)
    return table


def _as_array(value: Any, name: str, kind: str) -> AnyArray:
    """Return ndarrays as they are (a masked one's data), anything else through `np.asarray`."""
    if type(value) is np.ndarray:
        return value
    if is_array(value):
        return np.ndarray.view(value, np.ndarray)
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
    """Return how many entries of a series or an Arrow array are null: NumPy makes NaN of them."""
    if hasattr(value, "columns") or isinstance(getattr(value, "dtype", None), np.dtype):
        return 0
    if hasattr(value, "null_count"):  # of pyarrow a number, of polars a method
        return int(value.null_count() if callable(value.null_count) else value.null_count)
    return int(np.sum(value.isna())) if hasattr(value, "isna") else 0


def _from_objects(
    objects: AnyArray,
    name: str,
    kind: str,
    dtype: np.dtype[Any],
    convert: Callable[[Any], float],
) -> AnyArray:
    """Return an array of Python's numbers in a dtype: `convert` raises TypeError for others."""
    array = np.empty(objects.shape, dtype)
    for place, value in np.ndenumerate(objects):
        try:
            array[place] = convert(value)
        except TypeError:
            at = f"{name}[{', '.join(map(str, place))}] = " if place else ""
            raise TypeError(f"{name} must be {kind}, got {at}{describe(value)}") from None
    return array


def _clip(value: Any) -> int:
    """Return an integer as one of int64; what is beyond stays out of range of every table."""
    if type(value) in _BOOLS:
        raise TypeError
    return min(max(operator.index(value), -(2**63)), 2**63 - 1)


def to_float(value: Any) -> float:
    """Return a real number as a float; what is too large is infinite."""
    if not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def as_numbers(value: Any, name: str) -> AnyArray:
    """Return an array of numbers, in float64 where there are integers too large for NumPy."""
    array = _as_array(value, name, "numbers")
    if array.dtype == object:
        return _from_objects(array, name, "numbers", _FLOAT64, to_float)
    return array


def cast(array: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
    """Return numbers as the kernels read them: in a dtype, contiguous.

    Those that are too large become infinite, those that are too small 0, without a warning.
    """
    with np.errstate(all="ignore"):
        return np.require(array, dtype, ["C", "A"])


def as_indices(indices: Any, name: str) -> AnyArray:
    """Return integers as the kernels read them; those that can be are not copied."""
    if type(indices) is not np.ndarray or not kernels.is_index_array(indices):
        return as_index_array(indices, name)
    return indices


def as_index_array(indices: Any, name: str) -> AnyArray:
    """Return integers as the kernels read them: int32 or int64, contiguous, native."""
    array = _as_array(indices, name, "integers")
    if array.dtype == object:
        array = _from_objects(array, name, "integers", _INT64, _clip)
    elif issubclass(type(indices), (list, tuple)) and not _BOOLS.isdisjoint(map(type, indices)):
        array = array.astype(np.bool_)  # NumPy takes a bool beside integers for one
    elif array.dtype.kind == "f" and not hasattr(type(indices), "__array__"):
        # NumPy takes [] for float64, and integers beyond int64 beside others.
        with contextlib.suppress(TypeError):
            objects = np.array(indices, object)
            array = _from_objects(objects, name, "integers", _INT64, _clip)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        # Values beyond int64 become negative: out of range, as they should be.
        array = array.astype(array.dtype.newbyteorder("="), copy=False).view(_INT64)
    elif array.dtype.kind == "u" or array.dtype.itemsize < 4:
        array = array.astype(_INT64)
    if not kernels.is_index_array(array):
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", subok=False)
    return array


def as_grad_output(grad_output: Any, n_bags: int, dim: int, dtype: np.dtype[Any]) -> AnyArray:
    """Return the gradient as the kernels read it: the table's dtype, adjacent columns.

    One row repeated without memory of its own (`np.broadcast_to`) stays that.
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


def as_max_indices(max_indices: Any, n_bags: int, dim: int, n_rows: int, mode: str) -> AnyArray:
    """Return the winning rows as the kernels read them: int64, contiguous, each -1 or a row."""
    if mode != "max":
        raise ValueError(
            f"max_indices must be None where mode is {mode!r}, got {describe(max_indices)}"
        )
    given = _as_array(max_indices, "max_indices", "integers")
    array = as_index_array(max_indices, "max_indices").astype(np.int64, copy=False)
    if array.shape != (n_bags, dim):
        raise ValueError(
            f"max_indices must have the output's shape {(n_bags, dim)}, got {array.shape}"
        )
    least = 0 if given.dtype.kind == "u" else -1  # of uint64, the largest are negative here
    bad = (array < least) | (array >= n_rows)
    if bad.any():
        b, d = np.unravel_index(int(bad.argmax()), bad.shape)
        raise IndexError(
            f"max_indices[{b}, {d}] = {integer_at(max_indices, (int(b), int(d)))} "
            f"is out of range for a table of {n_rows} rows"
        )
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
    """Raise if converting another argument ran code that changed one of these."""
    n_bags = kernels.count_bags(indices, offsets, include_last_offset)
    unchanged = indices.size == n_indices and n_bags == output[0]
    if not unchanged or grad.shape != output or grad.dtype != dtype:
        raise RuntimeError("arrays must not change during the call, got a change of layout")


def check_wrt(wrt: Any, sample: AnyArray | None) -> None:
    """Raise for a gradient that there is not."""
    if wrt is None or (type(wrt) is str and wrt == "weight"):
        return
    if type(wrt) is not str or wrt != "per_sample_weights":
        raise ValueError(f"wrt must be 'weight', 'per_sample_weights' or None, got {describe(wrt)}")
    if sample is None:
        raise ValueError("per_sample_weights must be given where wrt names it, got None")


def raise_for_shapes(
    input: AnyArray, offsets: AnyArray | None, include_last_offset: bool, name: str = "input"
) -> NoReturn:
    """Raise for an `input` and `offsets` whose shapes make no bags."""
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


def check_mode(
    mode: Any, sparse: bool, scale_grad_by_freq: bool, return_max_indices: bool = False
) -> None:
    """Raise for a mode that is none, or that an option does not go with."""
    if type(mode) is not str or mode not in ("sum", "mean", "max"):
        raise ValueError(f"mode must be 'sum', 'mean' or 'max', got {describe(mode)}")
    if mode == "max":
        if sparse:
            raise ValueError("sparse must be False where mode is 'max', got True")
        if scale_grad_by_freq:
            raise ValueError("scale_grad_by_freq must be False where mode is 'max', got True")
    elif return_max_indices:
        raise ValueError(f"return_max_indices must be False where mode is {mode!r}, got True")


def check_invalid(invalid: Any) -> None:
    """Raise for a policy that is none."""
    if type(invalid) is not str or invalid not in ("raise", "skip"):
        raise ValueError(f"invalid must be 'raise' or 'skip', got {describe(invalid)}")


def check_weighted(mode: str, per_sample_weights: Any) -> None:
    """Raise for weights where the mode has none."""
    if mode != "sum":
        raise ValueError(
            f"per_sample_weights must be None where mode is {mode!r}, "
            f"got {describe(per_sample_weights)}"
        )


def check_castable(name: str, seen: np.dtype[Any], dtype: np.dtype[Any]) -> None:
    """Raise unless NumPy casts numbers of one dtype to the other as of the same kind."""
    if not np.can_cast(seen, dtype, "same_kind"):
        raise TypeError(f"{name} must cast to {dtype} as 'same_kind', got dtype {seen}")


def as_sample_weights(
    per_sample_weights: Any,
    input: AnyArray,
    mode: str,
    dtype: np.dtype[Any],
    whose: str = "input's",
) -> AnyArray:
    """Return the weights as the kernels read them: the table's dtype, contiguous."""
    name = "per_sample_weights"
    check_weighted(mode, per_sample_weights)
    array = as_numbers(per_sample_weights, name)
    check_castable(name, array.dtype, dtype)
    if array.shape != input.shape:
        raise ValueError(f"{name} must have {whose} shape {input.shape}, got {array.shape}")
    return cast(array, dtype)


def as_integer(value: Any, name: str) -> int:
    """Return an integer, not a bool, as an int."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {describe(value)}") from None


def as_count(value: Any, name: str) -> int:
    """Return a number of threads as an int."""
    if type(value) is int and value > 0:
        return value
    count = as_integer(value, name)
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {describe(count)}")
    return count


def as_padding_row(padding_idx: Any, n_rows: int, whose: str = "weight's") -> int:
    """Return the row that `padding_idx` names."""
    row = as_integer(padding_idx, "padding_idx")
    if not -n_rows <= row < n_rows:
        raise ValueError(f"padding_idx must name one of {whose} {n_rows} rows, got {describe(row)}")
    return row % n_rows


def as_number(value: Any, name: str) -> float:
    """Return a real number as a float."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit a float64, got a larger number") from None


def as_max_norm(max_norm: Any, weight: Any) -> float:
    """Return `max_norm` as a float; `weight` is to be scaled in place."""
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
    """Return `norm_type` as a float, perhaps infinite."""
    p = as_number(norm_type, "norm_type")
    if not p > 0:
        raise ValueError(f"norm_type must be greater than 0, got {p}")
    return p


def as_table_shape(shape: Any) -> tuple[int, int]:
    """Return (n_rows, dim) as two ints."""
    try:
        n_rows, dim = (operator.index(n) for n in shape)
    except (TypeError, ValueError, NotImplementedError):  # the last of a memoryview with two axes
        raise TypeError(f"shape must be two integers, got {describe(shape)}") from None
    if not 0 <= min(n_rows, dim) <= max(n_rows, dim) < 2**63:
        raise ValueError(
            f"shape must be two sizes of at least 0, got {describe(n_rows)}, {describe(dim)}"
        )
    return n_rows, dim


def new_array(
    make: Callable[..., AnyArray], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> AnyArray:
    """Return what `np.empty` or `np.zeros` makes; MemoryError if it is too large."""
    try:
        return make(shape, dtype)
    except ValueError:  # NumPy's word for more bytes than can be counted
        raise MemoryError(f"cannot allocate an array of shape {shape}") from None


def check_out(
    out: Any,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    names: Sequence[str],
    inputs: Sequence[Any],
) -> None:
    """Raise unless the result can be written to `out`, apart from inputs of these names."""
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


def shares_memory(out: AnyArray, array: AnyArray) -> bool:
    """Return whether a byte is in both, or whether that is too hard to tell."""
    try:
        return np.shares_memory(out, array, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def positions_in_bags(
    input: AnyArray, offsets: AnyArray | None, include_last_offset: bool
) -> AnyArray:
    """Return the part of `input` that is in a bag."""
    if include_last_offset and offsets is not None:
        return input[int(offsets[0]) : int(offsets[-1])]
    return input


def as_offsets(lengths: Any, input: AnyArray, offsets: Any, include_last_offset: bool) -> AnyArray:
    """Return the offsets of bags of these lengths, and where the last one ends."""
    if offsets is not None:
        raise ValueError(f"offsets must be None where lengths is given, got {describe(offsets)}")
    if include_last_offset:
        raise ValueError("include_last_offset must be False where lengths is given, got True")
    if input.ndim != 1:
        raise ValueError(f"input must be 1-D where lengths is given, got shape {input.shape}")
    sizes = as_index_array(lengths, "lengths")
    if sizes.ndim != 1:
        raise ValueError(f"lengths must be 1-D, got shape {sizes.shape}")
    bad = (sizes < 0) | (sizes > len(input))  # so that no sum of them overflows
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


def rows_in_range(rows: AnyArray, n_rows: int) -> slice:
    """Return which of these sorted integers are rows."""
    start, stop = np.searchsorted(rows, [0, n_rows])
    return slice(int(start), int(stop))


def check_positions(
    input: AnyArray,
    offsets: AnyArray | None,
    include_last_offset: bool,
    n_rows: int,
    given_input: Any,
    given_offsets: Any,
    refuse: bool = True,
    name: str = "input",
    start: int = 0,
) -> None:
    """Raise for the first offset, else for the first index, that is not valid.

    Indices are looked at only if those out of range are refused. Messages quote
    `given_input` and `given_offsets`, the arrays before conversion; there `input` is called
    `name` and starts at `start`.
    """
    check_offsets(offsets, input.size, given_offsets, name)
    if not refuse:
        return
    used = positions_in_bags(input, offsets, include_last_offset)
    k = kernels.first_bad_index(used, n_rows)
    if k < 0:
        return
    place = tuple(int(i) for i in np.unravel_index(k, input.shape))
    bag = place[0] if offsets is None else int(np.searchsorted(offsets, k, side="right")) - 1
    if start:
        place = (place[0] + start,)
    raise IndexError(
        f"{name}[{', '.join(map(str, place))}] = {integer_at(given_input, place)} "
        f"is out of range for a table of {n_rows} rows (bag {bag})"
    )


def check_offsets(
    offsets: AnyArray | None, n_indices: int, given_offsets: Any, input_name: str = "input"
) -> None:
    """Raise for the first offset that is not valid; messages quote `given_offsets`."""
    if offsets is not None:
        i = kernels.first_bad_offset(offsets, n_indices)
        if i >= 0:
            _raise_for_offset(given_offsets, i, n_indices, input_name)


def integer_at(given: Any, place: int | tuple[int, ...]) -> int:
    """Return the integer at a place of an argument before its conversion."""
    # NumPy would round large integers in a list.
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


def raise_for_change() -> NoReturn:
    """Raise for arrays that were bad to the kernel and are good now."""
    raise RuntimeError("arrays must not change during the call, got a change of their values")
