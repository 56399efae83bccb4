"""Every option of a feature, in tables that are cut; entries are integers, with exact sums."""

import itertools

import numpy as np
import pytest
from shards import make_both

from embag import Feature, RemappedTable

pytestmark = pytest.mark.usefixtures("local")

N_ROWS, N_BAGS = 23, 9
OPTIONS = list(
    itertools.product((None, 3, -1), (None, 3, 5), ("raise", "skip", 4, 3), (False, True))
)


def draw(feature, rng):
    """Return (ids, offsets), some bags of which are empty; some ids may be out of range."""
    sizes = rng.integers(0, 9, N_BAGS) * (rng.random(N_BAGS) < 0.8)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    low, high = (0, N_ROWS) if feature.invalid == "raise" else (-2, N_ROWS + 6)
    return rng.integers(low, high, offsets[-1]), offsets


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("n_blocks", [2, 7])
@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
def test_every_option(mode, n_blocks, exact):
    rng = np.random.default_rng(1)
    features = [Feature(f"f{i}", "t", mode, *options) for i, options in enumerate(OPTIONS)]
    tables = {"t": rng.integers(-9, 9, (N_ROWS, 3)).astype(np.float32)}
    local, sharded = make_both(tables, features, n_blocks=n_blocks, exact=exact)
    values = {feature.name: draw(feature, rng) for feature in features}
    some = {f.name: rng.integers(-2, 3, len(values[f.name][0])) for f in features[::2]}
    for weights in (None, some) if mode in ("sum", "mean", "sqrtn") else (None,):
        arguments = values, None, weights
        options = {"include_last_offset": True, "return_n_valid": True}
        for found, expected in zip(
            sharded(*arguments, **options), local(*arguments, **options), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
        assert sharded.n_invalid == local.n_invalid


def test_remapped_tables_beside_tables_that_are_cut():
    rng = np.random.default_rng(4)
    rows = rng.integers(-9, 9, (N_ROWS, 3)).astype(np.float32)
    index_map = rng.integers(-1, N_ROWS, 40)
    tables = {"remapped": RemappedTable(rows, index_map, first_id=1000), "cut": rows}
    features = [
        Feature("a", "remapped", "mean", padding_idx=1003, default_idx=1001, invalid="skip"),
        Feature("b", "remapped", "max", invalid=1005),
        Feature("c", "cut", "max"),
        Feature("d", "remapped", "none", invalid="skip"),
    ]
    local, sharded = make_both(tables, features, n_blocks=4)
    values = {name: rng.integers(990, 1050, (N_BAGS, 5)) for name in "abd"}
    values["c"] = rng.integers(0, N_ROWS, (N_BAGS, 5))
    (found, found_rows), (expected, rows) = sharded(values), local(values)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found_rows["d"], rows["d"])
    assert sharded.n_invalid == local.n_invalid


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("invalid", ["raise", "skip", 5, 0])
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_features_without_bags(n_blocks, invalid, normalize):
    rng = np.random.default_rng(7)
    shapes = [(6,), (2, 3), (2, 0, 4), (), (0,), (2, 1, 3)]
    options = {"padding_idx": 1, "invalid": invalid, "normalize": normalize}
    features = [Feature(f"f{i}", "t", "none", **options) for i in range(len(shapes))]
    tables = {"t": rng.standard_normal((N_ROWS, 3)).astype(np.float32)}
    local, sharded = make_both(tables, features, n_blocks=n_blocks)
    low, high = (0, N_ROWS) if invalid == "raise" else (-3, 2 * N_ROWS)
    values = {f"f{i}": rng.integers(low, high, shape) for i, shape in enumerate(shapes)}
    (found, found_rows), (expected, rows) = sharded(values), local(values)
    assert found.shape == expected.shape
    assert list(found_rows) == list(rows)
    for name, own in rows.items():
        np.testing.assert_array_equal(found_rows[name], own)
        assert found_rows[name].flags.writeable
