"""Arrow columns of ids with weights: maps, structs of two lists, and lists of structs."""

import tracemalloc

import numpy as np
import pytest
from arrow_exports import Exports
from cases import assert_same_bits
from list_columns import TABLE, expected
from ragged_columns import arrays

import embag
from embag._columns import pieces

IDS = [[3, 1, 4], [], [1], None, [59, 2, 6, 5, 3], [], [8, 9, 7]]
WEIGHTS = [None if bag is None else [0.5 + id / 7 for id in bag] for bag in IDS]
# With null ids, whose weights are null or not.
SOME_NULL = [[3, None], None, [], [None], [5, None, 2]]
SOME_WEIGHTS = [[0.5, None], None, [], [2.0], [1.5, 7.0, -1.0]]


def pairs_of(ids, weights):
    return [
        None if bag is None else list(zip(bag, factors, strict=True))
        for bag, factors in zip(ids, weights, strict=True)
    ]


def as_map(pa, ids, weights, id_type, weight_type):
    return pa.array(pairs_of(ids, weights), pa.map_(id_type, weight_type))


def as_struct(kind):
    def make(pa, ids, weights, id_type, weight_type):
        lists = [getattr(pa, kind)(item) for item in (id_type, weight_type)]
        rows = [
            None if bag is None else {"items": bag, "shares": factors}
            for bag, factors in zip(ids, weights, strict=True)
        ]
        fields = [pa.field("items", lists[0]), pa.field("shares", lists[1])]
        return pa.array(rows, pa.struct(fields))

    return make


def as_list_of_structs(kind):
    def make(pa, ids, weights, id_type, weight_type):
        fields = [pa.field("item", id_type), pa.field("share", weight_type)]
        rows = [
            None if bag is None else [{"item": i, "share": w} for i, w in bag]
            for bag in pairs_of(ids, weights)
        ]
        return pa.array(rows, getattr(pa, kind)(pa.struct(fields)))

    return make


LAYOUTS = {
    "map": as_map,
    "struct": as_struct("list_"),
    "struct_of_large_lists": as_struct("large_list"),
    "struct_of_list_views": as_struct("list_view"),
    "list_of_structs": as_list_of_structs("list_"),
    "large_list_of_structs": as_list_of_structs("large_list"),
    "list_view_of_structs": as_list_of_structs("large_list_view"),
}


def chunked(pa, column):
    cuts = [column[i : i + 2] for i in range(0, len(column), 2)]
    return pa.chunked_array([column[:0], *cuts], column.type)


def by_polars(pa, column):
    pl = pytest.importorskip("polars")
    if pa.types.is_map(column.type):
        pytest.skip("polars has no maps")
    if "view" in str(column.type):
        pytest.skip("polars reads no list views")
    return pl.Series(column)


def by_pandas(pa, column):
    pd = pytest.importorskip("pandas")
    return pd.Series(column, dtype=pd.ArrowDtype(column.type))


def by_duckdb(pa, column):
    duckdb = pytest.importorskip("duckdb")
    connection = duckdb.connect()
    connection.register("baskets", pa.table({"basket": column}))
    return connection.sql("SELECT basket FROM baskets")


CONTAINERS = {
    "array": lambda pa, column: column,
    "slice": lambda pa, column: pa.concat_arrays([column[:2], column, column[:1]]).slice(
        2, len(column)
    ),
    "chunks": chunked,
    "table": lambda pa, column: pa.table({"basket": chunked(pa, column)}),
    "polars": by_polars,
    "pandas": by_pandas,
    "nanoarrow": lambda pa, column: pytest.importorskip("nanoarrow").Array(column),
    "duckdb": by_duckdb,
}

BY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@pytest.fixture(params=[None, 3], ids=["blocks_as_they_are", "small_blocks"])
def blocks(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(pieces, "BLOCK_BAGS", request.param)
        monkeypatch.setattr(pieces, "BLOCK_ITEMS", request.param + 1)


def pool(ids, weights, mode):
    """Pool lists as plain arrays, without null ids and their weights."""
    kept = [
        [w for i, w in zip(bag or (), factors or (), strict=True) if i is not None]
        for bag, factors in zip(ids, weights, strict=True)
    ]
    return expected(ids, None if mode in ("max", "min") else kept, mode=mode)


@BY_LAYOUT
@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
def test_weights_of_the_column_are_used(layout, container, mode):
    pa = pytest.importorskip("pyarrow")
    column = container(pa, layout(pa, IDS, WEIGHTS, pa.int64(), pa.float64()))
    assert_same_bits(embag.embedding_bag(column, TABLE, mode=mode), pool(IDS, WEIGHTS, mode))


@BY_LAYOUT
@pytest.mark.parametrize("types", [("int32", "float32"), ("uint8", "float16"), ("uint64", "int8")])
def test_numbers_of_every_width(layout, types, blocks):
    pa = pytest.importorskip("pyarrow")
    weights = [None if bag is None else [id % 5 for id in bag] for bag in IDS]
    column = layout(pa, IDS, weights, *(getattr(pa, name)() for name in types))
    got = embag.embedding_bag(column, TABLE, mode="sum")
    assert_same_bits(got, pool(IDS, weights, "sum"))


@BY_LAYOUT
def test_null_lists_are_empty_and_null_ids_are_skipped(layout, blocks):
    pa = pytest.importorskip("pyarrow")
    if layout is as_map:
        pytest.skip("keys of maps are never null")
    column = layout(pa, SOME_NULL, SOME_WEIGHTS, pa.int64(), pa.float32())
    for mode in ("sum", "mean", "max"):
        got = embag.embedding_bag(column, TABLE, mode=mode)
        assert_same_bits(got, pool(SOME_NULL, SOME_WEIGHTS, mode))
    assert embag.empty_bags(column).tolist() == [False, True, True, True, False]


def test_lists_of_one_size(blocks):
    pa = pytest.importorskip("pyarrow")
    ids, weights = [[3, 1], None, [5, None], [9, 9]], [[0.5, 2.0], None, [1.0, None], [3.0, -1.0]]
    rows = [None if bag is None else list(bag) for bag in pairs_of(ids, weights)]
    entry = pa.struct([("item", pa.int64()), ("share", pa.float32())])
    column = pa.array([[(7, 7.0), None], *rows, None], pa.list_(entry, 2))
    for some in (column.slice(1, 4), pa.chunked_array([column[1:3], column[3:5]])):
        got = embag.embedding_bag(some, TABLE, mode="sum")
        assert_same_bits(got, pool(ids, weights, "sum"))
    fields = [pa.array(ids, pa.list_(pa.int64(), 2)), pa.array(weights, pa.list_(pa.float32(), 2))]
    structs = pa.StructArray.from_arrays(fields, ["ids", "weights"])
    got = embag.embedding_bag(structs.slice(2), TABLE, mode="sum")
    assert_same_bits(got, pool(ids[2:], weights[2:], "sum"))


def test_null_structs_are_skipped_ids(blocks):
    pa = pytest.importorskip("pyarrow")
    entry = pa.struct([("item", pa.int64()), ("share", pa.float32())])
    rows = [[(3, 0.5), None, (None, None)], [None], [(1, 2.0)]]
    column = pa.chunked_array([pa.array(rows, pa.list_(entry)), pa.array(rows, pa.list_(entry))])
    ids, weights = [[3], [], [1]], [[0.5], [], [2.0]]
    got = embag.embedding_bag(column, TABLE, mode="sum")
    assert_same_bits(got, pool(ids * 2, weights * 2, "sum"))


def test_a_null_struct_hides_its_lists():
    pa = pytest.importorskip("pyarrow")
    fields = [pa.array([[1, 2], [3]]), pa.array([[1.0, 2.0], [3.0]])]
    column = pa.StructArray.from_arrays(fields, ["ids", "weights"], mask=pa.array([True, False]))
    got = embag.embedding_bag(column, TABLE, mode="sum")
    assert_same_bits(got, pool([None, [3]], [None, [3.0]], "sum"))
    assert embag.empty_bags(column).tolist() == [True, False]


@BY_LAYOUT
def test_a_null_weight_is_an_error(layout):
    pa = pytest.importorskip("pyarrow")
    column = layout(pa, [[1], [2, 3]], [[1.0], [2.0, None]], pa.int64(), pa.float32())
    out = np.full((2, TABLE.shape[1]), 7, np.float32)
    with pytest.raises(ValueError, match=r"weights") as caught:
        embag.embedding_bag(column, TABLE, mode="sum", out=out)
    assert str(caught.value) == (
        "the weights of input must not be null where input is not, got a null in list 1"
    )
    assert (out == 7).all()
    maxima = expected([[1], [2, 3]], mode="max")
    assert_same_bits(embag.embedding_bag(column, TABLE, mode="max"), maxima)


def test_lists_of_other_lengths():
    pa = pytest.importorskip("pyarrow")
    column = pa.array([{"ids": [1, 2], "weights": [1.0]}])
    with pytest.raises(ValueError, match=r"^the weights of input must have as many entries in ea"):
        embag.embedding_bag(column, TABLE, mode="sum")


@BY_LAYOUT
def test_explicit_weights_beside_those_of_the_column(layout):
    pa = pytest.importorskip("pyarrow")
    for ids in ([[1], [2]], []):  # types decide
        column = layout(pa, ids, ids, pa.int64(), pa.float32())
        with pytest.raises(ValueError, match=r"^per_sample_weights must be None where input has w"):
            embag.embedding_bag(column, TABLE, mode="sum", per_sample_weights=pa.array(ids))


@BY_LAYOUT
def test_ids_and_weights_are_not_copied(layout, seen):
    pa = pytest.importorskip("pyarrow")
    if "view" in str(layout(pa, IDS, WEIGHTS, pa.int64(), pa.float32()).type):
        pytest.skip("offsets are computed")
    ids = [bag or [] for bag in IDS]
    column = layout(pa, ids, [w or [] for w in WEIGHTS], pa.int64(), pa.float32())
    flat, bounds = arrays(ids, np.int64)
    embag.embedding_bag(column, TABLE, mode="sum")
    ((indices, offsets, sample),) = seen
    assert (indices == flat).all()
    assert (offsets == bounds).all()
    for array in (indices, offsets, sample):
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_collections_by_name():
    pa = pytest.importorskip("pyarrow")
    features = [embag.Feature(mode, "t", mode=mode) for mode in ("sum", "mean", "max")]
    ebc = embag.EmbeddingBagCollection({"t": TABLE}, features)
    make = LAYOUTS.values()
    columns = [layout(pa, IDS, WEIGHTS, pa.int64(), pa.float64()) for layout in make]
    for column in columns:
        parts = ebc.split(ebc(dict.fromkeys(["sum", "mean", "max"], column)))
        for mode, part in parts.items():
            assert_same_bits(part, pool(IDS, WEIGHTS, mode))
        with pytest.raises(ValueError, match=r"^feature 'sum': per_sample_weights must be None"):
            ebc(
                dict.fromkeys(["sum", "mean", "max"], column),
                per_sample_weights={"sum": WEIGHTS},
            )


def test_types_that_are_not_ids_with_weights():
    pa = pytest.importorskip("pyarrow")
    entry = pa.struct([("a", pa.int64()), ("b", pa.float32()), ("c", pa.float32())])
    for column, message in (
        (pa.array([], pa.list_(entry)), "input must be lists of numbers, got lists of structs"),
        (pa.array([], pa.map_(pa.string(), pa.float32())),
         "input must be lists of numbers, got lists of strings"),
        (pa.array([], pa.map_(pa.int64(), pa.string())),
         "input must be lists of numbers, got lists of strings"),
        (pa.array([], pa.map_(pa.float32(), pa.float32())),
         "input must be lists of integers, got lists of float32"),
        (pa.table({"ids": [[1]], "weights": [[1.0]]}),
         "input must be one column, got Table of several"),
    ):  # fmt: skip
        with pytest.raises(TypeError) as caught:
            embag.embedding_bag(column, TABLE)
        assert str(caught.value) == message


def test_memory_does_not_grow_with_the_input():
    pa = pytest.importorskip("pyarrow")
    n = 500_000
    ids = pa.array(np.ones(4 * n, np.uint8))
    weights = pa.array(np.ones(4 * n, np.float32))
    bounds = pa.array(np.arange(0, 4 * n + 1, 4, dtype=np.int32))
    codes = pa.DictionaryArray.from_arrays(ids, pa.array([1, 2]))
    out = np.empty((n, 1), np.float32)
    for column in (
        pa.MapArray.from_arrays(bounds, ids, weights),
        pa.ListArray.from_arrays(bounds, codes),
        pa.MapArray.from_arrays(bounds, codes, weights),
    ):
        tracemalloc.start()
        embag.embedding_bag(column, TABLE[:, :1].copy(), mode="sum", out=out)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (out == out[0]).all()
        assert peak < 48e6  # converted at once, 2 million ids take more than 80 MB


# --- Dictionaries ---------------------------------------------------------------------


def encode(pa, lists, codes, values):
    """Return lists whose items are encoded by a dictionary of these values."""
    items = [code for bag in lists for code in bag]
    encoded = pa.DictionaryArray.from_arrays(pa.array(items, codes), pa.array(values, pa.int64()))
    bounds = np.cumsum([0, *map(len, lists)])
    return pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), encoded)


@pytest.mark.parametrize("codes", ["int8", "uint8", "int32", "uint64"])
def test_items_are_the_values_of_their_dictionary(codes, blocks):
    pa = pytest.importorskip("pyarrow")
    kind = getattr(pa, codes)()
    first = encode(pa, [[0, 2], [1, None], [], [2, 2, 2]], kind, [30, None, 50])
    second = encode(pa, [[1], [0, 0]], kind, [7, 8])
    lists = [[30, 50], [], [], [50, 50, 50], [8], [7, 7]]
    got = embag.embedding_bag(pa.chunked_array([first, second]), TABLE, mode="sum")
    assert_same_bits(got, expected(lists, mode="sum"))
    got = embag.embedding_bag(first.slice(1, 3), TABLE, mode="max")
    assert_same_bits(got, expected(lists[1:4], mode="max"))
    assert embag.empty_bags(first).tolist() == [False, True, True, False]


def test_a_dictionary_without_values():
    pa = pytest.importorskip("pyarrow")
    column = encode(pa, [[None], []], pa.int8(), [])
    assert not embag.embedding_bag(column, TABLE).any()


def test_ids_out_of_range_are_values_of_the_dictionary():
    pa = pytest.importorskip("pyarrow")
    column = encode(pa, [[0], [0, 1]], pa.int8(), [1, 999])
    with pytest.raises(IndexError, match=r"^input\[1\]\[1\] = 999 is out of range for a table"):
        embag.embedding_bag(column, TABLE)


@pytest.mark.parametrize("code", [-1, 2])
def test_codes_out_of_the_dictionary(code):
    pa = pytest.importorskip("pyarrow")
    codes = np.array([0, 1, code], np.int8)
    buffers = [None, pa.py_buffer(codes)]
    items = pa.DictionaryArray.from_buffers(
        pa.dictionary(pa.int8(), pa.int64()), 3, buffers, pa.array([1, 2])
    )
    column = pa.ListArray.from_arrays(pa.array([0, 1, 3], pa.int32()), items)
    for call in (lambda: embag.embedding_bag(column, TABLE), lambda: embag.empty_bags(column)):
        with pytest.raises(ValueError, match=rf"dictionary of 2 values, got {code} in list 1$"):
            call()


def test_ids_of_a_dictionary_may_have_weights():
    pa = pytest.importorskip("pyarrow")
    keys = pa.DictionaryArray.from_arrays(pa.array([1, 0, 1], pa.int8()), pa.array([5, 6]))
    column = pa.MapArray.from_arrays(
        pa.array([0, 2, 3], pa.int32()), keys, pa.array([0.5, 2.0, 3.0])
    )
    got = embag.embedding_bag(column, TABLE, mode="sum")
    assert_same_bits(got, pool([[6, 5], [6]], [[0.5, 2.0], [3.0]], "sum"))


# --- Hostile producers ----------------------------------------------------------------


def child(array, *path):
    for i in path:
        array = array.children[i].contents
    return array


@pytest.mark.parametrize(
    ("layout", "change"),
    [
        ("map", lambda array: setattr(child(array, 0), "length", -1)),
        ("map", lambda array: setattr(child(array, 0), "n_children", 1)),
        ("map", lambda array: setattr(child(array, 0, 1), "length", 2)),
        ("map", lambda array: setattr(child(array, 0, 1), "offset", 2**60)),
        ("map", lambda array: child(array, 0, 0).buffers.__setitem__(1, None)),
        ("struct", lambda array: setattr(child(array, 0), "length", 1)),
        ("struct", lambda array: setattr(child(array, 1), "n_children", 0)),
        ("struct", lambda array: setattr(array, "offset", 3)),
        ("struct", lambda array: setattr(child(array, 1, 0), "n_buffers", 1)),
        ("list_of_structs", lambda array: setattr(child(array, 0, 1), "length", 0)),
        ("list_of_structs", lambda array: setattr(child(array, 0), "offset", 1)),
    ],
)
def test_children_that_are_too_short(layout, change):
    pa = pytest.importorskip("pyarrow")
    column = LAYOUTS[layout](pa, [[1, 2], [3]], [[1.0, 2.0], [3.0]], pa.int64(), pa.float32())
    with pytest.raises(ValueError, match=r"^input must be a column, got Exports: it must follow "):
        embag.embedding_bag(Exports(column, change), TABLE, mode="sum")


@pytest.mark.parametrize("layout", ["map", "list_of_structs"])
def test_offsets_beyond_the_entries(layout):
    pa = pytest.importorskip("pyarrow")
    column = LAYOUTS[layout](pa, [[1, 2], [3]], [[1.0, 2.0], [3.0]], pa.int64(), pa.float32())
    short = Exports(column, lambda array: setattr(child(array, 0), "length", 2))
    with pytest.raises(ValueError, match=r"^input must have lists that lie in its 2 items"):
        embag.embedding_bag(short, TABLE, mode="sum")


def test_weights_that_are_fewer_than_their_lists_need():
    pa = pytest.importorskip("pyarrow")
    column = LAYOUTS["struct"](pa, [[1, 2], [3]], [[1.0, 2.0], [3.0]], pa.int64(), pa.float32())
    short = Exports(column, lambda array: setattr(child(array, 1, 0), "length", 2))
    with pytest.raises(ValueError, match=r"lists that lie in its 2 items, got list 1"):
        embag.embedding_bag(short, TABLE, mode="sum")


def test_codes_without_a_dictionary():
    pa = pytest.importorskip("pyarrow")
    column = encode(pa, [[0], [1]], pa.int8(), [1, 2])
    for change in (
        lambda array: setattr(child(array, 0), "dictionary", None),
        lambda array: child(array, 0).buffers.__setitem__(1, None),
    ):
        with pytest.raises(ValueError, match=r"^input must be a column, got Exports: it must fol"):
            embag.embedding_bag(Exports(column, change), TABLE)
