"""Collections take frames and columns by name: lists, and integers with one id in each row."""

import numpy as np
import pytest
from cases import assert_same_bits

import embag

W = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)
COLLECTION = embag.EmbeddingBagCollection(
    {"t": W}, [embag.Feature("user", "t"), embag.Feature("clicked", "t", mode="mean")]
)
USERS, CLICKED = [1, None, 3], [[1, 2], [3, None], []]
EXPECTED = COLLECTION({"user": [[1], [], [3]], "clicked": CLICKED})


def arrow_table():
    pa = pytest.importorskip("pyarrow")
    return pa.table({"country": ["a", "b", "c"], "clicked": CLICKED, "user": USERS})


def by_duckdb():
    duckdb = pytest.importorskip("duckdb")
    connection = duckdb.connect()
    connection.register("events", arrow_table())
    return connection.sql("SELECT * FROM events")


def by_pandas(**options):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {"clicked": CLICKED, "user": pd.array(USERS, "Int64"), "country": ["a", "b", "c"]}
    )
    return frame.set_index("country", **options)


def by_pandas_arrow():
    pd = pytest.importorskip("pandas")
    return arrow_table().to_pandas(types_mapper=pd.ArrowDtype)


def chunked():
    pa = pytest.importorskip("pyarrow")
    first = arrow_table()
    return pa.concat_tables([first[:1], first[1:1], first[1:]])


FRAMES = {
    "pyarrow": arrow_table,
    "chunks": chunked,
    "batch": lambda: arrow_table().to_batches()[0],
    "reader": lambda: arrow_table().to_reader(),
    "polars": lambda: pytest.importorskip("polars").DataFrame(arrow_table()),
    "pandas": by_pandas,
    "pandas_with_levels": lambda: by_pandas(append=True),
    "pandas_arrow": by_pandas_arrow,
    "nanoarrow": lambda: pytest.importorskip("nanoarrow").Array(arrow_table().to_batches()[0]),
    "nanoarrow_stream": lambda: pytest.importorskip("nanoarrow").ArrayStream(arrow_table()),
    "duckdb": by_duckdb,
}
BY_FRAME = pytest.mark.parametrize("make", FRAMES.values(), ids=FRAMES)


@BY_FRAME
def test_columns_with_the_names_of_features_are_read(make):
    assert_same_bits(COLLECTION(make()), EXPECTED)
    out = np.zeros_like(EXPECTED)
    got, n_valid = COLLECTION(make(), out=out, return_n_valid=True)
    assert got is out
    assert_same_bits(out, EXPECTED)
    assert n_valid.tolist() == [[1, 2], [0, 1], [1, 0]]


@BY_FRAME
def test_a_feature_without_a_column(make):
    ebc = embag.EmbeddingBagCollection({"t": W}, [embag.Feature("bought", "t")])
    with pytest.raises(ValueError, match=r"^values must have ids for every feature, got none for"):
        ebc(make())


@BY_FRAME
def test_a_feature_whose_column_is_not_of_ids(make):
    if make in (FRAMES["pandas"], FRAMES["pandas_with_levels"]):
        pytest.skip("the column is the index")
    ebc = embag.EmbeddingBagCollection({"t": W}, [embag.Feature("country", "t")])
    with pytest.raises((TypeError, ValueError), match=r"^feature 'country': ids must be "):
        ebc(make())


@BY_FRAME
def test_ids_out_of_range_are_named(make):
    ebc = embag.EmbeddingBagCollection({"t": W[:3]}, [embag.Feature("user", "t")])
    with pytest.raises(IndexError, match=r"^feature 'user': ids\[2\]\[0\] = 3 is out of range"):
        ebc(make())


def test_two_columns_of_one_name():
    pa = pytest.importorskip("pyarrow")
    pd = pytest.importorskip("pandas")
    ebc = embag.EmbeddingBagCollection({"t": W}, [embag.Feature("x", "t")])
    table = pa.table([pa.array([1]), pa.array([2])], ["x", "x"])
    for frame in (table, table.to_reader(), pd.DataFrame([[1, 2]], columns=["x", "x"])):
        with pytest.raises(ValueError, match=r"^values must have one column 'x', got 2$"):
            ebc(frame)


SERIES = {
    "pyarrow": lambda pa, ids, dtype: pa.array(ids, pa.from_numpy_dtype(dtype)),
    "polars": lambda pl, ids, dtype: pl.Series(np.array(ids, dtype)),
    "pandas": lambda pd, ids, dtype: pd.Series(ids, ["a", "b", "c"], dtype),
    "nanoarrow": lambda na, ids, dtype: na.Array(ids, getattr(na, dtype)()),
}


@pytest.mark.parametrize("package", SERIES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "uint64"])
def test_integers_are_one_id_in_each_row(package, dtype):
    ids = SERIES[package](pytest.importorskip(package), [7, 0, 9], dtype)
    got = COLLECTION({"user": ids, "clicked": CLICKED})
    assert_same_bits(got[:, :6], W[[7, 0, 9]])
    assert_same_bits(got[:, 6:], EXPECTED[:, 6:])


def test_dictionaries_of_integers():
    pa = pytest.importorskip("pyarrow")
    users = pa.DictionaryArray.from_arrays(pa.array([1, None, 0]), pa.array([3, 1]))
    assert_same_bits(COLLECTION({"user": users, "clicked": CLICKED}), EXPECTED)


def test_a_strided_series():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(np.arange(6).reshape(3, 2), columns=["user", "clicked"])
    got = COLLECTION(frame)
    assert_same_bits(got, np.hstack([W[[0, 2, 4]], W[[1, 3, 5]]]))


def test_weights_of_integer_columns():
    pa = pytest.importorskip("pyarrow")
    pd = pytest.importorskip("pandas")
    expected = COLLECTION(
        {"user": [[1], [], [3]], "clicked": CLICKED},
        per_sample_weights={"user": [[2.0], [], [0.5]]},
    )
    for weights in (pa.array([2.0, None, 0.5]), pd.Series([2.0, 7.0, 0.5]), [[2.0], [9.0], [0.5]]):
        got = COLLECTION(arrow_table(), per_sample_weights={"user": weights})
        assert_same_bits(got, expected)
    with pytest.raises(ValueError, match=r"^feature 'user': per_sample_weights must not be null"):
        COLLECTION(arrow_table(), per_sample_weights={"user": pa.array([2.0, None, None])})
    with pytest.raises(ValueError, match=r"^feature 'user': per_sample_weights must be ragged"):
        COLLECTION(arrow_table(), per_sample_weights={"user": np.ones(3)})


def test_arrays_without_offsets_stay_errors():
    pa = pytest.importorskip("pyarrow")
    pd = pytest.importorskip("pandas")
    for ids in (np.array([1, 2, 3]), [1, 2, 3], pd.Index([1, 2, 3])):
        with pytest.raises(ValueError, match=r"^feature 'user': ids must be 2-D or come with off"):
            COLLECTION({"user": ids, "clicked": CLICKED})
    # With offsets, a column of integers is an array like any other.
    for ids in (pa.array([1, 3]), pd.Series([1, 3])):
        got = COLLECTION({"user": (ids, [0, 1, 1]), "clicked": CLICKED})
        assert_same_bits(got, EXPECTED)


def test_extra_keys_of_a_mapping_stay_errors():
    with pytest.raises(ValueError, match=r"^values must have names of features as keys, got 'cou"):
        COLLECTION({"user": [[1]], "clicked": [[1]], "country": [[1]]})


@pytest.mark.parametrize("floats", [True, False])
def test_columns_that_are_not_integers(floats):
    pl = pytest.importorskip("polars")
    pd = pytest.importorskip("pandas")
    values = [1.0, 2.0, 3.0] if floats else [True, False, True]
    for column in (pl.Series(values), pd.Series(values)):
        with pytest.raises(TypeError, match=r"^feature 'user': ids must be "):
            COLLECTION({"user": column, "clicked": CLICKED})


def test_columns_are_not_frames():
    pa = pytest.importorskip("pyarrow")
    for values in (pa.array([1]), pa.chunked_array([[1]]), pa.array([[1]]), "ab", object()):
        with pytest.raises(ValueError, match=r"^offsets must be given where values is an array"):
            COLLECTION(values)


def test_a_query_is_not_a_frame():
    pl = pytest.importorskip("polars")
    with pytest.raises(TypeError) as caught:
        COLLECTION(pl.LazyFrame({"user": [1]}))
    assert str(caught.value) == "values must be a frame, got LazyFrame: pass values.collect()"


def test_a_frame_that_cannot_be_read():
    pa = pytest.importorskip("pyarrow")

    def batches():
        yield arrow_table().to_batches()[0]
        raise RuntimeError("the disk is gone")

    reader = pa.RecordBatchReader.from_batches(arrow_table().schema, batches())
    with pytest.raises(ValueError, match=r"^values must be a frame, got .*the disk is gone"):
        COLLECTION(reader)
