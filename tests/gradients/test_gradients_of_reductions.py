"""Gradients of every reduction, against differences of the forward pass in float64."""

import itertools

import numpy as np
import pytest
from differences import differences

import embag

N_ROWS, DIM = 6, 3
IDS = np.array([0, 1, 3, 2, 2, 9, 0, -4])
OFFSETS = np.array([0, 2, 2, 5, 6])


def table():
    return np.random.default_rng(0).standard_normal((N_ROWS, DIM))


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("invalid", ["skip", 4])
def test_gradients_are_differences(mode, normalize, invalid):
    rng = np.random.default_rng(1)
    grad = rng.standard_normal((len(OFFSETS), DIM))
    for weighted, padding, default in itertools.product((False, True), (None, 2), (None, 5)):
        if weighted and mode in ("max", "min"):
            continue
        weight = table()
        weights = rng.standard_normal(len(IDS)) + 2 if weighted else None
        options = {
            "mode": mode,
            "per_sample_weights": weights,
            "padding_idx": padding,
            "invalid": invalid,
            "default_idx": default,
            "normalize": normalize,
        }

        def loss(weight=weight, options=options):
            return float((embag.embedding_bag(IDS, weight, OFFSETS, **options) * grad).sum())

        found = embag.embedding_bag_backward(grad, IDS, weight, OFFSETS, **options)
        expected = differences(loss, weight)
        if padding is not None:
            expected[padding] = 0
        np.testing.assert_allclose(found.weight, expected, rtol=1e-6, atol=1e-8)
        sparse = embag.embedding_bag_backward(grad, IDS, weight, OFFSETS, sparse=True, **options)
        assert sparse.weight.to_dense().tobytes() == found.weight.tobytes()
        if weighted:
            expected = differences(loss, weights)
            np.testing.assert_allclose(found.per_sample_weights, expected, rtol=1e-6, atol=1e-8)


def test_a_divisor_of_zero_passes_nothing():
    weights = np.array([1.0, -1.0, 2.0, 2.0])
    grad = np.ones((2, DIM))
    for mode in ("mean", "sqrtn"):
        given = weights if mode == "mean" else weights * [0, 0, 1, 1]
        found = embag.embedding_bag_backward(
            grad, [0, 1, 2, 3], table(), [0, 2], mode=mode, per_sample_weights=given
        )
        assert not found.weight[:2].any()
        assert found.weight[2:4].all()
        assert not found.per_sample_weights[:2].any()


def test_a_default_that_is_padding_has_no_gradient():
    found = embag.embedding_bag_backward(
        np.ones((2, DIM)), [1], table(), [0, 0], mode="sum", default_idx=4, padding_idx=4
    )
    assert not found.weight[4].any()
    assert found.weight[1].all()


def test_no_bags():
    for mode in ("mean", "sqrtn"):
        found = embag.embedding_bag_backward(
            np.zeros((0, DIM)), [1, 2], table(), [0], mode=mode,
            per_sample_weights=[1.0, 2.0], include_last_offset=True,
        )  # fmt: skip
        assert found.per_sample_weights.tolist() == [0, 0]
        assert not found.weight.any()


def test_2d_ids():
    ids = np.array([[0, 1], [9, -1], [2, 2]])
    grad = np.random.default_rng(0).standard_normal((3, DIM))
    weights = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    options = {"mode": "mean", "per_sample_weights": weights, "invalid": "skip", "default_idx": 3}
    found = embag.embedding_bag_backward(grad, ids, table(), **options)
    np.testing.assert_array_equal(found.weight[3], grad[1])
    assert found.per_sample_weights.shape == (3, 2)
    assert not found.per_sample_weights[1].any()


def test_bad_ids_are_named():
    for options in ({}, {"default_idx": 0}, {"normalize": True}):
        with pytest.raises(
            IndexError, match=r"^input\[5\] = 9 is out of range for a table of 6 rows"
        ):
            embag.embedding_bag_backward(
                np.ones((len(OFFSETS), DIM)), IDS, table(), OFFSETS, mode="sum", **options
            )


# --- Remapped tables --------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_remapped_tables(mode, weighted):
    if weighted and mode in ("max", "min"):
        return
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((6, 3))
    table = embag.RemappedTable(rows, [5, -1, 0, 2, 0, -1, 3], rng.standard_normal(7), first_id=2)
    ids, offsets = np.array([2, 4, 3, 6, 5, 8, 1, 99, 7, 3, 4, 4]), [0, 3, 6, 6, 9]
    weights = rng.random(12) + 0.5 if weighted else None
    grad = rng.standard_normal((5, 3))
    for options in (
        {},
        {"padding_idx": 5, "default_idx": 4},
        {"invalid": 6, "default_idx": 5, "padding_idx": 5},
        {"normalize": True, "default_idx": 3},
    ):
        call = {"mode": mode, "invalid": "skip", **options}

        def loss(call=call):
            out = embag.embedding_bag(ids, table, offsets, per_sample_weights=weights, **call)
            return (grad * out).sum()

        dense = embag.embedding_bag_backward(
            grad, ids, table, offsets, per_sample_weights=weights, **call
        )
        sparse = embag.embedding_bag_backward(
            grad, ids, table, offsets, per_sample_weights=weights, sparse=True, **call
        )
        assert np.array_equal(sparse.weight.to_dense(), dense.weight)
        pads = options.get("padding_idx") == options.get("default_idx") is not None
        if not pads:  # the padding row as a default has a value without a gradient
            np.testing.assert_allclose(dense.weight, differences(loss, rows), atol=1e-6)
        if weighted:
            np.testing.assert_allclose(
                dense.per_sample_weights, differences(loss, weights), atol=1e-6
            )


def test_frequencies_of_remapped_tables_are_those_of_rows():
    rows = np.zeros((2, 1))
    table = embag.RemappedTable(rows, [0, 0, 1], [1, 2, 1])
    for sparse in (False, True):
        grads = embag.embedding_bag_backward(
            [[6.0]], [[0, 0, 1, 2]], table, mode="sum", scale_grad_by_freq=True, sparse=sparse
        )
        dense = grads.weight.to_dense() if sparse else grads.weight
        assert dense.tolist() == [[8], [6]]
