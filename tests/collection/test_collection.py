"""`EmbeddingBagCollection`: the bits of a loop over `embedding_bag`, in one call."""

import copy
import pickle
import re
from itertools import product

import numpy as np
import pytest
from cases import CONVERTED_INTEGERS, SWAPPED, assert_same_bits

import embag
from embag import EmbeddingBagCollection, Feature, QuantizedTable
from embag.quantized import row_bytes

try:
    from ml_dtypes import bfloat16
except ImportError:  # of some processors
    bfloat16 = np.float16

# --- Tables and features --------------------------------------------------------------


def quantized(n_rows, dim, bits, layout, seed):
    """Return a table of random bytes with finite scales and biases."""
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, (n_rows, row_bytes(bits, dim, layout)), np.uint8)
    factors = rng.standard_normal((n_rows, 2))
    if layout == "tbe":
        packed[:, :4] = factors.astype(np.float16).view(np.uint8)
    elif bits == 8:
        packed[:, dim:] = factors.astype(np.float32).view(np.uint8)
    else:
        packed[:, -4:] = factors.astype(np.float16).view(np.uint8)
    return QuantizedTable.from_packed(packed, bits, dim, layout)


def floats(n_rows, dim, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((n_rows, dim)).astype(dtype)


def features(*specs):
    """Return features with distinct names, from a (table, mode, padding_idx) each."""
    return [Feature(f"{table}/{i}", table, *rest) for i, (table, *rest) in enumerate(specs)]


_TABLES = {
    "f32": floats(50, 33),
    "f64": floats(40, 64, np.float64, 1) * 1e10,
    "f16": floats(30, 7, np.float16, 2),
    "bf16": floats(60, 100, bfloat16, 3),
    "q8": quantized(45, 64, 8, "fused", 4),
    "q4": quantized(35, 33, 4, "fused", 5),
    "q2": quantized(25, 7, 2, "fused", 6),
    "t8": quantized(45, 100, 8, "tbe", 7),
    "t4": quantized(35, 3, 4, "tbe", 8),
    "t2": quantized(25, 300, 2, "tbe", 9),
    "rows": floats(80, 20, seed=10)[::-2],
    "columns": floats(50, 40, np.float16, 11)[:, 3:36],
    "fortran": np.asfortranarray(floats(20, 9, np.float64, 12)),
    "none": floats(10, 0),
}
_TABLES |= {f"w{dim}": floats(30, dim, seed=dim) for dim in (1, 3, 7, 600)}
_TABLES |= {
    "q2_wide": quantized(20, 1030, 2, "fused", 14),
    "bf16_wide": floats(9, 511, bfloat16),
}
_TABLES["t2_none"] = quantized(10, 0, 2, "tbe", 13)
_TABLES["special"] = np.array([[np.nan, -0.0], [np.inf, -np.inf], [-0.0, np.nan]], np.float32)

SPECS = {
    "no_features": [],
    "one": [("f32",)],
    "one_wide": [("w600", "max")],
    "sums": [("f32",), ("w1",), ("w600",), ("w3",), ("w7",)],
    "modes": [("f32", "sum"), ("f32", "mean"), ("f32", "max"), ("f32", "mean", 3), ("f32",)],
    "padding": [("w7", mode, k) for mode in ("sum", "mean", "max") for k in (0, -1, None)],
    "encodings": [(name,) for name in ("f64", "f16", "bf16", "q8", "q4", "q2", "t8", "t4", "t2")],
    "encoded_means": [(n, "mean", 2) for n in ("f64", "f16", "bf16", "q8", "q4", "t8", "t2")],
    "encoded_maxima": [(n, "max", -3) for n in ("f64", "f16", "bf16", "q8", "q2", "t8", "t4")],
    "strided": [("rows",), ("columns",), ("fortran",), ("rows", "max")],
    "wider_than_a_block": [("q2_wide",), ("bf16_wide", "mean"), ("q2_wide", "max"), ("w600",)],
    "no_columns": [("none",), ("w3", "mean"), ("none", "max"), ("t2_none",), ("f16",)],
    "special": [("special",), ("special", "mean"), ("special", "max"), ("special", "sum", 0)],
    "many": [(name, mode) for name in _TABLES for mode in ("sum", "mean")],
}


def collection(name):
    """Make a collection; inside a test, it takes the kernels of the level under test."""
    specs = SPECS[name]
    used = {table for table, *_ in specs}
    tables = {name: table for name, table in _TABLES.items() if name in used}
    return EmbeddingBagCollection(tables, features(*specs))


# --- Batches --------------------------------------------------------------------------


def lengths_of(kind, n_features, rng):
    """Return the lengths of bags: (n_features, n_bags)."""
    if kind == "ragged":
        return rng.geometric(0.15, (n_features, 9)) - 1
    if kind == "even":
        return np.full((n_features, 5), 3)
    if kind == "ones":
        return np.ones((n_features, 12), np.int64)
    if kind == "one_huge":
        lengths = rng.integers(0, 3, (n_features, 6))
        lengths[n_features // 2 :][:1, 2] = 700
        return lengths
    shape = {"no_bags": (n_features, 0), "one_bag": (n_features, 1), "empty_bags": (n_features, 4)}
    return rng.integers(1, 6, shape[kind]) * (kind != "empty_bags")


BATCHES = ["ragged", "even", "ones", "one_huge", "no_bags", "one_bag", "empty_bags"]


def batch(ebc, kind, seed=0):
    """Return (ids, offsets) by feature, with n_bags + 1 offsets."""
    rng = np.random.default_rng(seed)
    parts = {}
    lengths = lengths_of(kind, len(ebc.features), rng)
    for feature, own in zip(ebc.features, lengths, strict=True):
        n_rows = ebc.tables[feature.table].shape[0]
        ids = rng.integers(0, n_rows, own.sum())
        parts[feature.name] = ids, np.concatenate([[0], np.cumsum(own)])
    return parts


def concatenate(parts):
    values, bounds, n = [np.zeros(0, np.int64)], [np.zeros(1, np.int64)], 0
    for ids, offsets in parts.values():
        values.append(ids)
        bounds.append(offsets[1:] + n)
        n += len(ids)
    return np.concatenate(values), np.concatenate(bounds)


def factors(parts, seed=0):
    """Return weights for all features, by feature and concatenated."""
    rng = np.random.default_rng(seed)
    own = {name: rng.standard_normal(len(ids), np.float32) for name, (ids, _) in parts.items()}
    return own, np.concatenate([np.zeros(0, np.float32), *own.values()])


def one_by_one(ebc, parts, weights=None, **options):
    """Return the expected result: `embedding_bag` for each feature."""
    columns = []
    for feature in ebc.features:
        table = ebc.tables[feature.table]
        if isinstance(table, np.ndarray) and table.dtype == np.float64:
            table = table.astype(np.float32)
        ids, offsets = parts[feature.name]
        result = embag.embedding_bag(
            ids,
            table,
            offsets,
            mode=feature.mode,
            padding_idx=feature.padding_idx,
            per_sample_weights=None if weights is None else weights.get(feature.name),
            include_last_offset=True,
            num_threads=1,
        )
        columns.append(result)
    return np.concatenate(columns, axis=1) if columns else np.zeros((0, 0), np.float32)


# --- Results --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("kind", BATCHES)
def test_bits_of_embedding_bag(name, kind, level, eager_threads):
    ebc = collection(name)
    parts = batch(ebc, kind)
    expected = one_by_one(ebc, parts)
    values, offsets = concatenate(parts)
    for index_dtype, offset_dtype in product((np.int32, np.int64), repeat=2):
        typed = {
            name: (ids.astype(index_dtype), bounds.astype(offset_dtype))
            for name, (ids, bounds) in parts.items()
        }
        starts = {name: (ids, bounds[:-1]) for name, (ids, bounds) in typed.items()}
        calls = [
            ("end to end", (values.astype(index_dtype), offsets.astype(offset_dtype)), {}),
            ("by name", (starts,), {}),
            ("by name, last offset", (typed,), {"include_last_offset": True}),
        ]
        if kind in ("even", "ones", "empty_bags"):
            shape = {"even": (5, 3), "ones": (12, 1), "empty_bags": (4, 0)}[kind]
            rows = {name: ids.reshape(shape) for name, (ids, _) in typed.items()}
            calls.append(("by name, 2-D", (rows,), {}))
            mixed = {name: (typed if i % 2 else rows)[name] for i, name in enumerate(rows)}
            calls.append(("by name, mixed", (mixed,), {"include_last_offset": True}))
        for way, arguments, options in calls:
            for n_threads in (1, 3):
                message = f"{way}, {index_dtype.__name__}, {n_threads} threads"
                result = ebc(*arguments, num_threads=n_threads, **options)
                assert_same_bits(result, expected, message)
        assert_same_bits(ebc(*calls[0][1]), expected)


@pytest.mark.parametrize("name", ["one", "sums", "encodings", "strided", "special"])
@pytest.mark.parametrize("kind", ["ragged", "ones", "one_huge", "no_bags"])
def test_weights(name, kind, level, eager_threads):
    specs = [(table,) for table, *_ in SPECS[name]]
    ebc = EmbeddingBagCollection(_TABLES, features(*specs))
    parts = batch(ebc, kind)
    own, whole = factors(parts)
    expected = one_by_one(ebc, parts, own)
    for n_threads in (1, 3, None):
        result = ebc(*concatenate(parts), whole, num_threads=n_threads)
        assert_same_bits(result, expected)
        result = ebc(parts, per_sample_weights=own, include_last_offset=True, num_threads=n_threads)
        assert_same_bits(result, expected)
    some = {name: weights for i, (name, weights) in enumerate(own.items()) if i % 2}
    result = ebc(parts, per_sample_weights=some, include_last_offset=True)
    assert_same_bits(result, one_by_one(ebc, parts, some))


def test_weights_for_the_sums_among_other_modes(level):
    ebc = EmbeddingBagCollection(
        {"t": _TABLES["f32"]}, features(("t", "max"), ("t",), ("t", "mean"), ("t", "sum", 4))
    )
    ids = np.arange(12).reshape(4, 3)
    weights = {"t/1": np.linspace(0, 1, 12).reshape(4, 3).tolist(), "t/3": ids.astype(np.float64)}
    result = ebc({f.name: ids for f in ebc.features}, per_sample_weights=weights)
    for feature in ebc.features:
        own = weights.get(feature.name)
        expected = embag.embedding_bag(
            ids,
            _TABLES["f32"],
            mode=feature.mode,
            padding_idx=feature.padding_idx,
            per_sample_weights=own,
        )
        assert_same_bits(result[:, ebc.slices[feature.name]].copy(), expected)


def test_bursts_of_prefetches_change_no_bits(level, eager_threads):
    # Tables above 16 MiB, tables that fit the caches, and some in between.
    rng = np.random.default_rng(0)
    packed = np.tile(_TABLES["q8"].packed, (6000, 1))
    tables = {
        "huge": rng.random((70_000, 64), dtype=np.float32),
        "huge_q8": QuantizedTable.from_packed(packed, 8, 64),
        "middle": rng.random((3000, 300), dtype=np.float32),
        "small": _TABLES["f32"],
    }
    names = ["small", "huge", "huge_q8", "middle", "huge", "small", "huge_q8"]
    ebc = EmbeddingBagCollection(
        tables, features(*((name, mode) for name in names for mode in ("sum", "mean")))
    )
    for kind in ("ragged", "ones", "one_huge"):
        parts = batch(ebc, kind)
        expected = one_by_one(ebc, parts)
        for n_threads in (1, 3):
            result = ebc(*concatenate(parts), num_threads=n_threads)
            assert_same_bits(result, expected)
            result = ebc(parts, include_last_offset=True, num_threads=n_threads)
            assert_same_bits(result, expected)


def test_literals():
    table = np.array([[1, 10], [2, 20], [4, 40]], np.float32)
    ebc = EmbeddingBagCollection(
        {"t": table, "u": table[:, :1]},
        [Feature("a", "t"), Feature("b", "u", "mean"), Feature("c", "t", "max", 2)],
    )
    values = [0, 1, 2, 2, 1, 2, 0, 1]
    offsets = [0, 2, 3, 3, 5, 8, 8]
    expected = [[3, 30, 0, 2, 20], [4, 40, 3, 0, 0]]
    assert ebc(values, offsets).tolist() == expected
    by_name = {
        "c": ([2, 0, 1], [0, 3]),
        "a": ([0, 1, 2], [0, 2]),
        "b": ([2, 1], [0, 0]),
    }
    assert ebc(by_name).tolist() == expected  # in whatever order


def test_float64_entries_are_rounded_when_read(level):
    tiny = np.nextafter(np.float64(1), 2)
    table = np.array([[tiny], [1e-9], [1e300]])
    ebc = EmbeddingBagCollection({"t": table}, features(("t",), ("t", "max")))
    with np.errstate(over="ignore"):
        expected = embag.embedding_bag([[0] * 9, [1] * 9], table.astype(np.float32), mode="sum")
    ids = np.array([[0] * 9, [1] * 9])
    result = ebc({"t/0": ids, "t/1": ids})
    assert_same_bits(result[:, :1].copy(), expected)
    assert result[0, 1] == 1
    assert ebc([2, 2], [0, 1, 2]).tolist() == [[np.inf, np.inf]]


@pytest.mark.parametrize("by_name", [False, True])
def test_tables_with_a_scale_for_each_row(by_name, level):
    q, scales = np.array([[1, 2], [3, 4], [5, 6]], np.int8), np.array([1, 10, 100], np.float32)
    table = embag.QuantizedTable.from_int8(q, scales)
    ebc = embag.EmbeddingBagCollection({"t": table}, [embag.Feature("a", "t")])
    result = ebc(
        {"a": np.array([[0, 1], [1, 2]])} if by_name else np.array([0, 1, 1, 2]),
        None if by_name else np.array([0, 2, 4]),
    )
    assert result.tolist() == [[31, 42], [530, 640]]


def test_a_call_reads_the_current_values_of_a_table():
    table = np.ones((3, 2), np.float32)
    ebc = EmbeddingBagCollection({"t": table}, features(("t",)))
    assert ebc([1], [0, 1]).tolist() == [[1, 1]]
    table[1] = 5
    assert ebc([1], [0, 1]).tolist() == [[5, 5]]


@pytest.mark.parametrize("dtype", CONVERTED_INTEGERS)
def test_other_integers_are_converted(dtype):
    ebc = collection("modes")
    parts = batch(ebc, "one_bag")
    expected = one_by_one(ebc, parts)
    values, offsets = (array.astype(dtype) for array in concatenate(parts))
    assert_same_bits(ebc(values, offsets), expected)
    named = {name: (ids.astype(dtype), own.astype(dtype)) for name, (ids, own) in parts.items()}
    assert_same_bits(ebc(named, include_last_offset=True), expected)


def test_lists_and_arrays_of_any_layout():
    ebc = collection("sums")
    parts = batch(ebc, "ragged")
    own, whole = factors(parts)
    expected = one_by_one(ebc, parts, own)
    values, offsets = concatenate(parts)

    def spaced(array):
        return np.repeat(array, 3)[::3]

    def unaligned(array):
        bytes_ = np.zeros(array.nbytes + 1, np.uint8)
        bytes_[1:] = np.ascontiguousarray(array).view(np.uint8)
        return bytes_[1:].view(array.dtype)

    def reversed_(array):
        return array[::-1].copy()[::-1]

    class Other:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    class Subclass(np.ndarray):
        pass

    def subclass(array):
        return array.view(Subclass)

    ways = [np.ndarray.tolist, spaced, unaligned, reversed_, Other, subclass, np.ma.masked_array]
    for given in ways:
        assert_same_bits(ebc(given(values), given(offsets), given(whole)), expected)
        for i in range(3):
            arguments = [values, offsets, whole]
            arguments[i] = given(arguments[i])
            assert_same_bits(ebc(*arguments), expected)
        named = {name: (given(ids), given(bounds)) for name, (ids, bounds) in parts.items()}
        weights = {name: given(array) for name, array in own.items()}
        result = ebc(named, per_sample_weights=weights, include_last_offset=True)
        assert_same_bits(result, expected)
        assert type(result) is np.ndarray
    assert_same_bits(ebc(values, offsets, whole.astype(np.float64)), expected)


def test_entries_after_the_last_bag_are_not_read(level, eager_threads):
    ebc = collection("sums")
    parts = batch(ebc, "ragged")
    values, offsets = concatenate(parts)
    expected = ebc(values, offsets)
    longer = np.concatenate([values, [-1, 10**12]])
    for n_threads in (1, 3):
        out = np.empty_like(expected)
        assert_same_bits(ebc(longer, offsets, num_threads=n_threads), expected)
        assert_same_bits(ebc(longer, offsets, out=out, num_threads=n_threads), expected)
        assert_same_bits(ebc(longer.tolist(), offsets, num_threads=n_threads), expected)
    named = {name: (np.append(ids, -7), bounds) for name, (ids, bounds) in parts.items()}
    assert_same_bits(ebc(named, include_last_offset=True), expected)


def test_no_features():
    ebc = EmbeddingBagCollection({"t": _TABLES["f32"]}, [])
    assert ebc.dim == 0
    for result in (ebc({}), ebc([], [0]), ebc(np.zeros(3, np.int64), np.zeros(1, np.int64))):
        assert result.shape == (0, 0)
        assert result.dtype == np.float32
    assert ebc.split(result) == {}


def test_random_calls(level, eager_threads):
    """Compare random collections and batches with a loop over `embedding_bag`."""
    rng = np.random.default_rng(0)
    names = list(_TABLES)
    for seed in range(40):
        all_sums = rng.random() < 0.5
        specs = []
        for _ in range(rng.integers(1, 12)):
            table = names[rng.integers(len(names))]
            n_rows = _TABLES[table].shape[0]
            mode = "sum" if all_sums else ["sum", "mean", "max"][rng.integers(3)]
            padding = int(rng.integers(-n_rows, n_rows)) if rng.random() < 0.4 else None
            specs.append((table, mode, padding))
        ebc = EmbeddingBagCollection(_TABLES, features(*specs))
        parts = batch(ebc, BATCHES[rng.integers(len(BATCHES))], seed)
        own, whole = factors(parts, seed)
        if not all_sums or rng.random() < 0.5:
            own = whole = None
        expected = one_by_one(ebc, parts, own)
        n_threads = [None, 1, 2, 8][rng.integers(4)]
        out = np.empty_like(expected) if rng.random() < 0.5 else None
        options = {"num_threads": n_threads, "out": out}
        assert_same_bits(ebc(*concatenate(parts), whole, **options), expected, str(seed))
        result = ebc(parts, per_sample_weights=own, include_last_offset=True, **options)
        assert_same_bits(result, expected, str(seed))


# --- `out` ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sums", "encoded_means", "no_columns", "many"])
def test_out_is_filled_and_returned(name, level, eager_threads):
    ebc = collection(name)
    parts = batch(ebc, "ragged")
    expected = one_by_one(ebc, parts)
    memory = np.zeros((3, *expected.shape), np.float32)
    for n_threads in (1, 3, None):
        for arguments in (concatenate(parts), (parts,)):
            memory[...] = np.nan
            options = {"include_last_offset": len(arguments) == 1, "num_threads": n_threads}
            result = ebc(*arguments, out=memory[1], **options)
            assert result.base is memory
            assert_same_bits(result, expected)
            assert np.isnan(memory[[0, 2]]).all()


def test_out_may_be_between_the_rows_of_a_table(level):
    memory = np.zeros((20, 2), np.float32)
    memory[::2] = 3
    ebc = EmbeddingBagCollection({"t": memory[::2]}, features(("t",)))
    for ids in ([1, 2], np.array([1, 2])):
        assert ebc(ids, np.array([0, 2]), out=memory[1:2]).tolist() == [[6, 6]]
    assert ebc({"t/0": [[1, 2]]}, out=memory[3:4]).tolist() == [[6, 6]]


# --- Attributes -----------------------------------------------------------------------


def test_features_have_defaults():
    feature = Feature("clicked", "items")
    assert feature == ("clicked", "items", "sum", None, None, None, False)
    assert repr(feature) == (
        "Feature(name='clicked', table='items', mode='sum', padding_idx=None, "
        "default_idx=None, invalid=None, normalize=False)"
    )


def test_attributes():
    tables = {"a": floats(5, 3), "b": quantized(4, 10, 4, "tbe", 0)}
    specs = [Feature("x", "a"), Feature("y", "b", "mean"), Feature("z", "a", "max", -1)]
    ebc = EmbeddingBagCollection(tables, iter(specs))
    assert ebc.features == tuple(specs)
    assert ebc.dim == 16
    assert dict(ebc.slices) == {"x": slice(0, 3), "y": slice(3, 13), "z": slice(13, 16)}
    assert repr(ebc) == "EmbeddingBagCollection(2 tables, 3 features, dim=16)"
    assert ebc.tables["a"] is tables["a"]  # not copied
    assert ebc.tables["b"] is tables["b"]
    tables["c"] = None
    assert list(ebc.tables) == ["a", "b"]
    for mapping in (ebc.tables, ebc.slices):
        with pytest.raises(TypeError):
            mapping["a"] = None


def test_split(level):
    ebc = collection("many")
    parts = batch(ebc, "ragged")
    result = ebc(*concatenate(parts))
    columns = ebc.split(result)
    assert list(columns) == [feature.name for feature in ebc.features]
    np.testing.assert_array_equal(np.concatenate(list(columns.values()), axis=1), result)
    for name, array in columns.items():
        assert array.shape == (9, _TABLES[name.split("/")[0]].shape[1])
        assert array.base is result or array.size == 0
    stacked = np.zeros((2, 5, ebc.dim), np.float16)
    assert ebc.split(stacked)["f32/0"].shape == (2, 5, 33)
    assert ebc.split(stacked[0, 0])["f32/0"].shape == (33,)


@pytest.mark.parametrize(
    "change", [lambda ebc: pickle.loads(pickle.dumps(ebc)), copy.copy, copy.deepcopy]
)
def test_copies_are_equal(change):
    ebc = collection("many")
    parts = batch(ebc, "ragged")
    other = change(ebc)
    assert type(other) is EmbeddingBagCollection
    assert other.features == ebc.features
    assert other.slices == ebc.slices
    assert_same_bits(other(*concatenate(parts)), ebc(*concatenate(parts)))
    shared = change is copy.copy
    assert (other.tables["f32"] is ebc.tables["f32"]) == shared


def test_a_table_under_two_names_is_pickled_once():
    table = floats(1000, 64)
    ebc = EmbeddingBagCollection({"a": table, "b": table}, features(("a",), ("b",)))
    assert len(pickle.dumps(ebc)) < 1.1 * table.nbytes
    other = pickle.loads(pickle.dumps(ebc))
    assert other.tables["a"] is other.tables["b"]


# --- Errors ---------------------------------------------------------------------------

W = np.arange(20, dtype=np.float32).reshape(10, 2)
V = np.arange(5, dtype=np.float16).reshape(5, 1)
T = {"w": W, "v": V}
FEATURES = [Feature("a", "w"), Feature("b", "v", "max"), Feature("c", "w")]
KINDS = (
    "float32, float64, float16, bfloat16, int8, uint8, float8_e4m3fn or float8_e5m2 in native "
    "byte order, or a QuantizedTable"
)


def make(features=FEATURES, tables=T):
    return lambda: EmbeddingBagCollection(tables, features)


CONSTRUCTION = [
    (make(tables=[W]), TypeError, "tables must be a mapping, got list"),
    (make(tables=None), TypeError, "tables must be a mapping, got None"),
    (
        make(tables={"w": [[1.0]]}),
        TypeError,
        "tables['w'] must be a numpy.ndarray, a QuantizedTable or a RemappedTable, got list",
    ),
    (
        make(tables=T | {"unused": None}),
        TypeError,
        "tables['unused'] must be a numpy.ndarray, a QuantizedTable or a RemappedTable, got None",
    ),
    (make(tables={"w": W.astype(int)}), TypeError, f"tables['w'] must be {KINDS}, got int64"),
    (
        make(tables={"w": W.astype(f"{SWAPPED}f4")}),
        TypeError,
        f"tables['w'] must be {KINDS}, got {SWAPPED}f4",
    ),
    (make(tables={"w": W[0]}), ValueError, "tables['w'] must be 2-D (n_rows, dim), got shape (2,)"),
    (make(None), TypeError, "features must be a sequence of Feature, got None"),
    (make(3), TypeError, "features must be a sequence of Feature, got 3"),
    (make(FEATURES[0]), TypeError, "features must be a sequence of Feature, got Feature"),
    (make("ab"), TypeError, "features[0] must be a Feature, got 'a'"),
    (make([FEATURES[0], ("b", "v")]), TypeError, "features[1] must be a Feature, got tuple"),
    (make([Feature(3, "w")]), TypeError, "features[0]: name must be a str, got 3"),
    (make([Feature("a", W)]), TypeError, "features[0]: table must be a str, got ndarray"),
    (
        make([*FEATURES, Feature("b", "w")]),
        ValueError,
        "features must have different names, got two of 'b'",
    ),
    (
        make([Feature("a", "x")]),
        ValueError,
        "feature 'a': table must be a key of tables, got 'x'",
    ),
    (
        make([FEATURES[0], Feature("b", "w", "median")]),
        ValueError,
        "feature 'b': mode must be 'sum', 'mean', 'sqrtn', 'max', 'min' or 'none', got 'median'",
    ),
    (
        make([Feature("a", "w", None)]),
        ValueError,
        "feature 'a': mode must be 'sum', 'mean', 'sqrtn', 'max', 'min' or 'none', got None",
    ),
    (
        make([Feature("a", "v", "sum", 5)]),
        ValueError,
        "feature 'a': padding_idx must name one of the table's 5 rows, got 5",
    ),
    (
        make([Feature("a", "v", "sum", -6)]),
        ValueError,
        "feature 'a': padding_idx must name one of the table's 5 rows, got -6",
    ),
    (
        make([Feature("a", "v", "sum", True)]),
        TypeError,
        "feature 'a': padding_idx must be an integer, got True",
    ),
    (
        make([Feature("a", "v", "sum", 1.0)]),
        TypeError,
        "feature 'a': padding_idx must be an integer, got 1.0",
    ),
    (
        make([Feature("x", "many")], {"many": np.empty((0, 2**58), np.float32)}),
        ValueError,
        "features must have at most 144115188075855871 columns in all, got 288230376151711744",
    ),
    (
        make(
            [Feature(str(i), "many") for i in range(128)],
            {"many": np.empty((0, 2**57 - 1), np.float32)},
        ),
        ValueError,
        "features must have at most 144115188075855871 columns in all, got 18446744073709551488",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), CONSTRUCTION)
def test_errors_of_construction(call, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


# Two bags for each of three features.
VALUES = np.array([0, 9, 3, 4, 1, 2, 0, 8])
OFFSETS = np.array([0, 2, 3, 3, 6, 7, 8])
NAMED = {"a": ([0, 9, 3], [0, 2]), "b": ([4, 1, 2], [0, 0]), "c": np.array([[0], [8]])}


def changed(array, **entries):
    array = array.copy()
    for place, value in entries.items():
        array[int(place[1:])] = value
    return array


def ends(values=VALUES, offsets=OFFSETS, **options):
    return (values, offsets), options


def named(include_last_offset=False, per_sample_weights=None, **parts):
    options = {"include_last_offset": include_last_offset}
    return (NAMED | parts, None, per_sample_weights), options


CALLS = [
    # concatenated
    (ends(offsets=None), ValueError, "offsets must be given where values is an array, got None"),
    (ends(None), TypeError, "values must be integers, got None"),
    (ends(VALUES * 1.0), TypeError, "values must be integers, got dtype float64"),
    (ends(VALUES > 0), TypeError, "values must be integers, got dtype bool"),
    (ends(VALUES[None]), ValueError, "values must be 1-D, got shape (1, 8)"),
    (ends(offsets=OFFSETS * 1.0), TypeError, "offsets must be integers, got dtype float64"),
    *(
        (
            ends(offsets=offsets),
            ValueError,
            "offsets must be 1-D with n_features * batch + 1 entries where there are 3 features, "
            f"got shape {offsets.shape}",
        )
        for offsets in (OFFSETS[:-1], OFFSETS[:0], OFFSETS[None], np.array(0))
    ),
    (
        ends(offsets=changed(OFFSETS, _0=1)),
        ValueError,
        "offsets must start at 0, got offsets[0] = 1",
    ),
    (
        ends(offsets=changed(OFFSETS, _0=-1)),
        ValueError,
        "offsets must start at 0, got offsets[0] = -1",
    ),
    (
        ends(offsets=changed(OFFSETS, _1=4)),
        ValueError,
        "feature 'a': offsets must not decrease, got offsets[2] = 3 after offsets[1] = 4",
    ),
    (  # at the boundary of two features
        ends(offsets=changed(OFFSETS, _2=4)),
        ValueError,
        "feature 'b': offsets must not decrease, got offsets[3] = 3 after offsets[2] = 4",
    ),
    (
        ends(offsets=changed(OFFSETS, _4=-1)),
        ValueError,
        "feature 'b': offsets must not decrease, got offsets[4] = -1 after offsets[3] = 3",
    ),
    (
        ends(offsets=changed(OFFSETS, _6=9)),
        ValueError,
        "feature 'c': offsets must not exceed the 8 entries of values, got offsets[6] = 9",
    ),
    (
        ends(offsets=changed(OFFSETS, _6=2**62)),
        ValueError,
        f"feature 'c': offsets must not exceed the 8 entries of values, got offsets[6] = {2**62}",
    ),
    (
        ends(offsets=changed(OFFSETS, _2=2**31)),
        ValueError,
        f"feature 'a': offsets must not exceed the 8 entries of values, got offsets[2] = {2**31}",
    ),
    (
        ends(offsets=changed(OFFSETS.astype(np.uint64), _3=2**64 - 1)),
        ValueError,
        "feature 'b': offsets must not exceed the 8 entries of values, "
        f"got offsets[3] = {2**64 - 1}",
    ),
    (
        ends(changed(VALUES, _0=10)),
        IndexError,
        "feature 'a': values[0] = 10 is out of range for a table of 10 rows (bag 0)",
    ),
    (
        ends(changed(VALUES, _2=-1, _4=99)),
        IndexError,
        "feature 'a': values[2] = -1 is out of range for a table of 10 rows (bag 1)",
    ),
    (
        ends(changed(VALUES, _5=5, _6=99)),
        IndexError,
        "feature 'b': values[5] = 5 is out of range for a table of 5 rows (bag 1)",
    ),
    (
        ends(changed(VALUES, _7=2**62)),
        IndexError,
        f"feature 'c': values[7] = {2**62} is out of range for a table of 10 rows (bag 1)",
    ),
    (
        ends(changed(VALUES.astype(np.uint64), _7=2**64 - 1)),
        IndexError,
        f"feature 'c': values[7] = {2**64 - 1} is out of range for a table of 10 rows (bag 1)",
    ),
    (
        ends(include_last_offset=True),
        ValueError,
        "include_last_offset must be False where values is an array, got True",
    ),
    (ends(include_last_offset=1), TypeError, "include_last_offset must be a bool, got 1"),
    (ends(include_last_offset=0), TypeError, "include_last_offset must be a bool, got 0"),
    (ends(include_last_offset=None), TypeError, "include_last_offset must be a bool, got None"),
    (ends(num_threads=0), ValueError, "num_threads must be at least 1, got 0"),
    (ends(num_threads=1.5), TypeError, "num_threads must be an integer, got 1.5"),
    (ends(num_threads=True), TypeError, "num_threads must be an integer, got True"),
    (
        ends(per_sample_weights=np.ones(8, np.float32)),
        ValueError,
        "per_sample_weights must be None where feature 'b' has mode 'max', got ndarray",
    ),
    (
        ends(per_sample_weights={"a": [1, 1, 1]}),
        TypeError,
        "per_sample_weights must be an array where values is one, got dict",
    ),
    # by name
    (
        ((NAMED, OFFSETS), {}),
        ValueError,
        "offsets must be None where values is a mapping, got ndarray",
    ),
    (named(d=[[1], [2]]), ValueError, "values must have names of features as keys, got 'd'"),
    (
        (({"a": NAMED["a"], "c": NAMED["c"]},), {}),
        ValueError,
        "values must have ids for every feature, got none for 'b'",
    ),
    (
        ((NAMED, None, [1, 2]), {}),
        TypeError,
        "per_sample_weights must be a mapping where values is one, got list",
    ),
    (
        named(per_sample_weights={"w": [1]}),
        ValueError,
        "per_sample_weights must have names of features as keys, got 'w'",
    ),
    (
        named(per_sample_weights={"b": [1, 1, 1]}),
        ValueError,
        "feature 'b': per_sample_weights must be None where mode is 'max', got list",
    ),
    (
        named(per_sample_weights={"a": [1, 1]}),
        ValueError,
        "feature 'a': per_sample_weights must have the ids' shape (3,), got (2,)",
    ),
    (
        named(per_sample_weights={"c": [1.0, 1.0]}),
        ValueError,
        "feature 'c': per_sample_weights must have the ids' shape (2, 1), got (2,)",
    ),
    (
        named(per_sample_weights={"a": [1j, 1, 1]}),
        TypeError,
        "feature 'a': per_sample_weights must cast to float32 as 'same_kind', got dtype complex128",
    ),
    (
        named(b=[1, 2, 3]),
        ValueError,
        "feature 'b': ids must be 2-D or come with offsets, as a pair (ids, offsets), "
        "got shape (3,)",
    ),
    (
        named(b=np.array(3)),
        ValueError,
        "feature 'b': ids must be 1-D or 2-D, got shape ()",
    ),
    (
        named(b=([1, 2], [0, 1], None)),
        ValueError,
        "values['b'] must be ids or a pair (ids, offsets), got a tuple of 3",
    ),
    (
        named(b=([[1, 2]], [0, 1])),
        ValueError,
        "feature 'b': ids must be 1-D where offsets is given, got shape (1, 2)",
    ),
    (named(b=([1.5], [0, 1])), TypeError, "feature 'b': ids must be integers, got dtype float64"),
    (named(b=None), TypeError, "feature 'b': ids must be integers, got None"),
    (
        named(a=[], b=[], c=[]),
        ValueError,
        "feature 'a': ids must be 2-D or come with offsets, as a pair (ids, offsets), got shape "
        "(0,)",
    ),
    (
        named(b=([1], [0.0, 1.0])),
        TypeError,
        "feature 'b': offsets must be integers, got dtype float64",
    ),
    (
        named(b=(np.array([[0, 1], [1, 0]]), [0.5])),
        TypeError,
        "feature 'b': offsets must be integers, got dtype float64",
    ),
    (
        named(b=([1], [[0, 1]])),
        ValueError,
        "feature 'b': offsets must be 1-D, got shape (1, 2)",
    ),
    (
        named(b=([1, 2], [])),
        ValueError,
        "feature 'b': offsets must have at least 1 entry where ids has 2, got 0",
    ),
    (
        named(True, a=([0], [0, 0, 1]), b=([1, 2], [])),
        ValueError,
        "feature 'b': offsets must have at least 1 entry where include_last_offset is True, got 0",
    ),
    (
        named(b=([4, 1, 2], [0, 0, 1])),
        ValueError,
        "values must have the same number of bags for every feature, got 2 for 'a' and 3 for 'b'",
    ),
    (
        named(True),
        ValueError,
        "values must have the same number of bags for every feature, got 1 for 'a' and 2 for 'c'",
    ),
    (
        named(b=([4, 1, 2], [1, 2])),
        ValueError,
        "feature 'b': offsets must start at 0, got offsets[0] = 1",
    ),
    (
        named(b=([4, 1, 2], [0, -3])),
        ValueError,
        "feature 'b': offsets must not decrease, got offsets[1] = -3 after offsets[0] = 0",
    ),
    (
        named(b=([4, 1, 2], [0, 2**62])),
        ValueError,
        f"feature 'b': offsets must not exceed the 3 entries of ids, got offsets[1] = {2**62}",
    ),
    (
        named(a=([0, 9, 10], [0, 2])),
        IndexError,
        "feature 'a': ids[2] = 10 is out of range for a table of 10 rows (bag 1)",
    ),
    (
        named(a=([0, -1, 10], [0, 2]), b=([9, 9, 9], [0, 0])),
        IndexError,
        "feature 'a': ids[1] = -1 is out of range for a table of 10 rows (bag 0)",
    ),
    (
        named(c=[[0], [2**62]]),
        IndexError,
        f"feature 'c': ids[1, 0] = {2**62} is out of range for a table of 10 rows (bag 1)",
    ),
    (named(1), TypeError, "include_last_offset must be a bool, got 1"),
]


@pytest.mark.parametrize(("call", "error", "message"), CALLS)
def test_errors_of_calls(call, error, message, eager_threads):
    ebc = EmbeddingBagCollection(T, FEATURES)
    arguments, options = call
    untouched = np.full((2, 5), 7, np.float32)
    for n_threads in (None, 1, 3, 8):
        if n_threads is not None and "num_threads" in options:
            break
        for out in (None, untouched):
            with pytest.raises(error, match=f"^{re.escape(message)}$"):
                ebc(*arguments, **{"out": out, "num_threads": n_threads} | options)
    assert (untouched == 7).all()


def out_of(array):
    return ends(out=array)


READ_ONLY = np.zeros((2, 5), np.float32)
READ_ONLY.flags.writeable = False

OUTS = [
    (out_of([[0.0]]), TypeError, "out must be a numpy.ndarray, got list"),
    (
        out_of(np.zeros((2, 5))),
        TypeError,
        "out must have the result's dtype float32, got float64",
    ),
    (out_of(np.zeros((2, 4), np.float32)), ValueError, "out must have shape (2, 5), got (2, 4)"),
    (out_of(np.zeros((3, 5), np.float32)), ValueError, "out must have shape (2, 5), got (3, 5)"),
    (out_of(np.zeros(10, np.float32)), ValueError, "out must have shape (2, 5), got (10,)"),
    (
        out_of(np.zeros((5, 2), np.float32).T),
        ValueError,
        "out must be C-contiguous and aligned, got strides (4, 8)",
    ),
    (out_of(READ_ONLY), ValueError, "out must be writeable, got a read-only array"),
]


@pytest.mark.parametrize(("call", "error", "message"), OUTS)
def test_errors_of_out(call, error, message):
    ebc = EmbeddingBagCollection(T, FEATURES)
    _, options = call
    for arguments in ((VALUES, OFFSETS), (VALUES.tolist(), OFFSETS), (NAMED,)):
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            ebc(*arguments, **options)


def overlap(name):
    return pytest.raises(ValueError, match=f"^{re.escape(name)}$")


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int16])
def test_out_shares_no_memory_with_ids_or_offsets(dtype):
    ebc = EmbeddingBagCollection(T, FEATURES)
    memory = np.zeros(200, np.uint8)
    out = memory[:40].view(np.float32).reshape(2, 5)

    def inside(values):
        values = np.asarray(values, dtype)
        array = memory[32:][: values.nbytes].view(dtype)
        array[...] = values
        return array

    message = "out must share no memory with {}, got an overlap"
    with overlap(message.format("values")):
        ebc(inside(VALUES), OFFSETS, out=out)
    with overlap(message.format("offsets")):
        ebc(VALUES, inside(OFFSETS), out=out)
    with overlap(message.format("values['c']")):
        ebc(NAMED | {"c": inside([0, 8]).reshape(2, 1)}, out=out)
    with overlap(message.format("values['b']")):
        ebc(NAMED | {"b": ([4, 1, 2], inside([0, 0]))}, out=out)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_shares_no_memory_with_weights(dtype):
    ebc = EmbeddingBagCollection(T, [Feature("a", "w"), Feature("c", "w")])
    memory = np.zeros(20, np.float64)
    out = memory.view(np.float32)[:4].reshape(1, 4)
    weights = memory.view(dtype)[1:4]
    message = "out must share no memory with {}, got an overlap"
    with overlap(message.format("per_sample_weights")):
        ebc([1, 2, 3], np.array([0, 2, 3]), weights, out=out)
    with overlap(message.format("per_sample_weights")):
        ebc(np.array([1, 2, 3]), np.array([0, 2, 3]), weights, out=out)
    with overlap(message.format("per_sample_weights['c']")):
        named = {"a": [[1]], "c": [[1, 2, 3]]}
        ebc(named, per_sample_weights={"c": weights[None]}, out=out)


@pytest.mark.parametrize("name", ["f32", "f64", "f16", "bf16", "q8", "q2", "t4"])
def test_out_shares_no_memory_with_a_table(name):
    memory = np.zeros(80, np.float32)
    out = memory[:16].reshape(1, 16)
    raw = memory[12:].view(np.uint8)
    if name[0] in "qt":
        bits, layout = int(name[1]), "fused" if name[0] == "q" else "tbe"
        width = row_bytes(bits, 8, layout)
        table = QuantizedTable.from_packed(raw[: 3 * width].reshape(3, width), bits, 8, layout)
    else:
        table = raw[:256].view(_TABLES[name].dtype)[:24].reshape(3, 8)
        if name == "f64":
            table = table.reshape(8, 3).T  # read as a copy
    # A table that no feature reads counts too, and a copied table by its own memory.
    for features in ([Feature("a", "t"), Feature("b", "t")], [Feature("a", "u", "max")]):
        ebc = EmbeddingBagCollection({"t": table, "u": floats(3, 16)}, features)
        for ids in ([0] * len(features), np.zeros(len(features), np.int64)):
            with overlap("out must share no memory with tables['t'], got an overlap"):
                ebc(ids, np.arange(len(features) + 1), out=out)


def test_concatenated_weights_have_the_shape_of_values():
    ebc = EmbeddingBagCollection(T, FEATURES[::2])
    values, offsets = np.array([1, 2, 3]), np.array([0, 1, 3])
    for given in (values, values.tolist()):
        for weights in (np.ones(2), np.ones((3, 1)), np.ones((1, 3)), np.ones(())):
            for dtype in (np.float32, np.float64):
                message = f"per_sample_weights must have values' shape (3,), got {weights.shape}"
                with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                    ebc(given, offsets, weights.astype(dtype))
        with pytest.raises(TypeError, match=r"^per_sample_weights must cast to float32 as"):
            ebc(given, offsets, np.ones(3, complex))


def test_without_features_there_is_one_offset():
    ebc = EmbeddingBagCollection(T, [])
    for offsets in ([0, 0], [], [[0]], 0):
        shape = re.escape(str(np.shape(offsets)))
        message = rf"^offsets must have shape \(1,\) where there are no features, got {shape}$"
        with pytest.raises(ValueError, match=message):
            ebc([], np.array(offsets, np.int64))
    with pytest.raises(ValueError, match=r"^offsets must start at 0, got offsets\[0\] = 1$"):
        ebc([1], [1])


def test_errors_of_split():
    ebc = EmbeddingBagCollection(T, FEATURES)
    with pytest.raises(TypeError, match=r"^out must be a numpy.ndarray, got list$"):
        ebc.split([[1, 2, 3, 4, 5]])
    for shape in ((2, 4), (5, 2), ()):
        with pytest.raises(ValueError, match=r"^out must have 5 columns, got shape \("):
            ebc.split(np.zeros(shape))


def test_any_number_of_threads_and_any_kernel_name_the_first_bad_id(level, eager_threads):
    ebc = collection("encodings")
    parts = batch(ebc, "one_huge")
    values, offsets = concatenate(parts)
    n_bags = (len(offsets) - 1) // len(ebc.features)
    for bad in (0, 5, len(values) // 2, len(values) - 1):
        bag = int(np.searchsorted(offsets, bad, side="right")) - 1
        feature = ebc.features[bag // n_bags]
        n_rows = ebc.tables[feature.table].shape[0]
        rest = f"is out of range for a table of {n_rows} rows (bag {bag % n_bags})"
        for value in (n_rows, -1, 2**31 - 1, -(2**31)):
            broken = values.copy()
            broken[bad] = value
            broken[bad + 1 :: 50] = -9
            message = re.escape(f"feature {feature.name!r}: values[{bad}] = {value} {rest}")
            start = int(offsets[bag // n_bags * n_bags])
            for n_threads in (1, 3, 8):
                for dtype in (np.int32, np.int64):
                    with pytest.raises(IndexError, match=f"^{message}$"):
                        ebc(broken.astype(dtype), offsets, num_threads=n_threads)
            ids = broken[start:][: len(parts[feature.name][0])]
            named = parts | {feature.name: (ids, parts[feature.name][1])}
            message = message.replace(rf"values\[{bad}\]", rf"ids\[{bad - start}\]")
            with pytest.raises(IndexError, match=f"^{message}$"):
                ebc(named, include_last_offset=True, num_threads=3)


def test_ids_of_tables_without_columns_are_checked(level):
    ebc = EmbeddingBagCollection({"t": floats(3, 0)}, features(("t",)))
    assert ebc([2, 2], [0, 2]).shape == (1, 0)
    with pytest.raises(IndexError, match=r"^feature 't/0': values\[1\] = 3 is out of range"):
        ebc(np.array([2, 3]), np.array([0, 2]))
    with pytest.raises(IndexError, match=r"^feature 't/0': ids\[0, 1\] = 3 is out of range"):
        ebc({"t/0": [[2, 3]]})


def test_a_table_without_rows_allows_only_empty_bags(level):
    ebc = EmbeddingBagCollection({"t": floats(0, 5), "u": floats(3, 2)}, features(("t",), ("u",)))
    result = ebc([1, 1], np.array([0, 0, 0, 1, 2]))
    assert not result[:, :5].any()
    with pytest.raises(IndexError, match=r"^feature 't/0': values\[0\] = 0 is out of range"):
        ebc(np.array([0]), np.array([0, 1, 1]))


def test_outputs_too_large_for_memory_are_memory_errors():
    ebc = EmbeddingBagCollection(T, FEATURES)
    for n_bags in (2**44, 2**56, 2**60):
        bags = np.broadcast_to(np.int32(0), (n_bags, 0))
        with pytest.raises(MemoryError):
            ebc({feature.name: bags for feature in FEATURES})
    wide = EmbeddingBagCollection(
        {"t": np.empty((0, 2**50), np.float32)}, features(("t",), ("t", "max"))
    )
    with pytest.raises(MemoryError):
        wide(np.zeros(0, np.int64), np.zeros(3, np.int64))
    assert wide(np.zeros(0, np.int64), np.zeros(1, np.int64)).shape == (0, 2**51)


def test_tables_without_columns_cost_no_time(level):
    ebc = EmbeddingBagCollection({"t": floats(3, 0)}, features(("t",), ("t", "mean")))
    bags = np.broadcast_to(np.int32(0), (2**50, 0))
    assert ebc({"t/0": bags, "t/1": bags}).shape == (2**50, 0)


@pytest.mark.parametrize(
    "features",
    [((),), ((1,),), (1,), ((None,) * 5,), (("a", 0, 3, "sum", -1),), ((np.ones(3), 0, 3, "", 0),)],
)
def test_the_compiled_collection_checks_its_features(features, level):
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        embag.collection.kernels.Collection(features, ())
