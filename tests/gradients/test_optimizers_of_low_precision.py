"""`embag.optim` on tables of 16 bits: states of float32, rounding to nearest or by chance."""

import numpy as np
import pytest
from cases import dtype_of
from optimizers import N_ROWS, OPTIMIZERS, gradient

import embag
from embag import SparseRows, optim

SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133}  # subnormal numbers


@pytest.fixture(params=SMALLEST)
def dtype(request):
    return dtype_of(request.param)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_one_in_float32_rounded_to_nearest(name, dtype, level, eager_threads):
    for dim in (1, 7, 33):
        rng = np.random.default_rng(dim)
        start = rng.standard_normal((N_ROWS, dim)).astype(dtype)
        steps = [gradient(rng, dim, np.float32) for _ in range(3)]
        wide = start.astype(np.float32)
        expected = OPTIMIZERS[name](wide)
        for grad in steps:
            expected.step(grad)
            wide[...] = wide.astype(dtype)
        for n_threads in (1, 3):
            table = start.copy()
            optimizer = OPTIMIZERS[name](table)
            for grad in steps:
                optimizer.step(grad, num_threads=n_threads)
            assert table.tobytes() == wide.astype(dtype).tobytes()
            for key, state in expected.states.items():
                assert optimizer.states[key].dtype == np.float32
                assert optimizer.states[key].tobytes() == state.tobytes()


def test_rounding_by_chance(dtype, level, eager_threads):
    n = 4000
    # A third of the way to the next float, for a normal number, a subnormal one, and a negative.
    units = np.array([1, SMALLEST[dtype.name], -1])
    low = np.tile(units.astype(dtype), (n, 1))
    high = (low.view(np.uint16) + np.uint16(1)).view(dtype)  # away from zero
    grad = ((low.astype(np.float64) - high.astype(np.float64)) / 3).astype(np.float32)
    tables = []
    for seed, n_threads in ((5, 1), (5, 3), (6, 1)):
        table = low.copy()
        optimizer = optim.SGD(table, 1, stochastic_rounding=True, seed=seed)
        optimizer.step(grad, num_threads=n_threads)
        assert ((table == low) | (table == high)).all()
        share = (table == high).mean(axis=0)
        # Six standard deviations of n draws with odds of 1 in 3.
        assert (abs(share - 1 / 3) < 6 * np.sqrt(2 / 9 / n)).all()
        tables.append(table.copy())
        if seed == 5:
            optimizer.step(np.zeros_like(grad))  # a representable entry stays
            assert table.tobytes() == tables[-1].tobytes()
            table[...] = low
            optimizer.step(grad, num_threads=n_threads)
            assert table.tobytes() != tables[-1].tobytes()  # another step, another chance
    assert tables[0].tobytes() == tables[1].tobytes() != tables[2].tobytes()


def test_small_steps_are_not_lost(dtype):
    steps = 1000
    lost, kept = np.ones((50, 4), dtype), np.ones((50, 4), dtype)
    small = np.full((50, 4), 1e-4, np.float32)
    nearest, chance = optim.SGD(lost, 1), optim.SGD(kept, 1, stochastic_rounding=True)
    for _ in range(steps):
        nearest.step(small)
        chance.step(small)
    assert (lost == 1).all()
    assert abs(kept.astype(np.float64).mean() - 0.9) < 0.01


def test_what_is_not_finite_stays():
    table = np.array([[np.inf, np.nan, 65504, 0]], np.float16)
    optimizer = optim.SGD(table, 1, stochastic_rounding=True)
    optimizer.step(np.array([[1, 1, -1e9, 0]], np.float32))
    assert str(table.tolist()) == "[[inf, nan, inf, 0.0]]"


def test_updates_and_errors(dtype):
    one, two = np.ones((5, 2), dtype), np.ones((5, 2), dtype)
    grad, ids = np.array([[1.0, 2.0]]), [[4, 1, 4]]
    optimizer = optim.Adagrad(one, stochastic_rounding=True, seed=2**64 - 1)
    optimizer.update(grad, ids, mode="sum")
    again = optim.Adagrad(two, stochastic_rounding=True, seed=2**64 - 1)
    again.step(embag.embedding_bag_backward(grad, ids, two, mode="sum", sparse=True).weight)
    assert one.tobytes() == two.tobytes()
    with pytest.raises(TypeError, match="grad must be float32 for a table of"):
        optimizer.step(np.ones((5, 2)))
    with pytest.raises(TypeError, match="grad must be float32 for a table of"):
        optimizer.step(SparseRows([0], np.ones((1, 2)), (5, 2)))
    for seed, error in ((-1, ValueError), (2**64, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="seed must be"):
            optim.SGD(one, 1, stochastic_rounding=True, seed=seed)
    with pytest.raises(ValueError, match="stochastic_rounding must be False for a table of float"):
        optim.SGD(np.ones((2, 2)), 1, stochastic_rounding=True)
    with pytest.raises(TypeError, match="stochastic_rounding must be"):
        optim.SGD(one, 1, stochastic_rounding=2)
    with pytest.raises(TypeError, match="table must be float32, float64, float16 or bfloat16"):
        optim.SGD(np.ones((2, 2), np.int8), 1)
