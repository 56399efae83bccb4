"""The results of torch, except for the differences that docs/semantics.md lists."""

import inspect

import numpy as np
import pytest
import reference
from cases import CASES, NARROW_FLOATS, assert_same_bits, call_arguments, dtype_of

import embag

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch installs it")
F = torch.nn.functional

pytestmark = pytest.mark.torch

# Cases that torch refuses, and documented differences (docs/semantics.md).
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
@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
def test_sum_mean_and_max_have_the_bits_of_torch(case, dtype, index_dtype, reduction):
    result, expected = both(*call_arguments(case, reduction, dtype, index_dtype))
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weighted_sums_agree_within_rounding(case, dtype):
    # torch may use FMA. Two orders of rounding of n terms of at most `largest`
    # differ by at most 2 n eps times the sum of their sizes.
    arguments, options = call_arguments(case, "weighted", dtype)
    result, expected = both(arguments, options)
    n = len(case.input) if case.offsets is not None else case.input.shape[1]
    largest = np.abs(arguments[1]).max(initial=0)
    largest *= np.abs(options["per_sample_weights"]).max(initial=0)
    bound = 2 * n * np.finfo(dtype).eps * n * largest
    np.testing.assert_allclose(result, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 0])
def test_how_torch_treats_the_tail_after_a_short_last_offset(dtype, mode, padding_idx):
    # No bag has row 0. See the table in docs/semantics.md.
    input, table = np.arange(1, 7), np.random.default_rng(0).random((7, 5)).astype(dtype)
    options = {"mode": mode, "padding_idx": padding_idx, "include_last_offset": True}
    result, torchs = both((input, table, np.array([0, 2, 4])), options)
    expected = embag.embedding_bag(input, table, [0, 2, 6], **options)
    if dtype == np.float32 and padding_idx is None and mode != "max":
        expected = result * [[1], [0.5 if mode == "mean" else 1]]
    np.testing.assert_array_equal(torchs, expected)


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


def test_the_options_have_the_names_and_the_order_of_torch():
    ours = list(inspect.signature(embag.embedding_bag).parameters.values())
    theirs = list(inspect.signature(F.embedding_bag).parameters.values())
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    assert [p.default for p in ours[: len(theirs)]] == [p.default for p in theirs]
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])


# --- Low-precision tables -------------------------------------------------------------


def narrow_tensor(table):
    """Return a tensor that shares memory; torch takes no bfloat16 arrays."""
    if table.dtype == np.float16:
        return torch.from_numpy(table)
    return torch.from_numpy(table.view(np.int16)).view(torch.bfloat16)


@pytest.mark.parametrize("name", NARROW_FLOATS)
@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
def test_narrow_floats(name, reduction):
    dtype = dtype_of(name)
    eps = float(torch.finfo(getattr(torch, name)).eps)
    for case in SAME:
        (input, table, offsets), options = call_arguments(case, reduction, np.float32)
        table = table.astype(dtype)
        tensors, torch_options = to_torch((input, None, offsets), options)
        tensors[1] = narrow_tensor(table)
        with torch.inference_mode():
            expected = F.embedding_bag(*tensors, **torch_options)
        assert expected.dtype == getattr(torch, name)
        expected = expected.float().numpy()
        result = embag.embedding_bag(input, table, offsets, out_dtype=dtype, **options)
        result = result.astype(np.float32)
        if reduction == "mean":
            # torch may round the sum before it divides, and divides by a rounded reciprocal.
            n = len(case.input) if case.offsets is not None else case.input.shape[1]
            largest = np.abs(table.astype(np.float32)).max(initial=0)
            bound = (2 * eps + 2 * n * np.finfo(np.float32).eps) * largest
            np.testing.assert_allclose(result, expected, rtol=0, atol=bound, err_msg=case.name)
        else:
            # torch rounds halfway sums in bfloat16 away from zero.
            total = embag.embedding_bag(input, table, offsets, **options)
            halfway = total.view(np.uint32) & 0xFFFF == 0x8000
            agree = (result == expected) | (halfway & (name == "bfloat16"))
            assert agree.all(), case.name


QUANTIZED_OPS = {8: "byte", 4: "4bit", 2: "2bit"}


@pytest.mark.parametrize("bits", QUANTIZED_OPS)
@pytest.mark.parametrize("reduction", ["sum", "weighted"])
def test_quantized_tables(bits, reduction):
    ops, word = torch.ops.quantized, QUANTIZED_OPS[bits]
    prepack = getattr(ops, f"embedding_bag_{word}_prepack")
    pooled = getattr(ops, f"embedding_bag_{word}_rowwise_offsets")
    for case in SAME:
        # Here torch has no padding, packs only whole bytes, and refuses an empty 2-D input.
        if case.dim % (8 // bits) or case.offsets is None or case.input.size == 0:
            continue
        (input, table, offsets), options = call_arguments(case, reduction, np.float32)
        packed = prepack(torch.from_numpy(table))
        weights = options.get("per_sample_weights")
        expected = pooled(
            packed,
            torch.from_numpy(input),
            torch.from_numpy(offsets),
            per_sample_weights=None if weights is None else torch.from_numpy(weights),
            include_last_offset=options.get("include_last_offset", False),
        ).numpy()
        quantized = embag.QuantizedTable.from_packed(packed.numpy(), bits, case.dim)
        options.pop("padding_idx", None)
        result = embag.embedding_bag(input, quantized, offsets, **options)
        # Two orders of rounding of n terms, each a product and a bias: 4 n eps in total.
        q, scale, bias = reference.unpack(quantized.packed, bits, case.dim, "fused")
        largest = (np.abs(scale)[:, None] * q + np.abs(bias)[:, None]).max(initial=0)
        if weights is not None:
            largest *= np.abs(weights).max(initial=0)
        bounds = np.append(offsets, len(input))
        n = np.diff(bounds).max(initial=0)
        bound = 4 * n * np.finfo(np.float32).eps * n * largest
        np.testing.assert_allclose(result, expected, rtol=0, atol=bound, err_msg=case.name)


def test_how_quantized_tables_of_torch_differ():
    # The differences that docs/semantics.md lists.
    table = torch.arange(40, dtype=torch.float32).reshape(10, 4)
    packed = torch.ops.quantized.embedding_bag_byte_prepack(table)
    pooled = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
    input, offsets = torch.tensor([1, 2, 3]), torch.tensor([0])
    for mode in (0, 1, 2):
        np.testing.assert_allclose(pooled(packed, input, offsets, mode=mode)[0, 0], 24, rtol=1e-5)
    # A first offset other than 0 shifts the bags.
    four = torch.ops.quantized.embedding_bag_4bit_prepack(table)
    pooled = torch.ops.quantized.embedding_bag_4bit_rowwise_offsets
    np.testing.assert_array_equal(
        pooled(four, input, torch.tensor([1])), pooled(four, input[:2], offsets)
    )
    half = torch.full((2, 4), 65504.0, dtype=torch.float16)
    both_rows = torch.tensor([[0, 1]])
    assert torch.isinf(F.embedding_bag(both_rows, half, mode="mean")).all()
    assert (embag.embedding_bag(both_rows.numpy(), half.numpy(), mode="mean") == 65504).all()
    with pytest.raises(RuntimeError, match="to have the same type as tensor"):
        F.embedding_bag(both_rows, half, mode="sum", per_sample_weights=torch.ones(1, 2))


def test_subnormals_while_torch_flushes_them(eager_threads):
    table, input = np.full((4, 8), 1e-40, np.float32), np.tile(np.arange(4), (12, 1))
    expected = embag.embedding_bag(input, table, mode="sum", num_threads=1)
    assert expected.min() > 3.9e-40
    if not torch.set_flush_denormal(True):
        pytest.skip("torch cannot flush subnormals on this processor")
    try:
        results = [embag.embedding_bag(input, table, mode="sum", num_threads=n) for n in (1, 3)]
        assert torch.tensor(1e-38) * 1e-3 == 0  # torch still flushes them
    finally:
        torch.set_flush_denormal(False)
    for result in results:
        assert_same_bits(result, expected)
