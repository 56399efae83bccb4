"""`embag.torch.replace_embeddings`: models that train on, and models of few bits."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest

import embag

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch installs it")

import embag.torch  # noqa: E402

pytestmark = pytest.mark.torch

replace_embeddings = embag.torch.replace_embeddings
BAGS = torch.nn.EmbeddingBag
IDS, OFFSETS = torch.tensor([1, 5, 0, 5, 9]), torch.tensor([0, 2, 2])


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.items = BAGS(10, 32, mode="mean", padding_idx=0)
        self.again = self.items
        self.liked = BAGS(10, 32, mode="sum", include_last_offset=True)
        self.liked.weight = self.items.weight
        self.position = torch.nn.Embedding(10, 32)
        self.dense = torch.nn.Linear(32, 1)

    def forward(self, ids, offsets):
        ends = torch.cat([offsets, torch.tensor([len(ids)])])
        vectors = self.items(ids, offsets) + self.liked(ids, ends)
        return self.dense(vectors + self.position(torch.tensor([1, 2, 3])))


def train(model, optimizer, n_steps=3):
    losses = []
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = model(IDS, OFFSETS).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_goes_on_with_the_same_parameters():
    models = Model(), Model()
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.1) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer)
    before = dict(models[1].named_parameters())
    report = replace_embeddings(models[1])
    assert type(models[1].items) is type(models[1].liked) is embag.torch.EmbeddingBag
    assert models[1].again is models[1].items
    assert all(before[name] is value for name, value in models[1].named_parameters())
    losses = [train(*pair) for pair in zip(models, optimizers, strict=True)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert [table.name for table in report.tables] == ["items", "liked"]
    assert report.left == {
        "position": "it has no bags: only its rows can be replaced, by bits=8, 4 or 2"
    }
    assert report.bytes_before == report.bytes_after


def test_state_dicts_load_in_both_directions():
    model = Model()
    replace_embeddings(model)
    other = Model()
    assert list(model.state_dict()) == list(other.state_dict())
    other.load_state_dict(model.state_dict())
    model.load_state_dict(other.state_dict())
    assert replace_embeddings(model).tables == ()  # they are embag's already


def test_a_layer_that_is_the_model_itself():
    layer = BAGS(10, 32)
    expected = layer(IDS, OFFSETS)
    replace_embeddings(layer)
    assert type(layer) is embag.torch.EmbeddingBag
    torch.testing.assert_close(layer(IDS, OFFSETS), expected)
    report = replace_embeddings(layer, bits=8)
    assert report.tables[0].after == "8 bits"
    assert str(layer) == "QuantizedEmbeddingBag(10, 32, bits=8, mode='mean')"
    report = replace_embeddings(layer, bits=4)
    assert (report.tables, report.left) == ((), {"embedding": "its rows are quantized already"})


def test_hooks_stay():
    layer = BAGS(10, 32)
    seen = []
    layer.register_forward_hook(lambda *arguments: seen.append(len(arguments)))
    replace_embeddings(layer)
    layer(IDS, OFFSETS)
    replace_embeddings(layer, bits=8)
    layer(IDS, OFFSETS)
    assert seen == [3, 3]


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_quantized_layers_have_the_results_of_tables(bits):
    model = Model()
    tables = {
        name: embag.quantize(getattr(model, name).weight.detach().numpy(), bits)
        for name in ("items", "position")
    }
    report = replace_embeddings(model, bits=bits)
    ids, offsets = IDS.numpy(), OFFSETS.numpy()
    expected = embag.embedding_bag(ids, tables["items"], offsets, mode="mean", padding_idx=0)
    assert model.items(IDS, OFFSETS).numpy().tobytes() == expected.tobytes()
    weights = torch.rand(5)
    expected = embag.embedding_bag(
        ids,
        tables["items"],
        [*offsets, 5],
        mode="sum",
        include_last_offset=True,
        per_sample_weights=weights.numpy(),
    )
    ends = torch.tensor([0, 2, 2, 5])
    assert model.liked(IDS, ends, weights).numpy().tobytes() == expected.tobytes()
    rows = model.position(IDS.reshape(5, 1))
    assert rows.numpy().tobytes() == embag.embedding(ids[:, None], tables["position"]).tobytes()
    assert model.items.packed is model.liked.packed
    assert [(line.name, line.features) for line in report.tables] == [
        ("items", ("items", "liked")),
        ("position", ("position",)),
    ]
    assert report.tables[0].error.max_abs > 0


def test_the_rest_of_a_quantized_model_can_be_trained():
    model = Model()
    replace_embeddings(model, bits=8)
    losses = train(model, torch.optim.SGD(model.parameters(), lr=1e-3))
    assert losses[-1] < losses[0]
    assert [name for name, _ in model.named_parameters()] == ["dense.weight", "dense.bias"]


def test_quantized_models_are_copied_pickled_and_loaded():
    model = Model()
    replace_embeddings(model, bits=8)
    expected = model(IDS, OFFSETS)
    new = Model()
    replace_embeddings(new, bits=8)
    with torch.no_grad():
        new.items.packed.zero_()
    new.load_state_dict(model.state_dict())
    for other in new, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.float():
        assert torch.equal(other(IDS, OFFSETS), expected)
        assert other.items.packed is other.liked.packed
    collections = [embag.torch.to_collection(one)[0] for one in (model, new)]
    assert [list(one.tables) for one in collections] == [["items", "position"]] * 2
    tables = [one.tables["items"].packed.tobytes() for one in collections]
    assert tables[0] == tables[1] == model.items.packed.numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_results_keep_their_dtype(dtype):
    layer = BAGS(10, 32, dtype=dtype)
    replace_embeddings(layer, bits=8)
    assert layer(IDS, OFFSETS).dtype is dtype


def test_max_norm_is_applied_before_quantizing():
    layer = BAGS(10, 32, max_norm=1.0)
    expected, _ = embag.torch.to_collection(layer, bits=8)
    replace_embeddings(layer, bits=8)
    assert layer.packed.numpy().tobytes() == expected.tables["embedding"].packed.tobytes()


def test_options_of_embags_layer_stay():
    layer = embag.torch.EmbeddingBag(10, 32)
    layer.default_idx, layer.invalid, layer.normalize = 3, "skip", True
    replace_embeddings(layer, bits=8)
    table = layer.table
    expected = embag.embedding_bag(
        [[1, 99]], table, mode="mean", default_idx=3, invalid="skip", normalize=True
    )
    assert layer(torch.tensor([[1, 99]])).numpy().tobytes() == expected.tobytes()


def test_others_are_left():
    class Own(torch.nn.EmbeddingBag):
        pass

    sgd = partial(embag.optim.SGD, lr=1)
    model = torch.nn.ModuleDict(
        {
            "own": Own(10, 32),
            "trained": embag.torch.EmbeddingBag(10, 32, optimizer=sgd),
            "meta": BAGS(10, 32, device="meta"),
            "bags": BAGS(10, 32),
        }
    )
    left = {
        "own": f"it is a {__name__}.Own",
        "meta": "its weight is on the meta device, without values",
    }
    assert replace_embeddings(model).left == left
    assert replace_embeddings(model, bits=8).left == left | {"trained": "it has an optimizer"}
    assert type(model["own"]) is Own


def test_an_error_leaves_the_model():
    model = torch.nn.Sequential(BAGS(10, 32), BAGS(10, 32))
    with torch.no_grad():
        model[1].weight[3, 3] = float("inf")
    with pytest.raises(ValueError, match="table '1': weight must have finite rows"):
        replace_embeddings(model, bits=8)
    assert [type(layer) for layer in model] == [BAGS, BAGS]


def test_bad_arguments_are_errors():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got None"):
        replace_embeddings(None)
    for bits in 3, "float16":
        with pytest.raises(ValueError, match=f"bits must be 8, 4, 2, or None, got {bits!r}"):
            replace_embeddings(BAGS(10, 32), bits)
    layer = BAGS(10, 32, mode="sum")
    replace_embeddings(layer, bits=8)
    weights = torch.ones(5, requires_grad=True)
    with pytest.raises(ValueError, match="per_sample_weights must not require a gradient"):
        layer(IDS, OFFSETS, weights)
    with torch.no_grad():
        assert layer(IDS, OFFSETS, weights).shape == (3, 32)
    with pytest.raises(TypeError, match=r"input must be integers, got torch\.float32"):
        layer(IDS.float(), OFFSETS)
    with pytest.raises(IndexError, match="out of range"):
        layer(torch.tensor([[10]]))
    layer.packed = torch.zeros(3, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="packed must have rows of 40 bytes"):
        layer(IDS, OFFSETS)


class Positions(torch.nn.Module):
    """Both kinds of quantized layers, with their result for any offsets."""

    def __init__(self):
        super().__init__()
        model = Model()
        replace_embeddings(model, bits=8)
        self.items, self.position = model.items, model.position

    def forward(self, ids, offsets):
        return self.items(ids, offsets) + self.position(offsets)


TRACERS = {
    "compile": partial(torch.compile, fullgraph=True, backend="aot_eager"),
    "export": lambda model: torch.export.export(
        model,
        (IDS, OFFSETS),
        dynamic_shapes=dict.fromkeys(("ids", "offsets"), (torch.export.Dim.DYNAMIC,)),
    ).module(),
    "fx": torch.fx.symbolic_trace,
    "jit": lambda model: torch.jit.trace(model, (IDS, OFFSETS)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trace", TRACERS.values(), ids=TRACERS)
def test_quantized_layers_are_traced(trace):
    model = Positions()
    traced = trace(model)
    for ids, offsets in ((IDS, OFFSETS), (IDS.flip(0)[:4], torch.tensor([0, 1]))):
        assert torch.equal(traced(ids, offsets), model(ids, offsets))
    torch.compiler.reset()


def test_quantized_layers_on_the_meta_device():
    model = Positions().to("meta")
    result = model(IDS.to("meta"), OFFSETS.to("meta"))
    assert (result.shape, result.device.type) == ((3, 32), "meta")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_of_a_model_is_that_of_its_quantized_layers(dtype):
    model = Model()
    replace_embeddings(model, bits=8)
    expected = model.items(IDS, OFFSETS)
    model.to(dtype)
    assert torch.equal(model.items(IDS, OFFSETS), expected.to(dtype))
    assert model(IDS, OFFSETS).dtype is dtype
    assert copy.deepcopy(model).items.dtype is dtype
    assert set(model.state_dict()) == {"items.packed", "again.packed", "liked.packed",
                                       "position.packed", "dense.weight", "dense.bias"}  # fmt: skip


def test_errors_of_quantized_layers_are_runtime_errors():
    model = Model()
    replace_embeddings(model, bits=8)
    for call, place in (
        (lambda: model.items(IDS + 1, OFFSETS), r"input\[4\] = 10"),
        (lambda: model.position(IDS.view(1, 5) + 1), r"input\[0, 4\] = 10"),
    ):
        with pytest.raises(IndexError, match=place) as raised:
            call()
        assert isinstance(raised.value, RuntimeError)
