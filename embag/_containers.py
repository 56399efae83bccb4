"""What is ragged: containers of lists, read as a `Column` (_ragged.py).

Where there is something to point at nothing is copied: Arrow's lists (_arrow.pyx), scipy's CSR
matrices, awkward arrays, torch's nested tensors, TensorFlow's ragged tensors. None of these
packages is imported here. Lists of lists and arrays of arrays are copied into one chunk.

Tested in tests/test_columns.py.
"""

import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from embag import _arguments, _arrow
from embag._arguments import AnyArray, describe
from embag._ragged import Chunk, Column, Mask

_BAGS = (list, tuple, np.ndarray)  # what may be a list in a list

_FORMATS = {"b": "booleans", "u": "strings", "U": "strings", "vu": "strings", "+s": "structs"}


class _NotReadable(ValueError):
    """What offers itself as an Arrow column does not come as one; it may be an array."""


def as_input(value: Any, name: str) -> Any:  # Column | AnyArray
    """Return a ragged column as a `Column`, anything else as an array the kernels read."""
    if type(value) is list or type(value) is tuple:
        array = _rectangle(value)
        if array is not None and array.dtype != object and array.size:
            return _arguments.as_index_array(array, name)
    try:
        column = as_column(value, name)
    except _NotReadable as error:
        try:
            return _arguments.as_index_array(value, name)
        except (TypeError, ValueError):
            raise ValueError(str(error)) from error
    if column is None:
        return _arguments.as_index_array(value, name)
    if column.dtype.kind not in "iu":
        seen = f"lists of {column.dtype}"
        if column.dtype.kind == "f" and any(
            chunk.items_valid is not None or np.isnan(chunk.items).any() for chunk in column.chunks
        ):
            seen += " with nulls: if pandas made floats of ids, read with dtype_backend='pyarrow'"
        raise TypeError(f"{name} must be lists of integers, got {seen}")
    return column


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
    """Return ids and weights, both as columns if the weights are ragged, where they can be.

    Lists that happen to be of one length are an array to NumPy; their weights need not be.
    """
    if type(mode) is not str or mode != "sum":
        return indices, weights
    if type(indices) is Column or indices.ndim == 2:
        try:
            column = as_column(weights, "per_sample_weights")
        except _NotReadable:  # an array, then, or nothing
            column = None
        if column is not None:
            weights = column
            if type(indices) is not Column:
                indices = column_of(indices, None, len(indices), name)
    return indices, weights


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
    weights = as_column(value, name, always=True)
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


def as_column(value: Any, name: str, always: bool = False) -> Column | None:
    """Return what is ragged as a `Column`; None for anything else.

    Rectangles of numbers, such as ``[[1, 2], [3, 4]]``, are ragged only if `always`.
    """
    kind = type(value)
    if kind is Column:
        column: Column = value
        return column
    if issubclass(kind, (np.ndarray, list, tuple)):
        return _of_sequences(value, name, always)
    read = _READERS.get(str(kind.__module__).partition(".")[0])
    chunks = None if read is None else read(value, name)
    if chunks is not None:
        return chunks
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, np.dtype):  # a Series of pandas, say
        if not always and dtype.kind != "O":
            return None
        return _of_sequences(np.asarray(value), name, always)
    if hasattr(kind, "__arrow_c_array__") or hasattr(kind, "__arrow_c_stream__"):
        return _of_arrow(value, name)
    return None


def _of_arrow(value: Any, name: str) -> Column | None:
    try:
        _, items, read = _arrow.read_lists(value)
    except MemoryError:
        raise
    except Exception as error:
        message = f"{name} must be a column, got {describe(value)}: {error}"
        raise _NotReadable(message) from error
    if read is None:
        if items:  # a table with a column of lists; without, it is as good as an array
            raise TypeError(f"{name} must be one column, got {describe(value)} of several")
        return None
    if items != "n" and items not in _arrow.TYPES:
        seen = _FORMATS.get(items, f"Arrow's type {items!r}")
        raise TypeError(f"{name} must be lists of numbers, got lists of {seen}")
    chunks = []
    for n, valid, offsets, sizes, list_size, found, items_valid in read:
        lists_mask, items_mask = (bits and Mask(*bits) for bits in (valid, items_valid))
        numbers: Any = found
        if isinstance(found, int):  # that many nulls
            numbers = np.zeros(found, np.int32)
            items_mask = Mask.of(np.zeros(found, np.bool_))
        chunks.append(Chunk(n, numbers, offsets, sizes, list_size, lists_mask, items_mask))
    return Column(chunks, name)


def _of_sequences(value: Any, name: str, always: bool) -> Column | None:
    """Read lists of lists, or an array of arrays: the one way that copies all."""
    array = value
    if not _arguments.is_array(value):
        first = next((entry for entry in value if entry is not None), None)
        if not isinstance(first, _BAGS) and (first is not None or not value):
            return None
        array = _rectangle(value)
    array = None if array is None else np.ndarray.view(array, np.ndarray)
    if array is not None and array.dtype != object:
        if not (always and array.ndim == 2):
            return None
        n, list_size = array.shape
        return Column([Chunk(n, array.reshape(-1), list_size=list_size)], name)
    if array is not None and array.ndim == 1 and _arguments.is_array(value):
        bags: list[Any] = list(array)
        if bags and not any(bag is None or isinstance(bag, _BAGS) for bag in bags):
            return None
    elif array is None or array.ndim <= 2:
        bags = list(value)
    else:
        return None
    lengths = np.zeros(len(bags) + 1, np.int64)
    flat: list[Any] = []
    for b, bag in enumerate(bags):
        if _is_null(bag) or (isinstance(bag, float) and math.isnan(bag)):  # so pandas has a null
            continue
        if not isinstance(bag, _BAGS):
            raise TypeError(f"{name}[{b}] must be a list or an array, got {describe(bag)}")
        flat.append(bag)
        lengths[b + 1] = len(bag)
    return Column([_joined(flat, np.cumsum(lengths), name)], name)


def _rectangle(lists: Any) -> AnyArray | None:
    """Return what NumPy makes of lists; None if that is nothing."""
    try:
        return np.asarray(lists)
    except MemoryError:
        raise
    except Exception:  # NumPy's word for ragged is ValueError, entries have words of their own
        return None


def _joined(bags: list[Any], offsets: AnyArray, name: str) -> Chunk:
    """Return lists as one chunk; None in them is a null."""
    valid = None
    try:
        bags = [bag for bag in bags if len(bag)]  # NumPy takes [] for floats
        if bags and all(is_plain(bag) and bag.dtype == bags[0].dtype for bag in bags):
            items = np.concatenate(bags)
        else:
            # Numbers of Python's own: NumPy takes a mixture of its integers for floats. What
            # is masked is None then, too.
            each = (bag.tolist() if isinstance(bag, np.ndarray) else bag for bag in bags)
            flat = [
                item.item() if isinstance(item, np.generic) else item
                for item in itertools.chain.from_iterable(each)
            ]
            known = [not _is_null(item) for item in flat]
            if not all(known):
                valid = Mask.of(np.array(known))
                flat = [item if good else 0 for item, good in zip(flat, known, strict=True)]
            items = np.array(flat) if flat else np.zeros(0, np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} must be lists of numbers, got others: {error}") from error
    if items.ndim != 1 or items.dtype.kind not in "iuf" or len(items) != offsets[-1]:
        seen = items.dtype if items.ndim == 1 else f"arrays of shape {items.shape[1:]}"
        raise TypeError(f"{name} must be lists of numbers, got lists of {seen}")
    return Chunk(len(offsets) - 1, items, offsets, items_valid=valid)


def _is_null(entry: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return entry is None or (pandas is not None and entry is getattr(pandas, "NA", None))


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
    content = _unmasked(layout.content) if layout.is_list else layout
    if value.ndim != 2 or not content.is_numpy:
        return _of_awkward_with_nulls(value, name)
    items = np.asarray(content.data)
    if layout.is_regular:
        return Column([Chunk(len(layout), items, list_size=layout.size)], name)
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
    "awkward": _of_awkward,
    "torch": _of_torch,
    "tensorflow": _of_tensorflow,
}
