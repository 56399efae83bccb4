"""Tables given as a tensor, as a column of vectors or as a frame of numbers.

A FixedSizeList column of Arrow (an Array column of polars) in one chunk is read in place, as a
view that keeps its memory alive. pandas frames are read through `to_numpy`, which copies nothing
if the frame is one block of a NumPy dtype. No package is imported here.

Tested in tests/tables/test_columns_as_tables.py.
"""

from typing import Any

import numpy as np

from embag import _performance
from embag._arguments import describe, is_array
from embag._columns import _cdata
from embag._columns.arrow_types import get_field, is_list, is_table
from embag._columns.pieces import Mask
from embag._columns.readers import check_pyarrow
from embag._tensors import as_ndarray

# NumPy's names of Arrow's formats.
_DTYPES = {
    "c": "i1", "C": "u1", "s": "i2", "S": "u2", "i": "i4", "I": "u4", "l": "i8", "L": "u8",
    "e": "f2", "f": "f4", "g": "f8",
}  # fmt: skip


def as_array(value: Any, name: str, kept: bool = False) -> Any:
    """Return a tensor, a column of vectors or a frame as an array; anything else unchanged.

    Warns if several chunks are joined to a large copy, unless the caller keeps it (`kept`).
    """
    value = as_ndarray(value, name)
    if is_array(value):
        return value
    kind = type(value)
    package = str(kind.__module__).partition(".")[0]
    if package == "pandas" and getattr(value, "ndim", None) == 2:
        return _read_frame(value, name, kept)
    if not (hasattr(kind, "__arrow_c_stream__") or hasattr(kind, "__arrow_c_array__")):
        return value
    if package == "pyarrow":
        check_pyarrow(value, name)
    try:
        source = _cdata.Source(value)
    except MemoryError:
        raise
    except ImportError:  # a pandas Series, without pyarrow
        return value
    except Exception as error:
        raise _as_invalid(error, value, name) from None
    vectors, in_table = source.type, is_table(source.type) and len(source.type.children) == 1
    if in_table:
        vectors = vectors.children[0]
    if not is_list(vectors):
        return value
    if not vectors.is_fixed:
        raise TypeError(
            f"{name} must have rows of one length, got a column of lists: "
            "cast it to FixedSizeList (Array in polars)"
        )
    items = vectors.children[0]
    if items.format not in _DTYPES or items.dictionary is not None:
        raise TypeError(f"{name} must have rows of numbers, got a column of others")
    try:
        chunks = source.read_chunks()
        if in_table:
            chunks = [get_field(chunk, 0) for chunk in chunks]
    except MemoryError:
        raise
    except Exception as error:
        raise _as_invalid(error, value, name) from None
    tables = [_read_chunk(chunk, name) for chunk in chunks]
    if len(tables) == 1:
        return tables[0]
    no_rows = np.empty((0, int(vectors.format[3:])), _DTYPES[items.format])
    table = np.concatenate([no_rows, *tables])
    if not kept:
        _performance.warn_of_copies(name, table.nbytes, f"it has {len(tables)} chunks")
    return table


def _as_invalid(error: Exception, value: Any, name: str) -> ValueError:
    return ValueError(f"{name} must be a valid column, got {describe(value)}: {error}")


def _read_chunk(chunk: _cdata.Array, name: str) -> Any:
    """Return the vectors of a chunk as an array, without a copy."""
    n, dim, items = chunk.n, chunk.list_size, chunk.child(0)
    for bits, n_entries in ((chunk.valid(), n), (items.valid(), n * dim)):
        n_nulls = 0 if bits is None else n_entries - int(Mask(*bits).unpack(0, n_entries).sum())
        if n_nulls:
            _raise_for_nulls(name, n_nulls)
    return items.values()[: n * dim].reshape(n, dim)


def _read_frame(frame: Any, name: str, kept: bool) -> Any:
    """Return the numbers of a pandas frame, or its only column of vectors; not its index."""
    nullable = [i for i, dtype in enumerate(frame.dtypes) if not isinstance(dtype, np.dtype)]
    dtypes = [getattr(dtype, "numpy_dtype", dtype) for dtype in frame.dtypes]
    if not all(isinstance(dtype, np.dtype) and dtype.kind in "fiu" for dtype in dtypes):
        return as_array(frame.iloc[:, 0] if len(dtypes) == 1 else frame.to_numpy(), name, kept)
    n_nulls = int(frame.iloc[:, nullable].isna().to_numpy().sum()) if nullable else 0
    if n_nulls:
        _raise_for_nulls(name, n_nulls)
    return frame.to_numpy(np.result_type(*dtypes)) if nullable else frame.to_numpy()


def _raise_for_nulls(name: str, n_nulls: int) -> None:
    raise ValueError(f"{name} must have no nulls, got {n_nulls}")
