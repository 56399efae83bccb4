"""The same results as torch, wherever docs/semantics.md does not say otherwise."""

import inspect

import numpy as np
import pytest
from cases import CASES, call_arguments

import embag

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch installs it")
F = torch.nn.functional

pytestmark = pytest.mark.torch

# Cases that torch refuses, or answers otherwise on purpose (docs/semantics.md).
DIFFERENT = {
    "short_last_offset",
    "last_offset_alone",
    "no_rows",
    "no_columns",
    "two_d_empty_bags",
}
SAME = [case for case in CASES if case.name not in DIFFERENT]


def to_torch(arguments, options):
    tensors = [None if array is None else torch.from_numpy(array) for array in arguments]
    options = dict(options)
    if "per_sample_weights" in options:
        options["per_sample_weights"] = torch.from_numpy(options["per_sample_weights"])
    return tensors, options


def both(arguments, options):
    tensors, torch_options = to_torch(arguments, options)
    with torch.inference_mode():
        expected = F.embedding_bag(*tensors, **torch_options).numpy()
    return embag.embedding_bag(*arguments, **options), expected


@pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("reduction", ["sum", "max"])
def test_sum_and_max_have_torchs_bits(case, dtype, index_dtype, reduction):
    result, expected = both(*call_arguments(case, reduction, dtype, index_dtype))
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", ["mean", "weighted"])
def test_mean_and_weighted_sum_agree_within_rounding(case, dtype, reduction):
    # torch multiplies by a reciprocal and may contract into FMA. Two orders of rounding of
    # n terms of at most `largest` differ by at most 2 n eps times the sum of their sizes.
    arguments, options = call_arguments(case, reduction, dtype)
    result, expected = both(arguments, options)
    n = len(case.input) if case.offsets is not None else case.input.shape[1]
    largest = np.abs(arguments[1]).max(initial=0)
    if reduction == "weighted":
        largest *= np.abs(options["per_sample_weights"]).max(initial=0)
    total = largest if reduction == "mean" else n * largest
    bound = 2 * n * np.finfo(dtype).eps * total
    np.testing.assert_allclose(result, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, np.inf])
def test_max_norm(dtype, norm_type):
    table = np.random.default_rng(0).standard_normal((20, 33)).astype(dtype)
    other = torch.from_numpy(table.copy())
    input, offsets = np.array([1, 1, 5, 19, 3]), np.array([0, 2])
    result = embag.embedding_bag(input, table, offsets, 2.0, norm_type, mode="sum")
    expected = F.embedding_bag(
        torch.from_numpy(input), other, torch.from_numpy(offsets), 2.0, norm_type, mode="sum"
    )
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(table, other.numpy(), rtol=40 * eps)
    np.testing.assert_allclose(result, expected.numpy(), rtol=0, atol=100 * eps)


def test_ragged_random_batches():
    rng = np.random.default_rng(0)
    for _ in range(100):
        n_rows, dim = int(rng.integers(1, 200)), int(rng.integers(1, 150))
        lengths = rng.geometric(0.1, int(rng.integers(1, 60))) - 1
        input = rng.integers(0, n_rows, lengths.sum())
        offsets = np.cumsum(lengths) - lengths
        table = rng.standard_normal((n_rows, dim)).astype(np.float32)
        options = {"mode": "sum"}
        if rng.random() < 0.4:
            options["padding_idx"] = int(rng.integers(-n_rows, n_rows))
        if rng.random() < 0.4:
            options["include_last_offset"] = True
            offsets = np.append(offsets, len(input))
        result, expected = both((input, table, offsets), options)
        np.testing.assert_array_equal(result, expected)


def test_max_indices():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((50, 20)).astype(np.float32)
    input, offsets = rng.integers(0, 50, 300), np.arange(0, 300, 10)
    rows = embag.embedding_bag(input, table, offsets, mode="max", return_max_indices=True)[1]
    expected = torch.embedding_bag(
        torch.from_numpy(table), torch.from_numpy(input), torch.from_numpy(offsets), mode=2
    )[3]
    np.testing.assert_array_equal(rows, expected.numpy())


def test_the_options_have_torchs_names_and_order():
    ours = list(inspect.signature(embag.embedding_bag).parameters.values())
    theirs = list(inspect.signature(F.embedding_bag).parameters.values())
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    assert [p.default for p in ours[: len(theirs)]] == [p.default for p in theirs]
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])
