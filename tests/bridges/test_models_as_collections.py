"""`embag.torch.to_collection`: each feature has the results of its layer."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import embag

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch installs it")

import embag.torch  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning"),
]

to_collection = embag.torch.to_collection
BAGS = torch.nn.EmbeddingBag
IDS, OFFSETS = torch.tensor([1, 5, 0, 5, 9]), torch.tensor([0, 2, 2])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pooled(collection, name="embedding"):
    """Return the result of one feature; the others get empty bags."""
    bags = {feature.name: [[], [], []] for feature in collection.features}
    out = collection(bags | {name: (IDS.numpy(), OFFSETS.numpy())})
    return collection.split(out)[name]


def result_of(layer):
    return layer(IDS, OFFSETS).detach().numpy()


class TwoTowers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.user = torch.nn.ModuleDict({"clicks": BAGS(10, 6, mode="sum", padding_idx=0)})
        self.liked = BAGS(10, 6, mode="mean")
        self.liked.weight = self.user["clicks"].weight
        self.tags = torch.nn.ModuleList([BAGS(10, 3, mode="max", padding_idx=-1), BAGS(12, 2)])
        self.position = torch.nn.Embedding(10, 4, padding_idx=0)
        self.dense = torch.nn.Linear(17, 1)


def test_layers_become_features():
    model = TwoTowers()
    with torch.no_grad():
        model.position.weight[0] = 7  # no zeros: the row is returned as it is
    ebc, report = to_collection(model)
    assert [(f.name, f.table, f.mode, f.padding_idx) for f in ebc.features] == [
        ("user.clicks", "user.clicks", "sum", 0),
        ("liked", "user.clicks", "mean", None),
        ("tags.0", "tags.0", "max", 9),
        ("tags.1", "tags.1", "mean", None),
        ("position", "position", "none", 0),
    ]
    bags = {f.name: (IDS.numpy(), OFFSETS.numpy()) for f in ebc.features if f.mode != "none"}
    parts = ebc.split(ebc({**bags, "position": [[0, 3]]}))
    layers = dict(model.named_modules())
    for name in bags:
        np.testing.assert_allclose(parts[name], result_of(layers[name]), rtol=1e-6, atol=1e-6)
    expected = model.position(torch.tensor([[0, 3]])).detach().numpy()
    assert parts["position"].tobytes() == expected.tobytes()
    assert (parts["position"][0, 0] == 7).all()
    assert [table.name for table in report.tables] == list(ebc.tables)
    assert report.tables[0].features == ("user.clicks", "liked")
    assert report.tables[0].error is None
    assert report.bytes_before == report.bytes_after == 4 * (60 + 30 + 24 + 40)
    assert report.left == report.notes == {}


def test_tables_share_the_memory_of_weights():
    model = BAGS(10, 6)
    ebc, _ = to_collection(model)
    with torch.no_grad():
        model.weight.fill_(3)
    assert (pooled(ebc)[0] == 3).all()


def test_a_module_at_two_paths_is_two_features_of_one_table():
    bags = BAGS(10, 6)
    ebc, report = to_collection(torch.nn.ModuleDict({"a": bags, "b": bags}))
    assert [(f.name, f.table) for f in ebc.features] == [("a", "a"), ("b", "a")]
    assert report.tables[0].features == ("a", "b")


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_quantized_tables_are_those_of_quantize(bits):
    model = BAGS(20, 32, mode="sum")
    weight = model.weight.detach().numpy()
    ebc, report = to_collection(model, bits=bits)
    expected = embag.quantize(weight, bits)
    assert ebc.tables["embedding"].packed.tobytes() == expected.packed.tobytes()
    (line,) = report.tables
    assert line.error == expected.error(weight)
    assert (line.before, line.after) == ("float32", f"{bits} bits")
    assert (line.bytes_before, line.bytes_after) == (weight.nbytes, expected.nbytes)


def test_float16():
    model = BAGS(20, 32, mode="sum")
    ebc, report = to_collection(model, bits="float16")
    half = model.weight.detach().numpy().astype(np.float16)
    assert ebc.tables["embedding"].tobytes() == half.tobytes()
    difference = np.abs(half.astype(np.float64) - model.weight.detach().numpy())
    assert report.tables[0].error.max_abs == difference.max()
    assert 0.999999 < report.tables[0].error.cosine <= 1
    with torch.no_grad():
        model.weight[3, 3] = 1e6
    with pytest.raises(ValueError, match="table 'embedding': entries must be at most 65504"):
        to_collection(model, bits="float16")


def test_rules():
    model = TwoTowers()
    after = {
        "user.clicks": "4 bits",
        "tags.0": "float32",
        "tags.1": "8 bits",
        "position": "float16",
    }
    rules = {"user.*": 4, "tags.0": None, "tags.*": 8, "*": "float16"}
    _, report = to_collection(model, bits=2, rules=rules)
    assert {table.name: table.after for table in report.tables} == after
    _, report = to_collection(model, bits=8, rules={"tags.0": None})
    assert [table.after for table in report.tables] == ["8 bits", "float32", "8 bits", "8 bits"]
    seen = []
    _, report = to_collection(model, bits=8, rules=seen.append)
    assert [table.after for table in report.tables] == ["float32"] * 4
    assert seen == list(after)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("norm_type", [2.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_max_norm_is_applied_to_a_copy(bits, norm_type, dtype):
    model = BAGS(10, 6, max_norm=1.0, norm_type=norm_type, mode="sum", dtype=dtype)
    before = model.weight.detach().clone()
    ebc, report = to_collection(model, bits=bits)
    assert torch.equal(model.weight, before)
    assert report.notes == {"embedding": "its rows are a copy, scaled to max_norm=1.0"}
    tolerance = 1e-6 if bits is None else 3 * report.tables[0].error.max_abs + 1e-6
    np.testing.assert_allclose(pooled(ebc), result_of(model), rtol=0, atol=tolerance)
    assert not torch.equal(model.weight, before)  # by the lookup of torch


def test_a_shared_weight_with_different_norms_is_two_tables():
    one, other = BAGS(10, 6, max_norm=1.0), BAGS(10, 6)
    other.weight = one.weight
    ebc, _ = to_collection(torch.nn.ModuleList([one, other]))
    assert list(ebc.tables) == ["0", "1"]


@pytest.mark.parametrize("bits", [None, 8, "float16"])
def test_bfloat16(bits):
    pytest.importorskip("ml_dtypes")
    model = BAGS(10, 32, dtype=torch.bfloat16, mode="sum")
    ebc, report = to_collection(model, bits)
    assert report.tables[0].before == "bfloat16"
    floats = model.weight.detach().float().numpy()
    if bits == 8:
        assert ebc.tables["embedding"].packed.tobytes() == embag.quantize(floats).packed.tobytes()
    else:
        expected = embag.embedding_bag(IDS.numpy(), floats, OFFSETS.numpy(), mode="sum")
        assert pooled(ebc).tobytes() == expected.tobytes()


def test_the_layer_of_embag_keeps_its_options():
    model = embag.torch.EmbeddingBag(10, 6, mode="sqrtn")
    model.default_idx, model.invalid, model.normalize = 3, "skip", True
    ebc, _ = to_collection(model)
    assert ebc.features == (
        embag.Feature("embedding", "embedding", "sqrtn", None, 3, "skip", normalize=True),
    )
    assert pooled(ebc).tobytes() == result_of(model).tobytes()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["EmbeddingBag", "Embedding"])
def test_layers_that_torch_quantized(bits, kind):
    from torch.ao.nn import quantized  # noqa: PLC0415
    from torch.ao.quantization import qconfig  # noqa: PLC0415

    suffix = "" if bits == 8 else "_4bit"
    options = {"mode": "sum"} if kind == "EmbeddingBag" else {}
    floats = getattr(torch.nn, kind)(10, 6, **options)
    floats.qconfig = getattr(qconfig, f"float_qparams_weight_only_qconfig{suffix}")
    layer = getattr(quantized, kind).from_float(floats)
    ebc, report = to_collection(torch.nn.Sequential(layer), bits=2)
    (line,) = report.tables
    assert (line.before, line.after, line.error) == (f"{bits} bits", f"{bits} bits", None)
    if kind == "EmbeddingBag":
        ours, theirs = pooled(ebc, "0"), result_of(layer)
    else:
        # torch's lookup of 4 bits without bags raises an error.
        ours, theirs = ebc({"0": IDS.numpy()})[1]["0"], layer.weight().dequantize()[IDS].numpy()
    # Packed rows of 4 bits have scales of float16. `layer.weight()` has those before rounding.
    tolerance = 2e-3 if (kind, bits) == ("Embedding", 4) else 1e-6
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


class LikeTorchRec(torch.nn.Module):
    """The part of TorchRec's `EmbeddingBagCollection` that is read; see test_torchrec.py."""

    def __init__(self):
        super().__init__()
        names = {"products": ["clicked", "bought"], "means": ["clicked"]}
        self.configs = [SimpleNamespace(name=key, feature_names=names[key]) for key in names]
        self.embedding_bags = torch.nn.ModuleDict({key: BAGS(10, 6) for key in names})

    def embedding_bag_configs(self):
        return self.configs


def test_features_of_a_collection_of_torchrec(monkeypatch):
    classes = SimpleNamespace(EmbeddingBagCollection=LikeTorchRec, EmbeddingCollection=None)
    monkeypatch.setitem(sys.modules, "torchrec.modules.embedding_modules", classes)
    model = torch.nn.ModuleDict({"sparse": LikeTorchRec(), "other": BAGS(10, 6)})
    ebc, report = to_collection(model)
    assert [(feature.name, feature.table) for feature in ebc.features] == [
        ("clicked@products", "sparse.embedding_bags.products"),
        ("bought", "sparse.embedding_bags.products"),
        ("clicked@means", "sparse.embedding_bags.means"),
        ("other", "other"),
    ]
    assert report.left == {}
    with pytest.raises(ValueError, match="must have different names, got two of 'clicked@pro"):
        to_collection(torch.nn.ModuleList([LikeTorchRec(), LikeTorchRec()]))


class OwnForward(torch.nn.EmbeddingBag):
    def forward(self, input):
        return super().forward(input) * 2


def with_lazy_weight():
    layer = BAGS(10, 6)
    layer.weight = torch.nn.UninitializedParameter()
    return layer


def with_weight(weight):
    layer = BAGS(10, 6)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


def of_another_class():
    class Tagged(torch.Tensor):
        pass

    layer = BAGS(10, 6)
    del layer.weight
    layer.weight = torch.ones(10, 6).as_subclass(Tagged)
    return layer


LEFT = [
    (lambda: OwnForward(10, 6), "its class OwnForward has a forward of its own"),
    (lambda: BAGS(10, 6, device="meta"), "its weight is on the meta device, without values"),
    (with_lazy_weight, "its weight is not initialized"),
    (lambda: with_weight(torch.ones(10, 6, dtype=torch.int64)), "its weight is torch.int64"),
    (lambda: with_weight(torch.ones(10)), "its weight is 1-D with layout torch.strided"),
    (of_another_class, "its weight is a Tagged"),
]


@pytest.mark.parametrize(("make", "reason"), LEFT)
def test_others_are_left_with_a_reason(make, reason):
    model = torch.nn.ModuleDict({"x": make(), "y": BAGS(10, 6)})
    ebc, report = to_collection(model)
    assert list(ebc.tables) == ["y"]
    assert report.left == {"x": reason}
    assert f"left: x: {reason}" in str(report)
    with pytest.raises(ValueError, match=f"can be converted, got none; embedding: {reason}"):
        to_collection(make())


def test_modules_of_torchscript_are_left():
    with pytest.warns((DeprecationWarning, FutureWarning)):
        scripted = torch.jit.script(torch.nn.Sequential(BAGS(10, 6)))
    _, report = to_collection(torch.nn.ModuleList([scripted, BAGS(10, 6)]))
    assert report.left == {"0.0": "it is a module of TorchScript"}


def test_hooks_are_noted():
    model = BAGS(10, 6)
    model.register_forward_hook(lambda module, inputs, output: output * 2)
    assert to_collection(model)[1].notes == {"embedding": "its forward hooks are not converted"}


def test_a_parametrized_weight_is_converted():
    class Double(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    model = BAGS(10, 6, mode="sum")
    torch.nn.utils.parametrize.register_parametrization(model, "weight", Double())
    assert pooled(to_collection(model)[0]).tobytes() == result_of(model).tobytes()


def test_the_report_can_be_printed():
    model = TwoTowers()
    _, report = to_collection(model, bits=8, rules={"tags.*": None})
    lines = str(report).splitlines()
    assert lines[0].split() == [
        "table",
        "rows",
        "dim",
        "before",
        "after",
        "MB",
        "MB",
        "after",
        "error",
        "cosine",
    ]
    assert re.fullmatch(
        r"user\.clicks +10 +6 +float32 +8 bits +0.000 +0.000 +0\.\S+ +0\.9+\d+", lines[1]
    )
    assert lines[-1].split() == ["total", "0.001", "0.000"]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((3,), TypeError, "module must be a torch.nn.Module, got 3"),
        ((torch.nn.Linear(2, 2),), ValueError, "embeddings that can be converted, got none"),
        ((BAGS(3, 2), 3), ValueError, "bits must be 8, 4, 2, 'float16', or None, got 3"),
        ((BAGS(3, 2), True), TypeError, "bits must be 8, 4, 2, 'float16', or None, got True"),
        ((BAGS(3, 2), "int8"), ValueError, "bits must be 8, 4, 2, 'float16', or None, got 'int8'"),
        ((BAGS(3, 2), None, 3), TypeError, "rules must be a mapping or a callable, got 3"),
        ((BAGS(3, 2), None, {3: 8}), TypeError, "rules must have keys of type str, got 3"),
        ((BAGS(3, 2), None, {"*": 3}), ValueError, r"rules\['\*'\] must be 8, 4, 2"),
        ((BAGS(3, 2), 8, {"x.*": 4}), ValueError, r"got 'x\.\*', which matches none of embedding"),
        ((BAGS(3, 2), 8, lambda name: "x"), ValueError, r"rules\('embedding'\) must be 8, 4, 2"),
    ],
)
def test_bad_arguments_are_errors(arguments, kind, message):
    with pytest.raises(kind, match=message):
        to_collection(*arguments)


def test_entries_that_are_not_finite_are_errors():
    model = torch.nn.Sequential(BAGS(10, 6))
    with torch.no_grad():
        model[0].weight[3, 2] = float("nan")
    with pytest.raises(ValueError, match="table '0': weight must have finite rows"):
        to_collection(model, bits=8)


def test_what_to_do_with_invalid_ids():
    ebc, _ = to_collection(BAGS(10, 6), invalid="skip")
    assert ebc({"embedding": [[10, -1]]}).tolist() == [[0] * 6]
    with pytest.raises(ValueError, match="invalid must be 'raise' or 'skip', got 3"):
        to_collection(BAGS(10, 6), invalid=3)


@pytest.mark.parametrize("page", ["README.md", "docs/collections.md"])
def test_the_documents_go_from_a_model_to_a_folder(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / page).read_text()
    blocks = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    code = "".join(block for block in blocks if "to_collection(" in block or '.load("f' in block)
    model = TwoTowers()
    names = {"model": model, "embag": embag}
    exec(code, names)
    assert sorted(names["ebc"].tables) == ["position", "tags.0", "tags.1", "user.clicks"]
    assert isinstance(names["ebc"].tables["position"], embag.QuantizedTable)
    assert names["report"].left == {}
