"""Readers of ragged inputs: each returns a `Column` (pieces.py).

The type of an input decides whether it is ragged, never its lengths or values. Arrow list
columns (arrow_types.py), scipy CSR matrices, awkward arrays, nested tensors of torch and ragged
tensors of TensorFlow are read in place; none of these packages is imported here. Sequences of
lists, arrays, series or tensors are copied into one chunk.

Tested in tests/columns/.
"""

import itertools
import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from embag import _arguments
from embag._arguments import AnyArray, describe
from embag._columns.arrow_types import NotReadableError, read_arrow
from embag._columns.pieces import Chunk, Column, Mask
from embag._kernels.dispatch import kernels
from embag._modes import Mode, check_weighted
from embag._tensors import as_ndarray, is_tensor

_chain = itertools.chain.from_iterable


def as_input(value: Any, name: str, flat: bool = False) -> Any:  # Column | AnyArray
    """Return a ragged input as a `Column`, anything else as an index array.

    With `flat`, a column of integers (of Arrow or pandas) is ragged, too: each integer is a list.
    """
    lists = _as_lists_of_ints(value, name)
    if lists is not None:
        return lists
    try:
        column = as_column(value, name, flat=flat)
    except NotReadableError as error:
        try:
            return _arguments.as_index_array(value, name)
        except (TypeError, ValueError):
            raise ValueError(str(error)) from error
    if column is None:
        return _arguments.as_index_array(value, name)
    if column.dtype.kind not in "iuO":
        lists = "" if column.is_flat else "lists of "
        seen = f"{lists}{column.dtype}"
        if column.dtype.kind == "f" and any(
            chunk.items_valid is not None or np.isnan(chunk.items).any() for chunk in column.chunks
        ):
            seen += " with nulls: if pandas made floats of ids, read with dtype_backend='pyarrow'"
        raise TypeError(f"{name} must be {lists}integers, got {seen}")
    return column


def _as_lists_of_ints(value: Any, name: str) -> Any:  # Column | AnyArray | None
    """Read the common lists of Python ints with compiled code; None for anything else.

    Lists of one length become a 2-D array: the result is the same, and messages name
    positions as NumPy does.
    """
    read = kernels.ids_of_lists(value)
    if read is None or len(read[1]) == 1:  # an empty list is an empty array
        return None
    ids, offsets = read
    n = len(offsets) - 1
    size = int(offsets[1])
    if size and len(ids) == n * size and (offsets == np.arange(0, len(ids) + 1, size)).all():
        return ids.reshape(n, size)
    return Column([Chunk(n, ids, offsets)], name)


def check_matrix(column: Column, n_rows: int) -> None:
    """Raise for a matrix that cannot be multiplied by the table."""
    if column.n_columns is not None and column.n_columns != n_rows:
        raise ValueError(
            f"{column.name} must have as many columns as the table has rows, {n_rows}, where it "
            f"is a matrix, got {column.n_columns}"
        )


def column_from_array(array: AnyArray, offsets: AnyArray | None, n_bags: int, name: str) -> Column:
    """Return a 2-D array, or a 1-D one with n_bags + 1 offsets, as a `Column`."""
    if offsets is not None:
        return Column([Chunk(n_bags, array, offsets)], name)
    column = Column([Chunk(n_bags, array.reshape(-1), list_size=array.shape[1])], name)
    column.array_shape = array.shape
    return column


def check_no_offsets(offsets: Any, lengths: Any, segment_ids: Any = None) -> None:
    """Raise for offsets, lengths or segment ids beside a ragged input."""
    given = {"offsets": offsets, "lengths": lengths, "segment_ids": segment_ids}
    for name, seen in given.items():
        if seen is not None:
            raise ValueError(f"{name} must be None where input is ragged, got {describe(seen)}")


def is_number_array(array: Any) -> bool:
    """Return whether this is a plain array that holds no objects, so that it is not ragged."""
    return type(array) is np.ndarray and array.dtype != object


def as_ragged_weights(value: Any) -> Column | None:
    """Return ragged weights as a `Column`; None for anything else."""
    value = as_ndarray(value, "per_sample_weights")
    if is_number_array(value):
        return None
    try:
        return as_column(value, "per_sample_weights", weights=True)
    except NotReadableError:  # it may be an array
        return None


def as_weights(value: Any, column: Column, mode: Mode, dtype: np.dtype[Any]) -> Column | None:
    """Return the weights of a ragged input, checked except for the lengths of their lists.

    By default, they are the weights that the input holds, such as the data of a matrix.
    """
    if value is None:
        if column.weights is None or not mode.takes_weights:
            return None
        _arguments.check_castable(column.weights.name, column.weights.dtype, dtype)
        return column.weights
    name = "per_sample_weights"
    check_weighted(mode, value)
    if column.weights is not None:
        raise ValueError(
            f"{name} must be None where {column.name} has weights of its own, got {describe(value)}"
        )
    weights = as_column(value, name, weights=True, flat=column.is_flat)
    if weights is None:
        raise ValueError(
            f"{name} must be ragged where {column.name} is, with as many entries in each list, "
            f"got {describe(value)}"
        )
    weights = weights.weights or weights  # of a matrix, its data
    _arguments.check_castable(name, weights.dtype, dtype)
    if weights.n_bags != column.n_bags:
        raise ValueError(
            f"{name} must have as many lists as {column.name}, which has {column.n_bags}, "
            f"got {weights.n_bags}"
        )
    return weights


def as_column(value: Any, name: str, weights: bool = False, flat: bool = False) -> Column | None:
    """Return a ragged input as a `Column`; None for anything else.

    With `weights`, any numbers are accepted, and each row of a 2-D array is a list. With `flat`,
    each number of a column of Arrow or pandas is a list.
    """
    kind = type(value)
    if kind is Column:
        column: Column = value
        return column
    if issubclass(kind, (np.ndarray, list, tuple)):
        return _read_sequence(value, name, weights)
    read = _READERS.get(str(kind.__module__).partition(".")[0])
    column_read = None if read is None else read(value, name, flat)
    if column_read is not None:
        return column_read
    array = as_ndarray(value, name)
    if _arguments.is_array(array):
        return _read_sequence(array, name, weights)
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, np.dtype):  # such as a pandas Series
        if not weights and dtype.kind != "O":
            return None
        return _read_sequence(np.asarray(value), name, weights)
    if hasattr(kind, "__arrow_c_array__") or hasattr(kind, "__arrow_c_stream__"):
        return read_arrow(value, name, flat)
    if _is_sequence(kind) and not _is_array_like(value):
        return _read_sequence(list(value), name, weights)
    return None


def _read_sequence(value: Any, name: str, weights: bool) -> Column | None:
    """Read a list of lists or an array of arrays by copying all items."""
    entries: Sequence[Any] = value
    from_array = _arguments.is_array(value)
    if from_array:
        array = np.ndarray.view(value, np.ndarray)
        if array.dtype != object:
            if not (weights and array.ndim == 2):
                return None
            n, list_size = array.shape
            return Column([Chunk(n, array.reshape(-1), list_size=list_size)], name)
        if array.ndim not in (1, 2):
            return None
        entries = list(array)
    kinds = set(map(type, entries))
    if not from_array and kinds <= {int, float}:  # numbers, or nothing
        return None
    bags: Sequence[Any] | None = entries
    if not kinds <= {list, tuple}:
        bags = _collect_lists(entries, kinds, name, "numbers" if weights else "integers")
    return None if bags is None else Column([_concatenate_lists(bags, name, weights)], name)


def _collect_lists(
    entries: Sequence[Any], kinds: set[type], name: str, items: str
) -> Sequence[Any] | None:
    """Return the entries, which are lists, with () for nulls; None if they are numbers."""
    if any(map(is_tensor, kinds)):
        entries = [as_ndarray(entry, f"{name}[{b}]") for b, entry in enumerate(entries)]
        kinds = set(map(type, entries))
    sequences = {kind for kind in kinds if _is_sequence(kind)}
    is_list = [type(entry) in sequences and getattr(entry, "ndim", 1) != 0 for entry in entries]
    if all(is_list):
        return entries
    lists = []
    for b, entry in enumerate(entries):
        if is_list[b]:
            lists.append(entry)
        elif _is_null(entry) or (isinstance(entry, float) and math.isnan(entry)):
            lists.append(())  # pandas writes NaN for a null
        elif _is_number(entry) and not any(is_list):
            return None
        else:
            seen = _arguments.describe(entry)
            raise TypeError(f"{name}[{b}] must be a list or an array of {items}, got {seen}")
    return lists


def _is_sequence(kind: type) -> bool:
    """Return whether a type is a sequence other than text, bytes, mappings and sets."""
    return all(hasattr(kind, name) for name in ("__len__", "__getitem__", "__iter__")) and not (
        issubclass(kind, (str, bytes, bytearray, Mapping, Set))
    )


def _is_number(entry: Any) -> bool:
    return isinstance(entry, (numbers.Number, np.generic)) or hasattr(type(entry), "__index__")


def _is_null(entry: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return entry is None or (pandas is not None and entry is getattr(pandas, "NA", None))


def _concatenate_lists(bags: Sequence[Any], name: str, weights: bool) -> Chunk:
    """Return lists as one chunk; None among their items is a null."""
    try:
        if not set(map(type, bags)) <= {list, tuple, np.ndarray}:
            bags = [_as_items(bag) for bag in bags]
        offsets = np.zeros(len(bags) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, bags), np.int64, len(bags)), out=offsets[1:])
        items, valid = _concatenate_items(bags, int(offsets[-1]), weights)
    except MemoryError:
        raise
    except Exception as error:  # an object of the user's may raise anything
        raise ValueError(f"{name} must be lists of numbers, got others: {error}") from error
    seen: Any = None
    if items.ndim != 1 or len(items) != offsets[-1]:
        seen = f"arrays of shape {items.shape[1:]}"
    elif items.dtype == object:
        seen = next((type(item).__name__ for item in items if type(item) is not int), None)
    elif not np.can_cast(items.dtype, np.float64, "same_kind"):
        seen = {"U": "strings", "S": "bytes"}.get(items.dtype.kind, items.dtype)
    if seen is not None:
        raise TypeError(f"{name} must be lists of numbers, got lists of {seen}")
    return Chunk(len(bags), items, offsets, items_valid=valid)


def _concatenate_items(bags: Sequence[Any], n: int, weights: bool) -> tuple[AnyArray, Mask | None]:
    """Return the n items of lists, tuples and arrays end to end, and which are valid.

    Integers become int64. Ids become Python ints if one of them does not fit int64.
    """
    if not set(map(type, bags)) <= {list, tuple}:
        bags = [bag for bag in bags if len(bag)]  # NumPy would make floats of []
        if bags and all(is_number_array(bag) and bag.dtype == bags[0].dtype for bag in bags):
            return np.concatenate(bags), None
        # NumPy would make floats of int64 beside uint64. A list has None for masked items.
        bags = [bag.tolist() if isinstance(bag, np.ndarray) else bag for bag in bags]
    kinds = set(map(type, _chain(bags)))
    valid = None
    if not kinds <= {int, float}:
        flat = [*_chain(bags)]
        if not kinds <= {int, float, type(None)}:
            flat = [_as_number(item) for item in flat]
        known = [item is not None for item in flat]
        if not all(known):
            valid = Mask.of(np.array(known))
            flat = [0 if item is None else item for item in flat]
        bags, kinds = [flat], set(map(type, flat))
    dtype: Any = np.int64
    if kinds <= {int, float, bool}:
        if bool in kinds and not weights:
            dtype = np.bool_  # refused later: booleans are not ids
        elif kinds - {int}:
            dtype = np.float64
    else:
        return np.array(flat), valid
    try:
        return np.fromiter(_chain(bags), dtype, n), valid
    except OverflowError:  # an integer beyond int64
        if weights or float in kinds:
            return np.fromiter(map(_arguments.to_float, _chain(bags)), np.float64, n), valid
        return np.fromiter(_chain(bags), object, n), valid


def _as_items(bag: Any) -> Any:
    """Return a bag of any type as a list, a tuple or an array; nulls are None or pandas.NA."""
    kind = type(bag)
    if issubclass(kind, (list, tuple, np.ndarray)):
        return bag
    if _is_array_like(bag) and not _arguments.count_nulls(bag):
        return np.asarray(bag)
    for method in ("tolist", "to_list", "to_pylist", "as_py"):
        if hasattr(kind, method):
            items = getattr(bag, method)()
            return () if items is None else items
    return list(bag)


def _is_array_like(value: Any) -> bool:
    """Return whether NumPy reads this at once, not entry by entry."""
    if hasattr(type(value), "__array__"):
        return True
    try:
        memoryview(value)
    except Exception:
        return False
    return True


def _as_number(item: Any) -> Any:
    """Return an item as a Python number, None for a null, and anything else unchanged."""
    if type(item) is int or type(item) is float:
        return item
    if _is_null(item):
        return None
    if isinstance(item, np.generic) or getattr(item, "ndim", None) == 0:
        return item.item()
    if isinstance(item, int) and not isinstance(item, bool):
        return int(item)
    return item


def _read_scipy(value: Any, name: str, flat: bool) -> Column | None:
    form = getattr(value, "format", None)
    if form is None:
        return None
    if form != "csr" or value.ndim != 2:
        seen = f"{form} with {value.ndim} axes"
        raise TypeError(f"{name} must be a CSR matrix where it is sparse, got {seen}: see tocsr()")
    n, n_columns = int(value.shape[0]), int(value.shape[1])
    indices, offsets, data = map(np.asarray, (value.indices, value.indptr, value.data))
    is_flat = indices.ndim == offsets.ndim == data.ndim == 1
    if not is_flat or offsets.size != n + 1 or data.size != indices.size:
        raise ValueError(
            f"{name} must be a sound CSR matrix, got {offsets.size} of indptr for {n} rows, "
            f"{indices.size} indices and {data.size} data{'' if is_flat else ', not all 1-D'}"
        )
    column = Column([Chunk(n, indices, offsets)], name)
    column.weights = Column([Chunk(n, data, offsets)], f"the data of {name}")
    column.n_columns = n_columns
    return column


def _read_pandas(value: Any, name: str, flat: bool) -> Column | None:
    """Read a frame of one column as that column, without its index; or a flat series."""
    if getattr(value, "ndim", None) == 2 and value.shape[1] == 1:
        return as_column(value.iloc[:, 0], name, flat=flat)
    if not (flat and hasattr(value, "iloc")):
        return None
    dtype = getattr(value.dtype, "numpy_dtype", value.dtype)  # of a nullable type
    if not isinstance(dtype, np.dtype) or dtype.kind not in "iuf":
        return None
    valid = None
    if dtype is not value.dtype and value.hasnans:
        valid = Mask.of(value.notna().to_numpy())
        value = value.fillna(0)
    items = value.to_numpy(dtype)
    return Column([Chunk(len(items), items, list_size=1, items_valid=valid)], name, is_flat=True)


def check_pyarrow(value: Any, name: str, flat: bool = False) -> None:
    """Raise if buffers are shorter than the lengths need, as in a damaged file.

    Arrow's C interface does not have the sizes of buffers, and pyarrow does not check them when
    it reads a file. The column itself is read through that interface.
    """
    if hasattr(value, "validate"):  # a reader of batches has no such method
        try:
            value.validate()
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{name} must be a valid column, got {describe(value)}: {error}"
            ) from error


def _read_awkward(value: Any, name: str, flat: bool) -> Column | None:
    ak = sys.modules["awkward"]
    if not isinstance(value, ak.Array):
        return None
    if value.ndim == 1:
        return None
    layout = _strip_mask(value.layout)
    if layout.is_numpy:  # 2-D
        layout = layout.to_RegularArray()
    content = _strip_mask(layout.content) if layout.is_list else layout
    if value.ndim != 2 or not content.is_numpy:
        return _read_awkward_with_nulls(value, name)
    items = np.asarray(content.data)
    if layout.is_regular:
        n, list_size = len(layout), layout.size
        return Column([Chunk(n, items[: n * list_size], list_size=list_size)], name)
    if hasattr(layout, "offsets"):
        return Column([Chunk(len(layout), items, np.asarray(layout.offsets))], name)
    starts = np.asarray(layout.starts)
    sizes = np.asarray(layout.stops)[: len(layout)] - starts
    # An empty list may start anywhere.
    return Column([Chunk(len(layout), items, np.where(sizes == 0, 0, starts), sizes)], name)


def _strip_mask(layout: Any) -> Any:
    """Return a layout without the mask of one that could have nulls but has none."""
    return layout.content if type(layout).__name__ == "UnmaskedArray" else layout


def _read_awkward_with_nulls(value: Any, name: str) -> Column:
    """Convert lists that have nulls, an index between lists and items, or no type."""
    ak = sys.modules["awkward"]
    try:
        flat = ak.flatten(value, axis=1)
        known = ~np.asarray(ak.is_none(flat))
        kept = np.asarray(ak.drop_none(flat))
        items = np.zeros(len(known), kept.dtype if len(kept) else np.int64)
        items[known] = kept
        counts = np.asarray(ak.fill_none(ak.num(value, axis=1), 0))
        offsets = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    except (TypeError, ValueError) as error:
        message = f"{name} must be lists of numbers, got awkward's type {value.type}"
        raise TypeError(message) from error
    return Column([Chunk(len(counts), items, offsets, items_valid=Mask.of(known))], name)


def _read_torch(value: Any, name: str, flat: bool) -> Column | None:
    torch = sys.modules["torch"]
    if not (isinstance(value, torch.Tensor) and value.is_nested):
        return None
    if value.layout != torch.jagged or value.dim() != 2:
        raise TypeError(f"{name} must be nested with torch.jagged, and 2-D, got another layout")
    items = as_ndarray(value.values().detach(), name)
    offsets, lengths = as_ndarray(value.offsets(), name), value.lengths()
    if lengths is None:
        return Column([Chunk(len(offsets) - 1, items, offsets)], name)
    return Column(
        [Chunk(len(lengths), items, offsets[: len(lengths)], as_ndarray(lengths, name))], name
    )


def _read_tensorflow(value: Any, name: str, flat: bool) -> Column | None:
    if not hasattr(value, "ragged_rank"):
        return None
    if value.ragged_rank != 1 or value.flat_values.shape.rank != 1:
        raise TypeError(f"{name} must be lists of numbers, got a ragged tensor of {value.shape}")
    offsets = value.row_splits.numpy()
    return Column([Chunk(len(offsets) - 1, value.flat_values.numpy(), offsets)], name)


# By the package that defines the type.
_READERS: dict[str, Callable[[Any, str, bool], Column | None]] = {
    "pyarrow": check_pyarrow,
    "scipy": _read_scipy,
    "pandas": _read_pandas,
    "awkward": _read_awkward,
    "torch": _read_torch,
    "tensorflow": _read_tensorflow,
}
