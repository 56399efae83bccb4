"""Ragged inputs: the bits of plain arrays, no copies, and errors."""

import gc
import itertools
import sys
import tracemalloc

import numpy as np
import pytest
from arrow_exports import LET_BE, Exports, FailingStream
from cases import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_columns import LISTS, MAKERS, SOME_NULL, WIDTHS, arrays

import embag
from embag._columns import pieces

W = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)

BY_NAME = pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
INTEGERS = pytest.mark.parametrize("dtype", WIDTHS, ids=lambda dtype: dtype.__name__)


def pool_arrays(lists, weights=None, **options):
    """Pool the same bags from plain arrays."""
    ids, offsets = arrays(lists, np.int64)
    if weights is not None:
        # A null id is skipped together with its weight.
        kept = [
            [x for i, x in zip(bag or (), factors or (), strict=True) if i is not None]
            for bag, factors in zip(lists, weights, strict=True)
        ]
        options["per_sample_weights"] = arrays(kept, np.float64)[0]
    return embag.embedding_bag(ids, W, offsets, include_last_offset=True, **options)


@pytest.fixture(params=[None, 3], ids=["blocks_as_they_are", "small_blocks"])
def blocks(request, monkeypatch):
    """Convert lists also in blocks of a few."""
    if request.param:
        monkeypatch.setattr(pieces, "BLOCK_BAGS", request.param)
        monkeypatch.setattr(pieces, "BLOCK_ITEMS", request.param + 1)


# --- Equal to arrays ------------------------------------------------------------------


@BY_NAME
@INTEGERS
def test_every_container_and_integer_equals_arrays(maker, dtype, blocks):
    if not maker.widths and dtype is not np.int64:
        pytest.skip("has no such items")
    column = maker.make(LISTS, np.dtype(dtype))
    assert_same_bits(embag.embedding_bag(column, W), pool_arrays(LISTS))
    got, winners = embag.embedding_bag(column, W, mode="max", return_max_indices=True)
    expected = pool_arrays(LISTS, mode="max", return_max_indices=True)
    assert_same_bits(got, expected[0])
    assert_same_bits(winners, expected[1])
    assert (embag.empty_bags(column) == [len(bag) == 0 for bag in LISTS]).all()


@BY_NAME
@INTEGERS
def test_null_lists_are_empty_and_null_items_are_skipped(maker, dtype, blocks):
    if not (maker.nulls and maker.null_items):
        pytest.skip("has no nulls")
    if not maker.widths and dtype is not np.int64:
        pytest.skip("has no such items")
    column = maker.make(SOME_NULL, np.dtype(dtype))
    for mode in ("sum", "mean", "max"):
        got = embag.embedding_bag(column, W, mode=mode)
        assert_same_bits(got, pool_arrays(SOME_NULL, mode=mode))
    empty = [not any(i is not None for i in bag or ()) for bag in SOME_NULL]
    assert (embag.empty_bags(column) == empty).all()


@BY_NAME
@pytest.mark.parametrize(
    "lists", [[], [[]], [[], [], []], [[1]], [[0, 1, 2, 3] * 50]], ids=lambda x: f"{len(x)}_lists"
)
def test_inputs_of_few_and_of_empty_lists(maker, lists):
    no_type = ("torch", "awkward", "awkward_out_of_order", "lists", "tuples")
    if not lists and maker in [MAKERS[name] for name in no_type]:
        pytest.skip("has no such column")
    got = embag.embedding_bag(maker.make(lists, np.dtype(np.int64)), W, mode="sum")
    assert_same_bits(got, pool_arrays(lists, mode="sum"))


def test_arrays_of_objects():
    square = np.array([[1, 2], [3, None]], object)
    assert_same_bits(embag.embedding_bag(square, W), pool_arrays([[1, 2], [3]]))
    mixed = np.empty(3, object)
    mixed[:] = [np.array([1, 2], object), (3,), float("nan")]
    assert_same_bits(embag.embedding_bag(mixed, W), pool_arrays([[1, 2], [3], []]))


def test_integers_that_numpy_converts_to_floats():
    expected = pool_arrays([[1, 2], [], [3]])
    for lists in (
        [np.array([1, 2]), np.array([]), np.array([3])],
        [np.array([1, 2], np.uint64), [], np.array([3], np.int8)],
        [[np.uint64(1), np.int64(2)], [], [3]],
    ):
        assert_same_bits(embag.embedding_bag(lists, W), expected)
        assert_same_bits(embag.embedding_bag(MAKERS["tuples"].make(lists, None), W), expected)


def test_ids_that_pandas_converted_to_floats():
    column = np.empty(1, object)
    column[0] = np.array([1, np.nan])
    with pytest.raises(TypeError, match=r"got lists of float64 with nulls: if pandas made floats"):
        embag.embedding_bag(column, W)


def test_the_nulls_of_pandas():
    pd = pytest.importorskip("pandas")
    column = pd.Series([[1, pd.NA], pd.NA, float("nan"), None, [3]])
    assert_same_bits(embag.embedding_bag(column, W), pool_arrays([[1], [], [], [], [3]]))


def test_lists_of_the_null_type():
    pa = pytest.importorskip("pyarrow")
    pl = pytest.importorskip("polars")
    for column in (
        pa.nulls(3),
        pl.Series([None] * 3),
        pa.chunked_array([pa.nulls(2), pa.nulls(1)]),
    ):
        assert_same_bits(embag.embedding_bag(column, W), np.zeros((3, 6), np.float32))
        assert embag.empty_bags(column).all()


def test_awkward_arrays_of_other_layouts():
    ak = pytest.importorskip("awkward")
    lists = [[1, 2], [], [3]]
    expected = pool_arrays(lists)
    contents, index = ak.contents, ak.index.Index64
    items = contents.NumpyArray(np.array([1, 2, 3]))
    starts, stops = index(np.array([0, 100, 2])), index(np.array([2, 100, 3, 9]))
    layouts = [
        contents.ListArray(starts, stops, items),
        contents.UnmaskedArray(
            contents.ListOffsetArray(index(np.array([0, 2, 2, 3])), contents.UnmaskedArray(items))
        ),
    ]
    for layout in layouts:
        assert_same_bits(embag.embedding_bag(ak.Array(layout), W), expected)
    for column in (ak.Array([[{"a": 1}]]), ak.Array([["a"]])):
        with pytest.raises(TypeError, match=r"^input must be lists of "):
            embag.embedding_bag(column, W)


def test_several_chunks_of_nanoarrow():
    na = pytest.importorskip("nanoarrow")
    column = na.Array(MAKERS["chunked"].make(LISTS, np.dtype(np.int64)))
    assert_same_bits(embag.embedding_bag(column, W), pool_arrays(LISTS))


@BY_NAME
@pytest.mark.parametrize("lists", [[None], [None, None], [[None]]], ids=["one", "two", "item"])
def test_inputs_of_only_null_lists(maker, lists):
    if not maker.nulls or maker in (MAKERS["awkward"], MAKERS["awkward_out_of_order"]):
        pytest.skip("has no such column")
    got = embag.embedding_bag(maker.make(lists, np.dtype(np.int64)), W)
    assert_same_bits(got, np.zeros((len(lists), 6), np.float32))


def test_inputs_whose_items_have_the_null_type():
    pa = pytest.importorskip("pyarrow")
    pl = pytest.importorskip("polars")
    for column in (pa.array([[], None, [None]]), pl.Series([[], []])):
        assert not embag.embedding_bag(column, W).any()


@INTEGERS
@pytest.mark.parametrize("size", [0, 1, 3])
def test_lists_of_one_size(dtype, size, blocks):
    pa = pytest.importorskip("pyarrow")
    ids = np.random.default_rng(1).integers(0, 10, (7, size)).astype(dtype)
    lists = [None if b in (2, 6) else bag.tolist() for b, bag in enumerate(ids)]
    kind = pa.list_(pa.from_numpy_dtype(dtype), size)
    column = pa.array(ids.tolist(), kind)
    assert_same_bits(embag.embedding_bag(column, W), embag.embedding_bag(ids, W))
    some = embag.embedding_bag(column.slice(2, 4), W)
    assert_same_bits(some, embag.embedding_bag(ids[2:6], W))
    assert_same_bits(embag.embedding_bag(pa.array(lists, kind), W), pool_arrays(lists))
    assert_same_bits(
        embag.embedding_bag(pa.array(lists, kind).slice(1, 5), W), pool_arrays(lists[1:6])
    )


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_levels_threads_and_tables(level, n_threads, eager_threads):
    pa = pytest.importorskip("pyarrow")
    rng = np.random.default_rng(3)
    lists = [rng.integers(0, 10, n).tolist() for n in rng.integers(0, 9, 60)]
    plain = pa.chunked_array([lists[:25], lists[25:26], lists[26:]])
    narrow = plain.cast(pa.list_(pa.uint16())).slice(1)
    for table in (W, W.astype(np.float64), embag.quantize(W, bits=4), W.astype(np.float16)):
        for column, bags in ((plain, lists), (narrow, lists[1:])):
            ids, offsets = arrays(bags, np.int64)
            for options in (
                {"mode": "sum"},
                {"mode": "mean", "padding_idx": 3},
                {"mode": "max", "return_max_indices": True},
            ):
                got = embag.embedding_bag(column, table, num_threads=n_threads, **options)
                expected = embag.embedding_bag(
                    ids, table, offsets, include_last_offset=True, **options
                )
                for a, b in zip(
                    got if type(got) is tuple else (got,),
                    expected if type(expected) is tuple else (expected,),
                    strict=True,
                ):
                    assert_same_bits(a, b)


@st.composite
def ragged(draw):
    """Draw lists, some null, weights, and the boundaries of the chunks of both."""
    item = st.none() | st.integers(0, 9)
    lists = draw(st.lists(st.none() | st.lists(item, max_size=6), max_size=12))
    number = st.floats(-4, 4, width=32)
    weights = [None if bag is None else draw(st.lists(number, min_size=len(bag), max_size=len(bag)))
               for bag in lists]  # fmt: skip
    cuts = st.lists(st.integers(0, len(lists)), max_size=3).map(sorted)
    return lists, weights, draw(cuts), draw(cuts)


def chunked(lists, cuts, kind):
    pa = pytest.importorskip("pyarrow")
    bounds = [0, *cuts, len(lists)]
    chunks = [
        # Each chunk is a slice of a longer array.
        pa.array([[1, 2], *lists[a:b], [3]], kind).slice(1, b - a)
        for a, b in itertools.pairwise(bounds)
    ]
    return pa.chunked_array(chunks, kind)


@settings(max_examples=150, deadline=None)
@given(ragged(), st.sampled_from(WIDTHS), st.sampled_from(["list_", "large_list", "list_view"]))
def test_any_lists_in_any_chunks(drawn, dtype, kind):
    pa = pytest.importorskip("pyarrow")
    lists, weights, cuts, weight_cuts = drawn
    ids = chunked(lists, cuts, getattr(pa, kind)(pa.from_numpy_dtype(dtype)))
    assert_same_bits(embag.embedding_bag(ids, W), pool_arrays(lists))
    for factor in (pa.float32(), pa.float64()):
        factors = chunked(weights, weight_cuts, getattr(pa, kind)(factor))
        got = embag.embedding_bag(ids, W, mode="sum", per_sample_weights=factors)
        assert_same_bits(got, pool_arrays(lists, weights, mode="sum"))


# --- Weights --------------------------------------------------------------------------


def as_weights(lists, seed=5):
    rng = np.random.default_rng(seed)
    return [None if bag is None else rng.standard_normal(len(bag)).round(2).tolist()
            for bag in lists]  # fmt: skip


@BY_NAME
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_weights_of_every_kind(maker, dtype, blocks):
    weights = [[float(round(x)) for x in bag] for bag in as_weights(LISTS)]
    if dtype is not np.int16:
        weights = as_weights(LISTS)
    weights = [np.array(bag, dtype).tolist() for bag in weights]
    given_weights = maker.make(weights, np.dtype(dtype))
    expected = pool_arrays(LISTS, weights, mode="sum")
    for name in ("list", "chunked", "lists"):
        ids = MAKERS[name].make(LISTS, np.dtype(np.int64))
        got = embag.embedding_bag(ids, W, mode="sum", per_sample_weights=given_weights)
        assert_same_bits(got, expected)


def test_weights_of_lists_of_one_size():
    pa = pytest.importorskip("pyarrow")
    ids = np.arange(6).reshape(3, 2)
    factors = np.linspace(0, 1, 6, dtype=np.float32).reshape(3, 2)
    expected = embag.embedding_bag(ids, W, mode="sum", per_sample_weights=factors)
    one_size = pa.array(ids.tolist(), pa.list_(pa.int64(), 2))
    for column in (one_size, pa.array(ids.tolist())):
        for weights in (factors, factors.tolist(), pa.array(factors.tolist()),
                        pa.array(factors.tolist(), pa.list_(pa.float32(), 2))):  # fmt: skip
            got = embag.embedding_bag(column, W, mode="sum", per_sample_weights=weights)
            assert_same_bits(got, expected)


def test_lists_that_happen_to_have_one_length():
    pa = pytest.importorskip("pyarrow")
    lists, factors = [[1, 2], [3, 4]], [[0.5, 1.0], [2.0, 3.0]]
    expected = pool_arrays(lists, factors, mode="sum")
    ebc = embag.EmbeddingBagCollection({"a": W}, [embag.Feature("x", "a")])
    objects = MAKERS["objects"].make(factors, np.dtype(np.float32))
    for ids in (lists, np.array(lists), pa.array(lists), MAKERS["objects"].make(lists, np.int64)):
        for weights in (factors, np.array(factors), pa.array(factors), objects):
            got = embag.embedding_bag(ids, W, mode="sum", per_sample_weights=weights)
            assert_same_bits(got, expected)
            got = ebc({"x": ids}, per_sample_weights={"x": weights})
            assert_same_bits(got, expected)


@pytest.mark.parametrize(
    ("ids", "weights", "message"),
    [
        ([[1, 2], [3]], [[1.0], [2.0]],
         "per_sample_weights must have as many entries in each list as input, "
         "got 1 in list 0, which has 2 there"),
        ([[1, 2], [3]], [[1.0, 2.0], None],
         "per_sample_weights must have as many entries in each list as input, "
         "got 0 in list 1, which has 1 there"),
        ([[1, 2], [3, None]], [[1.0, 2.0], [None, 1.0]],
         "per_sample_weights must not be null where input is not, got a null in list 1"),
        ([[1], [2]], [[1.0]],
         "per_sample_weights must have as many lists as input, which has 2, got 1"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(ids, weights, message):
    pa = pytest.importorskip("pyarrow")
    out = np.full((2, 6), 7, np.float32)
    with pytest.raises(ValueError, match=r"^per_sample") as caught:
        embag.embedding_bag(
            pa.array(ids), W, mode="sum", per_sample_weights=pa.array(weights), out=out
        )
    assert str(caught.value) == message
    assert (out == 7).all()


def test_weights_of_other_types():
    pa = pytest.importorskip("pyarrow")
    ids = pa.array([[1, 2], [3]])
    for weights, kind, message in (
        (
            np.ones(3),
            ValueError,
            "must be ragged where input is, with as many entries in each list",
        ),
        (
            pa.array([["a", "b"], ["c"]]),
            TypeError,
            "must be lists of numbers, got lists of strings",
        ),
        (ids, ValueError, "must be None where mode is 'max', got ListArray"),
    ):
        mode = "max" if weights is ids else "sum"
        with pytest.raises(kind, match=f"^per_sample_weights {message}"):
            embag.embedding_bag(ids, W, mode=mode, per_sample_weights=weights)
    with pytest.raises(ValueError, match=r"^per_sample_weights must "):
        embag.embedding_bag([1, 2, 3], W, [0, 2], mode="sum", per_sample_weights=[[1, 2], [3]])


def test_the_data_of_a_matrix_are_weights():
    sparse = pytest.importorskip("scipy.sparse")
    lists, factors = [[1], [2, 3]], [[5.0], [7.0, 9.0]]
    matrix = sparse.csr_array(([5.0, 7.0, 9.0], [1, 0, 2], [0, 1, 3]), (2, 3))
    got = embag.embedding_bag(lists, W, mode="sum", per_sample_weights=matrix)
    assert_same_bits(got, pool_arrays(lists, factors, mode="sum"))
    column = sparse.csr_array([[5.0], [7.0]])
    got = embag.embedding_bag(np.array([[1], [2]]), W, mode="sum", per_sample_weights=column)
    assert_same_bits(got, pool_arrays([[1], [2]], [[5.0], [7.0]], mode="sum"))


def test_masked_weights_are_nulls():
    weights = [np.ma.array([1.0, 2.0], mask=[False, True]), np.ma.array([3.0])]
    with pytest.raises(ValueError, match=r"^per_sample_weights must not be null .* in list 0"):
        embag.embedding_bag([[1, 2], [3]], W, mode="sum", per_sample_weights=weights)
    ids = [[1, None], [3]]
    got = embag.embedding_bag(ids, W, mode="sum", per_sample_weights=weights)
    assert_same_bits(got, pool_arrays(ids, [[1.0, 2.0], [3.0]], mode="sum"))


# --- Memory ---------------------------------------------------------------------------


def test_a_slice_passes_only_its_own_items(seen):
    pa = pytest.importorskip("pyarrow")
    column = pa.array([[1, 2]] * 100).slice(10, 20)
    weights = pa.array([[1.0, 2.0]] * 100, pa.list_(pa.float32())).slice(10, 20)
    embag.embedding_bag(column, W)
    embag.embedding_bag(column, W, mode="sum", per_sample_weights=weights)
    for indices, offsets, _ in seen:
        assert (len(indices), offsets[0], offsets[-1]) == (60, 20, 60)


def test_memory_does_not_grow_with_the_input():
    pa = pytest.importorskip("pyarrow")
    n, zeros = 1_000_000, np.zeros(250_000, np.uint8)
    empty = pa.ListArray.from_arrays(np.zeros(n + 1, np.int32), pa.array([], pa.uint8()))
    null = pa.Array.from_buffers(
        empty.type, n, [pa.py_buffer(zeros), empty.buffers()[1]], children=[empty.values]
    )
    full = pa.ListArray.from_arrays(
        np.arange(0, 4 * n + 1, 4, dtype=np.int32), pa.array(np.ones(4 * n, np.uint8))
    )
    out = np.empty((n, 1), np.float32)
    for column in (empty, null, full):
        tracemalloc.start()
        embag.embedding_bag(column, W[:, :1].copy(), out=out)
        embag.empty_bags(column)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 24e6  # converted at once they take more than 32 MB


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("kind", ["list_", "large_list", "list_view"])
def test_arrow_lists_are_not_copied(dtype, kind, seen):
    pa = pytest.importorskip("pyarrow")
    lists = [[1, 2], [3, 4, 5], [], [6]]
    column = pa.array(lists, getattr(pa, kind)(pa.from_numpy_dtype(dtype)))
    chunks = pa.chunked_array([column, column.slice(1, 2), column.slice(3)])
    got = embag.embedding_bag(chunks, W)
    assert_same_bits(got, pool_arrays([*lists, *lists[1:3], *lists[3:]]))
    start = column.buffers()[-1].address
    places = [address(indices) - start for indices, _, _ in seen]
    if kind == "list_view":  # whose offsets are computed from the start of the first list
        assert places == [0, 2 * np.dtype(dtype).itemsize, 5 * np.dtype(dtype).itemsize]
        return
    assert places == [0, 0, 0]
    width = 4 if kind == "list_" else 8
    offsets = column.buffers()[1].address
    assert [address(bounds) - offsets for _, bounds, _ in seen] == [0, width, 3 * width]


def _csr():
    sparse = pytest.importorskip("scipy.sparse")
    ids, offsets = arrays(LISTS, np.int64)
    matrix = sparse.csr_array((np.ones(len(ids), np.float32), ids, offsets), (len(LISTS), 10))
    return matrix, matrix.indices, matrix.indptr


def _awkward():
    ak = pytest.importorskip("awkward")
    column = ak.Array(LISTS)
    return column, column.layout.content.data, column.layout.offsets.data


def _torch():
    torch = pytest.importorskip("torch")
    ids, offsets = arrays(LISTS, np.int64)
    items, bounds = torch.from_numpy(ids), torch.from_numpy(offsets)
    return torch.nested.nested_tensor_from_jagged(items, bounds), ids, offsets


@pytest.mark.parametrize("make", [_csr, _awkward, _torch])
def test_other_containers_are_not_copied(make, seen):
    column, items, offsets = make()
    embag.embedding_bag(column, W, mode="sum", out_dtype="float16")  # no plain call
    assert [address(indices) for indices, _, _ in seen] == [address(np.asarray(items))]
    assert [address(bounds) for _, bounds, _ in seen] == [address(np.asarray(offsets))]


def test_a_polars_series_is_not_copied(seen):
    pl = pytest.importorskip("polars")
    column = pl.Series(LISTS)
    embag.embedding_bag(column, W)
    embag.embedding_bag(column, W)
    assert address(seen[0][0]) == address(seen[1][0])  # neither call makes a copy


def test_weights_are_not_copied(seen):
    pa = pytest.importorskip("pyarrow")
    ids = pa.array(LISTS)
    weights = pa.array(as_weights(LISTS), pa.list_(pa.float32()))
    embag.embedding_bag(ids, W, mode="sum", per_sample_weights=weights)
    assert [address(sample) for _, _, sample in seen] == [weights.values.buffers()[1].address]


def test_memory_is_released():
    pa = pytest.importorskip("pyarrow")
    gc.collect()
    before = pa.total_allocated_bytes()
    column = pa.chunked_array([LISTS, LISTS])
    embag.embedding_bag(column, W)
    pl = pytest.importorskip("polars")
    embag.embedding_bag(pl.Series(LISTS), W)
    with pytest.raises(IndexError):
        embag.embedding_bag(column, W[:3])
    del column
    gc.collect()
    assert pa.total_allocated_bytes() == before


def test_a_result_may_outlive_its_input():
    pa = pytest.importorskip("pyarrow")
    from embag._columns._cdata import Source  # noqa: PLC0415

    (chunk,) = Source(pa.array([[1, 2, 3]] * 1000)).read_chunks()
    items = chunk.child(0).values()
    del chunk
    gc.collect()
    assert (items.reshape(1000, 3) == [1, 2, 3]).all()
    assert not items.flags.writeable


# --- CSR ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csr_array", "csr_matrix"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.bool_])
def test_a_csr_matrix_is_multiplied(kind, dtype):
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.random.default_rng(2).integers(0, 3, (20, 10)).astype(dtype)
    matrix = getattr(sparse, kind)(dense)
    got = embag.embedding_bag(matrix, W, mode="sum")
    np.testing.assert_allclose(got, dense.astype(np.float32) @ W, rtol=1e-5, atol=1e-5)
    part = embag.embedding_bag(matrix[3:9], W, mode="sum")
    assert_same_bits(part, got[3:9])
    lists = [np.flatnonzero(row).tolist() for row in dense]
    for mode in ("min", "max"):  # of the named rows, whatever the data
        assert_same_bits(embag.embedding_bag(matrix, W, mode=mode), pool_arrays(lists, mode=mode))
    got = embag.embedding_bag(matrix, W, mode="mean")
    expected = [np.average(W, axis=0, weights=row) if row.any() else 0 * W[0] for row in dense]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_matrices_of_the_plain_call(seen):
    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(4)
    ids, offsets, data = rng.integers(0, 10, 9), np.array([0, 2, 2, 7]), rng.random(9, np.float32)
    tables = W, W.astype(np.float16), embag.quantize(W, bits=8)
    for dtype, table in itertools.product((np.int32, np.int64), tables):
        parts = ids.astype(dtype), offsets.astype(dtype)
        matrix = sparse.csr_array((3, 10), dtype=np.float32)
        matrix.data, (matrix.indices, matrix.indptr) = data, parts  # the last two in no row
        for options in ({}, {"padding_idx": int(ids[0])}, {"out": np.empty((3, 6), np.float32)}):
            for mode, weights in (("sum", data), ("mean", data), ("max", None)):
                expected = embag.embedding_bag(
                    *(parts[0], table, parts[1]),
                    mode=mode,
                    per_sample_weights=weights,
                    include_last_offset=True,
                    padding_idx=options.get("padding_idx"),
                )
                got = embag.embedding_bag(matrix, table, mode=mode, **options)
                assert_same_bits(got, expected)
    assert not seen


def test_matrices_with_changed_parts():
    sparse = pytest.importorskip("scipy.sparse")
    parts = np.ones(4, np.float32), np.array([1, 2, 3, 4]), np.array([0, 1, 4])
    for name, value, kind, message in (
        ("data", parts[0][:3], ValueError, "3 of indptr for 2 rows, 4 indices and 3 data"),
        ("indptr", parts[2][:2], ValueError, "2 of indptr for 2 rows, 4 indices and 4 data"),
        ("indices", np.array([1, 2, 3, 10]), IndexError, r"^input\[1\]\[2\] = 10 is out of range"),
        ("indptr", np.array([0, 5, 4]), ValueError, "got list 0 from 0 to 5"),
        ("indices", np.ones(4), TypeError, "lists of integers, got lists of float64"),
    ):
        matrix = sparse.csr_array(parts, (2, 10))
        setattr(matrix, name, value)
        for mode in ("sum", "mean"):
            with pytest.raises(kind, match=message):
                embag.embedding_bag(matrix, W, mode=mode)
    matrix = sparse.csr_array(parts, (2, 10))
    matrix.indptr = np.array([1, 2, 4])  # a part of longer arrays
    assert_same_bits(
        embag.embedding_bag(matrix, W, mode="sum"), pool_arrays([[2], [3, 4]], mode="sum")
    )


class LikeMatrix:
    """What a matrix of SciPy has."""

    format, ndim, shape = "csr", 2, (1, 10)
    indices, indptr, data = np.array([3]), np.array([0, 1]), np.full(1, 2, np.float32)


@pytest.mark.parametrize(
    "part",
    [
        {},
        {"shape": [1, 10]},
        {"shape": (1, 10, 1)},
        {"shape": (np.int64(1), 10)},
        {"shape": (1, np.int64(10))},
        {"indices": [3]},
        {"data": [2.0]},
    ],
    ids=str,
)
def test_parts_of_other_types(part):
    matrix = type("csr_array", (LikeMatrix,), {"__module__": "scipy.sparse"} | part)()
    assert_same_bits(embag.embedding_bag(matrix, W, mode="sum"), W[[3]] * 2)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"indices": np.ones((1, 1), int)}, "1 rows, 1 indices and 1 data, not all 1-D"),
        ({"indices": np.array(1), "data": np.array(2.0)}, "1 indices and 1 data, not all 1-D"),
        ({"data": np.ones(2, np.float32)}, "1 rows, 1 indices and 2 data"),
        ({"__module__": 5}, "input must be integers"),
    ],
    ids=str,
)
def test_parts_that_no_matrix_has(part, message):
    matrix = type("csr_array", (LikeMatrix,), {"__module__": "scipy.sparse"} | part)()
    with pytest.raises((TypeError, ValueError), match=f"^input must .*{message}|^{message}"):
        embag.embedding_bag(matrix, W, mode="sum")


def test_matrices_that_do_not_fit():
    sparse = pytest.importorskip("scipy.sparse")
    for matrix, options, kind, message in (
        (sparse.csr_array((3, 9)), {}, ValueError,
         "input must have as many columns as the table has rows, 10, where it is a matrix, got 9"),
        (sparse.csc_array((3, 10)), {}, TypeError,
         "input must be a CSR matrix where it is sparse, got csc with 2 axes: see tocsr()"),
        (sparse.csr_array((3, 10)), {"per_sample_weights": [[1.0]] * 3}, ValueError,
         "per_sample_weights must be None where input has weights of its own, got list"),
        (sparse.csr_array((3, 10)), {"per_sample_weights": sparse.csr_array((3, 10))}, ValueError,
         "per_sample_weights must be None where input has weights of its own, got csr_array"),
        (sparse.csr_array(np.ones((3, 10), complex)), {}, TypeError,
         "the data of input must cast to float32 as 'same_kind', got dtype complex128"),
    ):  # fmt: skip
        with pytest.raises(kind) as caught:
            embag.embedding_bag(matrix, W, mode="sum", **options)
        assert str(caught.value) == message


# --- Other options --------------------------------------------------------------------


def test_max_norm_scales_each_row_once(blocks):
    pa = pytest.importorskip("pyarrow")
    column = pa.chunked_array([LISTS[:2], LISTS[2:]]).cast(pa.list_(pa.int16()))
    ids, offsets = arrays(LISTS, np.int64)
    a, b = W.copy(), W.copy()
    got = embag.embedding_bag(column, a, max_norm=0.5)
    expected = embag.embedding_bag(ids, b, offsets, max_norm=0.5, include_last_offset=True)
    assert_same_bits(got, expected)
    assert_same_bits(a, b)
    assert not np.array_equal(a, W)


def test_ids_in_the_memory_of_a_table_that_is_scaled():
    pa = pytest.importorskip("pyarrow")
    memory = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    ids = memory.reshape(-1)[:4].view(np.int32)
    ids[:] = [3, 2, 1, 0]
    expected_table = memory.copy()
    expected = embag.embedding_bag([[3, 2], [1, 0]], expected_table, max_norm=0.5)
    column = pa.ListArray.from_arrays(pa.array([0, 2, 4], pa.int32()), pa.array(ids))
    assert column.values.buffers()[1].address == address(ids)
    assert_same_bits(embag.embedding_bag(column, memory, max_norm=0.5), expected)
    assert_same_bits(memory, expected_table)


def test_invalid_ids_are_counted(blocks):
    pa = pytest.importorskip("pyarrow")
    lists = [[1, -1], [50, None], None, [2, 3]]
    column = pa.chunked_array([lists[:1], lists[1:]], pa.list_(pa.int16()))
    got, n = embag.embedding_bag(column, W, invalid="skip", return_n_invalid=True)
    assert_same_bits(got, pool_arrays([[1], [], [], [2, 3]]))
    assert n == 2


def test_out_is_written_only_if_no_error_is_raised(blocks):
    pa = pytest.importorskip("pyarrow")
    out = np.full((3, 6), 7, np.float32)
    with pytest.raises(IndexError, match=r"^input\[2\]\[1\] = 10 is out of range"):
        embag.embedding_bag(pa.chunked_array([[[1], [2]], [[3, 10]]]), W, out=out)
    assert (out == 7).all()
    good = pa.chunked_array([[[1], [2]], [[3, 9]]])
    assert embag.embedding_bag(good, W, out=out) is out
    assert_same_bits(out, pool_arrays([[1], [2], [3, 9]]))
    ids = np.zeros(18, np.int32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(ids), 6)
    with pytest.raises(ValueError, match=r"^out must share no memory with input, got an overlap"):
        embag.embedding_bag(column, W, out=ids.view(np.float32).reshape(3, 6))


def test_a_table_without_columns_has_its_ids_checked():
    with pytest.raises(IndexError, match=r"^input\[1\]\[0\] = 10 is out of range"):
        embag.embedding_bag([[1, 2], [10]], W[:, :0])
    assert embag.embedding_bag([[1, 2], [9]], W[:, :0]).shape == (2, 0)


def test_more_empty_lists_than_can_be_counted():
    pa = pytest.importorskip("pyarrow")
    column = pa.FixedSizeListArray.from_buffers(
        pa.list_(pa.int8(), 0), 2**46, [None], children=[pa.array([], pa.int8())]
    )
    assert embag.embedding_bag(column, W[:, :0]).shape == (2**46, 0)
    with pytest.raises(MemoryError):
        embag.embedding_bag(column, W)


# --- Lengths --------------------------------------------------------------------------


def test_lengths_instead_of_offsets():
    ids, offsets = arrays(LISTS, np.int64)
    for lengths in ([len(bag) for bag in LISTS], np.diff(offsets).astype(np.uint8)):
        assert_same_bits(embag.embedding_bag(ids, W, lengths=lengths), pool_arrays(LISTS))
        empty = embag.empty_bags(ids, lengths=lengths)
        assert (empty == [len(bag) == 0 for bag in LISTS]).all()
    assert embag.embedding_bag([], W, lengths=[]).shape == (0, 6)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"lengths": [1, 1]}, ValueError,
         "lengths must add up to the 3 entries of input, got 2"),
        ({"lengths": [4, -1]}, ValueError,
         "lengths must be 0 to 3, the entries of input, got lengths[0] = 4"),
        ({"lengths": [1, -1, 3]}, ValueError,
         "lengths must be 0 to 3, the entries of input, got lengths[1] = -1"),
        ({"lengths": np.full(3, 2**64 - 1, np.uint64)}, ValueError,
         f"lengths must be 0 to 3, the entries of input, got lengths[0] = {2**64 - 1}"),
        ({"lengths": [[3]]}, ValueError, "lengths must be 1-D, got shape (1, 1)"),
        ({"lengths": [1.0, 2.0]}, TypeError, "lengths must be integers, got dtype float64"),
        ({"lengths": [3], "offsets": [0]}, ValueError,
         "offsets must be None where lengths is given, got list"),
        ({"lengths": [3], "include_last_offset": True}, ValueError,
         "include_last_offset must be False where lengths is given, got True"),
        ({"lengths": [3], "input": [[1, 2, 3]]}, ValueError,
         "input must be 1-D where lengths is given, got shape (1, 3)"),
    ],
)  # fmt: skip
def test_bad_lengths(arguments, kind, message):
    arguments = {"input": [1, 2, 3], **arguments}
    for call in (lambda **a: embag.embedding_bag(weight=W, **a), embag.empty_bags):
        with pytest.raises(kind) as caught:
            call(**arguments)
        assert str(caught.value) == message


def test_empty_bags_of_arrays():
    assert embag.empty_bags([1, 2, 3], [0, 0, 2]).tolist() == [True, False, False]
    assert embag.empty_bags([1, 2], [0, 0, 2, 2]).tolist() == [True, False, True, True][:4]
    assert embag.empty_bags([1, 2], [0, 0, 2], include_last_offset=True).tolist() == [True, False]
    assert embag.empty_bags(np.zeros((2, 0), int)).tolist() == [True, True]
    assert embag.empty_bags(np.zeros((2, 1), int)).tolist() == [False, False]
    with pytest.raises(ValueError, match=r"^offsets must be given where input is 1-D"):
        embag.empty_bags([1, 2])
    with pytest.raises(ValueError, match=r"^offsets must not decrease"):
        embag.empty_bags([1, 2, 3], [0, 2, 1])


# --- Errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["list", "polars", "lists", "awkward", "table_of_one_column"])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_the_first_id_out_of_range_is_named(name, dtype, blocks):
    lists = [[1], [], [2, 3, 10, 11], [12]]
    with pytest.raises(IndexError) as caught:
        embag.embedding_bag(MAKERS[name].make(lists, np.dtype(dtype)), W)
    assert str(caught.value) == "input[2][2] = 10 is out of range for a table of 10 rows"


def test_ids_after_nulls_keep_their_position(blocks):
    pa = pytest.importorskip("pyarrow")
    lists = [[1, None], None, [None, 3, None, 2**64 - 1]]
    column = pa.array(lists, pa.list_(pa.uint64()))
    with pytest.raises(IndexError) as caught:
        embag.embedding_bag(column, W)
    assert str(caught.value) == (
        f"input[2][3] = {2**64 - 1} is out of range for a table of 10 rows"
    )


def test_inputs_that_are_not_lists_of_integers():
    pa = pytest.importorskip("pyarrow")
    numbers, strings = pa.array([[1.5]]), pa.array([["a"]])
    for column, kind, message in (
        (numbers, TypeError, "input must be lists of integers, got lists of float64"),
        (strings, TypeError, "input must be lists of numbers, got lists of strings"),
        (pa.array([[True]]), TypeError, "input must be lists of numbers, got lists of booleans"),
        (pa.array([[[1]]]), TypeError,
         r"input must be lists of numbers, got lists of Arrow's type '\+l'"),
        (pa.ListArray.from_arrays([0, 1], pa.array(["a"]).dictionary_encode()), TypeError,
         "input must be lists of numbers, got lists of dictionaries of strings"),
        (pa.table({"a": [[1]], "b": [[1]]}), TypeError,
         "input must be one column, got Table of several"),
        ([[1], 2], TypeError, r"input\[1\] must be a list or an array of integers, got 2"),
        ([[1], ["a", "b"]], TypeError, "input must be lists of numbers, got lists of strings"),
        ([[1], [1.5, 2]], TypeError, "input must be lists of integers, got lists of float64"),
        ([[1], [[2, 3], [4]]], ValueError, "input must be lists of numbers, got others"),
        (np.array([[1], "ab"], object), TypeError, r"input\[1\] must be a list or an array"),
        (pa.array([1, 2]), ValueError, "offsets must be given where input is 1-D, got None"),
    ):  # fmt: skip
        with pytest.raises(kind, match=f"^{message}"):
            embag.embedding_bag(column, W)


def test_arrow_arrays_of_integers_are_plain_arrays():
    pa = pytest.importorskip("pyarrow")
    got = embag.embedding_bag(pa.array([1, 2, 3]), W, pa.array([0, 2]))
    assert_same_bits(got, embag.embedding_bag([1, 2, 3], W, [0, 2]))


def test_array_likes_are_plain_arrays(monkeypatch):
    pd, pl, pa, ak = map(pytest.importorskip, ("pandas", "polars", "pyarrow", "awkward"))
    square = {"a": [1, 2], "b": [3, 4]}
    expected = embag.embedding_bag([[1, 3], [2, 4]], W)
    for frame in (pd.DataFrame(square), pl.DataFrame(square), pa.table(square)):
        assert_same_bits(embag.embedding_bag(frame, W), expected)
    flat = embag.embedding_bag([1, 2, 3], W, [0, 2])
    sparse = pd.Series(pd.arrays.SparseArray([1, 2, 3]))
    nullable = pd.Series([1, 2, 3], dtype="Int64")
    for ids in (ak.Array([1, 2, 3]), sparse, nullable):
        assert_same_bits(embag.embedding_bag(ids, W, [0, 2]), flat)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert_same_bits(embag.embedding_bag(nullable, W, [0, 2]), flat)
    assert_same_bits(embag.embedding_bag(pd.DataFrame(square), W), expected)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 9, 4], "got list 0 from 0 to 9"),
        ([0, 3, 1], "got list 1 from 3 to 1"),
        ([2, -1, 3], "got list 0 from 2 to -1"),
        ([4, 4, 4], None),
    ],
)
@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_offsets_out_of_bounds(offsets, message, dtype):
    pa = pytest.importorskip("pyarrow")
    kind = getattr(pa, dtype)()
    items = pa.array([1, 2, 3, 4], kind)
    bounds = pa.py_buffer(np.array(offsets, np.int32))
    column = pa.Array.from_buffers(pa.list_(kind), 2, [None, bounds], children=[items])
    if message is None:
        assert not embag.embedding_bag(column, W).any()
        return
    for call in (lambda: embag.embedding_bag(column, W), lambda: embag.empty_bags(column)):
        with pytest.raises(ValueError, match=f"^input must have lists that lie in .*{message}"):
            call()


# --- Hostile producers ----------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda array: setattr(array, "length", -1),
        lambda array: setattr(array, "length", 2**62),
        lambda array: setattr(array, "offset", -5),
        lambda array: setattr(array, "n_children", 0),
        lambda array: setattr(array, "n_buffers", 1),
        lambda array: setattr(array.children[0].contents, "length", -1),
        lambda array: setattr(array.children[0].contents, "n_buffers", 0),
        lambda array: array.buffers.__setitem__(1, None),
        lambda array: setattr(array, "release", LET_BE) or setattr(array, "buffers", None),
        lambda array: setattr(array, "release", LET_BE) or setattr(array, "children", None),
        lambda array: array.children[0].contents.buffers.__setitem__(1, None),
        lambda array: setattr(array, "null_count", 1) or setattr(array, "n_buffers", 0),
    ],
)
def test_impossible_counts(change):
    pa = pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=r"^input must be a column, got Exports: it must follow "):
        embag.embedding_bag(Exports(pa.array([[1, 2], [3]]), change), W)


def test_structs_that_say_less():
    pa = pytest.importorskip("pyarrow")
    column = pa.array([[1, 2], [3]])
    expected = embag.embedding_bag(column, W)
    for change in (
        {"change": lambda array: setattr(array, "null_count", -1)},  # not counted
        {"change_schema": lambda schema: setattr(schema, "name", None)},
    ):
        assert_same_bits(embag.embedding_bag(Exports(column, **change), W), expected)
    column = Exports(  # without room for validity
        pa.array([[1, 2]], pa.list_(pa.int64(), 2)),
        lambda array: setattr(array, "null_count", -1) or setattr(array, "n_buffers", 0),
    )
    assert_same_bits(embag.embedding_bag(column, W), expected[:1])


def test_types_that_cannot_be():
    pa = pytest.importorskip("pyarrow")
    for change, message in (
        (lambda schema: setattr(schema, "children", None), "a type without its children"),
        (lambda schema: setattr(schema, "n_children", 0), "an array without its children"),
    ):
        column = Exports(
            pa.array([[1]]),
            change_schema=lambda schema, change=change: (
                setattr(schema, "release", LET_BE) or change(schema)
            ),
        )
        with pytest.raises(ValueError, match=f"it must follow .* got {message}"):
            embag.embedding_bag(column, W)
    deep = pa.int64()
    for _ in range(20):
        deep = pa.list_(deep)
    with pytest.raises(TypeError, match="input must be lists of numbers, got lists of"):
        embag.embedding_bag(pa.array([None], deep), W)


class WrongProducer:
    """A producer that returns the wrong object."""

    def __init__(self, returned):
        self.returned = returned

    def __arrow_c_stream__(self, requested_schema=None):
        if isinstance(self.returned, Exception):
            raise self.returned
        return self.returned


def test_producers_that_return_something_else():
    pa = pytest.importorskip("pyarrow")
    used = pa.chunked_array([[[1]]]).__arrow_c_stream__()
    assert embag.embedding_bag(WrongProducer(used), W).shape == (1, 6)
    for returned in (None, 1, used, pa.array([[1]]).__arrow_c_array__()[1], KeyError("x")):
        with pytest.raises(ValueError, match=r"^input must be a column, got WrongProducer: "):
            embag.embedding_bag(WrongProducer(returned), W)


def test_a_pyarrow_array_that_is_longer_than_its_memory():
    """pyarrow reads such files without a check."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"ids": pa.array([[1, 2]] * 77, pa.list_(pa.int64()))})
    written = pa.BufferOutputStream()
    with pa.ipc.new_stream(written, table.schema) as writer:
        writer.write_table(table)
    before, after = (np.int64(n).tobytes() for n in (77, 7700))
    with pa.ipc.open_stream(written.getvalue().to_pybytes().replace(before, after)) as reader:
        column = reader.read_all()["ids"]
    assert len(column) == 7700
    message = r"^input must be a valid column, got ChunkedArray: .*Buffer #1 too small in array"
    with pytest.raises(ValueError, match=message):
        embag.embedding_bag(column, W)
    weights = pa.chunked_array([[[1.0, 1.0]] * 7700])
    with pytest.raises(ValueError, match=r"^input must be a valid column"):
        embag.embedding_bag(column, W, mode="sum", per_sample_weights=weights)


def test_a_stream_that_fails():
    pa = pytest.importorskip("pyarrow")

    def batches():
        yield pa.record_batch({"ids": [[1]]})
        raise RuntimeError("the disk is gone")

    schema = pa.schema({"ids": pa.list_(pa.int64())})
    with pytest.raises(ValueError, match=r"^input must be a column, .*the disk is gone"):
        embag.embedding_bag(pa.RecordBatchReader.from_batches(schema, batches()), W)
    with pytest.raises(ValueError, match=r"^input must be a column, .*its stream failed: error 5"):
        embag.embedding_bag(FailingStream(), W)


# --- Collections ----------------------------------------------------------------------


def test_features_may_be_ragged(blocks):
    pa = pytest.importorskip("pyarrow")
    pl = pytest.importorskip("polars")
    tables = {"a": W, "b": W[:7].astype(np.float64)}
    features = [
        embag.Feature("x", "a"),
        embag.Feature("y", "b", mode="mean"),
        embag.Feature("z", "a", mode="max"),
        embag.Feature("w", "a"),
    ]
    ebc = embag.EmbeddingBagCollection(tables, features)
    lists, few = [[1, 9], [], [3], [4, None, 5]], [[1], [2, 3], None, [6, 6]]
    weights = as_weights(lists)
    square = np.arange(8).reshape(4, 2)
    ids, offsets = arrays(few, np.int64)
    out = np.zeros((4, 24), np.float32)
    for x in (pa.chunked_array([lists[:1], lists[1:]]), pl.Series(lists, dtype=pl.List(pl.UInt8))):
        for y in (pa.chunked_array([few[:3], few[3:]]), (ids, offsets[:-1]), few):
            got = ebc(
                {"x": x, "y": y, "z": square, "w": pa.array(lists)},
                per_sample_weights={"x": pa.array(weights), "w": weights},
                out=out,
            )
            assert got is out
            parts = ebc.split(got)
            assert_same_bits(parts["x"], pool_arrays(lists, weights, mode="sum"))
            assert_same_bits(parts["w"], parts["x"])
            assert_same_bits(parts["y"], pool_arrays(few))
            assert_same_bits(parts["z"], embag.embedding_bag(square, W, mode="max"))


def test_ids_of_a_call_that_raises_are_not_counted():
    pa = pytest.importorskip("pyarrow")
    feature = embag.Feature("x", "a")
    ebc = embag.EmbeddingBagCollection({"a": W}, [feature], invalid="skip")
    ids = pa.chunked_array([[[1, 99]], [[2, 3]]])
    weights = pa.chunked_array([[[1.0, 1.0]], [[2.0]]])
    with pytest.raises(ValueError, match=r"^feature 'x': per_sample_weights must have as many"):
        ebc({"x": ids}, per_sample_weights={"x": weights})
    assert ebc.n_invalid == {"x": 0}
    ebc({"x": ids})
    assert ebc.n_invalid == {"x": 1}


def test_ragged_features_that_do_not_fit():
    pa = pytest.importorskip("pyarrow")
    sparse = pytest.importorskip("scipy.sparse")
    features = [embag.Feature("x", "a"), embag.Feature("y", "a")]
    ebc = embag.EmbeddingBagCollection({"a": W}, features)
    out = np.full((2, 12), 7, np.float32)
    column = pa.array([[1], [2]])
    for values, weights, kind, message in (
        ({"x": column, "y": pa.array([[1], [2, 10]])}, None, IndexError,
         r"feature 'y': ids\[1\]\[1\] = 10 is out of range for a table of 10 rows"),
        ({"x": column, "y": pa.array([[1]])}, None, ValueError,
         "values must have the same number of bags for every feature, got 2 for 'x' and 1"),
        ({"x": column, "y": (column, [0, 1])}, None, ValueError,
         "feature 'y': offsets must be None where input is ragged"),
        ({"x": column, "y": ([1, 2], [1, 1])}, None, ValueError,
         r"feature 'y': offsets must start at 0, got offsets\[0\] = 1"),
        ({"x": column, "y": sparse.csr_array((2, 9))}, None, ValueError,
         "feature 'y': ids must have as many columns as the table has rows, 10"),
        ({"x": column, "y": column}, {"y": [[1.0], [2.0, 3.0]]}, ValueError,
         "feature 'y': per_sample_weights must have as many entries in each list as ids"),
    ):  # fmt: skip
        with pytest.raises(kind, match=f"^{message}"):
            ebc(values, per_sample_weights=weights, out=out)
        assert (out == 7).all()
