"""Updates with every option of a feature: the bits of one machine, also in a table that is cut."""

import itertools
from functools import partial

import numpy as np
import pytest
from cases import assert_same_bits
from sharded_training import N_BAGS, Both, check

from embag import Feature, optim

pytestmark = pytest.mark.usefixtures("local")

OPTIONS = list(
    itertools.product((None, 3, -1), (None, 3, 5), ("raise", "skip", 4, 3), (False, True))
)


def draw(feature, rng):
    high = 40 if feature.invalid == "raise" else 44
    ids = rng.integers(0, high, (N_BAGS, 5))
    ids[0], ids[1], ids[2] = 3, 39, high - 1  # often only padding, or only ids out of range
    return ids


@pytest.mark.parametrize("wrt", ["weight", None])
@pytest.mark.parametrize("n_blocks", [1, 3])
@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
def test_every_option(mode, n_blocks, wrt):
    rng = np.random.default_rng(2)
    # Each has a table of its own: the gradients of features that share one are summed.
    features = [Feature(f"f{i}", f"f{i}", mode, *options) for i, options in enumerate(OPTIONS)]
    tables = {f.name: rng.standard_normal((40, 4)).astype(np.float32) for f in features}
    both = Both(tables, features, n_blocks, partial(optim.Adagrad, lr=0.25, eps=1e-3))
    values = {feature.name: draw(feature, rng) for feature in features}
    weighted = features[::2] if mode in ("sum", "mean", "sqrtn") else []
    weights = {feature.name: rng.random((N_BAGS, 5)) for feature in weighted}
    expected, found = both.step(values, weights, wrt=wrt)
    check(both)
    if wrt is None:
        assert list(found) == list(expected) == list(weights)
        for name, grad in expected.items():
            assert_same_bits(found[name], grad, name)


def test_stochastic_rounding_of_whole_tables():
    rng = np.random.default_rng(4)
    tables = {name: rng.standard_normal((40, 4)).astype(np.float16) for name in "ab"}
    rule = partial(optim.SGD, lr=1e-3, stochastic_rounding=True, seed=5)
    both = Both(tables, [Feature("x", "a"), Feature("y", "b", "mean")], 1, rule)
    for _ in range(3):
        both.step({name: rng.integers(0, 40, (N_BAGS, 5)) for name in "xy"})
        check(both)
