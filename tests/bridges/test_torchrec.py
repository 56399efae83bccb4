"""`embag.torch.to_collection` of TorchRec's collections: its features, names and results."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch installs it")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torchrec = pytest.importorskip("torchrec", reason="torchrec is not installed")

import embag.torch  # noqa: E402

pytestmark = pytest.mark.torch

KEYS = ["clicked", "bought", "country"]
LENGTHS = torch.tensor([2, 0, 1, 3, 1, 1])
VALUES = torch.tensor([1, 2, 9, 4, 4, 4, 0, 3])


def model():
    torch.manual_seed(0)
    sum_, mean = torchrec.PoolingType.SUM, torchrec.PoolingType.MEAN
    tables = [
        torchrec.EmbeddingBagConfig(
            name="products",
            embedding_dim=8,
            num_embeddings=10,
            feature_names=["clicked", "bought"],
            pooling=sum_,
        ),
        torchrec.EmbeddingBagConfig(
            name="means",
            embedding_dim=4,
            num_embeddings=10,
            feature_names=["clicked", "country"],
            pooling=mean,
        ),
    ]
    return torch.nn.ModuleDict({"sparse": torchrec.EmbeddingBagCollection(tables=tables)})


def jagged():
    return torchrec.KeyedJaggedTensor(keys=KEYS, values=VALUES, lengths=LENGTHS)


def bags(names):
    ends = np.cumsum([0, *LENGTHS.tolist()])
    offsets = {key: ends[2 * i : 2 * i + 3] for i, key in enumerate(KEYS)}
    return {
        name: (VALUES.numpy()[of[0] : of[2]], of[:2] - of[0])
        for name in names
        for of in [offsets[name.partition("@")[0]]]
    }


@pytest.mark.parametrize("bits", [None, 8])
def test_features_have_the_results_of_torchrec(bits):
    module = model()
    ebc, report = embag.torch.to_collection(module, bits=bits)
    keyed = module["sparse"](jagged())
    assert [feature.name for feature in ebc.features] == keyed.keys()
    assert [(f.name, f.table, f.mode) for f in ebc.features] == [
        ("clicked@products", "sparse.embedding_bags.products", "sum"),
        ("bought", "sparse.embedding_bags.products", "sum"),
        ("clicked@means", "sparse.embedding_bags.means", "mean"),
        ("country", "sparse.embedding_bags.means", "mean"),
    ]
    tolerance = 1e-6 if bits is None else 0.02
    expected = keyed.values().detach().numpy()
    np.testing.assert_allclose(ebc(bags(keyed.keys())), expected, rtol=0, atol=tolerance)
    assert report.left == {}


def test_layers_are_replaced_inside_torchrec():
    module = model()
    expected = module["sparse"](jagged()).values()
    embag.torch.replace_embeddings(module)
    torch.testing.assert_close(module["sparse"](jagged()).values(), expected)
    embag.torch.replace_embeddings(module, bits=8)
    values = module["sparse"](jagged()).values()
    torch.testing.assert_close(values, expected, rtol=0, atol=0.02)
    assert len(embag.torch.to_collection(module)[0].features) == 4


def test_two_collections_with_a_feature_of_one_name():
    two = torch.nn.ModuleList([model(), model()])
    with pytest.raises(ValueError, match=r"got two of 'clicked@products', of 0\."):
        embag.torch.to_collection(two)


def test_embeddings_without_bags():
    config = torchrec.EmbeddingConfig(
        name="products", embedding_dim=8, num_embeddings=10, feature_names=["session"]
    )
    module = torchrec.EmbeddingCollection(tables=[config])
    ebc, _ = embag.torch.to_collection(module)
    assert ebc.features == (embag.Feature("session", "embeddings.products", "none"),)
    rows = module.embeddings["products"].weight.detach().numpy()
    assert ebc({"session": [3, 1]})[1]["session"].tobytes() == rows[[3, 1]].tobytes()
