"""`EmbeddingBagCollection.backward` and `update`, against `embedding_bag_backward` by feature."""

import numpy as np
import pytest

import embag
from embag import Feature, SparseRows, optim

N_BAGS = 6


def make_tables():
    rng = np.random.default_rng(0)
    return {
        "items": rng.standard_normal((30, 5)).astype(np.float32),
        "shops": rng.standard_normal((20, 3)),
        "words": rng.standard_normal((40, 4)).astype(np.float16),
        "users": embag.RemappedTable(
            rng.standard_normal((10, 2)).astype(np.float32),
            index_map=np.arange(25, dtype=np.int64) % 10,
        ),
    }


FEATURES = [
    Feature("clicked", "items"),
    Feature("bought", "items", mode="mean", padding_idx=3),
    Feature("shop", "shops", mode="sqrtn", default_idx=1),
    Feature("text", "words", mode="max"),
    Feature("seen", "words", invalid="skip"),
    Feature("friends", "users", normalize=True),
    Feature("last", "items", mode="none"),
]


def make_ids(rng):
    named = {}
    for feature, n_rows in zip(FEATURES, (30, 30, 20, 40, 60, 25, 30), strict=True):
        offsets = np.sort(rng.integers(0, 20, N_BAGS))
        offsets[0] = 0
        named[feature.name] = rng.integers(0, n_rows, 20), offsets
    named["clicked"] = [[1, 2], [], None, [3], [1, 1, 1], [29]]
    named["last"] = rng.integers(0, 30, (4, 2))
    return named


def expected_gradients(tables, named, grad_output, weights):
    """Return the gradients of tables and of weights, from each feature's own backward pass."""
    pooled, rows = grad_output
    of_tables, of_weights, column = {}, {}, 0
    for feature in FEATURES:
        table, ids = tables[feature.table], named[feature.name]
        if feature.mode == "none":
            grad = embag.embedding_backward(rows[feature.name], ids, table, sparse=True)
        else:
            ids, offsets = ids if isinstance(ids, tuple) else (ids, None)
            dim = embag_dim(table)
            grads = embag.embedding_bag_backward(
                pooled[:, column : column + dim],
                ids,
                table,
                offsets,
                mode=feature.mode,
                sparse=feature.mode != "max",
                padding_idx=feature.padding_idx,
                default_idx=feature.default_idx,
                invalid=feature.invalid or "raise",
                normalize=feature.normalize,
                per_sample_weights=weights.get(feature.name),
            )
            grad = grads.weight
            if isinstance(grad, np.ndarray):
                used = np.flatnonzero((grad != 0).any(axis=1))
                grad = SparseRows(used, grad[used], grad.shape)
            if feature.name in weights:
                of_weights[feature.name] = grads.per_sample_weights
            column += dim
        known = of_tables.get(feature.table)
        of_tables[feature.table] = grad if known is None else known + grad
    return of_tables, of_weights


def embag_dim(table):
    return table.shape[1] if isinstance(table, np.ndarray) else table.table.shape[1]


def make_case(seed=1):
    rng = np.random.default_rng(seed)
    named = make_ids(rng)
    grad_output = rng.standard_normal((N_BAGS, 23)), {"last": rng.standard_normal((4, 2, 5))}
    weights = {name: rng.random(20).astype(np.float32) for name in ("shop", "bought")}
    return named, grad_output, weights


@pytest.mark.parametrize("n_threads", [1, 3])
def test_gradients_are_those_of_each_feature(n_threads, eager_threads):
    tables = make_tables()
    ebc = embag.EmbeddingBagCollection(tables, FEATURES)
    named, grad_output, weights = make_case()
    of_tables, of_weights = expected_gradients(tables, named, grad_output, weights)
    grads = ebc.backward(grad_output, named, per_sample_weights=weights, num_threads=n_threads)
    assert grads.weight.keys() == of_tables.keys() == tables.keys()
    for name, grad in of_tables.items():
        found = grads.weight[name]
        assert found.values.dtype == (np.float64 if name == "shops" else np.float32)
        assert found.to_dense().tobytes() == (grad.to_dense() + 0).tobytes()
    assert grads.per_sample_weights.keys() == of_weights.keys() == weights.keys()
    for name, grad in of_weights.items():
        assert grads.per_sample_weights[name].tobytes() == grad.tobytes()
    only = ebc.backward(grad_output, named, per_sample_weights=weights, wrt="per_sample_weights")
    assert only.weight == {}
    assert only.per_sample_weights["shop"].tobytes() == of_weights["shop"].tobytes()


def optimizers_of(tables, without=()):
    return {
        name: make(tables[name])
        for name, make in {
            "items": optim.Adagrad,
            "shops": optim.Adam,
            "words": lambda table: optim.SGD(table, 0.5, momentum=0.5),
            "users": optim.RowWiseAdagrad,
        }.items()
        if name not in without
    }


def rows_of(table):
    return table if isinstance(table, np.ndarray) else table.table


@pytest.mark.parametrize("n_threads", [1, 3])
def test_an_update_is_a_backward_pass_and_steps(n_threads, eager_threads):
    one, two = make_tables(), make_tables()
    start = make_tables()
    collections = [embag.EmbeddingBagCollection(tables, FEATURES) for tables in (one, two)]
    steps, updates = optimizers_of(one, ["words"]), optimizers_of(two, ["words"])
    for seed in range(3):
        named, grad_output, weights = make_case(seed)
        grads = collections[0].backward(grad_output, named, per_sample_weights=weights)
        for name, optimizer in steps.items():
            optimizer.step(grads.weight[name])
        result = collections[1].update(
            grad_output,
            named,
            per_sample_weights=weights,
            optimizers=updates,
            wrt=None if seed else "weight",
            num_threads=n_threads,
        )
        if seed == 0:
            assert result is None
        else:
            for name, grad in result.items():
                assert grad.tobytes() == grads.per_sample_weights[name].tobytes()
    for name in one:
        assert rows_of(one[name]).tobytes() == rows_of(two[name]).tobytes()
        changed = rows_of(one[name]).tobytes() != rows_of(start[name]).tobytes()
        assert changed == (name != "words")
    assert {optimizer.n_steps for optimizer in updates.values()} == {3}
    named, _, _ = make_case()
    pooled, rows = collections[1](named)  # what lookups read has changed
    assert pooled.tobytes() == collections[0](named)[0].tobytes()
    assert rows["last"].tobytes() == two["items"][named["last"]].tobytes()


def test_end_to_end():
    table = np.ones((8, 2), np.float32)
    ebc = embag.EmbeddingBagCollection({"t": table}, [Feature("a", "t"), Feature("b", "t")])
    ids, offsets = np.array([1, 2, 2, 5, 5]), np.array([0, 2, 3, 3, 5])
    grad = np.arange(8, dtype=np.float32).reshape(2, 4)
    weights = np.array([1, 2, 3, 4, 5], np.float32)
    grads = ebc.backward(grad, ids, offsets, weights)
    assert grads.weight["t"].indices.tolist() == [1, 2, 5]
    # Bag 1 of feature a: 3 * [4, 5]; bag 0 of it: 1 and 2 times [0, 1]; bag 1 of b: 9 * [6, 7].
    assert grads.weight["t"].values.tolist() == [[0, 1], [12, 17], [54, 63]]
    assert grads.per_sample_weights["a"].tolist() == [1, 1, 9]
    assert grads.per_sample_weights["b"].tolist() == [13, 13]
    ebc.update(grad, ids, offsets, weights, optimizers={"t": optim.SGD(table, 1)})
    assert table[[1, 2, 5]].tolist() == [[1, 0], [-11, -16], [-53, -62]]
    assert (table[[0, 3, 4, 6, 7]] == 1).all()


def test_a_batch_of_nothing():
    tables = make_tables()
    ebc = embag.EmbeddingBagCollection(tables, FEATURES[:3])
    none = np.zeros((0, 3), np.int64)
    named = {"clicked": none, "bought": none, "shop": none}
    grads = ebc.backward(np.zeros((0, 13)), named)
    assert [len(grad.indices) for grad in grads.weight.values()] == [0, 0]
    optimizers = {"items": optim.Adam(tables["items"])}
    ebc.update(np.zeros((0, 13)), named, optimizers=optimizers)
    assert optimizers["items"].n_steps == 1


def test_errors_change_nothing():
    tables = make_tables()
    start = make_tables()
    ebc = embag.EmbeddingBagCollection(tables, FEATURES[:3])
    optimizers = optimizers_of(tables, ["words", "users"])
    named = {name: [[1, 2]] for name in ("clicked", "bought", "shop")}
    grad = np.ones((1, 13))
    other = optim.SGD(tables["items"].copy(), 1)
    view = optim.SGD(tables["items"][:], 1)
    for arguments, options, error, message in (
        ((grad[:, :4], named), {}, ValueError, r"grad_output must have the output's shape \(1, 13"),
        ((grad, {**named, "shop": [[20]]}), {}, IndexError, "feature 'shop': .*20 is out of range"),
        ((grad, {**named, "shop": [[20]]}), {"optimizers": {"items": optimizers["items"]}},
         IndexError, "feature 'shop': .*20 is out of range"),
        ((grad, named), {"optimizers": 3}, TypeError, "optimizers must be a mapping, got 3"),
        ((grad, named), {"optimizers": {"x": other}}, ValueError, "of tables as keys, got 'x'"),
        ((grad, named), {"optimizers": {"items": 3}}, TypeError, "must be an Optimizer, got 3"),
        ((grad, named), {"optimizers": {"items": other}}, ValueError, "must be made for the coll"),
        ((grad, named), {"optimizers": {"items": view}}, ValueError, "must be made for the coll"),
        ((grad, named), {"wrt": "per_sample_weights"}, ValueError, "wrt must be 'weight' or None"),
        ((grad, named), {"num_threads": 0}, ValueError, "num_threads must be"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            ebc.update(*arguments, **{"optimizers": optimizers, **options})
    with pytest.raises(ValueError, match="per_sample_weights must be given where wrt names it"):
        ebc.backward(grad, named, wrt="per_sample_weights")
    ebc.replace("items", np.zeros((4, 5), np.float32))
    with pytest.raises(ValueError, match="must be made for the collection's table 'items'"):
        ebc.update(grad, named, optimizers=optimizers)
    assert {optimizer.n_steps for optimizer in optimizers.values()} == {0}
    for name in ("items", "shops"):
        assert tables[name].tobytes() == start[name].tobytes()
    whole = embag.EmbeddingBagCollection(tables, FEATURES[:3])
    tables["shops"].flags.writeable = False
    with pytest.raises(ValueError, match=r"optimizers\['shops'\]: table must be writeable"):
        whole.update(grad, named, optimizers=optimizers)
    same = np.ones((5, 2), np.float32)
    shared = embag.EmbeddingBagCollection(
        {"a": same, "b": same, "c": same[1:]}, [Feature(name, name) for name in "abc"]
    )
    ids = {name: [[1]] for name in "abc"}
    one, another, part = (optim.SGD(shared.tables[name], 1) for name in "abc")
    for pair in ({"a": one, "b": one}, {"a": one, "b": another}, {"a": one, "c": part}):
        with pytest.raises(ValueError, match=r"got one for 'a' and 'b'|must share no memory"):
            shared.update(np.ones((1, 6)), ids, optimizers=pair)
    assert (same == 1).all()
    quantized = embag.EmbeddingBagCollection(
        {"q": embag.quantize(np.ones((3, 8), np.float32), bits=8)}, [Feature("f", "q")]
    )
    with pytest.raises(TypeError, match=r"feature 'f': tables\['q'\] must be a"):
        quantized.backward(np.ones((1, 8)), {"f": [[1]]})


def test_errors_of_features_without_bags():
    tables = make_tables()
    ebc = embag.EmbeddingBagCollection(tables, FEATURES)
    named, (pooled, rows), _ = make_case()
    for grad, error, message in (
        (pooled, TypeError, r"grad_output must be \(array, dict\)"),
        ((pooled, {}), ValueError, "grad_output must have rows for 'last', got none"),
        ((pooled, {"last": rows["last"][0]}), ValueError, r"grad_output\['last'\] must have shape"),
    ):
        with pytest.raises(error, match=message):
            ebc.backward(grad, named)


def test_two_tables_of_many_ids_on_one_thread():
    # Each has so many that they are sorted in chunks.
    n = 1_100_000
    ids = np.random.default_rng(0).integers(0, 50, (2, n))
    tables = {name: np.zeros((50, 1), np.float32) for name in "ab"}
    ebc = embag.EmbeddingBagCollection(tables, [embag.Feature(n, n, mode="sum") for n in "ab"])
    optimizers = {name: optim.SGD(table, 1) for name, table in tables.items()}
    ebc.update(
        np.ones((1, 2), np.float32),
        {"a": ids[:1], "b": ids[1:]},
        optimizers=optimizers,
        num_threads=1,
    )
    for own, table in zip(ids, tables.values(), strict=True):
        np.testing.assert_array_equal(table[:, 0], -np.bincount(own, minlength=50))


@pytest.mark.parametrize("n_threads", [1, 4])
def test_a_bad_id_of_one_table_changes_none(n_threads, eager_threads):
    tables = {name: np.zeros((5, 2), np.float32) for name in "ab"}
    ebc = embag.EmbeddingBagCollection(tables, [embag.Feature(n, n, mode="sum") for n in "ab"])
    optimizers = {name: optim.SGD(table, 1) for name, table in tables.items()}
    for values in ({"a": [[5]], "b": [[1]]}, {"a": [[1]], "b": [[5]]}):
        with pytest.raises(IndexError, match="= 5 is out of range"):
            ebc.update(
                np.ones((1, 4), np.float32), values, optimizers=optimizers, num_threads=n_threads
            )
    assert not any(table.any() for table in tables.values())
