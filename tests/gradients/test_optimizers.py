"""`embag.optim`: the bits of the formulas in NumPy, rows that rest, states, errors."""

import tracemalloc

import numpy as np
import pytest
import reference
from numpy.lib.stride_tricks import as_strided
from optimizers import N_ROWS, OPTIMIZERS, expected_step, gradient

import embag
from embag import SparseRows, _optimizer, optim

THREADS = (1, 2, 5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bits_of_the_formulas(name, dtype, level, eager_threads):
    for dim in (1, 7, 33):
        rng = np.random.default_rng(dim)
        start = rng.standard_normal((N_ROWS, 2 * dim)).astype(dtype)
        steps = [gradient(rng, dim, dtype) for _ in range(4)]
        expected = start[:, :dim].copy()
        states = {
            key: array.copy() for key, array in OPTIMIZERS[name](expected.copy()).states.items()
        }
        for t, grad in enumerate(steps, start=1):
            for r, g in zip(grad.indices, grad.values, strict=True):
                expected_step(name, expected[r], [array[r] for array in states.values()], g, t)
        for n_threads in THREADS:
            table = start.copy()[:, :dim]  # rows at a distance
            optimizer = OPTIMIZERS[name](table)
            for grad in steps:
                optimizer.step(grad, num_threads=n_threads)
            assert table.tobytes() == expected.tobytes()
            for key, array in states.items():
                assert optimizer.states[key].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bits_of_updates_in_plain_loops(name, dtype, level, eager_threads):
    rng = np.random.default_rng(0)
    for dim, mode, padding in ((7, "sum", None), (64, "sum", 4), (33, "mean", None)):
        options = {"mode": mode, "padding_idx": padding}
        start = rng.standard_normal((N_ROWS, dim)).astype(dtype)
        offsets = np.array([0, 0, 12, 13, 30])
        batches = []
        for _ in range(4):
            ids = rng.integers(0, N_ROWS - 1, 50)  # the last row never occurs
            ids[rng.random(50) < 0.6] = 2
            weights = rng.standard_normal(50).astype(dtype) if mode == "sum" else None
            batches.append((rng.standard_normal((5, dim)).astype(dtype), ids, weights))
        optimizers = [OPTIMIZERS[name](start.copy()) for _ in THREADS]
        expected = start.copy()
        states = [array.copy() for array in optimizers[0].states.values()]
        for t, (grad_output, ids, weights) in enumerate(batches, start=1):
            grad, _ = reference.embedding_bag_backward(
                grad_output, ids, expected, offsets, per_sample_weights=weights, **options
            )
            for r in set(ids.tolist()) - {padding}:
                expected_step(name, expected[r], [array[r] for array in states], grad[r], t)
        for optimizer, n_threads in zip(optimizers, THREADS, strict=True):
            for grad_output, ids, weights in batches:
                optimizer.update(
                    grad_output,
                    ids,
                    offsets,
                    per_sample_weights=weights,
                    num_threads=n_threads,
                    **options,
                )
            assert optimizer.table.tobytes() == expected.tobytes()
            for array, found in zip(states, optimizer.states.values(), strict=True):
                assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_dense_gradient_changes_every_row(name):
    rng = np.random.default_rng(0)
    grad = rng.standard_normal((N_ROWS, 4))
    grad[3] = 0
    tables = [np.ones((N_ROWS, 4)) for _ in range(2)]
    OPTIMIZERS[name](tables[0]).step(np.asfortranarray(grad))
    OPTIMIZERS[name](tables[1]).step(SparseRows(np.arange(N_ROWS), grad, grad.shape))
    assert tables[0].tobytes() == tables[1].tobytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_a_backward_pass_and_a_step(name, eager_threads):
    rng = np.random.default_rng(1)
    ids, offsets = np.array([1, 1, 3, 7, 3, 0, 5, 8, 1]), np.array([0, 3, 3, 6])
    grad = rng.standard_normal((4, 5)).astype(np.float32)
    weights = rng.random(9).astype(np.float32)
    options = {"mode": "sum", "padding_idx": 7, "per_sample_weights": weights}
    tables = [np.ones((N_ROWS, 5), np.float32) for _ in range(3)]
    one, two, three = (OPTIMIZERS[name](table) for table in tables)
    for _ in range(3):
        expected = embag.embedding_bag_backward(
            grad, ids, one.table, offsets, sparse=True, **options
        )
        one.step(expected.weight)
        assert two.update(grad, ids, offsets, **options) is None
        of_weights = three.update(grad, ids, offsets, wrt=None, num_threads=3, **options)
        assert of_weights.tobytes() == expected.per_sample_weights.tobytes()
    assert tables[0].tobytes() == tables[1].tobytes() == tables[2].tobytes()
    assert (tables[0][[2, 4, 6, 7]] == 1).all()  # rows that do not occur, and the padding row


@pytest.mark.parametrize("n_threads", [1, 4])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_memory_of_an_update(name, weighted, n_threads, eager_threads):
    # 16 bytes for each position (24 with weights), and 16 for each row that occurs.
    n, n_rows, dim = 100_000, 20_000, 64
    ids = np.random.default_rng(0).integers(0, n_rows, n)
    offsets = np.arange(0, n, 2)
    grad_output = np.ones((len(offsets), dim), np.float32)
    weights = np.ones(n, np.float32) if weighted else None
    optimizer = OPTIMIZERS[name](np.zeros((n_rows, dim), np.float32))
    tracemalloc.start()
    optimizer.update(
        grad_output, ids, offsets, mode="sum", per_sample_weights=weights, num_threads=n_threads
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (24 if weighted else 16) * n + 16 * len(np.unique(ids)) + 20_000


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_that_rest(name):
    rng = np.random.default_rng(2)
    table = rng.standard_normal((N_ROWS, 3))
    start = table.copy()
    for frozen in ([0, 4], np.arange(N_ROWS) % 4 == 0):
        table[...] = start
        optimizer = OPTIMIZERS[name](table, frozen=frozen)
        states = {key: array.copy() for key, array in optimizer.states.items()}
        optimizer.step(SparseRows([0, 1, 8], np.ones((3, 3)), table.shape))
        optimizer.step(np.ones(table.shape))
        resting = (
            np.asarray(frozen)
            if not isinstance(frozen, list)
            else np.isin(np.arange(N_ROWS), frozen)
        )
        assert table[resting].tobytes() == start[resting].tobytes()
        assert (table[~resting] != start[~resting]).any(axis=1).all()
        for key, array in states.items():
            assert optimizer.states[key][resting].tobytes() == array[resting].tobytes()


def test_momentum_is_lazy():
    table = np.zeros((2, 1))
    optimizer = optim.SGD(table, 1, momentum=0.5)
    one, none = SparseRows([1], np.ones((1, 1)), (2, 1)), SparseRows([], np.ones((0, 1)), (2, 1))
    for grad in (one, none, one):
        optimizer.step(grad)
    assert table.tolist() == [[0], [-2.5]]
    assert optimizer.n_steps == 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_is_saved_and_loaded(name):
    rng = np.random.default_rng(3)
    steps = [gradient(rng, 4, np.float32) for _ in range(6)]
    whole, first = np.ones((N_ROWS, 4), np.float32), np.ones((N_ROWS, 4), np.float32)
    optimizer = OPTIMIZERS[name](whole)
    for grad in steps:
        optimizer.step(grad)
    begun = OPTIMIZERS[name](first)
    for grad in steps[:3]:
        begun.step(grad)
    second = first.copy()
    ended = OPTIMIZERS[name](second)
    ended.load_state_dict(begun.state_dict())
    for grad in steps[3:]:
        ended.step(grad)
    assert second.tobytes() == whole.tobytes()
    for bad, error in (
        ({"others": 1}, ValueError),
        ({**begun.state_dict(), "others": 1}, ValueError),
        ({**begun.state_dict(), "step": -1}, ValueError),
        ({**begun.state_dict(), "step": 1.5}, ValueError),
        (3, TypeError),
    ):
        with pytest.raises(error, match="must"):
            ended.load_state_dict(bad)
    for key in begun.states:
        for wrong in (np.ones((2, 2), np.float32), np.ones((N_ROWS, 4))):
            with pytest.raises((TypeError, ValueError), match=f"{key} must"):
                ended.load_state_dict({**begun.state_dict(), key: wrong})


def test_the_learning_rate_may_change():
    table = np.zeros((1, 1))
    optimizer = optim.SGD(table, 1)
    for lr in (1, 0.5, 0):
        optimizer.lr = lr
        optimizer.step(np.ones((1, 1)))
    assert table.tolist() == [[-1.5]]
    for lr in (-1, np.inf, np.nan):
        with pytest.raises(ValueError, match="lr must be at least 0 and finite"):
            optimizer.lr = lr


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: optim.SGD([[1.0]], 1), TypeError, "table must be a numpy.ndarray, got list"),
        (lambda: optim.SGD(np.ones((2, 2), int), 1), TypeError, "table must be float32, float64"),
        (lambda: optim.SGD(np.ones((4, 4))[:, ::2], 1), ValueError, "table must be aligned"),
        (lambda: optim.SGD(np.broadcast_to(1.0, (2, 2)), 1), ValueError, "table must be"),
        (lambda: optim.SGD(as_strided(np.ones(9), (3, 3), (8, 8)), 1), ValueError,
         "table must have rows that do not overlap"),
        (lambda: optim.SGD(np.ones((2, 2)), 1, frozen=[[1]]), ValueError, "frozen must be 1-D"),
        (lambda: optim.SGD(np.ones((2, 2)), 1, momentum=1), ValueError, "momentum must be at"),
        (lambda: optim.Adam(np.ones((2, 2)), betas=3), TypeError, "betas must be two numbers"),
        (lambda: optim.FTRL(np.ones((2, 2)), 0), ValueError, "lr must be greater than 0"),
        (lambda: optim.SGD(np.ones((2, 2)), 1, frozen=[2]), IndexError, r"frozen\[0\] = 2 is out"),
        (lambda: optim.SGD(np.ones((2, 2)), 1, frozen=[True]), ValueError, "frozen must have"),
        (lambda: optim.RowWiseAdagrad(np.ones((2, 2)), weight_decay_mode="L2"), ValueError,
         "weight_decay_mode must be 'none', 'l2' or 'decoupled', got 'L2'"),
    ],
)  # fmt: skip
def test_errors_of_construction(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_errors_of_steps():
    table = np.ones((3, 2))
    optimizer = optim.Adagrad(table)
    states = optimizer.states["sum"]
    start = table.copy()
    for grad, error, message in (
        ([[1.0]], TypeError, "grad must be a numpy.ndarray or SparseRows"),
        (np.ones((2, 2)), ValueError, r"grad must have shape \(3, 2\), got \(2, 2\)"),
        (np.ones((3, 2), np.float32), TypeError, "grad must be float64 for a table of float64"),
        (SparseRows([0], np.ones((1, 2)), (4, 2)), ValueError, "grad must have shape"),
        (table, ValueError, "grad must share no memory with table"),
        (optimizer.states["sum"], ValueError, "grad must share no memory with sum"),
    ):
        with pytest.raises(error, match=message):
            optimizer.step(grad)
    with pytest.raises(ValueError, match="wrt must be 'weight' or None"):
        optimizer.update(np.ones((1, 2)), [[1]], wrt="per_sample_weights")
    with pytest.raises(IndexError, match="is out of range"):
        optimizer.update(np.ones((1, 2)), [[3]])
    optimizer.states["sum"] = np.ones((3, 3))
    with pytest.raises(ValueError, match=r"sum must be float64 of shape \(3, 2\), as it was"):
        optimizer.step(np.ones((3, 2)))
    table.flags.writeable = False
    with pytest.raises(ValueError, match="table must be writeable"):
        optimizer.step(np.ones((3, 2)))
    assert table.tobytes() == start.tobytes()
    assert optimizer.n_steps == 0
    assert (states == 0).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_in_most_bags_is_shared_by_threads(name, dtype, level, eager_threads):
    rng = np.random.default_rng(4)
    ids = np.where(rng.random((60, 5)) < 0.6, 2, rng.integers(0, N_ROWS, (60, 5)))
    grad = rng.standard_normal((60, 70)).astype(dtype)
    weights = rng.random((60, 5)).astype(dtype)
    tables = [np.ones((N_ROWS, 70), dtype) for _ in range(3)]
    optimizers = [OPTIMIZERS[name](table) for table in tables]
    for options in (
        {"mode": "sum", "per_sample_weights": weights},
        {"mode": "sum", "scale_grad_by_freq": True},
        {"mode": "mean", "per_sample_weights": weights, "scale_grad_by_freq": True},
    ):
        optimizers[0].step(
            embag.embedding_bag_backward(grad, ids, tables[0], sparse=True, **options).weight
        )
        for optimizer, n_threads in zip(optimizers[1:], (1, 4), strict=True):
            optimizer.update(grad, ids, num_threads=n_threads, **options)
    assert tables[0].tobytes() == tables[1].tobytes() == tables[2].tobytes()
    assert (tables[0] != 1).any(axis=1).all()


def test_the_gradient_of_the_output_may_be_in_the_table():
    tables = [np.arange(24, dtype=np.float32).reshape(6, 4) for _ in range(2)]
    ids = [[1, 2], [3, 0], [5, 5]]
    grad = embag.embedding_bag_backward(tables[0][:3], ids, tables[0], mode="sum", sparse=True)
    optim.SGD(tables[0], 1).step(grad.weight)
    optim.SGD(tables[1], 1).update(tables[1][:3], ids, mode="sum")
    assert tables[0].tobytes() == tables[1].tobytes()


def test_a_remapped_table():
    rows = [np.ones((4, 3), np.float32) for _ in range(2)]
    maps = np.array([3, -1, 0, 3, 2])
    tables = [embag.RemappedTable(array, index_map=maps) for array in rows]
    grad, ids = np.ones((2, 3)), [[0, 3], [1, 2]]
    one, two = (optim.Adagrad(table, frozen=[0]) for table in tables)
    one.step(embag.embedding_bag_backward(grad, ids, tables[0], mode="sum", sparse=True).weight)
    two.update(grad, ids, mode="sum")
    assert rows[0].tobytes() == rows[1].tobytes()
    assert (rows[0] != 1).any(axis=1).tolist() == [False, False, False, True]
    assert two.states["sum"].shape == (4, 3)


def test_one_step_at_a_time(monkeypatch):
    optimizer = optim.SGD(np.ones((3, 2)), 1)
    grad = np.ones((3, 2))
    with optimizer._locked():
        for call in (
            lambda: optimizer.step(grad),
            lambda: optimizer.update(grad, [[0]] * 3, mode="sum"),
            optimizer.state_dict,
            lambda: optimizer.load_state_dict({"step": 3}),
            lambda: optimizer.grow(4),
            lambda: _optimizer.step_together([(optimizer, grad)]),
        ):
            with pytest.raises(RuntimeError, match="one step at a time, got two calls at once"):
                call()
    # A step that another thread makes between the description of this one and its turn.
    described = optim.Optimizer._described

    def describe_late(self, arrays):
        result = described(self, arrays)
        monkeypatch.setattr(optim.Optimizer, "_described", described)
        optimizer.step(grad)
        return result

    monkeypatch.setattr(optim.Optimizer, "_described", describe_late)
    with pytest.raises(RuntimeError, match="one step at a time"):
        optimizer.step(grad)
    assert (optimizer.table == 0).all()
    assert optimizer.n_steps == 1
    optimizer.step(grad)
    assert optimizer.n_steps == 2


def test_invalid_states():
    optimizer = optim.Adam(np.ones((3, 2)))
    other = optim.Adam(np.ones((3, 2)))
    for each in (optimizer, other):
        each.step(np.full((3, 2), 2.0))
    optimizer.states = dict(reversed(optimizer.states.items()))  # the order does not matter
    for each in (optimizer, other):
        each.step(np.full((3, 2), -1.0))
    assert optimizer.table.tobytes() == other.table.tobytes()
    states, table = optimizer.states, optimizer.table.copy()
    for changed, error, message in (
        ({}, ValueError, "states must be exp_avg, exp_avg_sq, got none"),
        ({**states, "x": table}, ValueError, "states must be exp_avg, exp_avg_sq, got .*x"),
        ({**states, "exp_avg": [[0.0]]}, TypeError, "exp_avg must be a numpy.ndarray, got list"),
    ):
        optimizer.states = changed
        with pytest.raises(error, match=message):
            optimizer.step(table)
    optimizer.states = states
    assert optimizer.n_steps == 2
    # Its own states, exchanged.
    exchanged = {"exp_avg": states["exp_avg_sq"], "exp_avg_sq": states["exp_avg"], "step": 2}
    copies = {name: np.copy(array) for name, array in exchanged.items()}
    optimizer.load_state_dict(exchanged)
    for name, array in optimizer.states.items():
        assert array.tobytes() == copies[name].tobytes()
    # A state that cannot be written to: nothing is loaded.
    loaded = other.state_dict()
    optimizer.states["exp_avg_sq"].flags.writeable = False
    before = optimizer.states["exp_avg"].copy()
    with pytest.raises(ValueError, match="exp_avg_sq must be writeable"):
        optimizer.load_state_dict({**loaded, "exp_avg": table, "step": 9})
    assert optimizer.states["exp_avg"].tobytes() == before.tobytes()
    assert optimizer.n_steps == 2
    for step in (np.inf, np.nan, 2**63 - 1, 1e300, "3", 1.5, None):
        with pytest.raises((TypeError, ValueError), match="step must be"):
            other.load_state_dict({**loaded, "step": step})
    for n_steps in (-1, 1.5, 2**63):
        with pytest.raises(ValueError, match="n_steps must be a count below"):
            other.n_steps = n_steps
    other.load_state_dict({**loaded, "step": 2**53 + 1})
    assert other.n_steps == 2**53 + 1


def test_a_zero_keeps_its_sign_in_ftrl(level):
    table = np.zeros((2, 40), np.float32)
    optim.FTRL(table, 0.5).step(np.zeros((2, 40), np.float32))
    assert table.tobytes() == bytes(table.nbytes)


def test_options_that_may_change():
    with pytest.raises(TypeError, match="an optimizer must be of a subclass"):
        optim.Optimizer(np.ones((2, 2)), 1)
    ftrl = optim.FTRL(np.ones((2, 2), np.float32))
    for lr in (0, 1e-50):
        with pytest.raises(ValueError, match="lr must be greater than 0 in float32"):
            ftrl.lr = lr
    with pytest.raises(AttributeError):
        optim.SGD(np.ones((2, 2)), 1).momentum = 0.5
    adam = optim.Adam(np.ones((2, 2)))
    for name, value, error, message in (
        ("eps", np.nan, ValueError, "eps must be at least 0 and finite in float32, got nan"),
        ("eps", "1", TypeError, "eps must be a number, got '1'"),
        ("lr", 1e300, ValueError, "lr must be at least 0 and finite in float32"),
        ("betas", 3, TypeError, "betas must be two numbers, got 3"),
        ("betas", (0.5, np.nan), ValueError, r"betas\[1\] must be at least 0 and less than 1"),
        ("seed", 3, AttributeError, "seed"),
        ("stochastic_rounding", True, AttributeError, "stochastic_rounding"),
    ):
        with pytest.raises(error, match=message):
            setattr(adam, name, value)
    adam.eps, adam.betas = 0.5, (0.5, 0.25)
    same = optim.Adam(np.ones((2, 2)), betas=(0.5, 0.25), eps=0.5)
    for each in (adam, same):
        each.step(np.ones((2, 2)))
    assert adam.table.tobytes() == same.table.tobytes()
    one, two = (
        optim.RowWiseAdagrad(np.ones((2, 2)), weight_decay=decay, weight_decay_mode="l2")
        for decay in (0.0, 0.5)
    )
    one.weight_decay = 0.5
    for each in (one, two):
        each.step(np.ones((2, 2)))
    assert one.table.tobytes() == two.table.tobytes()
