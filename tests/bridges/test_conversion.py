"""From a model of torch to a collection, and embag's layers inside a model."""

import copy
import warnings
from enum import Enum
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch installs it")

import embag  # noqa: E402
from embag.torch import replace_embeddings, to_collection  # noqa: E402

pytestmark = pytest.mark.torch


class Model(torch.nn.Module):
    """A recommender with every kind of layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.items = torch.nn.ModuleDict(
            {
                "clicked": torch.nn.EmbeddingBag(50, 8, mode="mean", padding_idx=0),
                "bought": torch.nn.EmbeddingBag(50, 8, mode="max"),
            }
        )
        self.session = torch.nn.Embedding(50, 8, padding_idx=0)
        self.session.weight = self.items["clicked"].weight  # shared
        self.user = torch.nn.EmbeddingBag(20, 4, mode="sum", dtype=torch.bfloat16)
        self.top = torch.nn.Linear(20, 1)

    def forward(self, ids):
        pooled = [
            self.items["clicked"](ids["items.clicked"]),
            self.items["bought"](ids["items.bought"]),
            self.user(ids["user"]).float(),
        ]
        return torch.cat(pooled, 1)


def ids_of(n=6):
    rng = np.random.default_rng(1)
    found = {name: rng.integers(0, 50, (n, 3)) for name in ("items.clicked", "items.bought")}
    return found | {"user": rng.integers(0, 20, (n, 2)), "session": rng.integers(0, 50, (n, 4))}


def as_tensors(ids):
    return {name: torch.from_numpy(array) for name, array in ids.items()}


def test_a_model_with_every_kind_of_layer():
    model, ids = Model(), ids_of()
    ebc, report = to_collection(model)
    names = ["items.clicked", "items.bought", "session", "user"]
    assert [feature.name for feature in ebc.features] == names
    assert list(ebc.tables) == ["items.clicked", "items.bought", "user"]
    assert [feature.mode for feature in ebc.features] == ["mean", "max", "none", "sum"]
    assert ebc.features[0].padding_idx == 0
    out, rows = ebc(ids)
    with torch.no_grad():
        expected = model(as_tensors(ids)).numpy()
        of_session = model.session(torch.from_numpy(ids["session"])).numpy()
    np.testing.assert_allclose(out[:, :16], expected[:, :16], rtol=0, atol=1e-6)
    # torch rounds the sum to bfloat16.
    np.testing.assert_allclose(out[:, 16:], expected[:, 16:], rtol=0, atol=0.05)
    np.testing.assert_array_equal(rows["session"], of_session)
    assert report.left == ["top"]
    assert report.notes == {}
    assert all(table.error is None for table in report.tables.values())
    # The tables are copies.
    with torch.no_grad():
        model.user.weight.zero_()
    np.testing.assert_array_equal(ebc(ids)[0], out)


def test_bits_and_rules():
    model = Model()
    rules = {"user": "float16", "items.b*": None, "items.*": 4}
    ebc, report = to_collection(model, bits=8, rules=rules)
    assert isinstance(ebc.tables["items.clicked"], embag.QuantizedTable)
    assert ebc.tables["items.clicked"].bits == 4
    assert ebc.tables["items.bought"].dtype == np.float32
    assert ebc.tables["user"].dtype == np.float16
    clicked = report.tables["items.clicked"]
    assert (clicked.shape, clicked.n_bytes, clicked.n_bytes_before) == ((50, 8), 400, 1600)
    assert 0 < clicked.error.max_abs < 0.5
    assert report.tables["user"].error.max_abs == 0  # float16 holds these bfloat16 numbers
    assert repr(report).splitlines()[0] == "3 tables:"
    assert "items.clicked: 50 rows of 8, 400 bytes instead of 1600, largest error" in repr(report)
    assert repr(report).splitlines()[-1] == "left: top"


def test_a_single_layer_and_notes():
    layer = torch.nn.EmbeddingBag(10, 4, max_norm=1.0, include_last_offset=True)
    ebc, report = to_collection(layer, invalid="skip")
    assert [feature.name for feature in ebc.features] == ["embedding"]
    assert ebc.invalid == "skip"
    assert report.notes == {"": "include_last_offset=True: pass it to the call"}
    (ours,) = to_collection(embag.torch.EmbeddingBag(10, 4, mode="sqrtn")).collection.features
    assert ours.mode == "sqrtn"
    (note,) = to_collection(torch.nn.Embedding(10, 4, max_norm=2.0)).report.notes.values()
    assert note == "max_norm=2.0 is not applied: rows are as they are now"


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_layers_of_torch(bits):
    from torch.ao import quantization  # noqa: PLC0415
    from torch.ao.nn import quantized  # noqa: PLC0415

    config = {
        8: quantization.float_qparams_weight_only_qconfig,
        4: quantization.float_qparams_weight_only_qconfig_4bit,
    }[bits]
    bags, rows = torch.nn.EmbeddingBag(30, 8, mode="sum"), torch.nn.Embedding(30, 8)
    bags.qconfig = config
    rows.qconfig = quantization.float_qparams_weight_only_qconfig  # torch's has no 4 bits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.nn.ModuleDict(
            {
                "bags": quantized.EmbeddingBag.from_float(bags),
                "rows": quantized.Embedding.from_float(rows),
            }
        )
        ebc, _ = to_collection(model)
        ids = torch.randint(0, 30, (5, 3))
        expected = model["bags"](ids.reshape(-1), torch.arange(0, 15, 3))
        of_rows = model["rows"](ids)
    assert ebc.tables["bags"].bits == bits
    out, found = ebc({"bags": ids.numpy(), "rows": ids.numpy()})
    np.testing.assert_allclose(out, expected.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["rows"], of_rows.numpy(), rtol=0, atol=1e-5)


class Pooling(Enum):
    SUM = "SUM"
    MEAN = "MEAN"


class Config(NamedTuple):
    name: str
    feature_names: list
    pooling: Pooling


class LikeTorchRec(torch.nn.Module):
    """The part of TorchRec's `EmbeddingBagCollection` that `to_collection` reads."""

    def __init__(self):
        super().__init__()
        tables = {"products": (30, 4), "users": (10, 2)}
        self.embedding_bags = torch.nn.ModuleDict(
            {name: torch.nn.EmbeddingBag(*shape, mode="sum") for name, shape in tables.items()}
        )

    def embedding_bag_configs(self):
        return [
            Config("products", ["clicked", "bought"], Pooling.MEAN),
            Config("users", ["user"], Pooling.SUM),
        ]


def test_a_collection_of_torchrec():
    model = torch.nn.ModuleDict({"sparse": LikeTorchRec(), "top": torch.nn.Linear(3, 1)})
    ebc, report = to_collection(model)
    features = [(feature.name, feature.table, feature.mode) for feature in ebc.features]
    assert features == [
        ("clicked", "sparse.products", "mean"),
        ("bought", "sparse.products", "mean"),
        ("user", "sparse.users", "sum"),
    ]
    assert list(report.tables) == ["sparse.products", "sparse.users"]
    assert report.left == ["top"]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((3,), TypeError, "module must be a torch.nn.Module, got 3"),
        ((torch.nn.Linear(2, 2),), ValueError, "module must have embeddings, got none"),
        ((torch.nn.EmbeddingBag(3, 2), 5), ValueError, None),
        ((torch.nn.EmbeddingBag(3, 2), True), ValueError, None),
        ((torch.nn.EmbeddingBag(3, 2), None, [8]), TypeError, "rules must be a mapping, got list"),
        (
            (torch.nn.EmbeddingBag(3, 2), None, {1: 8}),
            TypeError,
            "rules must have patterns of type str as keys, got 1",
        ),
        (
            (torch.nn.EmbeddingBag(3, 2), None, {"*": 3}),
            ValueError,
            "rules['*'] must be 8, 4, 2, 'float16' or None, got 3",
        ),
        (
            (torch.nn.EmbeddingBag(3, 2, device="meta"),),
            ValueError,
            "embedding.weight must be in memory, got a meta tensor",
        ),
    ],
)
def test_errors(arguments, kind, message):
    with pytest.raises(kind) as caught:
        to_collection(*arguments)
    assert message is None or str(caught.value) == message


def test_three_lines_from_a_model_to_a_service(tmp_path):
    model, ids = Model(), ids_of()
    ebc, _ = to_collection(model, bits=8)
    ebc.save(tmp_path)
    served = embag.EmbeddingBagCollection.load(tmp_path)
    np.testing.assert_array_equal(served(ids)[0], ebc(ids)[0])


# --- Inside the model ---------------------------------------------------------


def test_replaced_layers_share_parameters_and_train():
    model = Model()
    expected = copy.deepcopy(model)
    weight, state = model.items["clicked"].weight, model.state_dict()
    assert replace_embeddings(model) is model
    assert type(model.items["clicked"]) is embag.torch.EmbeddingBag
    assert type(model.session) is torch.nn.Embedding
    assert model.items["clicked"].weight is weight
    assert list(model.state_dict()) == list(state)
    ids = as_tensors(ids_of())
    torch.testing.assert_close(model(ids), expected(ids), rtol=0, atol=0.01)  # of bfloat16
    for one in (model, expected):
        one.top(model(ids) if one is model else expected(ids)).sum().backward()
    torch.testing.assert_close(
        model.items["clicked"].weight.grad, expected.items["clicked"].weight.grad
    )
    model.load_state_dict(state)
    expected.load_state_dict(model.state_dict())


def test_replaced_layers_with_bits():
    model, ids = Model(), as_tensors(ids_of())
    expected = model(ids)
    replace_embeddings(model, bits=8, rules={"user": "float16"})
    assert type(model.items["bought"]) is embag.torch.QuantizedEmbeddingBag
    assert repr(model.items["bought"]) == "QuantizedEmbeddingBag(50, 8, bits=8, mode='max')"
    assert model.user.weight.dtype is torch.float16
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=0.05)
    layer = model.items["clicked"]
    weights = torch.rand(6, 3)
    bags = layer(ids["items.clicked"], per_sample_weights=weights)
    table = embag.QuantizedTable.from_packed(layer.packed.numpy(), 8, 8)
    np.testing.assert_array_equal(
        bags,
        embag.embedding_bag(
            ids["items.clicked"].numpy(),
            table,
            mode="mean",
            per_sample_weights=weights.numpy(),
            padding_idx=0,
        ),
    )
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(ids), model(ids))


def test_a_layer_itself_is_returned():
    layer = torch.nn.EmbeddingBag(5, 2)
    new = replace_embeddings(layer)
    assert type(new) is embag.torch.EmbeddingBag
    assert new.weight is layer.weight
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got 3"):
        replace_embeddings(3)
