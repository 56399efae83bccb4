"""Containers of lists: which inputs are ragged, and how each is read as a `Column` (_ragged.py).

Types decide which inputs are ragged, never lengths or values. Arrow's lists (_arrow.pyx),
scipy's CSR matrices, awkward arrays, torch's nested tensors and TensorFlow's ragged tensors are
read in place; none of these packages is imported here. Sequences of lists, arrays, series or
tensors are copied into one chunk.

Tested in tests/test_columns.py and tests/test_containers.py.
"""

import itertools
import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from embag import _arguments, _arrow
from embag._arguments import AnyArray, describe
from embag._ragged import Chunk, Column, Mask

_FORMATS = {
    "b": "booleans",
    "u": "strings",
    "U": "strings",
    "vu": "strings",
    "+s": "structs",
    "+m": "maps",
}


_chain = itertools.chain.from_iterable


class _NotReadable(ValueError):
    """What offers itself as an Arrow column does not come as one; it may be an array."""


def as_input(value: Any, name: str) -> Any:  # Column | AnyArray
    """Return a ragged column as a `Column`, anything else as an array the kernels read."""
    rectangle = _as_rectangle(value)
    if rectangle is not None:
        return rectangle
    try:
        column = as_column(value, name)
    except _NotReadable as error:
        try:
            return _arguments.as_index_array(value, name)
        except (TypeError, ValueError):
            raise ValueError(str(error)) from error
    if column is None:
        return _arguments.as_index_array(value, name)
    if column.dtype.kind not in "iuO":
        seen = f"lists of {column.dtype}"
        if column.dtype.kind == "f" and any(
            chunk.items_valid is not None or np.isnan(chunk.items).any() for chunk in column.chunks
        ):
            seen += " with nulls: if pandas made floats of ids, read with dtype_backend='pyarrow'"
        raise TypeError(f"{name} must be lists of integers, got {seen}")
    return column


def _as_rectangle(value: Any) -> AnyArray | None:
    """Return lists of integers that have one length as a 2-D array, None for anything else.

    The ragged way has the same result. The array's is faster, and errors name `input[1, 2]`.
    """
    if not (issubclass(type(value), (list, tuple)) and set(map(type, value)) <= {list, tuple}):
        return None
    if len(set(map(len, value))) != 1 or set(map(type, _chain(value))) != {int}:
        return None
    try:
        return np.array(value, np.int64)
    except (OverflowError, ValueError):  # too large, or changed meanwhile
        return None


def check_matrix(column: Column, n_rows: int) -> None:
    """Raise for a matrix that the table cannot be multiplied with."""
    if column.n_columns is not None and column.n_columns != n_rows:
        raise ValueError(
            f"{column.name} must have as many columns as the table has rows, {n_rows}, where it "
            f"is a matrix, got {column.n_columns}"
        )


def column_of(array: AnyArray, offsets: AnyArray | None, n_bags: int, name: str) -> Column:
    """Return an array, 2-D or with offsets of which the last ends the last bag, as a column."""
    list_size = array.shape[1] if offsets is None else 0
    return Column([Chunk(n_bags, array.reshape(-1), offsets, list_size=list_size)], name)


def check_alone(offsets: Any, lengths: Any) -> None:
    """Raise for what would tell the bags of a ragged column once more."""
    for name, seen in (("offsets", offsets), ("lengths", lengths)):
        if seen is not None:
            raise ValueError(f"{name} must be None where input is ragged, got {describe(seen)}")


def is_plain(array: Any) -> bool:
    """Return whether this is an array of numbers, or other things that are not ragged."""
    return type(array) is np.ndarray and array.dtype != object


def alike(indices: Any, weights: Any, mode: Any, name: str) -> tuple[Any, Any]:
    """Return 2-D ids and ragged weights as columns, other ids and weights as they are."""
    if type(mode) is not str or mode != "sum" or type(indices) is Column or indices.ndim != 2:
        return indices, weights
    try:
        column = as_column(weights, "per_sample_weights", weights=True)
    except _NotReadable:  # it may be an array
        return indices, weights
    if column is None:
        return indices, weights
    return column_of(indices, None, len(indices), name), column


def as_weights(value: Any, column: Column, mode: str, dtype: np.dtype[Any]) -> Column | None:
    """Return weights of a ragged column as one, checked but for the lengths of its lists.

    By themselves only a matrix has some: its data, for sums.
    """
    if value is None:
        if column.weights is None or mode != "sum":
            return None
        _arguments.check_castable(f"the data of {column.name}", column.weights.dtype, dtype)
        return column.weights
    name = "per_sample_weights"
    _arguments.check_weighted(mode, value)
    if column.weights is not None:
        raise ValueError(
            f"{name} must be None where {column.name} is a matrix, whose data are the weights, "
            f"got {describe(value)}"
        )
    weights = as_column(value, name, weights=True)
    if weights is None:
        raise ValueError(
            f"{name} must be ragged where {column.name} is, with as many entries in each list, "
            f"got {describe(value)}"
        )
    weights = weights.weights or weights  # of a matrix its data
    _arguments.check_castable(name, weights.dtype, dtype)
    if weights.n_bags != column.n_bags:
        raise ValueError(
            f"{name} must have as many lists as {column.name}, which has {column.n_bags}, "
            f"got {weights.n_bags}"
        )
    return weights


def as_column(value: Any, name: str, weights: bool = False) -> Column | None:
    """Return a ragged input as a `Column`; None for anything else.

    For `weights` any numbers will do, and a 2-D array has a list in each row.
    """
    kind = type(value)
    if kind is Column:
        column: Column = value
        return column
    if issubclass(kind, (np.ndarray, list, tuple)):
        return _of_sequence(value, name, weights)
    read = _READERS.get(str(kind.__module__).partition(".")[0])
    column_read = None if read is None else read(value, name)
    if column_read is not None:
        return column_read
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, np.dtype):  # a Series of pandas, say
        if not weights and dtype.kind != "O":
            return None
        return _of_sequence(np.asarray(value), name, weights)
    if hasattr(kind, "__arrow_c_array__") or hasattr(kind, "__arrow_c_stream__"):
        return _of_arrow(value, name)
    if _is_sequence(kind) and not _is_array_like(value):
        return _of_sequence(list(value), name, weights)
    return None


def _of_arrow(value: Any, name: str) -> Column | None:
    try:
        form, items, read = _arrow.read_lists(value)
    except MemoryError:
        raise
    except Exception as error:
        message = f"{name} must be a column, got {describe(value)}: {error}"
        raise _NotReadable(message) from error
    if read is None:
        if form == "+m":
            raise TypeError(f"{name} must be lists of numbers, got maps")
        if items:  # a table with a column of lists; without, it is as good as an array
            raise TypeError(f"{name} must be one column, got {describe(value)} of several")
        return None
    if items != "n" and items not in _arrow.TYPES:
        seen = _FORMATS.get(items, f"Arrow's type {items!r}")
        raise TypeError(f"{name} must be lists of numbers, got lists of {seen}")
    chunks = []
    for n, valid, offsets, sizes, list_size, found, items_valid in read:
        lists_mask, items_mask = (bits and Mask(*bits) for bits in (valid, items_valid))
        values: Any = found
        all_null = isinstance(found, int)
        if isinstance(found, int):  # that many nulls, which take no memory
            values = np.broadcast_to(np.int64(0), (found,))
        chunks.append(Chunk(n, values, offsets, sizes, list_size, lists_mask, items_mask, all_null))
    return Column(chunks, name)


def _of_sequence(value: Any, name: str, weights: bool) -> Column | None:
    """Read a list of lists, or an array of arrays, by copying all of it."""
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
        bags = _lists_among(entries, kinds, name, "numbers" if weights else "integers")
    return None if bags is None else Column([_joined(bags, name, weights)], name)


def _lists_among(
    entries: Sequence[Any], kinds: set[type], name: str, items: str
) -> Sequence[Any] | None:
    """Return the lists that entries are, () for nulls; None if the entries are numbers."""
    sequences = {kind for kind in kinds if _is_sequence(kind)}
    is_list = [type(entry) in sequences and getattr(entry, "ndim", 1) != 0 for entry in entries]
    if all(is_list):
        return entries
    lists = []
    for b, entry in enumerate(entries):
        if is_list[b]:
            lists.append(entry)
        elif _is_null(entry) or (isinstance(entry, float) and math.isnan(entry)):
            lists.append(())  # pandas has NaN for a null
        elif _is_number(entry) and not any(is_list):
            return None
        else:
            seen = _arguments.describe(entry)
            raise TypeError(f"{name}[{b}] must be a list or an array of {items}, got {seen}")
    return lists


def _is_sequence(kind: type) -> bool:
    """Return whether values of a type are sequences: not text, bytes, mappings or sets."""
    return all(hasattr(kind, name) for name in ("__len__", "__getitem__", "__iter__")) and not (
        issubclass(kind, (str, bytes, bytearray, Mapping, Set))
    )


def _is_number(entry: Any) -> bool:
    return isinstance(entry, (numbers.Number, np.generic)) or hasattr(type(entry), "__index__")


def _is_null(entry: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return entry is None or (pandas is not None and entry is getattr(pandas, "NA", None))


def _joined(bags: Sequence[Any], name: str, weights: bool) -> Chunk:
    """Return lists as one chunk; None in them is a null."""
    try:
        if not set(map(type, bags)) <= {list, tuple, np.ndarray}:
            bags = [_as_items(bag) for bag in bags]
        offsets = np.zeros(len(bags) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, bags), np.int64, len(bags)), out=offsets[1:])
        items, valid = _concatenated(bags, int(offsets[-1]), weights)
    except MemoryError:
        raise
    except Exception as error:  # whatever a user's object raises
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


def _concatenated(bags: Sequence[Any], n: int, weights: bool) -> tuple[AnyArray, Mask | None]:
    """Return the n items of lists, tuples and arrays end to end, and which are valid.

    Integers are int64; ids of which one does not fit that are objects.
    """
    if not set(map(type, bags)) <= {list, tuple}:
        bags = [bag for bag in bags if len(bag)]  # NumPy takes [] for floats
        if bags and all(is_plain(bag) and bag.dtype == bags[0].dtype for bag in bags):
            return np.concatenate(bags), None
        # NumPy takes a mixture of integers for floats. What is masked is None in a list.
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
            dtype = np.bool_  # booleans are no ids
        elif kinds - {int}:
            dtype = np.float64
    else:
        return np.array(flat), valid
    try:
        return np.fromiter(_chain(bags), dtype, n), valid
    except OverflowError:  # an integer too large
        if weights or float in kinds:
            return np.fromiter(map(_arguments.to_float, _chain(bags)), np.float64, n), valid
        return np.fromiter(_chain(bags), object, n), valid


def _as_items(bag: Any) -> Any:
    """Return one of the lists as a list, a tuple or an array; nulls are None or pandas.NA."""
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
    """Return whether NumPy reads this as a whole, not entry by entry."""
    if hasattr(type(value), "__array__"):
        return True
    try:
        memoryview(value)
    except Exception:
        return False
    return True


def _as_number(item: Any) -> Any:
    """Return an item as a number of Python's own, None for a null; others as they are."""
    if type(item) is int or type(item) is float:
        return item
    if _is_null(item):
        return None
    if isinstance(item, np.generic) or getattr(item, "ndim", None) == 0:
        return item.item()
    if isinstance(item, int) and not isinstance(item, bool):
        return int(item)
    return item


def _of_scipy(value: Any, name: str) -> Column | None:
    form = getattr(value, "format", None)
    if form is None:
        return None
    if form != "csr" or value.ndim != 2:
        seen = f"{form} with {value.ndim} axes"
        raise TypeError(f"{name} must be a CSR matrix where it is sparse, got {seen}: see tocsr()")
    n = value.shape[0]
    indices, offsets, data = map(np.asarray, (value.indices, value.indptr, value.data))
    if len(offsets) != n + 1 or len(data) != len(indices):
        raise ValueError(
            f"{name} must be a sound CSR matrix, got {len(offsets)} of indptr for {n} rows, "
            f"{len(indices)} indices and {len(data)} data"
        )
    column = Column([Chunk(n, indices, offsets)], name)
    column.weights = Column([Chunk(n, data, offsets)], name)
    column.n_columns = value.shape[1]
    return column


def _of_pandas(value: Any, name: str) -> Column | None:
    """Read a frame of one column as that column: its index is no column."""
    if getattr(value, "ndim", None) != 2 or value.shape[1] != 1:
        return None
    return as_column(value.iloc[:, 0], name)


def _of_pyarrow(value: Any, name: str) -> None:
    """Check that buffers are as long as lengths say, which pyarrow does not when it reads a file.

    The interface by which columns come does not have the sizes of buffers.
    """
    if hasattr(value, "validate"):  # a reader of batches has no such method
        try:
            value.validate()
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{name} must be a valid column, got {describe(value)}: {error}"
            ) from error


def _of_awkward(value: Any, name: str) -> Column | None:
    ak = sys.modules["awkward"]
    if not isinstance(value, ak.Array):
        return None
    if value.ndim == 1:
        return None
    layout = _unmasked(value.layout)
    if layout.is_numpy:  # of two axes
        layout = layout.to_RegularArray()
    content = _unmasked(layout.content) if layout.is_list else layout
    if value.ndim != 2 or not content.is_numpy:
        return _of_awkward_with_nulls(value, name)
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


def _unmasked(layout: Any) -> Any:
    """Return what awkward could have nulls in, and has none, without that."""
    return layout.content if type(layout).__name__ == "UnmaskedArray" else layout


def _of_awkward_with_nulls(value: Any, name: str) -> Column:
    """Convert lists with nulls, with an index between them and items, or of no type."""
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


def _of_torch(value: Any, name: str) -> Column | None:
    torch = sys.modules["torch"]
    if not (isinstance(value, torch.Tensor) and value.is_nested):
        return None
    if value.layout != torch.jagged or value.dim() != 2:
        raise TypeError(f"{name} must be nested with torch.jagged, and 2-D, got another layout")
    items, offsets = value.values().detach().numpy(), value.offsets().numpy()
    lengths = value.lengths()
    if lengths is None:
        return Column([Chunk(len(offsets) - 1, items, offsets)], name)
    return Column([Chunk(len(lengths), items, offsets[: len(lengths)], lengths.numpy())], name)


def _of_tensorflow(value: Any, name: str) -> Column | None:
    if not hasattr(value, "ragged_rank"):
        return None
    if value.ragged_rank != 1 or value.flat_values.shape.rank != 1:
        raise TypeError(f"{name} must be lists of numbers, got a ragged tensor of {value.shape}")
    offsets = value.row_splits.numpy()
    return Column([Chunk(len(offsets) - 1, value.flat_values.numpy(), offsets)], name)


# By the package that a type is of.
_READERS: dict[str, Callable[[Any, str], Column | None]] = {
    "pyarrow": _of_pyarrow,  # goes on by Arrow's interface
    "scipy": _of_scipy,
    "pandas": _of_pandas,
    "awkward": _of_awkward,
    "torch": _of_torch,
    "tensorflow": _of_tensorflow,
}
