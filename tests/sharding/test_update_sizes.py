"""Updates without bags or ids, and of tables with fewer rows than blocks."""

from functools import partial

import numpy as np
import pytest
from sharded_training import N_BAGS, Both, check

from embag import Feature, optim

pytestmark = pytest.mark.usefixtures("local")

ADAM = partial(optim.Adam, lr=0.25)


def table(n_rows):
    return np.random.default_rng(0).standard_normal((n_rows, 4)).astype(np.float32)


def update(both, grad, values):
    both.local.update(grad, values, optimizers=both.optimizers)
    both.sharded.update(grad, values, optimizers=both.rules)


def test_every_block_counts_every_step():
    both = Both({"t": table(14)}, [Feature("x", "t")], 7, ADAM)
    for ids in (np.zeros((N_BAGS, 1), int), np.zeros((N_BAGS, 0), int), np.full((N_BAGS, 1), 13)):
        both.step({"x": ids})
        check(both)


@pytest.mark.parametrize("n_blocks", [1, 2])
def test_no_bags(n_blocks):
    tables = {"t": table(14), "u": table(0)}
    both = Both(tables, [Feature("x", "t"), Feature("y", "u", "none")], n_blocks, ADAM)
    ids = np.zeros((0, 2), int)
    update(both, (np.zeros((0, 4)), {"y": np.zeros((0, 2, 4))}), {"x": ids, "y": ids})
    check(both)


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_a_single_id_without_a_bag(n_blocks):
    both = Both({"t": table(14)}, [Feature("x", "t", "none")], n_blocks, ADAM)
    both.step({"x": np.array(5)})
    check(both)


def test_more_blocks_than_rows():
    both = Both({"t": table(3)}, [Feature("x", "t", "max"), Feature("y", "t", "none")], 5, ADAM)
    update(both, (np.ones((2, 4)), {"y": np.ones((2, 4))}), {"x": [[0, 2], [1, 1]], "y": [2, 0]})
    check(both)


def test_tables_that_no_feature_looks_up():
    tables = {name: table(14) for name in "tu"}
    both = Both(tables, [Feature("x", "t")], 2, {"t": ADAM})
    both.rules["u"] = ADAM
    both.sharded.update(np.ones((1, 4)), {"x": [[1]]}, optimizers=both.rules)
    np.testing.assert_array_equal(both.tables()["u"], tables["u"])
