"""Lookups in shards give the results and the errors of one machine."""

import asyncio

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import cut_plan, local_shards

import embag
from embag import Feature
from embag.ray import ShardedCollection, TableSpec, plan
from embag.ray._plan import spec_of

try:
    import pyarrow as pa
except ImportError:
    pa = None

N_BAGS = 12
MODES = ("sum", "mean", "sqrtn", "max", "min")


@pytest.fixture(autouse=True)
def _local(monkeypatch):
    with local_shards(monkeypatch):
        yield


def make_tables():
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((60, 20)).astype(np.float32)
    int8 = rng.integers(-100, 100, (60, 20)).astype(np.int8)
    scales = rng.random(60).astype(np.float32)
    return {
        "float32": floats,
        "float64": rng.standard_normal((60, 5)),
        "float16": floats[:, :9].astype(np.float16),
        "bfloat16": floats[:, :8].astype(ml_dtypes.bfloat16),
        "int8": int8,
        "8 bits": embag.quantize(floats),
        "4 bits": embag.quantize(floats, bits=4),
        "2 bits": embag.quantize(floats, bits=2),
        "symmetric": embag.QuantizedTable.from_int8(int8, scales),
        "one scale": embag.QuantizedTable.from_int8(int8, 0.25),
        "remapped": embag.RemappedTable(
            floats, np.r_[-1, np.arange(59)], scales=scales, first_id=100
        ),
    }


TABLES = make_tables()


def ids_of(name, seed=0, n_invalid=0):
    """Return 2-D ids of a table, some out of range."""
    spec = spec_of(TABLES[name], name)
    rng = np.random.default_rng(seed)
    high = spec.first_id + spec.n_rows + n_invalid
    return rng.integers(spec.first_id, high, (N_BAGS, 6))


def bound(table, ids, mode):
    """Return the largest difference that another order of additions makes."""
    dense = table if isinstance(table, np.ndarray) else table.dequantize()
    largest = float(np.abs(np.asarray(dense, np.float64)).max())
    return 2 * ids.shape[1] ** 2 * largest * np.finfo(np.float32).eps if mode in MODES[:3] else 0


@pytest.mark.parametrize("exact", [False, True], ids=["reduced", "exact"])
@pytest.mark.parametrize("n_blocks", [1, 2, 7])
@pytest.mark.parametrize("name", TABLES)
def test_results_of_every_mode(name, n_blocks, exact):
    features = [Feature(mode, name, mode) for mode in MODES]
    features += [Feature("rows", name, "none"), Feature("unit", name, "mean", normalize=True)]
    tables = {name: TABLES[name]}
    expected_of = embag.EmbeddingBagCollection(tables, features)
    found_of = ShardedCollection(tables, features, plan=cut_plan(tables, n_blocks), exact=exact)
    values = {feature.name: ids_of(name, i) for i, feature in enumerate(features)}
    rng = np.random.default_rng(9)
    weights = {mode: rng.standard_normal((N_BAGS, 6)) for mode in MODES[:3]}
    is_exact = exact or len(found_of.plan.blocks[name]) == 1
    for sample in (None, {"sum": weights["sum"]}, weights):
        expected, rows = expected_of(values, None, sample)
        found, found_rows = found_of(values, None, sample)
        np.testing.assert_array_equal(found_rows["rows"], rows["rows"])
        for feature in features[:-2]:
            columns = expected_of.slices[feature.name]
            if is_exact or not MODES.index(feature.mode) < 3:
                np.testing.assert_array_equal(found[:, columns], expected[:, columns])
            else:
                ids = values[feature.name]
                # Weighted means divide by sums that may be near 0.
                atol = bound(TABLES[name], ids, feature.mode)
                if sample is not None and feature.mode == "mean" and "mean" in sample:
                    atol /= np.abs(weights["mean"].sum(axis=1)).min()
                np.testing.assert_allclose(
                    found[:, columns], expected[:, columns], rtol=0, atol=atol
                )
        unit = expected_of.slices["unit"]
        np.testing.assert_allclose(found[:, unit], expected[:, unit], rtol=0, atol=1e-5)


@pytest.mark.parametrize("exact", [False, True], ids=["reduced", "exact"])
@pytest.mark.parametrize("n_blocks", [1, 3])
@pytest.mark.parametrize("invalid", ["skip", 7, 59])
def test_options_of_features(n_blocks, exact, invalid):
    tables = {"t": np.arange(240, dtype=np.float32).reshape(60, 4) - 300}  # maxima are negative
    features = [
        Feature(f"{mode}{i}", "t", mode, invalid=invalid, **options)
        for mode in MODES
        for i, options in enumerate(
            [{}, {"padding_idx": 3}, {"padding_idx": -1, "default_idx": -1}, {"default_idx": 5}]
        )
    ]
    features += [Feature("rows", "t", "none", invalid=invalid)]
    rng = np.random.default_rng(1)
    values = {}
    for feature in features:
        ids = rng.integers(-5, 70, (N_BAGS, 4))
        ids[0], ids[1], ids[2] = 3, 59, 1000  # only padding; only the default; only invalid ids
        ids[3] = [0, 1, 2, 5]  # all in one block
        values[feature.name] = ids
    local = embag.EmbeddingBagCollection(tables, features)
    sharded = ShardedCollection(tables, features, plan=cut_plan(tables, n_blocks), exact=exact)
    out, rows, n_valid = local(values, return_n_valid=True)
    found, found_rows, found_n_valid = sharded(values, return_n_valid=True)
    np.testing.assert_allclose(found, out, rtol=1e-6, atol=0)
    np.testing.assert_array_equal(found[3], out[3])
    np.testing.assert_array_equal(found_rows["rows"], rows["rows"])
    np.testing.assert_array_equal(found_n_valid, n_valid)
    assert sharded.n_invalid == local.n_invalid
    sharded(values)
    assert sharded.n_invalid["sum0"] == 2 * local.n_invalid["sum0"] > 0


def test_bags_that_no_block_or_one_block_has():
    table = np.full((9, 2), -1, np.float32)
    table[8] = np.nan, -np.inf
    tables, names = {"t": table}, ("max", "min", "mean")
    features = [Feature(name, "t", name) for name in names]
    bags = [[], [0, 1], [0, 8], [], [4], [3, 3, 6], [8]]
    values = dict.fromkeys(names, bags)
    local = embag.EmbeddingBagCollection(tables, features)(values)
    found = ShardedCollection(tables, features, plan=cut_plan(tables, 3))(values)
    np.testing.assert_array_equal(found, local)
    assert (found[[0, 3]] == 0).all()
    assert (found[1] == -1).all()


def test_every_way_to_pass_ids():
    tables = {"a": TABLES["float32"], "b": TABLES["float16"]}
    features = [Feature("x", "a"), Feature("y", "b", "mean"), Feature("z", "a", "max")]
    local = embag.EmbeddingBagCollection(tables, features)
    rng = np.random.default_rng(2)
    sizes = rng.integers(0, 4, 3 * 5)
    offsets = np.r_[0, np.cumsum(sizes)]
    ids = rng.integers(0, 60, offsets[-1])
    end_to_end = [
        ((ids, offsets), {}),
        ((ids.astype(np.int32), offsets.astype(np.int32)), {}),
        ((np.r_[ids, 99], offsets), {}),  # the last is in no bag
        ((ids[:0], np.zeros(16, np.int64)), {}),
        ((ids[:0], np.zeros(1, np.int64)), {}),  # an empty batch
    ]
    lists = [ids[offsets[i] : offsets[i + 1]].tolist() for i in range(15)]
    csr = scipy.sparse.csr_array((np.ones(len(ids[: offsets[5]])), ids[: offsets[5]], offsets[:6]))
    csr.resize((5, 60))
    named = [
        {"x": lists[:5], "y": lists[5:10], "z": lists[10:]},
        {"x": (ids[:6], np.array([0, 2, 2])), "y": [[1], [2], [3]], "z": [[1], [], [1, 2]]},
        {"x": [[i] for i in range(5)], "y": lists[5:10], "z": np.arange(5).reshape(5, 1)},
        {"x": csr, "y": lists[5:10], "z": lists[:5]},
    ]
    last = {name: (ids[:6], np.array([0, 3, 4])) for name in "xyz"}
    if pa is not None:
        named.append(pa.table({**named[0], "other": range(5)}))
        named.append({**named[0], "x": pa.chunked_array([lists[:2], lists[2:5]])})
    for is_cut in (1, 4):
        sharded = ShardedCollection(tables, features, plan=cut_plan(tables, is_cut), exact=True)
        for arguments, options in [
            *end_to_end,
            *(((by_name,), {}) for by_name in named),
            ((last,), {"include_last_offset": True}),
        ]:
            expected = local(*arguments, **options)
            np.testing.assert_array_equal(sharded(*arguments, **options), expected)
            out = np.full_like(expected, 7)
            assert sharded(*arguments, **options, out=out) is out
            np.testing.assert_array_equal(out, expected)


def test_weights_end_to_end():
    tables = {"a": TABLES["float32"], "b": TABLES["float16"]}
    features = [Feature("x", "a"), Feature("y", "b", "mean"), Feature("z", "a", "sqrtn")]
    ids, offsets = np.arange(12), np.array([0, 2, 2, 5, 6, 9, 11])
    weights = np.linspace(-1, 2, 12)
    expected = embag.EmbeddingBagCollection(tables, features)(ids, offsets, weights)
    for n_blocks in (1, 4):
        sharded = ShardedCollection(tables, features, plan=cut_plan(tables, n_blocks), exact=True)
        np.testing.assert_array_equal(sharded(ids, offsets, weights), expected)


def test_tables_without_rows_or_columns():
    tables = {"rows": np.zeros((0, 3), np.float32), "columns": np.zeros((5, 0), np.float32)}
    features = [Feature("x", "rows"), Feature("y", "columns", "max"), Feature("z", "rows", "none")]
    values = {"x": [[], []], "y": [[1], [4]], "z": np.zeros((0, 2), np.int64)}
    for n_blocks in (1, 2):
        sharded = ShardedCollection(tables, features, plan=cut_plan(tables, n_blocks))
        out, rows = sharded(values)
        assert (out.shape, rows["z"].shape) == ((2, 3), (0, 2, 3))
    nothing = ShardedCollection({}, [], plan=cut_plan({}, 1))
    assert nothing({}).shape == (0, 0)


ERRORS = [
    (({"x": [[0, 60]], "y": [[1]]},), {}),
    (({"x": [[0, 1]], "y": [[-1]]},), {}),
    (({"x": [[0, 1]]},), {}),
    (({"x": [[0, 1]], "y": [[1], [2]]},), {}),
    (({"x": [0, 1], "y": [[1]]},), {}),
    (({"x": [[0.5]], "y": [[1]]},), {}),
    ((np.arange(3), np.array([0, 2])), {}),
    ((np.arange(3), np.array([0, 3, 2])), {}),
    ((np.array([1, 99]), np.array([0, 1, 2])), {}),
    ((np.arange(2), np.array([0, 1, 2]), np.ones(3)), {}),
    (({"x": [[1]], "y": [[1]]}, None, {"z": [[1.0]]}), {}),
    (({"x": [[1]], "y": [[1]]},), {"return_n_valid": 1}),
    (({"x": [[1]], "y": [[1]]},), {"num_threads": 0}),
    (({"x": [[1]], "y": [[1]]},), {"out": np.zeros((2, 40), np.float32)}),
]


@pytest.mark.parametrize("n_blocks", [1, 3])
@pytest.mark.parametrize(("arguments", "options"), ERRORS)
def test_errors_are_those_of_one_machine(arguments, options, n_blocks):
    tables = {"t": TABLES["float32"]}
    features = [Feature("x", "t"), Feature("y", "t")]
    with pytest.raises((TypeError, ValueError, IndexError)) as expected:
        embag.EmbeddingBagCollection(tables, features)(*arguments, **options)
    sharded = ShardedCollection(tables, features, plan=cut_plan(tables, n_blocks))
    sharded._actors.asked.clear()
    with pytest.raises(type(expected.value)) as found:
        sharded(*arguments, **options)
    assert str(found.value) == str(expected.value)
    assert sharded._actors.asked == []  # nothing was sent


def test_each_shard_is_asked_once_and_copies_take_turns():
    tables = dict.fromkeys("abc", TABLES["float32"])
    features = [Feature(f"{name}{i}", name) for name in "abc" for i in range(2)]
    nodes = [(f"node{i}", 10**9) for i in range(3)]
    found = plan(tables, nodes, copies=dict.fromkeys("abc", 3))
    sharded = ShardedCollection(tables, features, plan=found)
    sharded._actors.asked.clear()
    sharded._actors.choose = lambda shards: shards[1]
    values = {feature.name: [[1, 2]] for feature in features}
    expected = embag.EmbeddingBagCollection(tables, features)(values)
    np.testing.assert_array_equal(sharded(values), expected)
    assert sharded._actors.asked == [("lookup", [1])]


def test_the_asynchronous_form():
    tables = {"t": TABLES["float32"]}
    sharded = ShardedCollection(tables, [Feature("x", "t")], plan=cut_plan(tables, 2), exact=True)

    async def gather():
        return await asyncio.gather(*(sharded.lookup({"x": [[i, 2 * i]]}) for i in range(20)))

    for i, found in enumerate(asyncio.run(gather())):
        np.testing.assert_array_equal(found, sharded({"x": [[i, 2 * i]]}))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_plan_gives_the_result_of_one_machine(data):
    n_rows = data.draw(st.integers(1, 30), "rows")
    names = [f"t{i}" for i in range(data.draw(st.integers(1, 4), "tables"))]
    tables = {
        name: np.arange(n_rows * 2, dtype=np.float32).reshape(n_rows, 2) + i
        for i, name in enumerate(names)
    }
    sizes = st.lists(st.integers(n_rows * 4, n_rows * 40), min_size=2, max_size=5)
    nodes = [(f"n{i}", size) for i, size in enumerate(data.draw(sizes, "nodes"))]
    try:
        found = plan(tables, nodes)
    except ValueError as error:
        assert str(error).startswith("tables must fit")
        return
    for shard, node in enumerate(found.nodes):
        assert found.load(shard).n_bytes <= node.n_bytes
    features = [
        Feature(f"f{i}", data.draw(st.sampled_from(names)), data.draw(st.sampled_from(MODES)))
        for i in range(3)
    ]
    bag = st.lists(st.integers(0, n_rows - 1), max_size=5)
    values = {
        feature.name: data.draw(st.lists(bag, min_size=3, max_size=3)) for feature in features
    }
    expected = embag.EmbeddingBagCollection(tables, features)(values)
    sharded = ShardedCollection(tables, features, plan=found)
    # Sums of these integers are exact in any order.
    np.testing.assert_array_equal(sharded(values), expected)


def test_attributes():
    tables = {"t": TABLES["float32"]}
    features = [Feature("x", "t"), Feature("y", "t")]
    sharded = ShardedCollection(tables, features, plan=cut_plan(tables, 2), invalid="skip")
    assert sharded.features == tuple(features)
    assert sharded.slices == {"x": slice(0, 20), "y": slice(20, 40)}
    assert (sharded.dim, sharded.invalid) == (40, "skip")
    assert repr(sharded) == "ShardedCollection(1 tables on 3 shards, 2 features, dim=40)"
    out = sharded({"x": [[1]], "y": [[2]]})
    assert list(sharded.split(out)) == ["x", "y"]
    assert sharded.plan.tables == {"t": TableSpec(60, 20, 4800)}
