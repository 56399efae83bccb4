"""Columns of vectors and frames as tables: results, no copies, life of memory, nulls."""

import gc
import pickle

import numpy as np
import pytest
from processes import run_python

import embag

IDS = [[0, 3], [2, 2]]


def dense(dtype=np.float32, n_rows=5, dim=3):
    return np.random.default_rng(0).standard_normal((n_rows, dim)).astype(dtype)


def arrow_column(table):
    pa = pytest.importorskip("pyarrow")
    return pa.FixedSizeListArray.from_arrays(pa.array(table.reshape(-1)), table.shape[1])


def arrow_slice(table):
    padded = np.concatenate([table[:2] * 0, table, table[:1] * 0])
    return arrow_column(padded)[2:-1]


def arrow_chunks(table):
    pa = pytest.importorskip("pyarrow")
    return pa.chunked_array([arrow_column(table[:2]), arrow_column(table[2:])])


def arrow_table(table):
    return pytest.importorskip("pyarrow").table({"vector": arrow_column(table)})


def arrow_tensors(table):
    pa = pytest.importorskip("pyarrow")
    return pa.FixedShapeTensorArray.from_numpy_ndarray(table)


def arrow_stream(table):
    return arrow_table(table).to_reader()


def polars_column(table):
    pl = pytest.importorskip("polars")
    return pl.from_arrow(arrow_column(table))


def polars_chunks(table):
    pl = pytest.importorskip("polars")
    parts = [polars_column(part) for part in (table[:2], table[2:])]
    return pl.concat(parts, rechunk=False)


def polars_frame(table):
    return polars_column(table).to_frame("vector")


def pandas_column(table):
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    column = pd.arrays.ArrowExtensionArray(pa.chunked_array([arrow_column(table)]))
    return pd.Series(column)


def pandas_frame_of_vectors(table):
    return pandas_column(table).to_frame("vector")


def pandas_frame(table):
    return pytest.importorskip("pandas").DataFrame(table, index=range(7, 7 + len(table)))


def pandas_of_columns(table):
    pd = pytest.importorskip("pandas")
    return pd.DataFrame({str(d): table[:, d] for d in range(table.shape[1])})


def pandas_nullable(table):
    pd = pytest.importorskip("pandas")
    names = {"float32": "Float32", "float64": "Float64"}
    return pandas_of_columns(table).astype(names.get(table.dtype.name, pd.Float32Dtype()))


def pandas_arrow(table):
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    return pandas_of_columns(table).astype(pd.ArrowDtype(pa.from_numpy_dtype(table.dtype)))


IN_PLACE = [arrow_column, arrow_slice, arrow_table, arrow_tensors, polars_column, polars_frame,
            pandas_column, pandas_frame_of_vectors]  # fmt: skip
COPIED = [arrow_chunks, polars_chunks, pandas_frame, pandas_of_columns, pandas_nullable,
          pandas_arrow]  # fmt: skip
ALL = [*IN_PLACE, *COPIED, arrow_stream]


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lookups_have_the_bits_of_the_array(make, dtype):
    table = dense(dtype)
    for mode in ("mean", "max"):
        expected = embag.embedding_bag(IDS, table, mode=mode)
        result = embag.embedding_bag(IDS, make(table), mode=mode)
        np.testing.assert_array_equal(result, expected, strict=True)
    np.testing.assert_array_equal(embag.embedding(IDS, make(table)), table[IDS], strict=True)


@pytest.mark.parametrize("make", ALL)
def test_other_functions_take_columns(make, tmp_path):
    table = dense()
    assert embag.quantize(make(table)).packed.tobytes() == embag.quantize(table).packed.tobytes()
    copy = embag.aligned_copy(make(table))
    np.testing.assert_array_equal(copy, table, strict=True)
    assert copy.ctypes.data % 64 == 0
    embag.save_table(tmp_path / "table.npy", make(table))
    np.testing.assert_array_equal(np.load(tmp_path / "table.npy"), table, strict=True)


@pytest.mark.parametrize("make", ALL)
def test_collections_take_columns(make):
    table = dense()
    ebc = embag.EmbeddingBagCollection({"t": make(table)}, [embag.Feature("f", "t", "mean")])
    gc.collect()  # the column itself is gone
    np.testing.assert_array_equal(ebc({"f": IDS}), embag.embedding_bag(IDS, table))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ebc))({"f": IDS}), ebc({"f": IDS}))
    ebc.replace("t", make(table + 1))
    np.testing.assert_array_equal(ebc({"f": IDS}), embag.embedding_bag(IDS, table + 1))


@pytest.mark.parametrize("make", IN_PLACE)
def test_columns_in_one_chunk_are_not_copied(make):
    column = make(dense())
    first, second = (
        embag.EmbeddingBagCollection({"t": column}, [embag.Feature("f", "t", "mean")]).tables["t"]
        for _ in range(2)
    )
    assert not first.flags.writeable
    assert np.shares_memory(first, second)


def test_frames_of_rows_are_not_copied():
    table = dense()
    frame = pytest.importorskip("pandas").DataFrame(table, copy=False)
    ebc = embag.EmbeddingBagCollection({"t": frame}, [embag.Feature("f", "t", "mean")])
    assert np.shares_memory(ebc.tables["t"], table)


def test_float16_columns():
    table = dense(np.float16)
    expected = embag.embedding_bag(IDS, table)
    for make in (arrow_column, arrow_chunks, polars_column):
        try:
            column = make(table)
        except Exception:  # before polars had float16
            continue
        np.testing.assert_array_equal(embag.embedding_bag(IDS, column), expected, strict=True)


@pytest.mark.parametrize(("n_rows", "dim"), [(0, 3), (2, 0)])
@pytest.mark.parametrize("make", [arrow_column, polars_column, pandas_frame])
def test_empty_tables(make, n_rows, dim):
    if dim == 0 and make is not pandas_frame:
        pa = pytest.importorskip("pyarrow")
        column = pa.array([[]] * n_rows, pa.list_(pa.float32(), 0))
    else:
        column = make(np.zeros((n_rows, dim), np.float32))
    result = embag.embedding_bag(np.zeros((2, 0), int), column)
    assert result.shape == (2, dim)


def test_a_column_without_chunks():
    pa = pytest.importorskip("pyarrow")
    column = pa.chunked_array([], pa.list_(pa.float32(), 3))
    result = embag.embedding_bag(np.zeros((2, 0), int), column)
    np.testing.assert_array_equal(result, np.zeros((2, 3), np.float32), strict=True)


def test_nulls_outside_a_slice_do_not_matter():
    pa = pytest.importorskip("pyarrow")
    column = pa.array([None, [1, 2], [3, 4], [None, 5]], pa.list_(pa.float32(), 2))
    assert embag.embedding_bag([[0, 1]], column[1:3], mode="sum").tolist() == [[4, 6]]


def null_rows():
    pa = pytest.importorskip("pyarrow")
    return pa.array([[1, 2], None, None], pa.list_(pa.float32(), 2))


def null_items():
    pa = pytest.importorskip("pyarrow")
    return pa.array([[1, 2], [None, 4]], pa.list_(pa.float32(), 2))


def nulls_of_pandas():
    frame = pandas_nullable(dense())
    frame.iloc[1, 1] = None
    return frame


def lists():
    pa = pytest.importorskip("pyarrow")
    return pa.array([[1.0, 2.0], [3.0]])


def strings():
    pa = pytest.importorskip("pyarrow")
    return pa.array([["a", "b"]], pa.list_(pa.string(), 2))


def numbers():
    return pytest.importorskip("pyarrow").array([1.0, 2.0])


def integers():
    return pandas_frame(np.ones((2, 2), np.int64))


def text_frame():
    return pytest.importorskip("pandas").DataFrame({"a": [1.0], "b": ["x"]})


def one_text_column():
    return text_frame()[["b"]]


def dates_and_numbers():
    pd = pytest.importorskip("pandas")
    dates = pd.Series(pd.to_datetime(["2020-01-01"]))
    return pd.DataFrame({"a": dates, "b": pd.array([1.0], "Float32")})


KINDS = "a numpy.ndarray, a QuantizedTable or a RemappedTable"
FLOATS = (
    "float32, float64, float16, bfloat16, int8, uint8, float8_e4m3fn or float8_e5m2 in native "
    "byte order, or a QuantizedTable"
)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (null_rows, ValueError, "weight must have no nulls, got 2"),
        (null_items, ValueError, "weight must have no nulls, got 1"),
        (nulls_of_pandas, ValueError, "weight must have no nulls, got 1"),
        (
            lists,
            TypeError,
            "weight must have rows of one length, got a column of lists: "
            "cast it to FixedSizeList (Array in polars)",
        ),
        (strings, TypeError, "weight must have rows of numbers, got a column of others"),
        (
            numbers,
            TypeError,
            f"weight must be {KINDS}, got DoubleArray: pass np.asarray(weight)",
        ),
        (integers, TypeError, f"weight must be {FLOATS}, got int64"),
        (
            one_text_column,
            TypeError,
            f"weight must be {KINDS}, got Series: pass np.asarray(weight)",
        ),
        (dates_and_numbers, TypeError, f"weight must be {FLOATS}, got object"),
        (text_frame, TypeError, f"weight must be {FLOATS}, got object"),
    ],
)
def test_error(make, kind, message):
    for lookup in (embag.embedding_bag, embag.embedding):
        with pytest.raises(kind) as caught:
            lookup([[0]], make())
        assert str(caught.value) == message


def test_polars_needs_no_pyarrow():
    pytest.importorskip("polars")
    run_python(
        "-c",
        "import sys; sys.modules['pyarrow'] = None; import embag, numpy as np, polars as pl\n"
        "table = pl.Series(np.ones((4, 3), np.float32), dtype=pl.Array(pl.Float32, 3))\n"
        "assert (embag.embedding_bag([[0, 3]], table) == 1).all()",
    )


def test_max_norm_needs_an_array():
    with pytest.raises(ValueError, match="max_norm must be None"):
        embag.embedding_bag([[0]], pandas_frame(dense()), max_norm=1.0)
