"""Gradients of float16 and bfloat16 tables: float32, with the bits of the float32 table."""

import numpy as np
import pytest
from cases import assert_same_bits
from differences import differences

import embag
from embag import embedding_bag_backward

N_ROWS, DIM = 20, 19
IDS = np.array([3, 1, 7, 7, 19, 4, 99, 4, 0, 5])
OFFSETS = np.array([0, 3, 3, 6, 8])
FACTORS = np.linspace(-1, 2, len(IDS))


def tables(kind):
    """Return a table and its float32 twin."""
    dtype = np.float16 if kind == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    narrow = np.random.default_rng(0).standard_normal((N_ROWS, DIM)).astype(dtype)
    return narrow, narrow.astype(np.float32)


def gradient():
    return np.random.default_rng(1).standard_normal((len(OFFSETS), DIM))


def assert_same_grads(found, expected):
    for name in ("weight", "per_sample_weights"):
        a, b = getattr(found, name), getattr(expected, name)
        if isinstance(b, embag.SparseRows):
            assert a.indices.tolist() == b.indices.tolist()
            a, b = a.values, b.values
        if b is None:
            assert a is None
        else:
            assert b.dtype == np.float32
            assert_same_bits(a, b)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_bits_of_the_float32_table(kind, mode, sparse, level):
    narrow, wide = tables(kind)
    maps = {"index_map": [4, -1, 0, 2, 19, 1, 8, 3, 5], "scales": np.arange(9) + 0.5}
    for more in (
        {"invalid": "skip"},
        {"invalid": "skip", "padding_idx": 4},
        {"invalid": 2, "default_idx": 5, "padding_idx": 7},
        {"invalid": "skip", "normalize": True},
    ):
        options = {"mode": mode, "sparse": sparse, **more}
        if mode not in ("max", "min"):
            options["per_sample_weights"] = FACTORS
        found, expected = (
            embedding_bag_backward(gradient(), IDS, weight, OFFSETS, **options)
            for weight in (narrow, wide)
        )
        assert_same_grads(found, expected)
        found, expected = (
            embedding_bag_backward(
                gradient(), IDS, embag.RemappedTable(weight, **maps), OFFSETS, **options
            )
            for weight in (narrow, wide)
        )
        assert_same_grads(found, expected)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_other_layouts_and_bags(kind):
    narrow, wide = tables(kind)
    two_d = np.array([[1, 4], [4, 4], [0, 19]], np.int32)
    options = {"mode": "sum", "padding_idx": 4, "per_sample_weights": FACTORS[:6].reshape(3, 2)}
    expected = embedding_bag_backward(gradient()[:3], two_d, wide, **options)
    for weight in (narrow, np.asfortranarray(narrow), np.repeat(narrow, 2, axis=0)[::2]):
        found = embedding_bag_backward(gradient()[:3], two_d, weight, **options)
        assert_same_grads(found, expected)
    # Entries behind the last offset are in no bag: they are not read.
    short = {"include_last_offset": True, "per_sample_weights": FACTORS, "mode": "sqrtn"}
    found, expected = (
        embedding_bag_backward(gradient()[:2], IDS, weight, [0, 2, 5], **short)
        for weight in (narrow, wide)
    )
    assert_same_grads(found, expected)
    none = embedding_bag_backward(
        np.zeros((0, DIM)), [], narrow, [], mode="sum", per_sample_weights=[]
    )
    assert none.weight.dtype == np.float32
    assert none.per_sample_weights.shape == (0,)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_gradients_are_differences(kind, mode):
    narrow, _ = tables(kind)
    wide = narrow.astype(np.float64)
    factors = FACTORS + 2
    options = {"mode": mode, "invalid": "skip"}

    def loss():
        out = embag.embedding_bag(IDS, wide, OFFSETS, per_sample_weights=factors, **options)
        return float((out * gradient()).sum())

    found = embedding_bag_backward(
        gradient(), IDS, narrow, OFFSETS, per_sample_weights=factors, **options
    )
    np.testing.assert_allclose(found.weight, differences(loss, wide), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        found.per_sample_weights, differences(loss, factors), rtol=1e-4, atol=1e-5
    )


def test_errors():
    narrow, _ = tables("float16")
    for more in ({}, {"per_sample_weights": FACTORS}):
        for mode in ("sum", "mean"):
            with pytest.raises(IndexError, match=r"^input\[6\] = 99 is out of range for a table"):
                embedding_bag_backward(gradient(), IDS, narrow, OFFSETS, mode=mode, **more)
    with pytest.raises(TypeError, match=r"^grad_output must cast to float32 as 'same_kind'"):
        embedding_bag_backward(gradient().astype(complex), IDS, narrow, OFFSETS)
    with pytest.raises(TypeError, match=r"^weight must be float32 or float64 in native byte order"):
        embag.embedding_backward(np.ones((1, DIM)), [1], narrow)
    integers = embag.RemappedTable(np.zeros((3, DIM), np.int8))
    with pytest.raises(
        TypeError, match=r"^weight.table must be float32, float64, float16 or bfloat"
    ):
        embedding_bag_backward(np.ones((1, DIM)), [[1]], integers)
