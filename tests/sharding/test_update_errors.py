"""Errors of an update are those of one machine, and no table has changed then."""

import numpy as np
import pytest
from sharded_training import Both, check

from embag import Feature, optim

pytestmark = pytest.mark.usefixtures("local")

ROWS = {"z": np.ones((1, 2, 4))}
GRAD = np.ones((2, 12)), ROWS
VALUES = {"x": ([0, 5, 13], [0, 1]), "y": ([1, 2], [0, 1]), "z": [[1, 2]], "u": ([1], [0, 0])}


@pytest.mark.parametrize("n_blocks", [1, 3])
@pytest.mark.parametrize(
    "arguments",
    [
        (GRAD, VALUES | {"x": ([0, 5, 40], [0, 1])}),
        (GRAD, VALUES | {"u": ([40], [0, 0])}),  # its table has no optimizer
        (GRAD, VALUES | {"x": ([40], [0, 0]), "u": ([41], [0, 0])}),
        (GRAD, VALUES | {"z": [[1, 99]]}),
        (GRAD, VALUES | {"y": ([0, 5, 2], [0, 4])}),
        (GRAD, VALUES | {"x": [[0]]}),
        (GRAD, VALUES | {"y": [[1, 2], [40]]}),
        (GRAD, {name: VALUES[name] for name in "yzu"}),
        (GRAD, VALUES, None, {"x": [[1]]}),
        (GRAD, VALUES, None, {"z": [1]}),
        (np.ones((2, 12)), VALUES),
        ((np.ones((2, 11)), ROWS), VALUES),
        ((np.ones((2, 12)), {}), VALUES),
        ((np.ones((2, 12)), {"z": np.ones((2, 4))}), VALUES),
        ((np.ones((2, 12), complex), ROWS), VALUES),
        ((np.ones((2, 12)), {"z": [["a"]]}), VALUES),
    ],
)
def test_errors_are_those_of_one_machine(arguments, n_blocks):
    features = [Feature("x", "a"), Feature("y", "b", "mean"), Feature("z", "a", "none")]
    features += [Feature("u", "c")]
    tables = {name: np.ones((40, 4), np.float32) for name in "abc"}
    both = Both(tables, features, n_blocks, dict.fromkeys("ab", optim.Adam))
    both.local.update(GRAD, VALUES, optimizers=both.optimizers)
    both.sharded.update(GRAD, VALUES, optimizers=both.rules)
    with pytest.raises((TypeError, ValueError, IndexError)) as expected:
        both.local.update(*arguments, optimizers=both.optimizers)
    with pytest.raises(type(expected.value)) as found:
        both.sharded.update(*arguments, optimizers=both.rules)
    assert str(found.value) == str(expected.value)
    check(both)
