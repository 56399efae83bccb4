"""The polars expression: the bits of plain arrays, with either engine of polars."""

import pickle

import numpy as np
import pytest
from list_columns import EMPTY, FACTORS, LISTS, TABLE, assert_pooled, expected
from processes import run_python

import embag
from embag._process import threads

pl = pytest.importorskip("polars")
pytest.importorskip("nanoarrow")

import embag.polars  # noqa: E402

ENGINES = ["in-memory", "streaming"]
INTEGERS = ["Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"]
IDS = pl.col("ids")


@pytest.fixture
def frame():
    return pl.DataFrame(
        {"row": range(len(LISTS)), "ids": LISTS, "factors": FACTORS},
        schema_overrides={"factors": pl.List(pl.Float32)},
    )


@pytest.fixture
def results(monkeypatch):
    """Collect the arrays that embag returns."""
    returned = []
    bags = embag.embedding_bag

    def keep(*arguments, **options):
        returned.append(bags(*arguments, **options))
        return returned[-1]

    monkeypatch.setattr(embag, "embedding_bag", keep)
    return returned


def many(n=5000):
    """Return enough lists for the streaming engine to split them."""
    return [LISTS[row % len(LISTS)] for row in range(n)]


# --- Equal to arrays ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
def test_lists_of_every_integer(dtype, mode):
    series = pl.Series("ids", LISTS, pl.List(getattr(pl, dtype)))
    pooled = series.embag.pool(TABLE, mode)
    assert pooled.dtype == pl.Array(pl.Float32, 6)
    assert pooled.name == "ids"
    assert_pooled(pooled, expected(LISTS, mode=mode))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_arrays_of_every_integer(dtype):
    rows = [[3, 1], [4, None], None, [5, 9]]
    series = pl.Series(rows, dtype=pl.Array(getattr(pl, dtype), 2))
    assert_pooled(series.embag.pool(TABLE), expected(rows))


def test_weights(frame):
    bits = expected(LISTS, FACTORS, mode="sum")
    assert_pooled(frame["ids"].embag.pool(TABLE, "sum", frame["factors"]), bits)
    for weights in ("factors", pl.col("factors")):
        assert_pooled(frame.select(IDS.embag.pool(TABLE, "sum", weights))["ids"], bits)


def test_weights_in_pieces():
    lists, factors = many(), FACTORS * 1000
    frame = pl.LazyFrame({"ids": lists, "factors": factors[: len(lists)]})
    pooled = frame.select(IDS.embag.pool(TABLE, "sum", "factors")).collect(engine="streaming")
    assert_pooled(pooled["ids"], expected(lists, factors[: len(lists)], mode="sum"))


def test_sliced():
    series = pl.Series(LISTS)
    assert_pooled(series[2:7].embag.pool(TABLE), expected(LISTS[2:7]))
    assert_pooled(series[::2].embag.pool(TABLE), expected(LISTS[::2]))
    assert_pooled(series[3:3].embag.pool(TABLE), expected([]))


def test_chunked():
    series = pl.concat([pl.Series(LISTS), pl.Series(LISTS)[4:], pl.Series(LISTS)], rechunk=False)
    assert series.n_chunks() == 3
    lists = LISTS + LISTS[4:] + LISTS
    assert_pooled(series.embag.pool(TABLE), expected(lists))
    # Weights in other chunks than the ids.
    factors = pl.Series(FACTORS + FACTORS[4:] + FACTORS)
    assert_pooled(
        series.embag.pool(TABLE, "sum", factors),
        expected(lists, FACTORS + FACTORS[4:] + FACTORS, mode="sum"),
    )


def test_only_null_lists():
    for series in (pl.Series([[], None, []]), pl.Series([[None], None], dtype=pl.List(pl.Null))):
        assert series.dtype == pl.List(pl.Null)
        assert_pooled(series.embag.pool(TABLE), np.zeros((len(series), 6), np.float32))
        assert series.embag.pool(TABLE, null_empty=True).null_count() == len(series)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_dtypes_of_tables(dtype, frame):
    table = TABLE.astype(dtype)
    query = frame.lazy().select(IDS.embag.pool(table))
    bits = expected(LISTS, weight=table)
    assert query.collect_schema()["ids"] == pl.Array(
        pl.Float64 if dtype == np.float64 else pl.Float32, 6
    )
    assert_pooled(query.collect()["ids"], bits)


def test_quantized_table(frame):
    small = embag.quantize(TABLE)
    assert_pooled(frame["ids"].embag.pool(small), expected(LISTS, weight=small))


def test_options(frame):
    assert_pooled(frame["ids"].embag.pool(TABLE, padding_idx=3), expected(LISTS, padding_idx=3))
    bits = expected(LISTS, weight=TABLE[:5], invalid="skip")
    assert_pooled(frame["ids"].embag.pool(TABLE[:5], invalid="skip"), bits)
    pooled = frame.select(IDS.embag.pool(TABLE[:5], padding_idx=-1, invalid="skip"))["ids"]
    assert_pooled(pooled, expected(LISTS, weight=TABLE[:5], padding_idx=-1, invalid="skip"))


def test_num_threads_is_passed_on(frame, monkeypatch):
    asked = []
    count = threads.threads_for
    monkeypatch.setattr(threads, "threads_for", lambda work, n: asked.append(n) or count(work, n))
    frame["ids"].embag.pool(TABLE, num_threads=1)
    assert asked == [1]
    frame.select(IDS.embag.pool(TABLE, num_threads=2))
    assert asked[-1] == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_null_where_a_list_has_no_id(frame, engine):
    query = frame.lazy().select(IDS.embag.pool(TABLE, null_empty=True))
    pooled = query.collect(engine=engine)["ids"]
    assert pooled.is_null().to_list() == EMPTY
    assert_pooled(pooled.drop_nulls(), expected(LISTS)[~np.array(EMPTY)])
    assert_pooled(
        frame["ids"].embag.pool(TABLE, null_empty=True).drop_nulls(), pooled.drop_nulls().to_numpy()
    )


# --- In queries -----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("null_empty", [False, True])
def test_pieces_of_a_column(engine, null_empty):
    lists = many()
    query = pl.LazyFrame({"ids": lists}).select(IDS.embag.pool(TABLE, null_empty=null_empty))
    pooled = query.collect(engine=engine)["ids"].fill_null(
        pl.lit([0.0] * 6, pl.Array(pl.Float32, 6))
    )
    assert_pooled(pooled, expected(lists))


@pytest.mark.parametrize("engine", ENGINES)
def test_no_rows(frame, engine):
    pool = IDS.embag.pool(TABLE)
    for query in (frame.clear().lazy(), frame.lazy().filter(pl.col("row") < 0)):
        pooled = query.select(pool).collect(engine=engine)
        assert pooled.schema == {"ids": pl.Array(pl.Float32, 6)}
        assert len(pooled) == 0
    assert frame.clear().select(pool).schema == {"ids": pl.Array(pl.Float32, 6)}


def test_the_schema_is_known_before_the_query_runs(frame):
    query = frame.lazy().with_columns(vector=IDS.embag.pool(TABLE))
    assert query.collect_schema()["vector"] == pl.Array(pl.Float32, 6)


@pytest.mark.parametrize("engine", ENGINES)
def test_filters_are_applied_before_pooling(frame, results, engine):
    query = frame.lazy().with_columns(vector=IDS.embag.pool(TABLE)).filter(pl.col("row") >= 7)
    results.clear()
    pooled = query.collect(engine=engine)["vector"]
    assert sum(map(len, results)) == 2
    assert_pooled(pooled, expected(LISTS[7:]))


@pytest.mark.parametrize("engine", ENGINES)
def test_each_list_is_pooled_once(results, engine):
    query = pl.LazyFrame({"ids": many()}).select(IDS.embag.pool(TABLE))
    results.clear()
    query.collect(engine=engine)
    assert sum(map(len, results)) == len(many())


@pytest.mark.parametrize("engine", ENGINES)
def test_group_by(frame, engine):
    group = pl.col("row") // 4
    query = frame.lazy().group_by(group, maintain_order=True).agg(IDS.embag.pool(TABLE))
    groups = query.collect(engine=engine)["ids"]
    assert groups.list.len().to_list() == [4, 4, 1]
    assert_pooled(groups.explode(), expected(LISTS))

    flat = pl.LazyFrame({"user": [1, 2, 1, 3], "id": [5, 3, 9, 1]})
    query = flat.group_by("user", maintain_order=True).agg(pl.col("id").implode().embag.pool(TABLE))
    assert_pooled(query.collect(engine=engine)["id"], expected([[5, 9], [3], [1]]))


def test_over(frame):
    pooled = frame.with_columns(vector=IDS.embag.pool(TABLE).over(pl.col("row") % 2))
    assert_pooled(pooled["vector"], expected(LISTS))


def test_several_columns_at_once(frame):
    two = frame.select("ids", other=IDS.reverse())
    pooled = two.select(pl.all().embag.pool(TABLE))
    assert_pooled(pooled["ids"], expected(LISTS))
    assert_pooled(pooled["other"], expected(LISTS[::-1]))


def test_from_parquet_to_parquet(tmp_path):
    lists = many()
    pl.DataFrame({"user": range(len(lists)), "ids": lists}).write_parquet(
        tmp_path / "events.parquet", row_group_size=512
    )
    scan = pl.scan_parquet(tmp_path / "events.parquet")
    scan.select("user", vector=IDS.embag.pool(TABLE)).sink_parquet(tmp_path / "vectors.parquet")
    written = pl.read_parquet(tmp_path / "vectors.parquet").sort("user")
    assert written["vector"].dtype == pl.Array(pl.Float32, 6)
    assert_pooled(written["vector"], expected(lists))


def test_an_expression_can_be_pickled(frame):
    pool = pickle.loads(pickle.dumps(IDS.embag.pool(TABLE)))
    assert_pooled(frame.select(pool)["ids"], expected(LISTS))


# --- Memory ---------------------------------------------------------------------------


def memory_of(series):
    """Return the address of the numbers of a column in one chunk without nulls."""
    assert series.n_chunks() == 1
    return series.to_numpy(allow_copy=False).ctypes.data


def test_results_are_not_copied(frame, results):
    pooled = frame["ids"].embag.pool(TABLE)
    assert memory_of(pooled) == results[-1].ctypes.data
    pooled = frame.lazy().select(IDS.embag.pool(TABLE)).collect(engine="in-memory")["ids"]
    assert memory_of(pooled) == results[-1].ctypes.data


def test_results_live_as_long_as_the_column(frame, results):
    pooled = frame["ids"].embag.pool(TABLE)
    results.clear()
    np.full((len(LISTS), 6), 7, np.float32)  # overwrites memory that was released
    assert_pooled(pooled, expected(LISTS))


def test_ids_are_not_copied(seen):
    ids = np.arange(50)
    series = pl.Series(ids).reshape((10, 5))
    address = series.to_numpy(allow_copy=False).ctypes.data
    series.embag.pool(TABLE)
    assert [ids.ctypes.data for ids, _, _ in seen] == [address]
    series.cast(pl.List(pl.Int64)).embag.pool(TABLE)
    assert len(seen) == 2


# --- Errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("pool", "error", "message"),
    [
        (
            IDS.embag.pool(TABLE[:5]),
            IndexError,
            r"input\[\d\]\[0\] = 59 is out of range for a table of 5 rows",
        ),
        (
            pl.col("row").embag.pool(TABLE),
            TypeError,
            "the column must be lists of integers, got dtype Int64",
        ),
        (
            pl.col("factors").embag.pool(TABLE),
            TypeError,
            "input must be lists of integers, got lists of float32",
        ),
        (
            pl.col("ids").cast(pl.List(pl.String)).embag.pool(TABLE),
            TypeError,
            "input must be lists of numbers, got lists of strings",
        ),
        (
            IDS.embag.pool(TABLE, "sum", pl.col("factors").reverse()),
            ValueError,
            "per_sample_weights must have as many entries in each list as input, "
            r"got \d in list \d, which has \d there",
        ),
        (
            IDS.embag.pool(TABLE, "sum", "row"),
            ValueError,
            "per_sample_weights must be ragged where input is, "
            "with as many entries in each list, got Series",
        ),
    ],
)
def test_errors_in_the_columns_are_raised_by_the_query(frame, engine, pool, error, message):
    with pytest.raises(error, match="^" + message):
        frame.head(5).lazy().select(pool).collect(engine=engine)


def test_a_missing_column_is_an_error_of_polars(frame):
    with pytest.raises(pl.exceptions.ColumnNotFoundError, match="weight"):
        frame.select(IDS.embag.pool(TABLE, "sum", "weights"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (TABLE, "men"),
            ValueError,
            "mode must be 'sum', 'mean', 'sqrtn', 'max' or 'min', got 'men'",
        ),
        ((TABLE[0],), ValueError, "weight must be 2-D (n_rows, dim), got shape (6,)"),
        (
            (TABLE[:, :0],),
            ValueError,
            "weight must have at least 1 column where polars takes the result, got 0",
        ),
        (
            (TABLE, "max", "factors"),
            ValueError,
            "per_sample_weights must be None where mode is 'max', got",
        ),
        (
            (TABLE, "sum", None, 60),
            ValueError,
            "padding_idx must name one of weight's 60 rows, got 60",
        ),
    ],
)
def test_errors_in_the_options_come_before_the_query(arguments, error, message):
    with pytest.raises(error) as raised:
        IDS.embag.pool(*arguments)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("polars", "embag.polars needs polars: pip install polars 'embag-cpu[arrow]'"),
        ("nanoarrow", "to_arrow needs the package nanoarrow: pip install 'embag-cpu[arrow]'"),
    ],
)
def test_missing_packages(missing, message):
    hide = f"import sys; sys.modules[{missing!r}] = None; import embag.polars"
    pool = "polars.col('ids').embag.pool(embag.aligned_empty((3, 2)))"
    failed = run_python("-c", f"{hide}; import polars; {pool}", check=False)
    assert failed.stderr.splitlines()[-1] == f"ImportError: {message}"
