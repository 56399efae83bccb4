"""Batches without bags, ids or features, and tables with fewer rows than blocks."""

import numpy as np
import pytest
from cases import assert_same_bits
from shards import make_both

from embag import Feature

pytestmark = pytest.mark.usefixtures("local")

MODES = ("sum", "mean", "sqrtn", "max", "min")


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_batches_without_ids(n_blocks, exact):
    tables = {"t": np.random.default_rng(0).standard_normal((23, 3)).astype(np.float32)}
    defaults = [None, 2, 22, 0, None]
    features = [
        Feature(mode, "t", mode, default_idx=default)
        for mode, default in zip(MODES, defaults, strict=True)
    ]
    local, sharded = make_both(tables, features, n_blocks=n_blocks, exact=exact)
    for arguments in [
        (np.zeros(0, int), np.zeros(1, int)),  # no bags
        (np.zeros(0, int), np.zeros(5 * 4 + 1, int)),
        (dict.fromkeys(MODES, np.zeros((3, 0), int)),),
        ({mode: [[], []] for mode in MODES},),
    ]:
        assert_same_bits(sharded(*arguments), local(*arguments))


def test_no_features():
    local, sharded = make_both({"t": np.ones((5, 3), np.float32)}, [], n_blocks=2)
    assert_same_bits(sharded({}), local({}))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("n_blocks", [2, 5])
@pytest.mark.parametrize("shape", [(0, 4), (5, 0), (0, 0), (2, 3), (1, 1)])
def test_small_tables(shape, n_blocks, exact):
    tables = {"t": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}
    features = [Feature(mode, "t", mode, invalid="skip") for mode in (*MODES, "none")]
    local, sharded = make_both(tables, features, n_blocks=n_blocks, exact=exact)
    ids = np.array([[0, 1, 4], [9, -1, 9], [1, 1, 0]])
    values = dict.fromkeys((*MODES, "none"), ids)
    (found, found_rows), (expected, rows) = sharded(values), local(values)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found_rows["none"], rows["none"])
