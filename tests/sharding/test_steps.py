"""What a lookup returns when shards change or restart between any two of its steps."""

import asyncio
import pickle

import numpy as np
import pytest
from shards import make_both

from embag import Feature, optim
from embag.ray import ShardError

pytestmark = pytest.mark.usefixtures("local")

VALUES = {"x": [[0, 5], [11, 3]], "y": [0, 6, 11]}  # of all three blocks


def filled(value, n_rows=12):
    return np.full((n_rows, 2), value, np.float32)


def make():
    features = [Feature("x", "t", "mean"), Feature("y", "t", "none")]
    return make_both({"t": filled(1)}, features, n_blocks=3, memory="copy")[1]


def value_of(result):
    """Return what all rows of a result are filled with."""
    out, rows = result
    (value,) = {*out.reshape(-1).tolist(), *rows["y"].reshape(-1).tolist()}
    return value


@pytest.mark.parametrize("moment", ["load", "keep"])
def test_no_lookup_sees_a_part_of_a_replacement(moment):
    sharded, seen = make(), []

    def look_up(method, shard):
        if method == moment:
            seen.append(value_of(sharded(VALUES)))

    sharded._actors.before = look_up
    sharded.replace("t", filled(2))
    assert seen == [1 if moment == "load" else 2] * 3


def test_a_shard_that_misses_the_end_of_a_replacement(monkeypatch):
    sharded = make()
    copy = pickle.loads(pickle.dumps(sharded))
    with monkeypatch.context() as patched:
        patched.setattr(sharded._actors, "tell", lambda method, arguments: None)
        sharded.replace("t", filled(2))
    assert value_of(sharded(VALUES)) == 2
    assert value_of(copy(VALUES)) in (1, 2)
    sharded.replace("t", filled(3))
    assert all(len(shard._loaded) == 1 for shard in sharded._actors.shards)
    assert value_of(copy(VALUES)) == value_of(sharded(VALUES)) == 3


@pytest.mark.parametrize("moment", [1, 2, 3, 4])
def test_shards_may_restart_at_any_step(moment):
    sharded = make()
    sharded._actors.restart(1)
    sharded._actors.asked.clear()

    def restart(method, shard):
        if len(sharded._actors.asked) == moment:
            sharded._actors.restart(0)
            sharded._actors.restart(2)

    sharded._actors.before = restart
    assert value_of(sharded(VALUES)) == 1


def test_awaited_lookups_take_the_same_steps():
    sharded = make()
    sharded.replace("t", filled(2))
    sharded._actors.restart(1)
    assert value_of(asyncio.run(sharded.lookup(VALUES))) == 2
    rule = {"t": optim.Adam}
    sharded.update((np.ones((2, 2)), {"y": np.ones((3, 2))}), VALUES, optimizers=rule)
    sharded._actors.restart(1)
    with pytest.raises(ShardError, match="1 of shard 1"):
        asyncio.run(sharded.lookup(VALUES))
    asyncio.run(sharded.lookup(VALUES))
