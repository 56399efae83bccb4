"""`Optimizer.grow`: rows that were added train like rows of a larger table; errors."""

from types import SimpleNamespace

import numpy as np
import pytest
from optimizers import N_ROWS, OPTIMIZERS, gradient

import embag
from embag import SparseRows, _optimizer, optim
from embag._process import threads


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_grown_table_is_like_one_that_was_large_from_the_start(name, dtype):
    rng = np.random.default_rng(0)
    large = np.zeros((N_ROWS + 4, 5), dtype)
    large[:N_ROWS] = rng.standard_normal((N_ROWS, 5))
    start = large[:N_ROWS].copy()
    for frozen in (None, [0, 4]):
        whole = OPTIMIZERS[name](large.copy(), frozen=frozen)
        optimizer = OPTIMIZERS[name](start.copy(), frozen=frozen)
        for _ in range(3):
            grad = gradient(rng, 5, dtype)
            optimizer.step(grad)
            whole.step(SparseRows(grad.indices, grad.values, large.shape))
        old, before = optimizer.table, optimizer.table.copy()
        table = optimizer.grow(N_ROWS + 4)
        assert table is optimizer.table
        assert table.shape == large.shape
        assert table.ctypes.data % 64 == 0
        for _ in range(3):
            grad = rng.standard_normal(large.shape).astype(dtype)
            optimizer.step(grad)
            whole.step(grad)
        assert table.tobytes() == whole.table.tobytes()
        assert (table[N_ROWS:] != 0).any(axis=1).all()
        for state, array in whole.states.items():
            assert optimizer.states[state].tobytes() == array.tobytes()
        assert old.tobytes() == before.tobytes()
        assert repr(optimizer) == repr(whole)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_of_new_rows_have_their_initial_values(name):
    options = {"initial_accumulator_value": 0.75} if name in ("adagrad", "ftrl") else {}
    optimizer = OPTIMIZERS[name](np.ones((2, 3)), **options)
    fresh = OPTIMIZERS[name](np.zeros((5, 3)), **options)
    optimizer.step(np.ones((2, 3)))
    optimizer.grow(5)
    for state, array in fresh.states.items():
        assert optimizer.states[state][2:].tolist() == array[2:].tolist()
    if options:
        assert any((array == 0.75).all() for array in fresh.states.values())


def test_growing_by_no_row_and_from_no_row():
    table = np.ones((2, 3))
    optimizer = optim.Adagrad(table)
    assert optimizer.grow(2) is not table
    assert optimizer.table.tolist() == table.tolist()
    optimizer = optim.Adagrad(np.ones((0, 3)), frozen=[])
    assert optimizer.grow(2).tolist() == [[0] * 3] * 2
    optimizer.step(np.ones((2, 3)))
    assert optimizer.table.all()


def test_a_table_of_distant_rows():
    wide = np.arange(12.0).reshape(3, 4)
    optimizer = optim.SGD(wide[:, :2], 1)
    assert optimizer.grow(4).tolist() == [[0, 1], [4, 5], [8, 9], [0, 0]]


def test_a_table_of_16_bits():
    optimizer = optim.Adagrad(np.ones((2, 3), np.float16), stochastic_rounding=True)
    assert optimizer.grow(4).dtype == np.float16
    optimizer.step(np.ones((4, 3), np.float32))
    assert optimizer.states["sum"].tolist() == [[1] * 3] * 4


def test_a_grown_table_is_saved(tmp_path):
    path = tmp_path / "training.safetensors"
    optimizer = optim.Adam(np.ones((2, 3)), frozen=[1])
    optimizer.grow(4)
    embag.save_checkpoint(path, {"x": optimizer})
    loaded = embag.load_checkpoint(path)["x"]
    for one in (optimizer, loaded):
        one.step(np.ones((4, 3)))
    assert loaded.table.tobytes() == optimizer.table.tobytes()
    assert (loaded.table[1] == 1).all()
    assert loaded.table[2:].all()


def test_errors_change_nothing(monkeypatch):
    table = np.ones((3, 2), np.float32)
    optimizer = optim.Adam(table, frozen=[0])
    states, before = optimizer.states, dict(vars(optimizer))
    for n_rows, error, message in (
        (2, ValueError, r"n_rows must be 3, the rows of the table, to 2\*\*63 - 1, got 2"),
        (-(2**70), ValueError, "n_rows must be 3, .* got an integer of 71 bits"),
        (10**5000, ValueError, "n_rows must be 3, .* got an integer of"),
        (4.0, TypeError, "n_rows must be an integer, got 4.0"),
        (True, TypeError, "n_rows must be an integer, got True"),
        (2**61, MemoryError, "cannot allocate"),
        (2**63 - 1, MemoryError, "cannot allocate"),
    ):
        with pytest.raises(error, match=message):
            optimizer.grow(n_rows)
    with pytest.raises(TypeError, match=r"table must be a numpy\.ndarray, got RemappedTable"):
        optim.SGD(embag.RemappedTable(np.ones((3, 2))), 1).grow(4)
    with optimizer._locked(), pytest.raises(RuntimeError, match="one step at a time"):
        optimizer.grow(4)

    grown = _optimizer._grown

    def fail(array, n_rows, value):  # at the last array
        if array.ndim == 1:
            raise MemoryError
        return grown(array, n_rows, value)

    monkeypatch.setattr(_optimizer, "_grown", fail)
    with pytest.raises(MemoryError):
        optimizer.grow(4)
    assert vars(optimizer) == before
    assert optimizer.states is states
    optimizer.step(np.ones((3, 2), np.float32))
    optimizer.table = np.ones((1, 2), np.float32)
    with pytest.raises(ValueError, match="table must be float32 of shape"):
        optimizer.grow(4)


def test_a_step_described_before_the_table_grew_is_refused(monkeypatch):
    optimizer = optim.Adagrad(np.zeros((3, 2)), lr=1.0, eps=0.0)
    old, run = optimizer.table, threads.run

    def grow_first(kernel, *arguments):  # as another thread may, just before the kernel
        monkeypatch.undo()
        optimizer.grow(3)
        return run(kernel, *arguments)

    monkeypatch.setattr(threads, "run", grow_first)
    with pytest.raises(RuntimeError, match="one step at a time, got two calls at once"):
        optimizer.step(np.ones((3, 2)))
    assert optimizer.table is not old
    assert not old.any()
    assert not optimizer.table.any()
    assert optimizer.n_steps == 0
    optimizer.step(np.ones((3, 2)))
    assert optimizer.table.tolist() == [[-1, -1]] * 3


def test_a_step_described_while_the_table_grows_is_refused(monkeypatch):
    optimizer = optim.Adagrad(np.zeros((3, 2)), lr=1.0, eps=0.0)
    arrays = optimizer._arrays()
    progress = optimizer._progress
    optimizer.grow(3)
    progress_of_the_moment = SimpleNamespace(n_steps=progress.n_steps)
    monkeypatch.setattr(optimizer, "_progress", progress_of_the_moment)
    described = optimizer._described(arrays)
    grad = None, np.ones((3, 2)), None, None
    with pytest.raises(RuntimeError, match="one step at a time, got two calls at once"):
        _optimizer.kernels.step_tables(1, (progress,), (described,), (grad,))
    assert not arrays["table"].any()
