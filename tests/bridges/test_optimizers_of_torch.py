"""`embag.optim` beside torch.optim: 100 steps with repeated and absent rows."""

import numpy as np
import optimizer_steps as steps
import pytest

from embag import optim

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch installs it")
# torch 2.13 warns once that it does not check the sparse gradients that it makes itself.
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]

N_ROWS, DIM, N_STEPS = 30, 6, 100

# The optimizer, torch's, and the tolerance: some roundings of float32 for each step.
PAIRS = {
    "sgd": (lambda w: optim.SGD(w, 0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "adagrad": (
        lambda w: optim.Adagrad(w, 0.1, lr_decay=0.01, initial_accumulator_value=0.5),
        lambda p: torch.optim.Adagrad(p, 0.1, lr_decay=0.01, initial_accumulator_value=0.5),
    ),
    "adam": (
        lambda w: optim.Adam(w, 0.05, (0.8, 0.95)),
        lambda p: torch.optim.SparseAdam(p, 0.05, (0.8, 0.95)),
    ),
}


def batches():
    rng = np.random.default_rng(0)
    for _ in range(N_STEPS):
        ids = rng.integers(0, N_ROWS, 12)
        yield ids, np.array([0, 5, 5, 9]), rng.standard_normal((4, DIM)).astype(np.float32)


@pytest.mark.parametrize("name", PAIRS)
def test_a_hundred_steps(name):
    make, make_torch = PAIRS[name]
    table = np.random.default_rng(1).standard_normal((N_ROWS, DIM)).astype(np.float32)
    module = torch.nn.EmbeddingBag(
        N_ROWS, DIM, mode="sum", sparse=True, _weight=torch.from_numpy(table.copy())
    )
    ours, theirs = make(table), make_torch(list(module.parameters()))
    for ids, offsets, grad in batches():
        ours.update(grad, ids, offsets, mode="sum")
        theirs.zero_grad()
        module(torch.from_numpy(ids), torch.from_numpy(offsets)).backward(torch.from_numpy(grad))
        theirs.step()
    atol = N_STEPS * np.finfo(np.float32).eps
    np.testing.assert_allclose(table, module.weight.detach().numpy(), rtol=0, atol=atol)
    state = theirs.state[module.weight]
    if name == "sgd":
        return
    for key, array in ours.states.items():
        np.testing.assert_allclose(array, state[key].numpy(), rtol=1e-5, atol=atol)
    # torch's state goes on here.
    resumed = make(table.copy())
    resumed.load_state_dict(state)
    assert resumed.n_steps == N_STEPS
    for ids, offsets, grad in batches():
        ours.update(grad, ids, offsets, mode="sum")
        resumed.update(grad, ids, offsets, mode="sum")
    np.testing.assert_allclose(resumed.table, table, rtol=0, atol=atol)


def test_adam_within_bounds():
    ours = optim.Adam(steps.first_table(), steps.LR, (steps.FIRST, steps.SECOND), steps.EPS)
    module = torch.nn.EmbeddingBag(
        *(steps.N_ROWS, steps.DIM), mode="sum", sparse=True,
        _weight=torch.from_numpy(steps.first_table()),
    )  # fmt: skip
    theirs = torch.optim.SparseAdam(
        module.parameters(), steps.LR, (steps.FIRST, steps.SECOND), steps.EPS
    )
    for ids, grad in steps.batches():
        ours.update(grad, ids, steps.OFFSETS, mode="sum")
        theirs.zero_grad()
        module(torch.from_numpy(ids), torch.from_numpy(steps.OFFSETS)).backward(
            torch.from_numpy(grad)
        )
        theirs.step()
    state = theirs.state[module.weight]
    starts = [((steps.N_ROWS, steps.DIM), 0)] * 2
    steps.assert_within_bounds(
        [ours.table, *ours.states.values()],
        [module.weight.detach().numpy(), *(state[name].numpy() for name in ours.states)],
        steps.bounded_steps(steps.adam(), starts),
    )


def test_momentum_where_every_row_occurs():
    ours = optim.SGD(steps.first_table(), steps.LR, steps.MOMENTUM)
    weight = torch.nn.Parameter(torch.from_numpy(steps.first_table()))
    theirs = torch.optim.SGD([weight], steps.LR, steps.MOMENTUM)
    for ids, grad in steps.batches(every_row=True):
        ours.update(grad, ids, steps.OFFSETS, mode="sum")
        theirs.zero_grad()
        torch.nn.functional.embedding_bag(
            torch.from_numpy(ids), weight, torch.from_numpy(steps.OFFSETS), mode="sum"
        ).backward(torch.from_numpy(grad))
        theirs.step()
    steps.assert_within_bounds(
        [ours.table, ours.states["momentum_buffer"]],
        [weight.detach().numpy(), theirs.state[weight]["momentum_buffer"].numpy()],
        steps.bounded_steps(steps.momentum, [((steps.N_ROWS, steps.DIM), 0)], every_row=True),
    )
    # torch counts no steps of SGD.
    resumed = optim.SGD(ours.table.copy(), steps.LR, steps.MOMENTUM)
    resumed.load_state_dict(theirs.state[weight])
    buffer = theirs.state[weight]["momentum_buffer"].numpy()
    assert resumed.states["momentum_buffer"].tobytes() == buffer.tobytes()
