"""`embag.torch.optim`: beside the classes of torch that they replace."""

import copy
import inspect
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch installs it")

import embag.torch  # noqa: E402

# torch 2.13 warns once that it does not check the sparse gradients that it makes itself.
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]

N_ROWS, DIM, N_STEPS = 30, 6, 100
NAMES = ["SparseAdam", "Adagrad"]
OPTIONS = {
    "SparseAdam": {"lr": 0.05, "betas": (0.8, 0.95)},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.5},
}


def both(name):
    return getattr(embag.torch.optim, name), getattr(torch.optim, name)


def table(dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N_ROWS, DIM, dtype=dtype, generator=generator)


def parameter(dtype=torch.float32, seed=1):
    return torch.nn.Parameter(table(dtype, seed))


def gradient(seed, dtype=torch.float32, coalesced=False, n=12):
    """Return a sparse gradient with repeated and absent rows."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, N_ROWS, (1, n), generator=generator)
    values = torch.randn(n, DIM, dtype=dtype, generator=generator)
    grad = torch.sparse_coo_tensor(rows, values, (N_ROWS, DIM), check_invariants=True)
    return grad.coalesce() if coalesced else grad


def run(optimizer, weight, seeds, **options):
    for seed in seeds:
        weight.grad = gradient(seed, weight.dtype, **options)
        optimizer.step()


def assert_near(ours, theirs, n_steps=N_STEPS):
    """Allow a few roundings for each step, of entries, states and steps of size 1 to 10."""
    eps = torch.finfo(ours.dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=n_steps * eps, atol=n_steps * eps)


@pytest.mark.parametrize("name", NAMES)
def test_the_signature_is_that_of_torch(name):
    ours, theirs = (inspect.signature(kind).parameters.values() for kind in both(name))
    assert [(p.name, p.kind, p.default) for p in ours] == [
        (p.name, p.kind, p.default) for p in theirs
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("coalesced", [False, True])
def test_a_hundred_steps_and_states_in_both_directions(name, dtype, maximize, coalesced):
    options = {**OPTIONS[name], "maximize": maximize}
    weights = [parameter(dtype), parameter(dtype)]
    ours, theirs = (kind([w], **options) for kind, w in zip(both(name), weights, strict=True))
    for optimizer, weight in zip((ours, theirs), weights, strict=True):
        run(optimizer, weight, range(N_STEPS), coalesced=coalesced)
    assert not torch.equal(weights[0], table(dtype))
    assert_near(weights[0].detach(), weights[1].detach())
    states = ours.state_dict(), theirs.state_dict()
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for key, value in states[1]["state"][0].items():
        mine = states[0]["state"][0][key]
        assert type(mine) is type(value)
        if key == "step":
            assert mine == value == N_STEPS
        else:
            assert_near(mine, value)
    # Each goes on from the state of the other.
    crossed = [w.detach().clone().requires_grad_() for w in reversed(weights)]
    for kind, weight, state in zip(both(name), crossed, reversed(states), strict=True):
        optimizer = kind([weight])
        optimizer.load_state_dict(copy.deepcopy(state))
        run(optimizer, weight, range(N_STEPS), coalesced=coalesced)
    for optimizer, weight in zip((ours, theirs), weights, strict=True):
        run(optimizer, weight, range(N_STEPS), coalesced=coalesced)
    for weight in (crossed[0], crossed[1], weights[1]):
        assert_near(weights[0].detach(), weight.detach(), 2 * N_STEPS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [torch.nn.EmbeddingBag, torch.nn.Embedding])
def test_layers_of_torch(name, kind):
    trained = []
    for optimizer in both(name):
        layer = kind(N_ROWS, DIM, sparse=True, _weight=table())
        steps = optimizer(layer.parameters(), **OPTIONS[name])
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            ids = torch.randint(0, N_ROWS, (4, 3), generator=generator)
            steps.zero_grad()
            layer(ids).square().sum().backward()
            steps.step()
        trained.append(layer.weight.detach())
    assert_near(*trained)


@pytest.mark.parametrize("name", NAMES)
def test_the_bits_are_those_of_embag(name):
    weight, array = parameter(), table().numpy()
    ours = both(name)[0]([weight], **OPTIONS[name])
    theirs = {"SparseAdam": embag.optim.Adam, "Adagrad": embag.optim.Adagrad}[name](
        array, **OPTIONS[name]
    )
    run(ours, weight, range(5))
    for seed in range(5):
        grad = gradient(seed)
        rows, values = grad._indices()[0].numpy(), grad._values().numpy()
        theirs.step(embag.SparseRows.from_pairs(rows, values, array.shape))
    np.testing.assert_array_equal(weight.detach().numpy(), array)


@pytest.mark.parametrize("name", NAMES)
def test_groups_closures_and_parameters_without_gradients(name):
    results = []
    for kind in both(name):
        weights = [parameter(seed=seed) for seed in range(3)]
        groups = [{"params": weights[:2]}, {"params": weights[2:], "lr": torch.tensor(0.5)}]
        optimizer = kind(groups, **OPTIONS[name])
        late = parameter(seed=3)
        optimizer.add_param_group({"params": [late], "lr": 0.25})
        calls = []
        optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append("hook"))

        def closure(weights=weights, late=late):
            assert torch.is_grad_enabled()
            for k, weight in enumerate((weights[0], weights[2], late)):
                weight.grad = gradient(k)
            return 7.0

        assert [optimizer.step(closure) for _ in range(3)] == [7.0] * 3
        assert calls == ["hook"] * 3
        assert torch.equal(weights[1], table(seed=1))
        weights.append(late)
        results.append([weight.detach() for weight in weights])
    for ours, theirs in zip(*results, strict=True):
        assert_near(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_gradient_counts_as_a_step(name):
    counts = []
    for kind in both(name):
        weight = parameter()
        optimizer = kind([weight], **OPTIONS[name])
        run(optimizer, weight, range(2), n=0)
        assert torch.equal(weight, table())
        counts.append(float(optimizer.state[weight]["step"]))
    assert counts == [2, 2]


def test_dense_gradients_are_left_to_torch():
    results = []
    for kind in both("Adagrad"):
        weight, bias = parameter(), torch.nn.Parameter(torch.ones(3, 2, 2))
        optimizer = kind([weight, bias], 0.1, lr_decay=0.1, maximize=True)
        for seed in range(10):
            weight.grad, bias.grad = gradient(seed), torch.full_like(bias, seed - 3.0)
            optimizer.step()
        results.append((weight.detach(), bias.detach()))
    assert_near(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    # With weight decay, which torch has for dense gradients.
    results = []
    for kind in both("Adagrad"):
        weight = parameter()
        weight.grad = torch.ones_like(weight)
        kind([weight], 0.1, weight_decay=0.5).step()
        results.append(weight.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles_go_on(name):
    weight = parameter()
    optimizer = both(name)[0]([weight], **OPTIONS[name])
    run(optimizer, weight, range(3))
    pairs = [copy.deepcopy((weight, optimizer)), pickle.loads(pickle.dumps((weight, optimizer)))]
    run(optimizer, weight, range(3, 6))
    for other_weight, other in pairs:
        assert type(other) is type(optimizer)
        assert not torch.equal(other_weight, weight)
        run(other, other.param_groups[0]["params"][0], range(3, 6))
        assert torch.equal(other.param_groups[0]["params"][0], weight)


@pytest.mark.parametrize("name", NAMES)
def test_torch_sees_that_the_parameter_and_the_states_change(name):
    weight = parameter()
    optimizer = both(name)[0]([weight], **OPTIONS[name])
    squares = weight.square().sum()
    run(optimizer, weight, [0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()
    versions = {k: v._version for k, v in optimizer.state[weight].items() if k != "step"}
    run(optimizer, weight, [1])
    assert all(optimizer.state[weight][k]._version > v for k, v in versions.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_with_new_memory_goes_on(name):
    weights = [parameter(), parameter()]
    optimizers = [both(name)[0]([w], **OPTIONS[name]) for w in weights]
    for seed in range(4):
        weights[0].data = weights[0].data.clone()
        for optimizer, weight in zip(optimizers, weights, strict=True):
            run(optimizer, weight, [seed])
    assert torch.equal(*weights)


def sparse_of(rows, values, shape):
    return torch.sparse_coo_tensor(rows, values, shape, check_invariants=True)


REFUSED = {
    "bfloat16": (
        torch.zeros(4, 2, dtype=torch.bfloat16),
        lambda: sparse_of([[1]], torch.ones(1, 2, dtype=torch.bfloat16), (4, 2)),
        TypeError,
        "a parameter with a sparse gradient must be float32 or float64, got torch.bfloat16",
    ),
    "one dimension": (
        torch.zeros(4),
        lambda: sparse_of([[1]], torch.ones(1), (4,)),
        ValueError,
        "a sparse gradient must be of a 2-D parameter, with one sparse dimension, got 1 of 1",
    ),
    "two sparse dimensions": (
        torch.zeros(4, 2),
        lambda: torch.ones(4, 2).to_sparse(),
        ValueError,
        "a sparse gradient must be of a 2-D parameter, with one sparse dimension, got 2 of 2",
    ),
    "rows that are not sorted": (
        torch.zeros(4, 2),
        lambda: torch.sparse_coo_tensor(
            [[2, 1]], torch.ones(2, 2), (4, 2), is_coalesced=True, check_invariants=False
        ),
        ValueError,
        r"indices must increase, got indices\[1\] = 1 after 2",
    ),
    "a row out of range": (
        torch.zeros(4, 2),
        lambda: torch.sparse_coo_tensor([[4]], torch.ones(1, 2), (4, 2), check_invariants=False),
        IndexError,
        "4 is out of range",
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_errors_change_nothing(name, case):
    data, make_grad, kind, message = case
    first, second = parameter(), torch.nn.Parameter(data.clone())
    optimizer = both(name)[0]([first, second], **OPTIONS[name])
    before = copy.deepcopy(optimizer.state_dict()["state"])
    first.grad, second.grad = gradient(0), make_grad()
    with pytest.raises(kind, match=message):
        optimizer.step()
    assert torch.equal(first, table())
    assert str(optimizer.state_dict()["state"]) == str(before)


def test_errors_of_torch():
    weight = parameter()
    weight.grad = torch.ones_like(weight)
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients"):
        embag.torch.optim.SparseAdam([weight]).step()
    weight.grad = gradient(0)
    with pytest.raises(RuntimeError, match="weight_decay option is not compatible with sparse"):
        embag.torch.optim.Adagrad([weight], weight_decay=0.1).step()
    assert torch.equal(weight, table())
    with pytest.raises(ValueError, match="Invalid learning rate"):
        embag.torch.optim.SparseAdam([weight], lr=0)
    for name in ("differentiable", "fused"):
        with pytest.raises(ValueError, match=f"{name} must be False"):
            embag.torch.optim.Adagrad([weight], **{name: True})
