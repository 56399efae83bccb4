"""Updates of shards change tables as on one machine."""

from functools import partial

import ml_dtypes
import numpy as np
import pytest
from sharded_training import N_BAGS, Both, check
from shards import cut_plan, local_shards

import embag
from embag import Feature, optim
from embag.ray import ShardedCollection, ShardError, plan

RULES = {
    "SGD": partial(optim.SGD, lr=0.1),
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.9),
    "Adagrad": partial(optim.Adagrad, lr=0.1, lr_decay=0.1),
    "RowWiseAdagrad": partial(optim.RowWiseAdagrad, lr=0.1),
    "Adam": optim.Adam,
    "FTRL": partial(optim.FTRL, lr=0.1, l1=1e-3),
}
MODES = ("sum", "mean", "sqrtn", "max", "min")


@pytest.fixture(autouse=True)
def _local(monkeypatch):
    with local_shards(monkeypatch):
        yield


@pytest.mark.parametrize("n_blocks", [1, 3])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule, n_blocks):
    tables = {"t": np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)}
    both = Both(tables, [Feature("x", "t", "mean")], n_blocks, RULES[rule])
    for seed in range(3):
        ids = np.random.default_rng(seed).integers(0, 40 if seed != 1 else 10, (N_BAGS, 5))
        both.step({"x": ids})
        check(both)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("mode", "weighted"),
    [(mode, False) for mode in (*MODES, "none")] + [(mode, True) for mode in MODES[:3]],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_every_mode(mode, weighted, normalize, dtype):
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    tables = {"t": np.random.default_rng(0).standard_normal((40, 4)).astype(dtype)}
    options = {} if mode == "none" else {"padding_idx": 3, "default_idx": 3}
    feature = Feature("x", "t", mode, invalid=7, normalize=normalize, **options)
    both = Both(tables, [feature], 3, partial(optim.SGD, lr=0.25))
    for seed in range(2):
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, 44, (N_BAGS, 5))
        ids[0] = 3  # only padding: the default, which is the padding row
        weights = {"x": rng.standard_normal((N_BAGS, 5))} if weighted else None
        expected, found = both.step({"x": ids}, weights, wrt=None)
        assert expected.keys() == found.keys() == (set(weights) if weighted else set())
        for name, grad in expected.items():
            np.testing.assert_allclose(found[name], grad, rtol=1e-5, atol=1e-6)
            assert found[name].shape == grad.shape
        check(both)


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_features_that_share_tables(n_blocks):
    rng = np.random.default_rng(0)
    # Halves and quarters, whose sums are exact in any order.
    tables = {name: rng.integers(-8, 8, (40, 4)).astype(np.float32) for name in "ab"}
    features = [
        Feature("x", "a"),
        Feature("y", "b", "none"),
        Feature("z", "a"),
        Feature("u", "a", "none"),
        Feature("v", "b"),
    ]
    both = Both(tables, features, n_blocks, partial(optim.SGD, lr=0.5))
    values = {feature.name: rng.integers(0, 40, (N_BAGS, 5)) for feature in features}
    both.grad = lambda values: (
        rng.integers(-8, 8, (N_BAGS, 12)) / 4,
        {name: rng.integers(-8, 8, (N_BAGS, 5, 4)) / 4 for name in "yu"},
    )
    both.step(values, {"x": rng.integers(-2, 2, (N_BAGS, 5))})
    check(both)


def test_ragged_ids_and_weights():
    tables = {"t": np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)}
    lists = [[1, 2], [], [39, 1, 1], [], [5], [6], [7, 8, 9], [], [], [30]]
    weights = [[0.5 * i for i, _ in enumerate(bag)] for bag in lists]
    for n_blocks in (1, 3):
        both = Both(tables, [Feature("x", "t", "mean")], n_blocks, partial(optim.SGD, lr=0.5))
        expected, found = both.step({"x": lists}, {"x": weights}, wrt=None)
        np.testing.assert_allclose(found["x"], expected["x"], rtol=1e-5, atol=1e-6)
        check(both)


@pytest.mark.parametrize("rule", ["momentum", "Adam"])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_rows_that_are_in_no_maximum_rest(mode, rule):
    tables = {"t": np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)}
    both = Both(tables, [Feature("x", "t", mode)], 3, RULES[rule])
    for seed in range(4):
        ids = np.random.default_rng(seed).integers(0, 40, (N_BAGS, 7))
        both.step({"x": ids})
        check(both)


def test_gradients_of_features_are_added_in_their_order():
    rng = np.random.default_rng(0)
    tables = {"t": rng.standard_normal((5, 4)).astype(np.float32)}
    modes = ("none", "sum", "none", "mean")
    features = [Feature(f"f{i}", "t", mode) for i, mode in enumerate(modes)]
    both = Both(tables, features, 1, partial(optim.SGD, lr=0.3))
    both.step({feature.name: rng.integers(0, 5, (N_BAGS, 5)) for feature in features})
    check(both)


def test_a_fixed_option_is_refused():
    tables = {"t": np.ones((40, 4), np.float32)}
    both = Both(tables, [Feature("x", "t")], 2, partial(optim.SGD, lr=0.5, momentum=0.9))
    values = {"x": np.zeros((N_BAGS, 2), int)}
    both.step(values)
    with pytest.raises(ShardError, match="with the same momentum and rounding, got SGD"):
        both.sharded.update(
            both.grad(values), values, optimizers={"t": partial(optim.SGD, lr=0.5, momentum=0.5)}
        )
    both.step(values)
    check(both)


def test_tables_without_optimizers_stay_and_their_ids_are_checked():
    tables = {name: np.ones((40, 4), np.float32) for name in "ab"}
    features = [Feature("x", "a"), Feature("y", "b")]
    both = Both(tables, features, 3, {"a": partial(optim.SGD, lr=0.5)})
    values = {"x": np.zeros((N_BAGS, 2), int), "y": np.zeros((N_BAGS, 2), int)}
    both.step(values)
    check(both)
    values["y"][0, 1] = 40
    before = both.tables()["a"].copy()
    with pytest.raises(IndexError, match=r"feature 'y': ids\[0, 1\] = 40 is out of range"):
        both.sharded.update(np.ones((N_BAGS, 8)), values, optimizers=both.rules)
    np.testing.assert_array_equal(both.tables()["a"], before)


def test_options_may_change():
    tables = {"t": np.ones((40, 4), np.float32)}
    both = Both(tables, [Feature("x", "t")], 2, partial(optim.Adagrad, lr=0.5))
    values = {"x": np.arange(N_BAGS * 2).reshape(N_BAGS, 2)}
    both.step(values)
    both.rules = {"t": partial(optim.Adagrad, lr=0.01)}
    both.optimizers["t"].lr = 0.01
    both.step(values)
    check(both)


@pytest.mark.parametrize(
    ("optimizers", "kind", "message"),
    [
        ([], TypeError, "optimizers must be a mapping, got list"),
        ({"u": optim.Adam}, ValueError, "optimizers must have names of tables as keys, got 'u'"),
        (
            {"t": optim.Optimizer},
            TypeError,
            "optimizers['t']: optimizer must be a class of embag.optim, or a functools.partial of "
            "one, got type",
        ),
        (
            {"t": partial(optim.Adam, 1)},
            TypeError,
            "optimizers['t']: optimizer must have options by name only, got (1,)",
        ),
        (
            {"t": partial(optim.Adam, frozen=[1])},
            ValueError,
            "optimizers['t']: frozen must be left out on shards, got some",
        ),
        (
            {"t": partial(optim.Adam, lr=-1)},
            ValueError,
            "optimizers['t']: lr must be at least 0 and finite in float32, got -1.0",
        ),
    ],
)
def test_errors_of_optimizers(optimizers, kind, message):
    tables = {"t": np.ones((40, 4), np.float32)}
    sharded = ShardedCollection(
        tables, [Feature("x", "t")], plan=cut_plan(tables, 2), memory="copy"
    )
    with pytest.raises(kind) as caught:
        sharded.update(np.ones((1, 4)), {"x": [[1]]}, optimizers=optimizers)
    assert str(caught.value) == message


def test_other_errors():
    tables = {"t": np.ones((40, 4), np.float32)}
    features, rules = [Feature("x", "t")], {"t": optim.Adam}
    arguments = np.ones((1, 4)), {"x": [[1]]}
    mapped = ShardedCollection(tables, features, plan=cut_plan(tables, 1))
    with pytest.raises(ValueError, match="memory must be 'copy' for updates, got 'map'"):
        mapped.update(*arguments, optimizers=rules)
    copies = plan(tables, [("a", 10**6), ("b", 10**6)], copies={"t": 2})
    sharded = ShardedCollection(tables, features, plan=copies, memory="copy")
    with pytest.raises(ValueError, match="table 't' must have no copies for updates, got some"):
        sharded.update(*arguments, optimizers=rules)
    sharded = ShardedCollection(tables, features, plan=cut_plan(tables, 2), memory="copy")
    with pytest.raises(ValueError, match="wrt must be 'weight' or None"):
        sharded.update(*arguments, optimizers=rules, wrt="x")
    with pytest.raises(ValueError, match="grad_output must have the output's shape"):
        sharded.update(np.ones((2, 4)), {"x": [[1]]}, optimizers=rules)
    sharded.update(*arguments, optimizers=rules)
    with pytest.raises(ShardError, match="optimizer must stay of its class"):
        sharded.update(*arguments, optimizers={"t": optim.FTRL})
    # Whatever failed, no step was counted twice.
    sharded.update(*arguments, optimizers=rules)
    steps = [shard._loaded[0].optimizers for shard in sharded._actors.shards]
    assert [o.n_steps for found in steps for o in found.values()] == [2, 2]


def test_quantized_tables_have_no_gradients():
    tables = {"t": embag.quantize(np.ones((40, 4), np.float32))}
    for n_blocks in (1, 2):
        sharded = ShardedCollection(
            tables, [Feature("x", "t")], plan=cut_plan(tables, n_blocks), memory="copy"
        )
        with pytest.raises(ShardError, match="TypeError: optimizers\\['t'\\]: table must be"):
            sharded.update(np.ones((1, 4)), {"x": [[1]]}, optimizers={"t": optim.Adam})


def test_a_lost_update_is_not_sent_again():
    tables = {name: np.ones((40, 4), np.float32) for name in "ab"}
    features = [Feature("x", "a"), Feature("y", "b")]
    sharded = ShardedCollection(tables, features, plan=cut_plan(tables, 1), memory="copy")
    values = {"x": [[1]], "y": [[1]]}
    rules = dict.fromkeys("ab", partial(optim.SGD, lr=1.0))
    sharded.update(np.ones((1, 8)), values, optimizers=rules)
    tried = []

    def fail(method, shard):
        if (method, shard) == ("update", 1):
            tried.append(shard)
            sharded._actors.restart(1)
            raise OSError("gone")

    sharded._actors.before = fail
    with pytest.raises(ShardError, match=r"shard 1 failed: OSError: gone; other shards may have"):
        sharded.update(np.ones((1, 8)), values, optimizers=rules)
    assert tried == [1]
    sharded._actors.before = lambda method, shard: None
    # The error has said it: the next lookup does not.
    np.testing.assert_array_equal(sharded(values)[0], [-1] * 4 + [1] * 4)
