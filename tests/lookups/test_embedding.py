"""Rows without bags: `embedding` and `embedding_backward`."""

import numpy as np
import pytest

import embag

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((20, 5)).astype(np.float32)
TABLE[3] = [-0.0, np.nan, np.inf, -np.inf, 1e-45]


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4), (0,), (2, 0), (1, 1, 1, 2)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_rows_of_any_shape(shape, dtype, level):
    ids = np.asarray(RNG.integers(0, 20, shape)).astype(dtype)
    found = embag.embedding(ids, TABLE)
    assert found.shape == (*shape, 5)
    assert found.tobytes() == TABLE[ids].tobytes()


def test_rows_keep_their_bits(level):
    assert embag.embedding(3, TABLE).tobytes() == TABLE[3].tobytes()
    half = TABLE.astype(np.float16)
    assert embag.embedding([3, 1], half).tobytes() == half[[3, 1]].astype(np.float32).tobytes()
    found = embag.embedding([3, 1], half, out_dtype=np.float16)
    assert found.tobytes() == half[[3, 1]].tobytes()
    quantized = embag.quantize(np.nan_to_num(TABLE, posinf=9, neginf=-9))
    assert embag.embedding([3, 1], quantized).tobytes() == quantized.dequantize()[[3, 1]].tobytes()


def test_lists_are_arrays():
    assert embag.embedding([[0, 2], [2, 1]], TABLE).tobytes() == TABLE[[[0, 2], [2, 1]]].tobytes()


def test_options():
    assert not embag.embedding([20, -1], TABLE, invalid="skip").any()
    assert embag.embedding([[20], [1]], TABLE, invalid=-1).tobytes() == TABLE[[19, 1]].tobytes()
    assert embag.embedding([2], TABLE, padding_idx=2).tobytes() == TABLE[2].tobytes()
    out = np.empty((2, 1, 5), np.float32)
    assert embag.embedding([[4], [5]], TABLE, out=out) is out
    assert out.tobytes() == TABLE[[4, 5]].tobytes()
    table = np.full((3, 4), 2, np.float32)
    found = embag.embedding([1], table, max_norm=1.0)
    assert found.tobytes() == table[1].tobytes()
    assert abs(np.linalg.norm(found) - 1) < 1e-6
    assert (table[[0, 2]] == 2).all()


def test_tables_without_columns():
    table = np.zeros((3, 0), np.float32)
    out = np.empty((2, 2, 0), np.float32)
    assert embag.embedding([[0, 1], [2, 0]], table, out=out) is out
    assert embag.embedding(1, table).shape == (0,)
    assert embag.embedding_backward(out, [[0, 1], [2, 0]], table).shape == (3, 0)


@pytest.mark.parametrize("sparse", [False, True])
def test_gradient(sparse):
    ids = np.array([[1, 4, 1], [0, 4, 2]])
    grad = RNG.standard_normal((2, 3, 5))
    table = TABLE.astype(np.float64)
    expected = np.zeros_like(table)
    np.add.at(expected, ids, grad)
    expected[2] = 0
    found = embag.embedding_backward(grad, ids, table, padding_idx=2, sparse=sparse)
    np.testing.assert_allclose(found.to_dense() if sparse else found, expected)
    if sparse:
        assert found.indices.tolist() == [0, 1, 4]
    found = embag.embedding_backward(grad, ids, table, scale_grad_by_freq=True)
    np.testing.assert_allclose(found[[1, 4]], expected[[1, 4]] / 2)
    found = embag.embedding_backward(grad, np.where(ids == 4, 99, ids), table, invalid="skip")
    assert not found[4].any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: embag.embedding([[1], [20]], TABLE), IndexError,
         "input[1, 0] = 20 is out of range for a table of 20 rows"),
        (lambda: embag.embedding(-1, TABLE), IndexError,
         "input = -1 is out of range for a table of 20 rows"),
        (lambda: embag.embedding([[1], [2, 3]], TABLE), TypeError,
         "input must be an array of integers, got a ragged input; flatten it, or use "
         "embedding_bag to reduce its lists"),
        (lambda: embag.embedding([1.5], TABLE), TypeError,
         "input must be integers, got dtype float64"),
        (lambda: embag.embedding([1], TABLE, padding_idx=20), ValueError,
         "padding_idx must name one of weight's 20 rows, got 20"),
        (lambda: embag.embedding([1], TABLE, out=np.empty((1, 4), np.float32)), ValueError,
         "out must have shape (1, 5), got (1, 4)"),
        (lambda: embag.embedding_backward(np.ones((1, 4)), [1], TABLE), ValueError,
         "grad_output must have shape (1, 5), got (1, 4)"),
        (lambda: embag.embedding_backward(np.ones((2, 5)), [1, 20], TABLE), IndexError,
         "input[1] = 20 is out of range for a table of 20 rows"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
