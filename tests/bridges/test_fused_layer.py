"""`embag.torch.EmbeddingBag(optimizer=...)`: a layer that makes its steps in the backward pass."""

import copy
import gc
import io
import pickle
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch installs it")

import embag.torch  # noqa: E402
from embag import optim  # noqa: E402

# torch 2.13 warns once that it does not check the sparse gradients that it makes itself.
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]

N_ROWS, DIM, N_STEPS = 30, 6, 100
INPUT = torch.tensor([[1, 2], [5, 2]])
MODES = ["sum", "mean", "sqrtn", "max", "min"]

ADAGRAD = partial(optim.Adagrad, lr=0.1, initial_accumulator_value=0.5)
ALL = {
    "sgd": partial(optim.SGD, lr=0.1),
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.5),
    "adagrad": ADAGRAD,
    "row_wise_adagrad": optim.RowWiseAdagrad,
    "adam": partial(optim.Adam, lr=0.05, betas=(0.8, 0.95)),
    "ftrl": partial(optim.FTRL, lr=0.1),
}
# Those with a counterpart in torch, and the one of embag.torch.optim.
COUNTERPARTS = {
    "sgd": [partial(torch.optim.SGD, lr=0.1)],
    "adagrad": [
        partial(module.Adagrad, lr=0.1, initial_accumulator_value=0.5)
        for module in (torch.optim, embag.torch.optim)
    ],
    "adam": [
        partial(module.SparseAdam, lr=0.05, betas=(0.8, 0.95))
        for module in (torch.optim, embag.torch.optim)
    ],
}


def table(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N_ROWS, DIM, dtype=dtype, generator=generator)


def layer(optimizer=ADAGRAD, dtype=torch.float32, mode="sum", **options):
    return embag.torch.EmbeddingBag.from_pretrained(
        table(dtype), freeze=False, mode=mode, optimizer=optimizer, **options
    )


def batches(n_steps=N_STEPS):
    """Return ids with repeated and absent rows, and their offsets."""
    for seed in range(n_steps):
        ids = torch.randint(0, N_ROWS, (12,), generator=torch.Generator().manual_seed(seed))
        yield ids, torch.tensor([0, 5, 5, 9])


def make_steps(bags, n_steps=1):
    for ids, offsets in batches(n_steps):
        bags(ids, offsets).square().sum().backward()


def assert_near(ours, theirs):
    eps = torch.finfo(ours.dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=N_STEPS * eps, atol=N_STEPS * eps)


# Steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", COUNTERPARTS)
def test_a_hundred_steps_beside_an_optimizer_of_torch(name, dtype):
    bags = layer(ALL[name], dtype)
    make_steps(bags, N_STEPS)
    for make in COUNTERPARTS[name]:
        other = torch.nn.EmbeddingBag.from_pretrained(
            table(dtype), freeze=False, mode="sum", sparse=True
        )
        optimizer = make(other.parameters())
        for ids, offsets in batches():
            optimizer.zero_grad()
            other(ids, offsets).square().sum().backward()
            optimizer.step()
        assert not torch.equal(bags.weight, table(dtype))
        assert_near(bags.weight.detach(), other.weight.detach())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", MODES)
def test_steps_have_the_bits_of_the_layer_of_embag(name, mode):
    options = {"max_norm": 2.0, "padding_idx": 3}
    if mode not in ("max", "min"):
        options["scale_grad_by_freq"] = True
    bags, array = layer(ALL[name], mode=mode, **options), table().numpy()
    bags.default_idx, bags.invalid, bags.normalize = 4, "skip", True
    optimizer = ALL[name](array)
    given = torch.randn(4, DIM, generator=torch.Generator().manual_seed(2))
    for ids, offsets in batches(4):
        ids[0] = -1
        bags(ids, offsets).backward(given)
        lookup = {
            "mode": mode,
            "padding_idx": 3,
            "default_idx": 4,
            "invalid": "skip",
            "normalize": True,
        }
        embag.embedding_bag(ids.numpy(), array, offsets.numpy(), max_norm=2.0, **lookup)
        optimizer.update(
            given.numpy(),
            ids.numpy(),
            offsets.numpy(),
            scale_grad_by_freq=options.get("scale_grad_by_freq", False),
            **lookup,
        )
    np.testing.assert_array_equal(bags.weight.numpy(), array)
    assert bags.optimizer.n_steps == 4


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_the_gradient_of_the_weights_is_that_before_the_step(mode):
    grads = []
    for optimizer in (None, ADAGRAD):
        bags = layer(optimizer, mode=mode)
        sample = torch.tensor([[0.5, 2.0], [1.0, 3.0]], requires_grad=True)
        bags(INPUT, None, sample).square().sum().backward()
        grads.append(sample.grad)
        assert torch.equal(bags.weight, table()) == (optimizer is None)
    assert torch.equal(*grads)


def test_only_the_rows_that_occur_change():
    bags = layer()
    bags(INPUT).sum().backward()
    changed = (bags.weight != table()).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [1, 2, 5]
    assert bags.weight.grad is None


def test_no_steps_without_a_backward_pass():
    bags = layer()
    assert bags(INPUT).requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert not bags(INPUT).requires_grad
    assert bags.optimizer.n_steps == 0
    assert torch.equal(bags.weight, table())


def test_every_backward_pass_makes_a_step():
    bags = layer()
    loss = bags(INPUT).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert bags.optimizer.n_steps == 2
    sample = torch.ones(2, 2, requires_grad=True)
    torch.autograd.grad(bags(INPUT, None, sample).sum(), sample)
    assert bags.optimizer.n_steps == 3


def test_two_lookups_make_two_steps_in_one_graph():
    bags, other = layer(), layer()
    (bags(INPUT) + 2 * bags(INPUT + 1)).sum().backward()
    # Autograd runs the later lookup first.
    (2 * other(INPUT + 1)).sum().backward()
    other(INPUT).sum().backward()
    assert bags.optimizer.n_steps == 2
    assert torch.equal(bags.weight, other.weight)


@pytest.mark.parametrize("what", ["per_sample_weights", "normalize"])
def test_a_second_step_that_needs_the_old_values_is_refused(what):
    bags = layer()
    bags.normalize = what == "normalize"
    sample = None
    if what == "per_sample_weights":
        sample = torch.ones(2, 2, requires_grad=True)
    loss = bags(INPUT, None, sample).sum() + bags(INPUT, None, sample).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert bags.optimizer.n_steps == 1


def test_torch_sees_that_the_weight_changes():
    bags = layer()
    factor = torch.ones(N_ROWS, DIM, requires_grad=True)
    product = (factor * bags.weight).sum()
    make_steps(bags)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_lookup_makes_one_step(use_reentrant):
    linear = torch.nn.Linear(DIM, 2)
    tables = []
    for checkpointed in (False, True):
        bags = layer(mode="mean")

        def model(sample, bags=bags):
            return linear(bags(INPUT, None, sample)).square().sum()

        sample = torch.ones(2, 2, requires_grad=True)
        if checkpointed:
            loss = torch.utils.checkpoint.checkpoint(model, sample, use_reentrant=use_reentrant)
        else:
            loss = model(sample)
        loss.backward()
        assert bags.optimizer.n_steps == 1
        tables.append(bags.weight)
    assert torch.equal(*tables)


def test_there_is_no_second_derivative():
    bags = layer()
    sample = torch.ones(2, 2, requires_grad=True)
    loss = bags(INPUT, None, sample).square().sum()
    (grad,) = torch.autograd.grad(loss, sample, create_graph=True)
    with pytest.raises(RuntimeError, match="must be differentiated at most once, got twice"):
        grad.square().sum().backward()


# The compiler of torch warns of its own code.
@pytest.mark.filterwarnings("ignore")
def test_compiled():
    tables = []
    for compiled in (False, True):
        bags = layer()
        model = torch.nn.Sequential(bags, torch.nn.Tanh())
        if compiled:
            model = torch.compile(model, backend="eager")
        for _ in range(2):
            model(INPUT).sum().backward()
        tables.append(bags.weight)
    torch.compiler.reset()
    assert torch.equal(*tables)
    assert not torch.equal(tables[0], table())


def test_an_optimizer_of_torch_leaves_the_table_alone():
    bags = layer()
    model = torch.nn.Sequential(bags, torch.nn.Linear(DIM, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(INPUT).sum().backward()
    bias, stepped = model[1].bias.detach().clone(), bags.weight.clone()
    optimizer.step()
    assert torch.equal(bags.weight, stepped)
    assert not torch.equal(model[1].bias, bias)
    # The gradient of the weight is asked for, and is none.
    model.requires_grad_(True)
    model(INPUT).sum().backward()
    assert bags.weight.grad is None
    assert bags.optimizer.n_steps == 2


def test_a_step_that_fails_changes_nothing():
    bags = layer()
    version = bags.weight._version
    result = bags(INPUT).sum()
    bags.optimizer.states["sum"].flags.writeable = False
    with pytest.raises(ValueError, match="sum must be writeable"):
        result.backward()
    assert torch.equal(bags.weight, table())
    assert bags.weight._version == version
    assert bags.optimizer.n_steps == 0


def test_a_layer_is_freed_with_its_graph():
    bags = layer()
    make_steps(bags)
    kept = len(gc.get_objects())
    for _ in range(50):
        make_steps(bags)
    gc.collect()
    assert len(gc.get_objects()) < kept + 50


# The optimizer and its table


def test_the_optimizer_has_the_memory_of_the_weight():
    data = table()
    bags = embag.torch.EmbeddingBag.from_pretrained(data, freeze=False, optimizer=ADAGRAD)
    assert type(bags.optimizer) is optim.Adagrad
    assert bags.optimizer.table.ctypes.data == bags.weight.data_ptr() == data.data_ptr()
    assert [name for name, p in bags.named_parameters() if p.requires_grad] == []
    assert repr(bags) == "EmbeddingBag(30, 6, mode='mean', optimizer=Adagrad)"
    with pytest.raises(AttributeError):
        bags.optimizer = None
    new = embag.torch.EmbeddingBag(8, 2, optimizer=optim.RowWiseAdagrad, dtype=torch.float64)
    assert new.optimizer.table.ctypes.data == new.weight.data_ptr()
    assert embag.torch.EmbeddingBag(8, 2).optimizer is None


def same_steps(first, second):
    make_steps(first, 3)
    make_steps(second, 3)
    assert torch.equal(first.weight, second.weight)
    assert first.optimizer.n_steps == second.optimizer.n_steps
    assert first.optimizer.lr == second.optimizer.lr


@pytest.mark.parametrize("name", ALL)
def test_copies_and_pickles_have_their_own_optimizer(name):
    bags = layer(ALL[name])
    make_steps(bags, 3)
    bags.optimizer.lr = 0.07
    file = io.BytesIO()
    torch.save(bags, file)
    file.seek(0)
    others = [
        copy.deepcopy(bags),
        pickle.loads(pickle.dumps(bags)),
        torch.load(file, weights_only=False),
    ]
    make_steps(bags, 3)
    for other in others:
        assert other.optimizer.n_steps == 3
        assert not torch.equal(other.weight, bags.weight)
        make_steps(other, 3)
        assert torch.equal(other.weight, bags.weight)
        assert other.optimizer.lr == 0.07


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("assign", [False, True])
def test_state_dicts_have_the_states(name, assign):
    model = torch.nn.Sequential(layer(ALL[name]))
    make_steps(model[0], 3)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = torch.nn.Sequential(layer(ALL[name]))
    # Only tensors, so nothing in the file is executed.
    other.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert torch.equal(other[0].weight, model[0].weight)
    same_steps(model[0], other[0])


def test_state_dicts_of_layers_without_optimizer():
    bags, theirs = layer(), torch.nn.EmbeddingBag(N_ROWS, DIM, mode="sum")
    make_steps(bags)
    state = bags.state_dict()
    assert set(state) == {"weight", "optimizer.step", "optimizer.sum"}
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"optimizer\.step", "optimizer\.sum"'):
        theirs.load_state_dict(state)
    theirs.load_state_dict(state, strict=False)
    assert torch.equal(theirs.weight, bags.weight)

    other = layer()
    with pytest.raises(RuntimeError, match=r'Missing key.*"optimizer\.step", "optimizer\.sum"'):
        other.load_state_dict(theirs.state_dict())
    result = other.load_state_dict(theirs.state_dict(), strict=False)
    assert result.missing_keys == ["optimizer.step", "optimizer.sum"]
    assert torch.equal(other.weight, bags.weight)
    assert other.optimizer.n_steps == 0
    plain = embag.torch.EmbeddingBag(4, 2)
    assert set(plain.state_dict()) == {"weight"}


def test_states_that_do_not_fit_are_refused():
    bags = layer()
    make_steps(bags)
    shrunk = torch.zeros(N_ROWS, DIM)
    shrunk.untyped_storage().resize_(8)
    bad = [
        ({"optimizer.sum": shrunk}, "a tensor must have storage of [0-9]+ bytes, got 8"),
        ({"optimizer.sum": torch.zeros(N_ROWS, 2)}, "sum must have shape"),
        ({"optimizer.sum": torch.zeros(N_ROWS, DIM, dtype=int)}, "sum must be float32, got int64"),
        ({"optimizer.step": torch.tensor(-1)}, "step must be a count"),
        ({"optimizer.linear": torch.zeros(1)}, 'Unexpected key.*"optimizer.linear"'),
    ]
    before = copy.deepcopy(bags.optimizer.state_dict())
    for change, message in bad:
        with pytest.raises(RuntimeError, match=message):
            bags.load_state_dict({**bags.state_dict(), **change})
        np.testing.assert_equal(bags.optimizer.state_dict(), before)


def test_conversions_take_the_states_along():
    bags = torch.nn.Sequential(layer())
    make_steps(bags[0], 3)
    sums = bags[0].optimizer.states["sum"]
    assert bags.cpu().float()[0].optimizer.states["sum"] is sums
    bags.double()
    assert bags[0].optimizer.table.dtype == bags[0].optimizer.states["sum"].dtype == np.float64
    np.testing.assert_array_equal(bags[0].optimizer.states["sum"], sums)
    make_steps(bags[0], 3)
    assert bags[0].optimizer.n_steps == 6
    shared = layer()
    make_steps(shared, 3)
    same_steps(shared.share_memory(), copy.deepcopy(shared))


def test_a_trip_to_another_device():
    bags = layer()
    make_steps(bags, 3)
    state = copy.deepcopy(bags.state_dict())
    bags.to("meta")
    with pytest.raises(ValueError, match="weight must be on the CPU, got device meta"):
        bags(INPUT)
    bags.to_empty(device="cpu")
    assert bags.optimizer.n_steps == 3
    bags.load_state_dict(state)
    other = layer()
    make_steps(other, 3)
    same_steps(bags, other)


MOVES = {
    "data": lambda bags: setattr(bags.weight, "data", bags.weight.data.clone()),
    "the parameter": lambda bags: setattr(bags, "weight", torch.nn.Parameter(table())),
    "the dtype": lambda bags: setattr(bags.weight, "data", bags.weight.data.double()),
    "shared memory": lambda bags: bags.weight.share_memory_(),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_a_table_that_has_moved_is_noticed(move):
    bags = layer()
    result = bags(INPUT).sum()
    move(bags)
    message = "weight must stay in the memory that its optimizer was made for"
    with pytest.raises(RuntimeError, match=message):
        result.backward()
    with pytest.raises(RuntimeError, match=message):
        bags(INPUT)
    assert bags.optimizer.n_steps == 0
    assert torch.equal(bags.weight, table().to(bags.weight.dtype))


def test_a_functional_call_with_another_table_is_refused():
    bags = layer()
    with pytest.raises(RuntimeError, match="weight must stay in the memory"):
        torch.func.functional_call(bags, {"weight": table()}, (INPUT,))


REFUSED = {
    "no callable": (
        {"optimizer": optim.SGD(np.zeros((3, 2)), lr=1)},
        TypeError,
        "optimizer must be a callable that makes an optimizer of embag.optim, got SGD",
    ),
    "another result": (
        {"optimizer": lambda table: None},
        TypeError,
        "optimizer must return an optimizer of embag.optim for its argument, got None",
    ),
    "another table": (
        {"optimizer": lambda table: optim.SGD(table.copy(), lr=1)},
        TypeError,
        "optimizer must return an optimizer of embag.optim for its argument, got SGD",
    ),
    "an option out of range": (
        {"optimizer": partial(optim.SGD, lr=-1)},
        ValueError,
        "lr must be at least 0 and finite in float32, got -1",
    ),
    "another device": (
        {"optimizer": ADAGRAD, "device": "meta"},
        ValueError,
        "weight must be on the CPU, got device meta",
    ),
    "complex": (
        {"optimizer": ADAGRAD, "dtype": torch.complex64},
        TypeError,
        "weight must be float32, float64, float16 or bfloat16, got torch.complex64",
    ),
}


@pytest.mark.parametrize(("options", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_errors_of_the_constructor(options, kind, message):
    with pytest.raises(kind, match=message):
        embag.torch.EmbeddingBag(3, 2, **options)


def test_errors_of_from_pretrained():
    make = partial(embag.torch.EmbeddingBag.from_pretrained, optimizer=ADAGRAD)
    with pytest.raises(ValueError, match="freeze must be False with an optimizer, got True"):
        make(table())
    with pytest.raises(ValueError, match="entries of each row adjacent"):
        make(table().T, freeze=False)
