"""Tables of float64 that are cut: entries are rounded to float32 before they are added."""

import numpy as np
import pytest
from cases import assert_same_bits
from shards import make_both

from embag import Feature

pytestmark = pytest.mark.usefixtures("local")

MODES = ("sum", "mean", "sqrtn", "max", "min")


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("n_blocks", [1, 2, 3])
def test_entries_beyond_float32(n_blocks, exact):
    tables = {"t": np.array([[1e39], [-1e39], [1.0], [1e-50]])}
    features = [Feature(mode, "t", mode) for mode in MODES] + [Feature("rows", "t", "none")]
    local, sharded = make_both(tables, features, n_blocks=n_blocks, exact=exact)
    ids = [[0], [1], [2, 3], [0, 2], [0, 1]]
    values = dict.fromkeys(MODES, ids) | {"rows": [0, 1, 2, 3]}
    for found, expected in zip(sharded(values), local(values), strict=True):
        np.testing.assert_equal(found, expected)


def test_a_bag_of_one_block_has_the_bits_of_one_machine():
    rng = np.random.default_rng(0)
    tables = {"t": rng.standard_normal((100, 3))}
    features = [Feature(mode, "t", mode) for mode in MODES]
    local, sharded = make_both(tables, features, n_blocks=10)
    values = dict.fromkeys(MODES, rng.integers(30, 40, (4, 9)))
    assert_same_bits(sharded(values), local(values))
