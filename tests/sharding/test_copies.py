"""Any shard that has the rows may answer."""

import numpy as np
import pytest
from cases import assert_same_bits
from shards import make_both

from embag import Feature

pytestmark = pytest.mark.usefixtures("local")


def make(n_tables, n_blocks, modes):
    rng = np.random.default_rng(0)
    tables = {f"t{i}": rng.standard_normal((12, 2)).astype(np.float32) for i in range(n_tables)}
    features = [Feature(f"{name}{mode}", name, mode) for name in tables for mode in modes]
    return make_both(tables, features, n_blocks=n_blocks, n_copies=2, exact=True)


def ask_by_chance(sharded):
    rng = np.random.default_rng(1)
    sharded._actors.choose = lambda shards: int(rng.choice(shards))


def test_any_copy_of_a_block_may_answer():
    local, sharded = make(2, 3, ("sum", "max", "none"))
    ask_by_chance(sharded)
    values = {feature.name: [[1, 2], [9, 11]] for feature in local.features}
    values |= {name: ids[0] for name, ids in values.items() if name.endswith("none")}
    for _ in range(10):
        (found, found_rows), (expected, rows) = sharded(values), local(values)
        assert_same_bits(found, expected)
        for name, own in rows.items():
            assert_same_bits(found_rows[name], own)


def test_a_shard_keeps_few_collections():
    local, sharded = make(12, 1, ("sum",))
    ask_by_chance(sharded)
    values = {feature.name: [[1, 2]] for feature in local.features}
    for _ in range(150):
        assert_same_bits(sharded(values), local(values))
    assert all(0 < len(shard._loaded[0]._collections) <= 64 for shard in sharded._actors.shards)
