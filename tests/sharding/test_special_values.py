"""NaN, infinities, signed zeros and divisors of 0, in tables that are cut."""

import itertools

import numpy as np
import pytest
from cases import assert_same_bits
from shards import make_both

from embag import Feature

pytestmark = pytest.mark.usefixtures("local")

MODES = ("sum", "mean", "sqrtn", "max", "min")
SPECIAL = [np.nan, np.inf, -np.inf, -0.0, 0.0, 1.0, -1.0, 3e38]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("n_blocks", [1, 2, 3, 7])
def test_special_values(n_blocks, normalize):
    tables = {"t": np.array(SPECIAL, np.float32).reshape(-1, 1)}
    features = [Feature(mode, "t", mode, normalize=normalize) for mode in MODES]
    values = dict.fromkeys(MODES, np.array([*itertools.product(range(8), repeat=2)]))
    local, sharded = make_both(tables, features, n_blocks=n_blocks)
    np.testing.assert_array_equal(sharded(values), local(values))  # -0.0 may be 0.0
    local, sharded = make_both(tables, features, n_blocks=n_blocks, exact=True)
    assert_same_bits(sharded(values), local(values))


@pytest.mark.parametrize("mode", ["mean", "sqrtn"])
def test_weights_without_sum(mode):
    """The divisor is that of the whole bag, not of the part in a block."""
    tables = {"t": np.random.default_rng(0).standard_normal((23, 3)).astype(np.float32)}
    local, sharded = make_both(tables, [Feature("f", "t", mode)], n_blocks=3)
    ids = np.array([[0, 22], [0, 22], [1, 2], [3, 12]])
    weights = np.array([[1, -1], [0, 0], [-0.5, 0.5], [1, 2]], np.float32)
    found, expected = (each({"f": ids}, None, {"f": weights}) for each in (sharded, local))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)
    assert (found[[0, 1, 2] if mode == "mean" else 1] == 0).all()
