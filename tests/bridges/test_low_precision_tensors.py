"""`embag.torch` with tables of float16 and bfloat16: sums in float32, rounded once."""

import sys
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch installs it")
pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need it")

import embag.torch  # noqa: E402

pytestmark = pytest.mark.torch

embedding_bag = embag.torch.embedding_bag
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
MODES = ["sum", "mean", "sqrtn", "max", "min"]
INPUT, OFFSETS = torch.tensor([1, 2, 5, 2, 9, 9]), torch.tensor([0, 2, 2])


def table(dtype):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(10, 40, generator=generator).to(dtype).requires_grad_()


def factors(mode, dtype=torch.float32):
    if mode in ("max", "min"):
        return None
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, generator=generator).to(dtype).requires_grad_()


@DTYPES
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("normalize", [False, True])
def test_results_and_gradients_are_rounded_once(dtype, mode, normalize):
    options = {"mode": mode, "normalize": normalize, "default_idx": 3}
    low, weights = table(dtype), factors(mode)
    high = low.detach().float().requires_grad_()
    weights_of_high = factors(mode)
    result = embedding_bag(INPUT, low, OFFSETS, per_sample_weights=weights, **options)
    expected = embedding_bag(INPUT, high, OFFSETS, per_sample_weights=weights_of_high, **options)
    assert result.dtype is dtype
    assert torch.equal(result, expected.to(dtype))
    with torch.inference_mode():
        again = embedding_bag(INPUT, low, OFFSETS, per_sample_weights=weights, **options)
    assert torch.equal(again, result)

    given = torch.randn(3, 40, generator=torch.Generator().manual_seed(2)).to(dtype)
    result.backward(given)
    expected.backward(given.float())
    assert low.grad.dtype is dtype
    assert torch.equal(low.grad, high.grad.to(dtype))
    if weights is not None:
        assert torch.equal(weights.grad, weights_of_high.grad)


@DTYPES
def test_sparse_gradients(dtype):
    weight, grads = table(dtype), []
    for sparse in (False, True):
        result = embedding_bag(INPUT, weight, OFFSETS, mode="sum", sparse=sparse)
        grads.append(torch.autograd.grad(result.sum(), weight)[0])
    assert grads[1].layout is torch.sparse_coo
    assert grads[1].is_coalesced()
    assert grads[1].dtype is dtype
    assert torch.equal(grads[0], grads[1].to_dense())


@DTYPES
def test_factors_of_low_precision_have_a_gradient_of_their_dtype(dtype):
    weight, low, high = table(dtype), factors("sum", dtype), factors("sum", dtype)
    high = high.detach().float().requires_grad_()
    for sample in (low, high):
        embedding_bag(
            INPUT, weight, OFFSETS, mode="sum", per_sample_weights=sample
        ).sum().backward()
    assert low.grad.dtype is dtype
    assert torch.equal(low.grad, high.grad.to(dtype))


@DTYPES
def test_results_agree_with_torch(dtype):
    # torch sums in float32 as well, and rounds to the nearest, here and on most machines.
    for mode in ("sum", "mean", "max"):
        ours = embedding_bag(INPUT, table(dtype), OFFSETS, mode=mode)
        theirs = torch.nn.functional.embedding_bag(INPUT, table(dtype), OFFSETS, mode=mode)
        torch.testing.assert_close(ours, theirs, rtol=2 * torch.finfo(dtype).eps, atol=0)


@DTYPES
def test_a_large_sum_does_not_overflow_before_the_mean(dtype):
    weight = torch.full((4, 2), 60000.0).to(dtype)
    result = embedding_bag(torch.zeros(1, 3, dtype=int), weight, mode="mean")
    assert torch.equal(result[0], weight[0])


@DTYPES
def test_the_memory_of_the_table_is_read_in_place_and_the_result_can_be_changed(dtype):
    # Columns apart, and a start within the storage.
    large = torch.randn(12, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = large[2:, 8:48]
    assert torch.equal(
        embedding_bag(INPUT, rows, OFFSETS, mode="sum"),
        embedding_bag(INPUT, rows.clone(), OFFSETS, mode="sum"),
    )
    weight = table(dtype)
    result = embedding_bag(INPUT, weight, OFFSETS, mode="sum")
    result.mul_(2).sum().backward()
    assert weight.grad[1].eq(2).all()


@DTYPES
def test_the_layer(dtype):
    bags = embag.torch.EmbeddingBag(10, 40, mode="mean", dtype=dtype)
    theirs = torch.nn.EmbeddingBag(10, 40, mode="mean", dtype=dtype)
    bags.load_state_dict(theirs.state_dict())
    ours = bags(INPUT, OFFSETS)
    ours.sum().backward()
    assert bags.weight.grad.dtype is dtype
    torch.testing.assert_close(
        ours, theirs(INPUT, OFFSETS), rtol=2 * torch.finfo(dtype).eps, atol=1e-3
    )
    assert bags.half().weight.dtype is torch.float16
    assert bags(INPUT, OFFSETS).dtype is torch.float16


@DTYPES
def test_there_is_no_max_norm(dtype):
    weight = table(dtype).detach()
    with pytest.raises(ValueError, match="max_norm must be None where weight is not float32"):
        embedding_bag(INPUT, weight, OFFSETS, max_norm=0.1)
    assert torch.equal(weight, table(dtype))


def test_bfloat16_without_ml_dtypes_names_the_extra():
    with (
        mock.patch.dict(sys.modules, {"ml_dtypes": None}),
        pytest.raises(ImportError, match=r"need ml_dtypes: pip install 'embag-cpu\[bfloat16\]'"),
    ):
        embedding_bag(INPUT, table(torch.bfloat16), OFFSETS)
    with mock.patch.dict(sys.modules, {"ml_dtypes": None}):
        result = embedding_bag(INPUT, table(torch.float16), OFFSETS)
    np.testing.assert_array_equal(result[2].isnan(), False)
