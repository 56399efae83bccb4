"""Features without bags, beside others: the bits of `embedding`."""

import pickle
import re

import numpy as np
import pytest

import embag
from embag import EmbeddingBagCollection, Feature

RNG = np.random.default_rng(0)
TABLES = {
    "items": RNG.standard_normal((20, 5)).astype(np.float32),
    "wide": RNG.standard_normal((30, 70)) * 1e10,
    "half": RNG.standard_normal((20, 3)).astype(np.float16),
    "q8": embag.quantize(RNG.standard_normal((25, 8)).astype(np.float32)),
}
FEATURES = [
    Feature("position", "items", "none"),
    Feature("clicked", "items"),
    Feature("token", "wide", "none"),
    Feature("bought", "half", "mean"),
    Feature("code", "q8", "none", padding_idx=0),
]
BAGS = {"clicked": np.array([[0, 1], [2, 3]]), "bought": ([1, 2, 3], [0, 1])}
IDS = {
    "position": np.arange(6).reshape(2, 3),
    "token": [29, 0, 0],
    "code": np.array([0, 24], np.int32),
}


def collection(features=FEATURES, **options):
    """Make a collection; inside a test, it takes the kernels of the level under test."""
    return EmbeddingBagCollection(TABLES, features, **options)


def assert_result(result, n_threads=None):
    pooled = EmbeddingBagCollection(TABLES, [FEATURES[1], FEATURES[3]])
    out, rows = result
    assert out.tobytes() == pooled(BAGS).tobytes()
    assert list(rows) == ["position", "token", "code"]
    for name, table in ("position", "items"), ("token", "wide"), ("code", "q8"):
        floats = TABLES[table]
        floats = floats.dequantize() if table == "q8" else floats.astype(np.float32)
        assert rows[name].dtype == np.float32
        assert rows[name].shape == (*np.shape(IDS[name]), floats.shape[1])
        assert rows[name].tobytes() == floats[np.asarray(IDS[name])].tobytes()


def test_rows_beside_pooled_features(level, eager_threads):
    ebc = collection()
    assert ebc.dim == 8
    assert dict(ebc.slices) == {"clicked": slice(0, 5), "bought": slice(5, 8)}
    for n_threads in (1, 3):
        assert_result(ebc({**BAGS, **IDS}, num_threads=n_threads))
    assert_result(ebc({**BAGS, **IDS, "clicked": [[0, 1], [2, 3]]}))
    assert_result(pickle.loads(pickle.dumps(ebc))({**IDS, **BAGS}))
    ends = {"clicked": ([0, 1, 2, 3], [0, 2, 4]), "bought": ([1, 2, 3], [0, 1, 3])}
    assert_result(ebc({**ends, **IDS}, include_last_offset=True))


def test_results_by_feature():
    ebc = collection()
    result = ebc({**BAGS, **IDS})
    parts = ebc.split(result)
    assert list(parts) == [feature.name for feature in FEATURES]
    assert parts["token"] is result[1]["token"]
    assert parts["bought"].tobytes() == result[0][:, 5:].tobytes()
    assert list(ebc.split(result[0])) == ["clicked", "bought"]
    result = ebc({**BAGS, **IDS}, return_n_valid=True)
    assert_result(result[:2])
    assert result[2].tolist() == [[2, 1], [2, 2]]
    assert list(ebc.split(result)) == list(parts)
    with pytest.raises(ValueError, match="out must have the rows of each feature of mode 'none'"):
        ebc.split((result[0], result[2]))


def test_out_and_weights():
    ebc = collection()
    out = np.full((2, 8), 7, np.float32)
    result = ebc({**BAGS, **IDS}, out=out)
    assert result[0] is out
    assert_result(result)
    weights = {"clicked": np.array([[2, 0], [0, 3]], np.float32)}
    out, _ = ebc({**BAGS, **IDS}, None, weights)
    expected = TABLES["items"][[0, 3]] * np.array([[2], [3]], np.float32)
    np.testing.assert_array_equal(out[:, :5], expected)


def test_features_without_bags_alone():
    ebc = collection([FEATURES[0]])
    assert (ebc.dim, dict(ebc.slices)) == (0, {})
    out, rows = ebc({"position": 7})
    assert out.shape == (0, 0)
    assert rows["position"].tobytes() == TABLES["items"][7].tobytes()
    _, rows = ebc({"position": np.zeros((0, 2), np.int64)})
    assert rows["position"].shape == (0, 2, 5)


def test_tables_without_columns():
    table = np.zeros((3, 0), np.float32)
    ebc = EmbeddingBagCollection({"t": table}, [Feature("a", "t", "none"), Feature("b", "t")])
    assert ebc({"a": [1, 2], "b": [[0]]})[1]["a"].shape == (2, 0)
    with pytest.raises(IndexError, match=re.escape("feature 'a': ids[1] = 3 is out of range")):
        ebc({"a": [1, 3], "b": [[0]]})


def test_normalized_rows(level, eager_threads):
    ebc = collection([Feature("token", "wide", "none", normalize=True, invalid="skip")])
    for n_threads in (1, 3):
        rows = ebc({"token": [[3, 4], [30, 4]]}, num_threads=n_threads)[1]["token"]
        expected = embag.embedding_bag(
            [[3], [4]], TABLES["wide"].astype(np.float32), normalize=True, mode="max"
        )
        assert rows[0].tobytes() == expected.tobytes()
        assert rows[1, 1].tobytes() == expected[1].tobytes()
        assert not rows[1, 0].any()


def test_ids_out_of_range():
    features = [
        Feature("refused", "items", "none", invalid="raise"),
        Feature("zeros", "items", "none"),
        Feature("replaced", "items", "none", invalid=-1),
        Feature("pooled", "items"),
    ]
    ebc = collection(features, invalid="skip")
    values = {"refused": [1], "zeros": [[20, 1], [-1, 3]], "replaced": [99], "pooled": [[0, 20]]}
    for k in (1, 2):
        _, rows = ebc(values)
        assert not rows["zeros"][[0, 1], [0, 0]].any()
        assert rows["zeros"][:, 1].tobytes() == TABLES["items"][[1, 3]].tobytes()
        assert rows["replaced"].tobytes() == TABLES["items"][[-1]].tobytes()
        counts = {"refused": 0, "zeros": 2 * k, "replaced": k, "pooled": k}
        assert ebc.n_invalid == counts
        assert list(ebc.n_invalid) == list(counts)
    # A call that raises counts nothing and writes nothing.
    out = np.full((1, 5), 7, np.float32)
    for bad in {"refused": [20]}, {"pooled": [[0], [1, 2]]}, {"pooled": ([0], [1])}:
        with pytest.raises((IndexError, ValueError)):
            ebc({**values, **bad}, out=out)
    assert (out == 7).all()
    assert ebc.n_invalid == counts


def test_a_table_that_is_replaced():
    ebc = collection()
    table = np.ones((40, 5), np.float32)
    ebc.replace("items", table)
    out, rows = ebc({**BAGS, **IDS, "position": [39]})
    assert rows["position"].tolist() == [[1] * 5]
    assert out[0, 0] == 2
    with pytest.raises(ValueError, match="feature 'code': padding_idx must name one of"):
        ebc.replace("q8", np.zeros((0, 8), np.float32))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda ebc: ebc([0], [0, 1]), TypeError,
         "values must be a mapping where feature 'position' has mode 'none', got list"),
        (lambda ebc: ebc(BAGS), ValueError,
         "values must have ids for every feature, got none for 'position'"),
        (lambda ebc: ebc({**BAGS, **IDS, "other": [1]}), ValueError,
         "values must have names of features as keys, got 'other'"),
        (lambda ebc: ebc({**BAGS, **IDS}, None, {"token": [1, 2, 3]}), ValueError,
         "per_sample_weights must have no weights for feature 'token' of mode 'none', got list"),
        (lambda ebc: ebc({**BAGS, **IDS, "token": [0, 30]}), IndexError,
         "feature 'token': ids[1] = 30 is out of range for a table of 30 rows"),
        (lambda ebc: ebc({**BAGS, **IDS, "token": ([0, 1], [0])}), TypeError,
         "feature 'token': ids must be an array or a list where mode is 'none', got a tuple"),
        (lambda ebc: ebc({**BAGS, **IDS, "token": [[0], [1, 2]]}), TypeError,
         "feature 'token': ids must be an array of integers, got a ragged input; flatten it, "
         "or use embedding_bag to reduce its lists"),
        (lambda ebc: ebc({**BAGS, **IDS, "token": [0.5]}), TypeError,
         "feature 'token': ids must be integers, got dtype float64"),
        (lambda _: collection([Feature("a", "items", "none", default_idx=1)]), ValueError,
         "feature 'a': default_idx must be None where mode is 'none', got 1"),
        (lambda _: collection([Feature("a", "items", "none", padding_idx=20)]), ValueError,
         "feature 'a': padding_idx must name one of the table's 20 rows, got 20"),
        (lambda _: collection([FEATURES[0], FEATURES[0]._replace(mode="sum")]), ValueError,
         "features must have different names, got two of 'position'"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error) as caught:
        call(collection())
    assert str(caught.value) == message
