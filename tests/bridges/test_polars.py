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


@pytest.mark.parametrize("engine", ENGINES)
def test_columns_of_vectors_are_tables(frame, engine):
    vectors = pl.Series(TABLE, dtype=pl.Array(pl.Float32, 6))
    chunks = pl.concat([vectors[:3], vectors[3:]], rechunk=False)
    for table in (vectors, chunks, vectors.to_frame("vector")):
        query = frame.lazy().select(IDS.embag.pool(table))
        assert_pooled(query.collect(engine=engine)["ids"], expected(LISTS))
        assert_pooled(frame["ids"].embag.pool(table), expected(LISTS))


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


@pytest.mark.parametrize("kind", ["lists_of_structs", "structs_of_lists"])
def test_weights_of_the_column(kind, frame):
    pairs = [
        None if bag is None else [{"id": i, "weight": w} for i, w in zip(bag, f, strict=True)]
        for bag, f in zip(LISTS, FACTORS, strict=True)
    ]
    entry = pl.Struct({"id": pl.Int32, "weight": pl.Float64})
    column = pl.Series("ids", pairs, pl.List(entry))
    if kind == "structs_of_lists":
        column = frame.select(ids=pl.struct("ids", "factors"))["ids"]
    for mode in ("sum", "mean", "max"):
        bits = expected(LISTS, None if mode == "max" else FACTORS, mode=mode)
        assert_pooled(column.embag.pool(TABLE, mode), bits)
        pooled = pl.LazyFrame({"ids": column}).select(IDS.embag.pool(TABLE, mode))
        for engine in ENGINES:
            assert_pooled(pooled.collect(engine=engine)["ids"], bits)
    with pytest.raises(ValueError, match=r"^per_sample_weights must be None where input has weig"):
        column.embag.pool(TABLE, "sum", frame["factors"])


# --- Counts ---------------------------------------------------------------------------

COUNTED = [[1, 99], None, [], [-1, None, 60, 3], [2], [None]]


@pytest.mark.parametrize("engine", ENGINES)
def test_counts_are_fields_of_structs(engine):
    frame = pl.LazyFrame({"ids": COUNTED * 700})
    pool = IDS.embag.pool(
        TABLE, "sum", padding_idx=2, invalid="skip", return_n_invalid=True, return_n_valid=True
    )
    query = frame.select(pool.struct.unnest())
    dtypes = {"vector": pl.Array(pl.Float32, 6), "n_invalid": pl.Int64, "n_valid": pl.Int64}
    assert dict(query.collect_schema()) == dtypes
    counted = query.collect(engine=engine)
    bits = expected([[1], None, [], [3], [], []] * 700, mode="sum")
    assert_pooled(counted["vector"], bits)
    assert counted["n_invalid"].to_list() == [1, 0, 0, 2, 0, 0] * 700
    assert counted["n_valid"].to_list() == [1, 0, 0, 1, 0, 0] * 700


def test_one_count():
    series = pl.Series("ids", COUNTED)
    counted = series.embag.pool(TABLE, invalid=0, null_empty=True, return_n_invalid=True)
    assert counted.name == "ids"
    assert counted.struct.fields == ["vector", "n_invalid"]
    assert counted.struct.field("vector").is_null().to_list() == [0, 1, 1, 0, 0, 1]
    assert counted.struct.field("n_invalid").sum() == 3
    counted = series.embag.pool(TABLE, invalid="skip", return_n_valid=True)
    assert counted.struct.fields == ["vector", "n_valid"]
    arrays = pl.Series([[1, 99], [98, -1]], dtype=pl.Array(pl.Int64, 2))
    counted = arrays.embag.pool(TABLE, invalid="skip", return_n_invalid=True)
    assert counted.struct.field("n_invalid").to_list() == [1, 2]
    with pytest.raises(TypeError, match=r"^return_n_invalid must be a bool, got 1$"):
        series.embag.pool(TABLE, return_n_invalid=1)


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


# Events of one id each: the lists above, a row for each id, keys in an order of their own.
EVENTS = [
    (f"key {key}", id, factor)
    for place in range(5)
    for key, (ids, factors) in enumerate(zip(LISTS, FACTORS, strict=True))
    for id, factor in list(zip(ids or (), factors or (), strict=True))[place : place + 1]
]
KEYS = list(dict.fromkeys(key for key, *_ in EVENTS))
OF_KEYS = [LISTS[int(key.split()[1])] for key in KEYS]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
def test_rows_of_groups(engine, mode):
    events = pl.LazyFrame(EVENTS, ["key", "id", "factor"], orient="row").cast(
        {"factor": pl.Float32}
    )
    query = events.group_by("key", maintain_order=True).agg(
        pl.col("id").embag.pool_rows(TABLE, mode), other=pl.col("id").embag.pool_rows(TABLE)
    )
    pooled = query.collect(engine=engine)
    assert pooled["key"].to_list() == KEYS
    assert pooled.schema["id"] == pl.Array(pl.Float32, 6)
    assert_pooled(pooled["id"], expected(OF_KEYS, mode=mode))
    if mode in ("max", "min"):
        return
    bits = expected(OF_KEYS, [FACTORS[int(key.split()[1])] for key in KEYS], mode=mode)
    for weights in ("factor", pl.col("factor")):
        pool = pl.col("id").embag.pool_rows(TABLE, mode, weights)
        pooled = events.group_by("key", maintain_order=True).agg(pool).collect(engine=engine)
        assert_pooled(pooled["id"], bits)


def test_rows_of_a_column():
    events = pl.DataFrame({"key": [1, 2, 1], "id": [5, None, 9], "factor": [1.0, 2.0, 3.0]})
    pool = pl.col("id").embag.pool_rows
    assert_pooled(events.select(pool(TABLE))["id"], expected([[5, 9]]))
    assert events.clear().group_by("key").agg(pool(TABLE)).schema["id"] == pl.Array(pl.Float32, 6)
    by_key = events.group_by("key", maintain_order=True)
    assert by_key.agg(pool(TABLE, null_empty=True))["id"].is_null().to_list() == [False, True]
    pooled = by_key.agg(pool(TABLE[:6], invalid="skip", normalize=True, default_idx=2))["id"]
    options = {"invalid": "skip", "normalize": True, "default_idx": 2}
    assert_pooled(pooled, expected([[5, 9], []], weight=TABLE[:6], **options))
    with pytest.raises(IndexError, match="out of range"):
        by_key.agg(pool(TABLE[:6]))


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
