"""The pandas accessor: the bits of plain arrays, for columns of Arrow and of objects."""

import numpy as np
import pytest
from list_columns import EMPTY, FACTORS, LISTS, TABLE, assert_pooled, expected
from processes import run_python

import embag

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
pytest.importorskip("nanoarrow")

import embag.pandas  # noqa: E402

WIDTHS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
INDEX = [f"row {row}" for row in range(len(LISTS))]


def arrow_series(lists, item=None, kind=pa.list_, **options):
    column = pa.array(lists, kind(item or pa.int64()))
    return pd.Series(pd.arrays.ArrowExtensionArray(column), **options)


def pooled_type(dim=6, item=None):
    return pd.ArrowDtype(pa.list_(item or pa.float32(), dim))


# --- Equal to arrays ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", WIDTHS, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, pa.list_view, pa.large_list_view])
def test_arrow_lists_of_every_integer(dtype, kind):
    series = arrow_series(LISTS, pa.from_numpy_dtype(dtype), kind)
    assert_pooled(series.embag.pool(TABLE), expected(LISTS))


def test_arrow_lists_of_one_size():
    rows = [[3, 1], [4, None], None, [5, 9]]
    series = arrow_series(rows, kind=lambda item: pa.list_(item, 2))
    assert_pooled(series.embag.pool(TABLE), expected(rows))


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
def test_objects(mode):
    series = pd.Series(LISTS, INDEX, name="ids")
    assert series.dtype == object
    assert_pooled(series.embag.pool(TABLE, mode), expected(LISTS, mode=mode))


@pytest.mark.parametrize("dtype", WIDTHS, ids=lambda dtype: dtype.__name__)
def test_objects_that_are_arrays(dtype):
    lists = [bag for bag in LISTS if bag is None or None not in bag]
    series = pd.Series([None if bag is None else np.array(bag, dtype) for bag in lists])
    assert_pooled(series.embag.pool(TABLE), expected(lists))


def test_objects_of_other_types():
    for lists in ([[1, 2], [3, 4]], [[1, 2], [3, 4, 5]]):
        for make in (pd.Series, tuple, lambda bag: range(bag[0], bag[-1] + 1)):
            series = pd.Series([*map(make, lists), None])
            pooled = series.embag.pool(TABLE, null_empty=True)
            assert pooled.isna().to_list() == [False, False, True]
            assert_pooled(pooled.dropna(), expected(lists))


@pytest.mark.parametrize("large", [2**63, 2**64, -(2**63) - 1])
def test_objects_with_large_ids(large):
    series = pd.Series([[large, 1], None, [2, -1]])
    assert_pooled(series.embag.pool(TABLE, invalid="skip"), expected([[1], [], [2]]))
    with pytest.raises(IndexError, match=rf"^input\[0\]\[0\] = {large} is out of range"):
        series.embag.pool(TABLE)


def test_tables_without_columns():
    assert pd.Series([[1], [2]]).embag.pool(TABLE[:, :0]).to_list() == [[], []]


def test_index_name_and_type():
    for index in (INDEX, pd.MultiIndex.from_product([[1, 2, 3], list("abc")]), [0] * len(LISTS)):
        series = arrow_series(LISTS, index=index, name="ids")
        pooled = series.embag.pool(TABLE)
        assert pooled.dtype == pooled_type()
        assert pooled.name == "ids"
        assert pooled.index is series.index
    pooled = series.embag.pool(TABLE.astype(np.float64))
    assert pooled.dtype == pooled_type(item=pa.float64())


def test_weights():
    bits = expected(LISTS, FACTORS, mode="sum")
    for ids in (arrow_series(LISTS), pd.Series(LISTS)):
        for factors in (arrow_series(FACTORS, pa.float32()), pd.Series(FACTORS)):
            assert_pooled(ids.embag.pool(TABLE, "sum", factors), bits)


def test_sliced():
    for series in (arrow_series(LISTS), pd.Series(LISTS)):
        assert_pooled(series.iloc[2:7].embag.pool(TABLE), expected(LISTS[2:7]))
        assert_pooled(series.iloc[::-2].embag.pool(TABLE), expected(LISTS[::-2]))


def test_chunked():
    frames = [arrow_series(LISTS), arrow_series(LISTS[4:]), arrow_series(LISTS)]
    series = pd.concat(frames)
    assert series.array.__arrow_array__().num_chunks == 3
    assert_pooled(series.embag.pool(TABLE), expected(LISTS + LISTS[4:] + LISTS))


@pytest.mark.parametrize("dtype", [object, pd.ArrowDtype(pa.list_(pa.int64()))], ids=str)
@pytest.mark.parametrize("lists", [[], [None, None]], ids=["no_rows", "nothing_but_nulls"])
def test_no_ids(dtype, lists):
    series = pd.Series(lists, dtype=dtype)
    pooled = series.embag.pool(TABLE)
    assert pooled.dtype == pooled_type()
    assert_pooled(pooled, np.zeros((len(lists), 6), np.float32))
    assert series.embag.pool(TABLE, null_empty=True).isna().all()


@pytest.mark.parametrize("make", [arrow_series, pd.Series], ids=["arrow", "objects"])
def test_null_where_a_list_has_no_id(make):
    pooled = make(LISTS).embag.pool(TABLE, null_empty=True)
    assert pooled.isna().to_list() == EMPTY
    assert_pooled(pooled.dropna(), expected(LISTS)[~np.array(EMPTY)])


def test_options():
    series = arrow_series(LISTS)
    assert_pooled(series.embag.pool(TABLE, padding_idx=3), expected(LISTS, padding_idx=3))
    pooled = series.embag.pool(TABLE[:5], invalid="skip")
    assert_pooled(pooled, expected(LISTS, weight=TABLE[:5], invalid="skip"))
    small = embag.quantize(TABLE)
    assert_pooled(series.embag.pool(small, num_threads=1), expected(LISTS, weight=small))


def test_from_parquet_to_parquet(tmp_path):
    frame = pd.DataFrame({"ids": arrow_series(LISTS)})
    frame.to_parquet(tmp_path / "events.parquet")
    frame = pd.read_parquet(tmp_path / "events.parquet", dtype_backend="pyarrow")
    frame["vector"] = frame["ids"].embag.pool(TABLE)
    frame.to_parquet(tmp_path / "vectors.parquet")
    written = pd.read_parquet(tmp_path / "vectors.parquet", dtype_backend="pyarrow")
    assert written["vector"].dtype == pooled_type()
    assert_pooled(written["vector"], expected(LISTS))


# --- Memory ---------------------------------------------------------------------------


def test_results_are_not_copied(monkeypatch):
    results = []
    bags = embag.embedding_bag
    monkeypatch.setattr(
        embag, "embedding_bag", lambda *a, **k: results.append(bags(*a, **k)) or results[-1]
    )
    pooled = arrow_series(LISTS).embag.pool(TABLE)
    (chunk,) = pooled.array.__arrow_array__().chunks
    assert chunk.values.buffers()[1].address == results[0].ctypes.data
    results.clear()
    np.full((len(LISTS), 6), 7, np.float32)  # overwrites memory that was released
    assert_pooled(pooled, expected(LISTS))


def test_ids_are_not_copied(seen):
    column = pa.array([[1, 2], [], [3]])
    pd.Series(pd.arrays.ArrowExtensionArray(column)).embag.pool(TABLE)
    assert [ids.ctypes.data for ids, _, _ in seen] == [column.values.buffers()[1].address]


# --- Errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (
            arrow_series(LISTS),
            IndexError,
            "input[4][0] = 59 is out of range for a table of 5 rows",
        ),
        (
            pd.Series([1, 2]),
            TypeError,
            "the series must be lists of numbers, got dtype int64",
        ),
        (
            pd.Series(["a"], dtype=object),
            TypeError,
            "input[0] must be a list or an array of integers, got 'a'",
        ),
        (
            pd.Series([{1, 2}]),
            TypeError,
            "input[0] must be a list or an array of integers, got set",
        ),
        (
            pd.Series([1, 2], dtype=object),
            TypeError,
            "the series must be lists of integers, got numbers",
        ),
        (
            # As pandas reads null items unless it reads the types of Arrow.
            pd.Series([np.array([1, np.nan])]),
            TypeError,
            "input must be lists of integers, got lists of float64 with nulls: "
            "if pandas made floats of ids, read with dtype_backend='pyarrow'",
        ),
        (
            pd.Series([[1], 2]),
            TypeError,
            "input[1] must be a list or an array of integers, got 2",
        ),
    ],
)
def test_errors_in_the_ids(ids, error, message):
    with pytest.raises(error) as raised:
        ids.embag.pool(TABLE[:5])
    assert str(raised.value) == message


def test_weights_with_another_index_are_refused():
    ids, factors = arrow_series(LISTS), arrow_series(FACTORS, pa.float32())
    with pytest.raises(ValueError, match="must have the index of the series, got another"):
        ids.embag.pool(TABLE, "sum", factors.iloc[::-1])
    with pytest.raises(TypeError) as raised:
        ids.embag.pool(TABLE, "sum", ids.index.to_series())
    assert str(raised.value) == "per_sample_weights must be lists of numbers, got dtype int64"


@pytest.mark.parametrize("missing", ["pandas", "pyarrow"])
def test_missing_packages(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import embag.pandas"
    failed = run_python("-c", code, check=False)
    assert failed.stderr.splitlines()[-1] == (
        "ImportError: embag.pandas needs pandas and pyarrow: "
        "pip install pandas pyarrow 'embag-cpu[arrow]'"
    )


def test_weights_of_the_column():
    entry = pa.struct([("id", pa.int64()), ("weight", pa.float32())])
    pairs = [
        None if bag is None else [(i, w) for i, w in zip(bag, factors, strict=True)]
        for bag, factors in zip(LISTS, FACTORS, strict=True)
    ]
    series = pd.Series(pairs, dtype=pd.ArrowDtype(pa.list_(entry)))
    for mode in ("sum", "max"):
        bits = expected(LISTS, None if mode == "max" else FACTORS, mode=mode)
        assert_pooled(series.embag.pool(TABLE, mode), bits)


# --- Frames with one id in each row ---------------------------------------------------

EVENTS = pd.DataFrame(
    {
        "user": [9, 7, 7, 9, 8, 7],
        "city": ["a", "b", "b", "a", None, "c"],
        "id": [3, 1, 4, 1, 5, 9],
        "factor": [0.5, 1.0, 2.0, 3.0, -1.0, 0.25],
    }
)


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
def test_rows_by_key(mode):
    pooled = EVENTS.embag.pool("user", "id", TABLE, mode)
    assert pooled.index.tolist() == [7, 8, 9]
    assert (pooled.index.name, pooled.name, pooled.dtype) == ("user", "id", pooled_type())
    assert_pooled(pooled, expected([[1, 4, 9], [5], [3, 1]], mode=mode))
    pooled = EVENTS.embag.pool("user", "id", TABLE, mode, sort=False)
    assert pooled.index.tolist() == [9, 7, 8]
    assert_pooled(pooled, expected([[3, 1], [1, 4, 9], [5]], mode=mode))


def test_weights_of_rows():
    pooled = EVENTS.embag.pool("user", "id", TABLE, "sum", "factor")
    factors = [[1.0, 2.0, 0.25], [-1.0], [0.5, 3.0]]
    assert_pooled(pooled, expected([[1, 4, 9], [5], [3, 1]], factors, mode="sum"))


def test_several_keys_and_missing_ones():
    pooled = EVENTS.embag.pool(["user", "city"], "id", TABLE)
    assert pooled.index.tolist() == [(7, "b"), (7, "c"), (9, "a")]
    assert_pooled(pooled, expected([[1, 4], [9], [3, 1]]))
    pooled = EVENTS.embag.pool("city", "id", TABLE, dropna=False)
    assert_pooled(pooled, expected([[3, 1], [1, 4], [9], [5]]))
    categories = EVENTS.assign(city=pd.Categorical(EVENTS["city"], ["z", "c", "b", "a"]))
    assert categories.embag.pool("city", "id", TABLE).index.tolist() == ["c", "b", "a"]


@pytest.mark.parametrize("dtype", ["Int64", "int32[pyarrow]"])
def test_missing_ids(dtype):
    events = EVENTS.astype({"id": dtype})
    events.loc[4, "id"] = None
    events.loc[5, "id"] = None
    pooled = events.embag.pool("user", "id", TABLE, "sum", "factor")
    assert_pooled(pooled, expected([[1, 4], [], [3, 1]], [[1.0, 2.0], [], [0.5, 3.0]], mode="sum"))
    pooled = events.embag.pool("user", "id", TABLE, null_empty=True)
    assert pooled.isna().tolist() == [False, True, False]


def test_options_of_rows():
    options = {"invalid": "skip", "default_idx": 2, "normalize": True, "padding_idx": 1}
    pooled = EVENTS.embag.pool("user", "id", TABLE[:5], num_threads=1, **options)
    assert_pooled(pooled, expected([[1, 4, 9], [5], [3, 1]], weight=TABLE[:5], **options))
    empty = EVENTS[:0].embag.pool("user", "id", TABLE)
    assert (len(empty), empty.dtype) == (0, pooled_type())


def test_errors_of_rows():
    with pytest.raises(KeyError):
        EVENTS.embag.pool("nobody", "id", TABLE)
    with pytest.raises(IndexError, match=r"input\[4\] = 5 is out of range for a table of 5 rows"):
        EVENTS.embag.pool("user", "id", TABLE[:5])
    with pytest.raises(TypeError, match="input must be integers, got dtype float64"):
        EVENTS.embag.pool("user", "factor", TABLE)
    events = EVENTS.astype({"factor": "Float64"})
    events.loc[2, "factor"] = None
    with pytest.raises(ValueError, match="per_sample_weights must have no nulls"):
        events.embag.pool("user", "id", TABLE, "sum", "factor")
