"""Which containers are ragged inputs: their types decide, never lengths or values."""

import array
import collections
import enum
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from cases import assert_same_bits
from ragged_columns import arrays

import embag
from embag._columns import pieces, readers

W = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)
COLLECTION = embag.EmbeddingBagCollection({"t": W}, [embag.Feature("x", "t")])

SAME = [[1, 2], [3, 4], [5, 6]]
RAGGED = [[1, 2], [], [3, 4, 5]]
LENGTHS = pytest.mark.parametrize("lists", [SAME, RAGGED], ids=["same", "ragged"])


class Rows(Sequence):
    """A sequence that is neither a list nor an array, such as a column of a dataset."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, b):
        return self.rows[b]


def packages(name, make):
    return lambda items: make(pytest.importorskip(name), items)


# How to make a list of each type from consecutive integers.
ENTRIES = {
    "list": list,
    "tuple": tuple,
    "array": lambda items: np.array(items, np.int32),
    "array_of_objects": lambda items: np.array(items, object),
    "range": lambda items: range(items[0], items[-1] + 1) if items else range(0),
    "array.array": lambda items: array.array("h", items),
    "memoryview": lambda items: memoryview(np.array(items, np.int64)),
    "deque": collections.deque,
    "sequence": Rows,
    "pandas": packages("pandas", lambda pd, items: pd.Series(items, dtype="int16")),
    "pandas_index": packages("pandas", lambda pd, items: pd.Index(items, dtype="int64")),
    "pandas_nullable": packages("pandas", lambda pd, items: pd.Series(items, dtype="Int64")),
    "polars": packages("polars", lambda pl, items: pl.Series(items, dtype=pl.UInt8)),
    "pyarrow": packages("pyarrow", lambda pa, items: pa.array(items, pa.int64())),
    "torch": packages("torch", lambda torch, items: torch.tensor(items, dtype=torch.int64)),
}


def objects(lists):
    column = np.empty(len(lists), object)
    for b, bag in enumerate(lists):
        column[b] = bag
    return column


CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "objects": objects,
    "sequence": Rows,
    "pandas": lambda lists: pytest.importorskip("pandas").Series(objects(lists)),
}


def pool_arrays(lists, weights=None, **options):
    ids, offsets = arrays(lists, np.int64)
    if weights is not None:
        options["per_sample_weights"] = arrays(weights, np.float32)[0]
    return embag.embedding_bag(ids, W, offsets, include_last_offset=True, **options)


# --- By type, never by value ----------------------------------------------------------


@LENGTHS
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_lists_of_every_type(container, entry, lists):
    column = CONTAINERS[container]([ENTRIES[entry](bag) for bag in lists])
    expected = pool_arrays(lists)
    assert_same_bits(embag.embedding_bag(column, W), expected)
    assert_same_bits(embag.EmbeddingBag.from_pretrained(W)(column), expected)
    assert embag.empty_bags(column).tolist() == [not bag for bag in lists]
    named = {"x": list(column) if container == "tuple" else column}
    assert_same_bits(COLLECTION(named), pool_arrays(lists, mode="sum"))


@LENGTHS
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_ragged_inputs_of_any_lengths_are_refused_alike(container, entry, lists):
    column = CONTAINERS[container]([ENTRIES[entry](bag) for bag in lists])
    with pytest.raises(ValueError, match=r"^(offsets must be None|input must be 1-D) where "):
        embag.embedding_bag(column, W, [0, 1])
    with pytest.raises(ValueError, match=r"^(lengths must be None|input must be 1-D) where "):
        embag.embedding_bag(column, W, lengths=[1, 2])
    with pytest.raises(ValueError, match=r"^per_sample_weights must "):
        embag.embedding_bag(column, W, mode="sum", per_sample_weights=[1.0, 2.0, 3.0])


@LENGTHS
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_weights_of_every_type(container, entry, lists):
    weights = CONTAINERS[container]([ENTRIES[entry](bag) for bag in lists])
    expected = pool_arrays(lists, lists, mode="sum")
    got = embag.embedding_bag(lists, W, mode="sum", per_sample_weights=weights)
    assert_same_bits(got, expected)
    assert_same_bits(COLLECTION({"x": lists}, per_sample_weights={"x": weights}), expected)


@pytest.mark.parametrize("name", ["pandas", "polars", "pyarrow"])
def test_nulls_in_lists_of_arrow_types(name):
    if name == "pandas":
        series = pytest.importorskip("pandas").Series
        make = lambda items: series(items, dtype="Int64")  # noqa: E731
    else:
        module = pytest.importorskip(name)
        make = module.Series if name == "polars" else module.array
    ids, weights = [make([1, None]), make([2, 3])], [make([4, None]), make([5, 6])]
    assert_same_bits(embag.embedding_bag(ids, W), pool_arrays([[1], [2, 3]]))
    got = embag.embedding_bag(ids, W, mode="sum", per_sample_weights=weights)
    assert_same_bits(got, pool_arrays([[1], [2, 3]], [[4], [5, 6]], mode="sum"))
    with pytest.raises(ValueError, match=r"^per_sample_weights must not be null .* in list 0$"):
        embag.embedding_bag(SAME[:2], W, mode="sum", per_sample_weights=weights)


def test_lists_of_arrow_scalars():
    pa = pytest.importorskip("pyarrow")
    column = list(pa.array([[1, 2], None, [3, None]]))
    assert_same_bits(embag.embedding_bag(column, W), pool_arrays([[1, 2], [], [3]]))


def test_numbers_and_0d_arrays_make_an_array():
    expected = embag.embedding_bag(np.array([1, 2]), W, [0])
    for ids in ([np.array(1), np.array(2)], Rows([1, 2]), [np.int8(1), 2], objects([1, 2])):
        assert_same_bits(embag.embedding_bag(ids, W, [0]), expected)


def test_items_of_other_types_of_integers():
    number = enum.IntEnum("number", ["one", "two"])
    for lists in (
        [[number.one], [2, 3]],
        [[np.array(1)], [2, 3]],
        [[np.uint64(1)], [2, np.int8(3)]],
    ):
        assert_same_bits(embag.embedding_bag(lists, W), pool_arrays([[1], [2, 3]]))


def test_weights_of_other_types_of_numbers():
    expected = pool_arrays(RAGGED, [[1, 0], [], [1, 1, 0]], mode="sum")
    booleans = [[True, False], [], [1, 1.0, False]]
    for weights in (booleans, [np.array(bag, bool) for bag in booleans]):
        got = embag.embedding_bag(RAGGED, W, mode="sum", per_sample_weights=weights)
        assert_same_bits(got, expected)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (ml_dtypes.bfloat16, np.float16):
        got = embag.embedding_bag(
            RAGGED, W, mode="sum", per_sample_weights=[np.array(bag, dtype) for bag in booleans]
        )
        assert_same_bits(got, expected)


def test_only_nulls_of_pandas():
    column = objects([float("nan"), float("nan")])
    assert_same_bits(embag.embedding_bag(column, W), np.zeros((2, 6), np.float32))


@pytest.mark.parametrize(
    ("ids", "kind", "message"),
    [
        ([np.array(5), [1, 2]], TypeError,
         "input[0] must be a list or an array of integers, got a 0-d array"),
        ([[1, 2], {3}], TypeError, "input[1] must be a list or an array of integers, got set"),
        ([{1}, {2}], TypeError, "input[0] must be a list or an array of integers, got set"),
        ([None, {1: 2}], TypeError, "input[1] must be a list or an array of integers, got dict"),
        (["ab", "c"], TypeError, "input[0] must be a list or an array of integers, got 'ab'"),
        ([b"ab"], TypeError, "input[0] must be a list or an array of integers, got bytes"),
        (objects(["a"]), TypeError, "input[0] must be a list or an array of integers, got 'a'"),
        (objects([1, "a"]), TypeError, "input must be integers, got input[1] = 'a'"),
        ([float("nan")], TypeError, "input must be integers, got dtype float64"),
        ([True, 2], TypeError, "input must be integers, got dtype bool"),
        ([[True, 2], [3, 4]], TypeError, "input must be lists of integers, got lists of bool"),
        ([[True, 2], [3]], TypeError, "input must be lists of integers, got lists of bool"),
        ([[1.0, 2], [3, 4]], TypeError, "input must be lists of integers, got lists of float64"),
        ([[1.0, 2], [3]], TypeError, "input must be lists of integers, got lists of float64"),
        ([[10**400, 1.0], [3]], TypeError,
         "input must be lists of integers, got lists of float64"),
        ([[object()], [1, 2]], TypeError, "input must be lists of numbers, got lists of object"),
        ([np.ones((2, 2), int)], TypeError,
         "input must be lists of numbers, got lists of arrays of shape (2,)"),
    ],
)  # fmt: skip
def test_ids_that_are_neither_lists_nor_numbers(ids, kind, message):
    for call in (lambda: embag.embedding_bag(ids, W), lambda: embag.empty_bags(ids)):
        with pytest.raises(kind) as caught:
            call()
        assert str(caught.value) == message


def test_weights_that_are_neither_lists_nor_numbers():
    with pytest.raises(TypeError) as caught:
        embag.embedding_bag(SAME, W, mode="sum", per_sample_weights=[{1}, {2}, {3}])
    assert str(caught.value) == (
        "per_sample_weights[0] must be a list or an array of numbers, got set"
    )


def test_lists_that_cannot_be_read():
    class Broken(Rows):
        def __getitem__(self, b):
            raise RuntimeError("the disk is gone")

    with pytest.raises(ValueError, match=r"^input must be lists of numbers, got others: the disk"):
        embag.embedding_bag([[1], Broken([2])], W)


def test_lists_of_arrow_maps():
    pa = pytest.importorskip("pyarrow")
    kind = pa.map_(pa.int64(), pa.float64())
    with pytest.raises(TypeError) as caught:
        embag.embedding_bag(pa.array([[], []], pa.list_(kind)), W)
    assert str(caught.value) == "input must be lists of numbers, got lists of maps"


# --- Nulls in flat columns ------------------------------------------------------------


@pytest.mark.parametrize("name", ["pandas", "polars", "pyarrow"])
def test_nulls_in_columns_of_numbers_are_not_nan(name):
    if name == "pandas":
        series = pytest.importorskip("pandas").Series
        ids, factors = series([1, None], dtype="Int64"), series([1.5, None], dtype="Float64")
    else:
        module = pytest.importorskip(name)
        make = module.Series if name == "polars" else module.array
        ids, factors = make([1, None]), make([1.5, None])
    with pytest.raises(ValueError, match=r"^input must have no nulls where it is not .*, got 1$"):
        embag.embedding_bag(ids, W, [0])
    with pytest.raises(ValueError, match=r"^per_sample_weights must have no nulls .*, got 1$"):
        embag.embedding_bag([1, 2], W, [0], mode="sum", per_sample_weights=factors)


def test_nan_is_a_weight():
    pd = pytest.importorskip("pandas")
    factors = pd.Series([1.5, np.nan])
    assert np.isnan(
        embag.embedding_bag([1, 2], W, [0], mode="sum", per_sample_weights=factors)
    ).all()


# --- Integers beyond int64 ------------------------------------------------------------

LARGE = [2**63, 2**64 - 1, 2**64, 2**70, -(2**63) - 1, -(2**70)]


def as_series(values):
    return pytest.importorskip("pandas").Series(values)


@pytest.mark.parametrize("large", LARGE)
@pytest.mark.parametrize("others", [[], [-1]], ids=["alone", "beside_negative"])
@pytest.mark.parametrize("make", [list, tuple, objects, Rows, as_series])
def test_large_ids_are_out_of_range(make, others, large):
    ids = make([1, large, *others])
    message = rf"^input\[1\] = {large} is out of range for a table of 10 rows \(bag 0\)$"
    calls = [
        lambda: embag.embedding_bag(ids, W, [0]),
        lambda: embag.embedding_bag(ids, W, lengths=[len(ids)]),
        lambda: embag.embedding_bag_backward(np.ones((1, 6)), ids, W, [0]),
    ]
    for call in calls:
        with pytest.raises(IndexError, match=message):
            call()
    with pytest.raises(IndexError, match=rf"^feature 'x': values\[1\] = {large} is out of range"):
        COLLECTION(ids, [0, len(ids)])
    with pytest.raises(IndexError, match=rf"^feature 'x': ids\[1\] = {large} is out of range"):
        COLLECTION({"x": (ids, [0])})
    options = {"invalid": "skip", "return_n_invalid": True}
    got, n = embag.embedding_bag(ids, W, [0], **options)
    assert_same_bits(got, pool_arrays([[1]]))
    assert n == 1 + len(others)


@pytest.mark.parametrize("large", LARGE)
@pytest.mark.parametrize("others", [[], [-1]], ids=["alone", "beside_negative"])
@pytest.mark.parametrize("null", [[], [None]], ids=["", "beside_null"])
@pytest.mark.parametrize("make", [list, tuple, objects, Rows, as_series])
@pytest.mark.parametrize("rest", [[[2]], [[2, 3, 4, 5]]], ids=["ragged", "same"])
def test_large_ids_in_lists_are_out_of_range(make, others, null, large, rest):
    ids = make([[1, *null, large, *others], *rest])
    place = 1 + len(null)
    with pytest.raises(IndexError) as caught:
        embag.embedding_bag(ids, W)
    assert str(caught.value) == (
        f"input[0][{place}] = {large} is out of range for a table of 10 rows"
    )
    named = {"x": list(ids) if make is tuple else ids}
    with pytest.raises(IndexError, match=rf"^feature 'x': ids\[0\]\[{place}\] = {large} is out of"):
        COLLECTION(named)
    expected = pool_arrays([[1], *rest], mode="max")
    for table in (W, W.astype(np.float64), embag.quantize(W)):
        for options in ({}, {"return_max_indices": True}):
            got = embag.embedding_bag(
                ids, table, mode="max", invalid="skip", return_n_invalid=True, **options
            )
            assert got[-1] == 1 + len(others)
            if table is W:
                assert_same_bits(got[0], expected)


def test_a_large_id_in_a_later_chunk_is_quoted():
    first = pieces.Chunk(2, np.array([1, 2]), np.array([0, 1, 2]))
    large = readers.as_input([[3], [4, 2**70]], "input").chunks
    column = pieces.Column([*large, first], "input")
    with pytest.raises(IndexError, match=rf"^input\[1\]\[1\] = {2**70} is out of range"):
        column.check(10, True)


def test_large_integers_are_weights():
    ids, offsets = np.array([1, 2, 3]), [0, 2]
    flat = [2**70, 10**400, -(10**400)]
    floats = np.array([2.0**70, np.inf, -np.inf], np.float32)
    expected = embag.embedding_bag(ids, W, offsets, mode="sum", per_sample_weights=floats)
    got = embag.embedding_bag(ids, W, offsets, mode="sum", per_sample_weights=flat)
    assert_same_bits(got, expected)
    ragged = [flat[:2], flat[2:]]
    got = embag.embedding_bag([[1, 2], [3]], W, mode="sum", per_sample_weights=ragged)
    assert_same_bits(got, expected)


# --- Weights that do not fit float32 --------------------------------------------------


@pytest.mark.parametrize("factor", [1e300, -1e300, 1e-300, -1e-300])
def test_weights_that_do_not_fit_float32_never_warn(factor):
    pa = pytest.importorskip("pyarrow")
    lists, weights = [[1, 2], [3]], [[factor, 1.0], [2.0]]
    flat, offsets = arrays(lists, np.int64)
    factors = np.array([factor, 1.0, 2.0])
    with np.errstate(all="ignore"):
        cast = factors.astype(np.float32)
    expected = embag.embedding_bag(flat, W, offsets[:-1], mode="sum", per_sample_weights=cast)
    options = {"mode": "sum", "per_sample_weights": factors}
    gradient = np.full((2, 6), factor)
    with np.errstate(all="raise"):
        results = [
            embag.embedding_bag(flat, W, offsets[:-1], **options),
            embag.embedding_bag(lists, W, mode="sum", per_sample_weights=weights),
            embag.embedding_bag(lists, W, mode="sum", per_sample_weights=pa.array(weights)),
            embag.EmbeddingBag.from_pretrained(W, mode="sum")(flat, offsets[:-1], factors),
            COLLECTION(flat, offsets, factors),
            COLLECTION({"x": lists}, per_sample_weights={"x": weights}),
            COLLECTION({"x": (flat, offsets[:-1])}, per_sample_weights={"x": factors}),
        ]
        grads = embag.embedding_bag_backward(gradient, flat, W, offsets[:-1], **options)
        narrow = embag.embedding_bag([[1]], W * np.float32(1e30), out_dtype=np.float16)
    for result in results:
        assert_same_bits(result, expected)
    with np.errstate(all="ignore"):
        assert_same_bits(grads.weight[1], cast[0] * gradient[0].astype(np.float32))
    assert np.isinf(narrow).all()
    two_d = np.array([[factor], [2.0]])
    with np.errstate(all="raise"):
        got = embag.embedding_bag(np.array([[1], [3]]), W, mode="sum", per_sample_weights=two_d)
    assert_same_bits(got[1], 2 * W[3])


# --- Awkward arrays -------------------------------------------------------------------


def test_awkward_arrays_of_one_size():
    ak = pytest.importorskip("awkward")
    contents = ak.contents
    square = np.arange(6).reshape(2, 3)
    spare = contents.RegularArray(contents.NumpyArray(np.arange(8)), 3)
    options = contents.RegularArray(
        contents.ByteMaskedArray(
            ak.index.Index8(np.array([1, 0, 1, 1, 1], np.int8)),
            contents.NumpyArray(np.arange(5)),
            valid_when=True,
        ),
        2,
    )
    for column, lists in (
        (ak.Array(square), square.tolist()),
        (ak.Array(np.arange(12).reshape(2, 6)[:, :6:2]), [[0, 2, 4], [6, 8, 10]]),
        (ak.Array(np.zeros((2, 0), int)), [[], []]),
        (ak.Array(np.zeros((0, 3), int)), []),
        (ak.Array(spare), square.tolist()),
        (ak.Array(square)[[1, 0, 1]], square[[1, 0, 1]].tolist()),
        (ak.mask(ak.Array(square), [True, False]), [[0, 1, 2], []]),
        (ak.Array(options), [[0], [2, 3]]),
    ):
        table = np.arange(33, dtype=np.float32).reshape(11, 3)
        ids, offsets = arrays(lists, np.int64)
        expected = embag.embedding_bag(ids, table, offsets, include_last_offset=True)
        assert_same_bits(embag.embedding_bag(column, table), expected)
        assert embag.empty_bags(column).tolist() == [not bag for bag in lists]
    weights = ak.Array(np.ones((2, 3), np.float32))
    got = embag.embedding_bag(ak.Array(square), W, mode="sum", per_sample_weights=weights)
    assert_same_bits(got, pool_arrays(square.tolist(), mode="sum"))


def test_awkward_arrays_of_three_axes():
    ak = pytest.importorskip("awkward")
    with pytest.raises(TypeError, match=r"^input must be lists of numbers, got awkward's type 2 "):
        embag.embedding_bag(ak.Array(np.zeros((2, 2, 3), int)), W)


# --- Frames ---------------------------------------------------------------------------


def test_the_index_of_a_frame_is_ignored():
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    clicks = pd.DataFrame(
        {"user": list("abab"), "id": [1, 2, 3, 4], "weight": [1.0, 2.0, 3.0, 4.0]}
    )
    users = clicks.groupby("user").agg(list)
    ids, weights = users[["id"]], users[["weight"]]
    levels = ids.set_index([["x", "y"], ["z", "z"]])
    arrow = ids.astype(pd.ArrowDtype(pa.list_(pa.int64())))
    for frame in (ids, levels, arrow):
        assert_same_bits(embag.embedding_bag(frame, W), pool_arrays([[1, 3], [2, 4]]))
        got = embag.embedding_bag(frame, W, mode="sum", per_sample_weights=weights)
        assert_same_bits(got, pool_arrays([[1, 3], [2, 4]], [[1, 3], [2, 4]], mode="sum"))
    numbers = pd.DataFrame({"id": [1, 2]}, index=["a", "b"])
    assert_same_bits(embag.embedding_bag(numbers, W), pool_arrays([[1], [2]]))
    with pytest.raises(TypeError, match=r"^input must be one column, got DataFrame of several$"):
        embag.embedding_bag(users, W)


# --- Lists of the null type -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["fixed", "list", "view"])
def test_lists_of_the_null_type_take_no_memory(kind):
    pa = pytest.importorskip("pyarrow")
    n = 2**27

    def make(n):
        if kind == "fixed":
            return pa.FixedSizeListArray.from_arrays(pa.nulls(n), n)
        if kind == "list":
            return pa.ListArray.from_arrays(pa.array([0, n], pa.int32()), pa.nulls(n))
        starts, sizes = pa.array([0], pa.int32()), pa.array([n], pa.int32())
        return pa.ListViewArray.from_arrays(starts, sizes, pa.nulls(n))

    column, shorter = make(n), make(n - 1)
    zeros = np.zeros((1, 6), np.float32)
    tracemalloc.start()
    assert_same_bits(embag.embedding_bag(column, W), zeros)
    assert embag.empty_bags(column).tolist() == [True]
    assert_same_bits(COLLECTION({"x": column}), zeros)
    got = embag.embedding_bag(column, W, mode="sum", per_sample_weights=column)
    assert_same_bits(got, zeros)
    with pytest.raises(ValueError, match=rf"^per_sample_weights must have as many .* got {n - 1} "):
        embag.embedding_bag(column, W, mode="sum", per_sample_weights=shorter)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6


def test_weights_of_the_null_type():
    pa = pytest.importorskip("pyarrow")
    weights = pa.array([[None, None], [None]])
    with pytest.raises(ValueError, match=r"^per_sample_weights must not be null .* in list 0$"):
        embag.embedding_bag([[1, 2], [3]], W, mode="sum", per_sample_weights=weights)
    with pytest.raises(ValueError, match=r"^per_sample_weights must not be null .* in list 1$"):
        embag.embedding_bag([[None, None], [3]], W, mode="sum", per_sample_weights=weights)
    nulls = [[None, None], [None]]
    got = embag.embedding_bag(nulls, W, mode="sum", per_sample_weights=weights)
    assert_same_bits(got, np.zeros((2, 6), np.float32))
    typed = pa.array([[1.0, 2.0], [3.0]])
    got = embag.embedding_bag(weights, W, mode="sum", per_sample_weights=typed)
    assert_same_bits(got, np.zeros((2, 6), np.float32))
