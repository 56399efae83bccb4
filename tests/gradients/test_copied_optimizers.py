"""Deep copies and pickles of optimizers have tables of their own, and go on with the same bits."""

import copy
import pickle

import numpy as np
import pytest
from optimizers import N_ROWS, OPTIMIZERS, gradient

import embag


def unpickled(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, unpickled])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_copy_goes_on_with_the_same_bits(name, duplicate):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((N_ROWS, 2 * 5)).astype(np.float32)[:, :5]  # rows at a distance
    optimizer = OPTIMIZERS[name](table, frozen=[3])
    optimizer.step(gradient(rng, 5, np.float32))
    twin = duplicate(optimizer)
    assert not np.shares_memory(twin.table, table)
    kept = table.copy()
    grad = gradient(rng, 5, np.float32)
    twin.step(grad)
    assert table.tobytes() == kept.tobytes()
    assert twin.n_steps == optimizer.n_steps + 1
    optimizer.step(grad)
    assert twin.table.tobytes() == table.tobytes()
    for state, array in optimizer.states.items():
        assert twin.states[state].tobytes() == array.tobytes()
        assert not np.shares_memory(twin.states[state], array)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, unpickled])
def test_a_layer_and_its_optimizer_still_share_a_table(duplicate):
    layer = embag.EmbeddingBag(4, 3, rng=0)
    optimizer = embag.optim.SGD(layer.weight, 1)
    layer, optimizer = duplicate((layer, optimizer))
    before = layer.weight.copy()
    layer.update(np.ones((1, 3)), [[1]], optimizer=optimizer)
    assert (layer.weight != before).any(axis=1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, unpickled])
def test_locks_are_separate(duplicate):
    optimizer = embag.optim.SGD(np.ones((2, 2)), 1)
    twin = duplicate(optimizer)
    with optimizer._locked():
        twin.step(np.ones((2, 2)))
    with twin._locked(), pytest.raises(RuntimeError, match="one step at a time"):
        twin.step(np.ones((2, 2)))


def test_shallow_copies_are_refused():
    optimizer = embag.optim.Adagrad(np.ones((2, 2)))
    with pytest.raises(TypeError, match=r"must be copied by copy\.deepcopy, got copy\.copy"):
        copy.copy(optimizer)
