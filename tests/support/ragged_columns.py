"""Ragged inputs of every kind, made of lists; used by tests/columns and others.

A maker takes lists of numbers, in which lists and numbers may be None, and their dtype.
"""

from types import SimpleNamespace

import numpy as np
import pytest


def arrays(lists, dtype):
    """Return lists as plain arrays: concatenated items without nulls, and offsets."""
    bags = [[i for i in bag or () if i is not None] for bag in lists]
    items = np.array([i for bag in bags for i in bag], dtype)
    return items, np.concatenate(([0], np.cumsum([len(bag) for bag in bags], dtype=np.int64)))


def _pyarrow(lists, dtype, kind="list_", cut=slice(None)):
    pa = pytest.importorskip("pyarrow")
    item = pa.from_numpy_dtype(dtype)
    return pa.array(lists, getattr(pa, kind)(item))[cut]


def _junk(dtype):
    return np.array([7, 1, 2], dtype).tolist()


def _sliced(lists, dtype):
    """Return lists as a slice of an array, whose first offset is not 0."""
    column = _pyarrow([_junk(dtype), *lists, _junk(dtype)], dtype)
    return column.slice(1, len(lists))


def _sliced_items(lists, dtype):
    """Return lists as a slice whose items are also a slice."""
    pa = pytest.importorskip("pyarrow")
    column = _pyarrow(lists, dtype)
    padded = pa.concat_arrays([pa.array(_junk(dtype), column.type.value_type), column.values])
    bits = column.buffers()[0]
    return pa.Array.from_buffers(
        column.type, len(column), [bits, column.buffers()[1]], children=[padded.slice(3)]
    )


def _chunked(lists, dtype):
    pa = pytest.importorskip("pyarrow")
    chunks = [_pyarrow(lists[i : i + 2], dtype) for i in range(0, len(lists), 2)]
    chunks[1:1] = [_pyarrow([], dtype)]
    return pa.chunked_array([_sliced(lists[:0], dtype), *chunks], chunks[0].type)


def _full_nulls(lists, dtype):
    """Return lists in which null lists have items in memory."""
    pa = pytest.importorskip("pyarrow")
    full = [_junk(dtype) if bag is None else bag for bag in lists]
    column = _pyarrow(full, dtype)
    null = pa.array([bag is None for bag in lists], pa.bool_())
    return pa.ListArray.from_arrays(column.offsets, column.values, mask=null)


def _views_out_of_order(lists, dtype):
    """Return list views whose items are in another order than the lists."""
    pa = pytest.importorskip("pyarrow")
    order = np.random.default_rng(0).permutation(len(lists))
    column = _pyarrow([lists[i] for i in order], dtype, "large_list_view")
    return column.take(pa.array(np.argsort(order)))


def _polars(lists, dtype):
    pl = pytest.importorskip("polars")
    item = pl.from_numpy(np.zeros(1, dtype)).dtypes[0]
    return pl.Series("ids", [None if b is None else list(b) for b in lists], pl.List(item))


def _pandas_arrow(lists, dtype):
    pd = pytest.importorskip("pandas")
    column = _pyarrow(lists, dtype)
    return pd.Series(column, dtype=pd.ArrowDtype(column.type))


def _pandas_objects(lists, dtype):
    pd = pytest.importorskip("pandas")
    return pd.Series(_objects(lists, dtype))


def _nanoarrow(lists, dtype):
    na = pytest.importorskip("nanoarrow")
    return na.Array(_pyarrow(lists, dtype))


def _duckdb(lists, dtype):
    duckdb = pytest.importorskip("duckdb")
    pa = pytest.importorskip("pyarrow")
    connection = duckdb.connect()
    connection.register("columns", pa.table({"ids": _pyarrow(lists, dtype)}))
    return connection.sql("SELECT ids FROM columns")


def _table(lists, dtype):
    pa = pytest.importorskip("pyarrow")
    return pa.table({"ids": _chunked(lists, dtype)}).slice(0, len(lists))


def _awkward(lists, dtype):
    ak = pytest.importorskip("awkward")
    return ak.values_astype(ak.Array(lists), dtype) if any(lists) else ak.Array(lists)


def _awkward_out_of_order(lists, dtype):
    order = np.random.default_rng(0).permutation(len(lists))
    return _awkward([lists[i] for i in order], dtype)[np.argsort(order)]


def _torch(lists, dtype):
    torch = pytest.importorskip("torch")
    items, offsets = arrays(lists, dtype)
    return torch.nested.nested_tensor_from_jagged(
        torch.from_numpy(items), torch.from_numpy(offsets)
    )


def _tensorflow(lists, dtype):
    tf = pytest.importorskip("tensorflow")
    return tf.RaggedTensor.from_row_splits(*arrays(lists, dtype))


def _lists(lists, dtype):
    return lists


def _tuples(lists, dtype):
    return tuple(None if bag is None else tuple(bag) for bag in lists)


def _objects(lists, dtype):
    column = np.empty(len(lists), object)
    for b, bag in enumerate(lists):
        column[b] = bag if bag is None or None in bag else np.array(bag, dtype)
    return column


def _maker(make, nulls=True, null_items=True, floats=True, widths=True):
    return SimpleNamespace(
        make=make, nulls=nulls, null_items=null_items, floats=floats, widths=widths
    )


MAKERS = {
    "list": _maker(_pyarrow),
    "large_list": _maker(lambda *a: _pyarrow(*a, "large_list")),
    "list_view": _maker(lambda *a: _pyarrow(*a, "list_view")),
    "large_list_view": _maker(lambda *a: _pyarrow(*a, "large_list_view")),
    "list_views_out_of_order": _maker(_views_out_of_order),
    "sliced": _maker(_sliced),
    "sliced_items": _maker(_sliced_items),
    "chunked": _maker(_chunked),
    "null_lists_with_items": _maker(_full_nulls),
    "table_of_one_column": _maker(_table),
    "polars": _maker(_polars),
    "pandas_arrow": _maker(_pandas_arrow),
    "pandas_objects": _maker(_pandas_objects),
    "nanoarrow": _maker(_nanoarrow),
    "duckdb": _maker(_duckdb),
    "awkward": _maker(_awkward),
    "awkward_out_of_order": _maker(_awkward_out_of_order),
    "torch": _maker(_torch, nulls=False, null_items=False, widths=False),
    "tensorflow": _maker(_tensorflow, nulls=False, null_items=False),
    "lists": _maker(_lists, widths=False),
    "tuples": _maker(_tuples, widths=False),
    "objects": _maker(_objects),
}

LISTS = [[3, 1, 4], [], [1], [5, 9, 2, 6, 5, 3, 5], [], [8], [9, 7, 9]]
SOME_NULL = [[3, 1], None, [], [5, None, 2], [None], [None, 8, None, 8], None, [9], [0, 0, 7]]
WIDTHS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
