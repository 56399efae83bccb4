"""`embag.torch` where torch traces: compilers, export, transforms, fake tensors. And its errors.

Results and gradients have the bits of eager calls, which test_torch_bridge.py tests.
"""

from functools import partial

import pytest

import embag

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch installs it")
F = torch.nn.functional

import embag.torch  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),  # the compiler of torch warns of its own code
]

embedding_bag = embag.torch.embedding_bag
INPUT, OFFSETS = torch.tensor([1, 2, 5, 2, 9, 9]), torch.tensor([0, 2, 2])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


def table(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(10, 4, generator=generator).to(dtype).requires_grad_()


def factors():
    return torch.rand(6, generator=torch.Generator().manual_seed(1)).requires_grad_()


def quantized():
    return embag.quantize(table().detach().numpy(), 8)


@pytest.fixture
def compile_whole():
    """Compile without a graph break; the backend traces the backward pass as well."""
    yield partial(torch.compile, fullgraph=True, backend="aot_eager")
    torch.compiler.reset()


class Model(torch.nn.Module):
    """Layers in float32 and of quantized rows."""

    def __init__(self):
        super().__init__()
        self.bags = embag.torch.EmbeddingBag(10, 4, mode="max", _weight=table().detach())
        self.rows = quantized()

    def forward(self, input, offsets):
        return self.bags(input, offsets).relu() + embedding_bag(input, self.rows, offsets)


def many_lookups(input, weight, offsets, sample):
    rows = embedding_bag(input + 0, weight, offsets, mode="mean", max_norm=1.5)
    rows = rows + embedding_bag(input, weight, offsets, mode="max")
    weighted = embedding_bag(input, weight, offsets, mode="sum", per_sample_weights=sample * 2)
    more = {"default_idx": 2, "invalid": 3, "normalize": True}
    return weighted - rows.relu() + embedding_bag(input + 4, weight, offsets, **more)


def results_and_gradients(function, dtype=torch.float32):
    weight, sample = table(dtype), factors()
    result = function(INPUT, weight, OFFSETS, sample)
    result.square().sum().backward()
    return result.detach(), weight.detach(), weight.grad, sample.grad


def assert_same_bits(ours, expected):
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype is other.dtype
        assert torch.equal(one, other)


# The operators


@DTYPES
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_the_lookup_passes_the_checks_of_torch(mode, dtype):
    sample = factors() if mode == "sum" else None
    options = mode, False, False, False, None, None, "raise", None, mode == "mean"
    arguments = INPUT, table(dtype), OFFSETS, sample, *options
    torch.library.opcheck(torch.ops.embag.embedding_bag.default, arguments)


def test_the_other_operators_pass_the_checks_of_torch():
    rows = None, None, "raise", None
    torch.library.opcheck(
        torch.ops.embag.embedding_bag_renorm.default,
        (table().detach(), INPUT, OFFSETS, 1.0, 2.0, False, *rows),
    )
    packed = torch.from_numpy(quantized().packed)
    torch.library.opcheck(
        torch.ops.embag.embedding_bag_quantized.default,
        (INPUT, packed, 8, 4, OFFSETS, None, "mean", False, *rows, False),
    )
    gradients = torch.ops.embag.embedding_bag_backward.default
    lookup = INPUT, OFFSETS, factors().detach(), table().detach(), None, [10, 4]
    options = True, True, "sum", False, False, False, *rows, False
    torch.library.opcheck(gradients, (torch.ones(3, 4), *lookup, *options))


# torch.compile and torch.export


def test_compiled_without_a_graph_break(compile_whole):
    expected = results_and_gradients(many_lookups)
    compiled = compile_whole(many_lookups)
    for _ in range(2):
        assert_same_bits(results_and_gradients(compiled), expected)


@pytest.mark.slow
def test_compiled_by_inductor(compile_whole):
    expected = results_and_gradients(many_lookups)
    compiled = compile_whole(many_lookups, backend="inductor")
    assert_same_bits(results_and_gradients(compiled), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_compiled_with_tables_of_half_the_size(compile_whole, dtype):
    def lookup(input, weight, offsets, sample):
        return embedding_bag(input, weight, offsets, mode="sum", per_sample_weights=sample)

    expected = results_and_gradients(lookup, dtype)
    assert_same_bits(results_and_gradients(compile_whole(lookup), dtype), expected)


def test_compiled_for_any_number_of_ids(compile_whole):
    weight = table()
    compiled = compile_whole(lambda input: embedding_bag(input, weight, OFFSETS), dynamic=True)
    for n in (5, 6, 7):
        assert torch.equal(
            compiled(torch.arange(n)), embedding_bag(torch.arange(n), weight, OFFSETS)
        )


def test_sparse_gradients_break_the_graph(compile_whole):
    def lookup(weight):
        return embedding_bag(INPUT + 0, weight, OFFSETS, sparse=True) * 2

    with pytest.raises(torch._dynamo.exc.Unsupported, match="sparse must be False"):
        compile_whole(lookup)(table())
    weight = table()
    torch.compile(lookup, backend="aot_eager")(weight).sum().backward()
    assert weight.grad.is_sparse
    with torch.no_grad():  # no gradient, no refusal
        assert torch.equal(compile_whole(lookup)(weight), lookup(weight))


def test_an_optimizer_in_the_layer_breaks_the_graph(compile_whole):
    optimizer = partial(embag.optim.Adagrad, lr=0.5)
    bags = embag.torch.EmbeddingBag(10, 4, optimizer=optimizer)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="steps outside of compiled graphs"):
        compile_whole(bags)(INPUT, OFFSETS)


@pytest.mark.parametrize("strict", [False, True])
def test_exported(strict):
    # A strict export does not keep arrays, such as the packed rows.
    model = Model().bags if strict else Model()
    dynamic = dict.fromkeys(("input", "offsets"), (torch.export.Dim.DYNAMIC,))
    program = torch.export.export(model, (INPUT, OFFSETS), dynamic_shapes=dynamic, strict=strict)
    assert torch.equal(program.module()(INPUT[:5], OFFSETS[:2]), model(INPUT[:5], OFFSETS[:2]))


def test_errors_from_compiled_graphs(compile_whole):
    weight = table()
    compiled = compile_whole(lambda input: embedding_bag(input, weight, OFFSETS))
    with pytest.raises(IndexError, match=r"input\[4\] = 10 is out of range"):
        compiled(INPUT + 1)
    with pytest.raises(Exception, match="input must be 2-D without offsets"):
        compile_whole(lambda input: embedding_bag(input, weight))(INPUT)
    with pytest.raises(Exception, match="in backward mode, got forward mode"):
        compile_whole(
            lambda weight: torch.func.jvp(
                lambda weight: embedding_bag(INPUT, weight, OFFSETS), (weight,), (weight,)
            )
        )(table().detach())


# torch.func, autograd with batches, autocast


def test_vmap():
    weight, ids = table(), torch.stack([INPUT.view(2, 3), INPUT.view(2, 3) - 1])
    expected = torch.stack([embedding_bag(input, weight, mode="max") for input in ids])
    for grad in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with grad():
            found = torch.vmap(lambda x: embedding_bag(x, weight, mode="max"))(ids)
        assert torch.equal(found, expected)
    tables = torch.stack([weight.detach(), weight.detach() * 2])
    expected = torch.stack([embedding_bag(INPUT, one, OFFSETS) for one in tables])
    assert torch.equal(torch.vmap(lambda w: embedding_bag(INPUT, w, OFFSETS))(tables), expected)
    with pytest.raises(ValueError, match="max_norm must be None under vmap, got 1"):
        torch.vmap(lambda x: embedding_bag(x, weight, max_norm=1.0))(ids)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_gradients_per_example(mode):
    ids = torch.stack([INPUT.view(2, 3), INPUT.view(2, 3) - 1])

    def loss(weight, input):
        return embedding_bag(input, weight, mode=mode).square().sum()

    ours = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(table().detach(), ids)
    for gradient, input in zip(ours, ids, strict=True):
        weight = table()
        loss(weight, input).backward()
        assert torch.equal(gradient, weight.grad)
    with pytest.raises(RuntimeError, match="must be differentiated at most once, got twice"):
        torch.func.grad(lambda weight: torch.func.grad(loss)(weight, ids[0]).sum())(weight.detach())


def test_batches_of_gradients():
    weight, sample = table(), factors()
    given = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(2))
    result = embedding_bag(INPUT, weight, OFFSETS, mode="sum", per_sample_weights=sample)
    keep = {"retain_graph": True}
    ours = torch.autograd.grad(result, (weight, sample), given, is_grads_batched=True, **keep)
    each = [torch.autograd.grad(result, (weight, sample), one, **keep) for one in given]
    for batch, alone in zip(ours, zip(*each, strict=True), strict=True):
        assert torch.equal(batch, torch.stack(alone))


def test_autocast_changes_nothing():
    weight, sample = table(), factors()
    options = {"mode": "sum", "per_sample_weights": sample.detach().bfloat16()}
    expected = embedding_bag(INPUT, weight, OFFSETS, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embedding_bag(INPUT, weight, OFFSETS, **options), expected)


# Fake and meta tensors, and tracers


def test_fake_and_meta_tensors():
    with torch._subclasses.FakeTensorMode():
        offsets = torch.zeros(2, dtype=int)
        result = embedding_bag(torch.zeros(6, dtype=int), torch.zeros(10, 4).half(), offsets)
    assert (result.shape, result.dtype) == ((2, 4), torch.float16)
    bags = embag.torch.EmbeddingBag(10, 4, device="meta", max_norm=1.0, include_last_offset=True)
    result = bags(INPUT.to("meta"), OFFSETS.to("meta"))
    assert (result.shape, result.device.type) == ((2, 4), "meta")
    with pytest.raises(ValueError, match="offsets must be on meta as input and weight are"):
        bags(INPUT.to("meta"), OFFSETS)


class Doubled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bags = Model().bags

    def forward(self, input, offsets):
        return self.bags(input, offsets) * 2


@pytest.mark.parametrize(
    "trace",
    [
        torch.fx.symbolic_trace,
        lambda model: torch.fx.experimental.proxy_tensor.make_fx(model)(INPUT, OFFSETS),
        lambda model: torch.jit.trace(model, (INPUT, OFFSETS)),
    ],
    ids=["fx", "make_fx", "jit"],
)
def test_traced(trace):
    model = Doubled()
    expected = model(INPUT[:5], OFFSETS)
    assert torch.equal(trace(model)(INPUT[:5], OFFSETS), expected)


def test_scripts_are_refused():
    with pytest.raises(TypeError, match=r"must not be compiled with torch\.jit\.script"):
        torch.jit.script(embag.torch.EmbeddingBag(10, 4))


# Nested tensors, and quantized tables


def nested(values, bounds):
    return torch.nested.nested_tensor_from_jagged(values, bounds)


@pytest.mark.parametrize("compiled", [False, True])
def test_nested_tensors(compile_whole, compiled):
    bounds = torch.tensor([0, 2, 2, 6])
    ids = nested(INPUT, bounds)
    lookup = partial(embedding_bag, mode="sum")
    if compiled:
        lookup = compile_whole(lookup)
    gradients = []
    for input, offsets in ((INPUT, OFFSETS), (ids, None)):
        weight, sample = table(), factors()
        given = sample if offsets is not None else nested(sample, ids.offsets())
        result = lookup(input, weight, offsets, per_sample_weights=given)
        result.square().sum().backward()
        gradients.append((result.detach(), weight.grad, sample.grad))
    assert_same_bits(*gradients)
    assert torch.equal(Model().bags(ids), Model().bags(INPUT, OFFSETS))


def test_strided_nested_tensors_are_refused():
    strided = torch.nested.nested_tensor([torch.tensor([1, 2]), torch.tensor([3])])
    with pytest.raises(ValueError, match=r"input must not be nested with torch\.strided"):
        embedding_bag(strided, table())


JAGGED = nested(INPUT, torch.tensor([0, 2, 2, 6]))
REFUSED = {
    "offsets": ({"offsets": OFFSETS}, ValueError, "offsets must be None for a nested input"),
    "holes": (
        {"input": torch.nested.nested_tensor_from_jagged(INPUT, OFFSETS, torch.tensor([1, 0]))},
        ValueError,
        "input must be nested without holes",
    ),
    "flat weights": (
        {"per_sample_weights": torch.ones(6)},
        TypeError,
        "per_sample_weights must be nested as input is, got Tensor",
    ),
    "other lengths": (
        {"per_sample_weights": nested(torch.ones(6), torch.tensor([0, 1, 2, 6]))},
        ValueError,
        "per_sample_weights must have the lengths of input",
    ),
    "three dimensions": (
        {"input": nested(torch.zeros(6, 2, dtype=int), torch.tensor([0, 2, 6]))},
        ValueError,
        "input must be 2-D if it is nested, got 3 dimensions",
    ),
}


@pytest.mark.parametrize(("change", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_nested_tensors_that_are_refused(change, kind, message):
    with pytest.raises(kind, match=message):
        embedding_bag(**{"input": JAGGED, "weight": table(), "mode": "sum", **change})


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_quantized_tables(compile_whole, bits):
    rows = embag.quantize(table().detach().numpy(), bits)
    sample = factors().detach()
    expected = embag.embedding_bag(
        INPUT.numpy(), rows, OFFSETS.numpy(), mode="sum", per_sample_weights=sample.numpy()
    )

    def lookup(input, sample):
        return embedding_bag(input, rows, OFFSETS, mode="sum", per_sample_weights=sample)

    assert torch.equal(lookup(INPUT, sample), torch.from_numpy(expected))
    assert torch.equal(compile_whole(lookup)(INPUT, sample), torch.from_numpy(expected))
    for options in ({"sparse": True}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}):
        with pytest.raises(ValueError, match="for a QuantizedTable"):
            embedding_bag(INPUT, rows, OFFSETS, **options)


# Errors that are those of torch as well


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"input": INPUT + 1}, IndexError),
        ({"offsets": torch.tensor([1, 2])}, ValueError),
        ({"padding_idx": 10}, ValueError),
    ],
)
@pytest.mark.parametrize("grad", [torch.enable_grad, torch.inference_mode])
def test_errors_are_runtime_errors_as_in_torch(change, kind, grad):
    arguments = {"input": INPUT, "weight": table(), "offsets": OFFSETS, **change}
    with grad():
        with pytest.raises(RuntimeError):
            F.embedding_bag(**arguments)
        with pytest.raises(kind) as raised:
            embedding_bag(**arguments)
    assert isinstance(raised.value, RuntimeError)
    with pytest.raises(kind) as of_embag:
        embag.embedding_bag(
            **{
                k: v.detach().numpy() if isinstance(v, torch.Tensor) else v
                for k, v in arguments.items()
            }
        )
    assert str(raised.value) == str(of_embag.value)
    assert not isinstance(of_embag.value, RuntimeError)


def test_sparse_gradients_stay_coalesced_where_torch_allows_it():
    weight = table()
    lookup = partial(embedding_bag, INPUT, weight, OFFSETS, sparse=True)
    (gradient,) = torch.autograd.grad(lookup().sum(), weight)
    assert gradient.is_coalesced()
    lookup().sum().backward()
    # torch forgets that the rows of `weight.grad` are coalesced, but they are.
    assert not weight.grad.is_coalesced()
    assert torch.equal(weight.grad._indices(), gradient.indices())
    assert torch.equal(weight.grad._values(), gradient.values())
    lookup().sum().backward()
    assert torch.equal(weight.grad.to_dense(), 2 * gradient.to_dense())
