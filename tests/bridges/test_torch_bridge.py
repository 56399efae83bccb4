"""`embag.torch`: results, gradients, and the rules of autograd.

Values have embag's bits, and agree with torch except for the differences that
docs/semantics.md lists. The samples of torch's OpInfo, which test torch's own function, test
ours.
"""

import copy
import inspect
import itertools
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import reference
from cases import CASES, REDUCTIONS, call_arguments
from processes import run_python

import embag
from embag import functional

torch = pytest.importorskip("torch", reason="torch is not installed: make test-torch installs it")
F = torch.nn.functional

import embag.torch  # noqa: E402
from embag.torch import _computation  # noqa: E402

pytestmark = pytest.mark.torch

embedding_bag = embag.torch.embedding_bag
BOTH = pytest.mark.parametrize("function", [F.embedding_bag, embedding_bag], ids=["torch", "embag"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def table(n_rows=10, dim=4, dtype=torch.float32, seed=0, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n_rows, dim, dtype=dtype, generator=generator)
    return weight.requires_grad_(requires_grad)


def small_call(weighted=False, dtype=torch.float32):
    """Return input, offsets and weights for `table()`: three bags with repeated rows."""
    input, offsets = torch.tensor([1, 2, 5, 2, 9, 9]), torch.tensor([0, 2, 2])
    options = {"offsets": offsets}
    if weighted:
        options["mode"] = "sum"
        options["per_sample_weights"] = table(1, 6, dtype, seed=1, requires_grad=False)[0]
    return input, options


def tensors_of(case, reduction, dtype=np.float64, index_dtype=np.int64):
    """Return a case as tensors: input, table, weights or None, and the options."""
    (input, weight, offsets), options = call_arguments(case, reduction, dtype, index_dtype)
    sample = options.pop("per_sample_weights", None)
    options["offsets"] = None if offsets is None else torch.from_numpy(offsets)
    sample = None if sample is None else torch.from_numpy(sample).requires_grad_()
    return torch.from_numpy(input), torch.from_numpy(weight).requires_grad_(), sample, options


def run(function, input, weight, options, grad_output=None):
    """Return the result, the table afterwards and both gradients, from copies of the arguments."""
    weight = weight.detach().clone().requires_grad_()
    sample = options.get("per_sample_weights")
    if sample is not None:
        sample = sample.detach().clone().requires_grad_()
    result = function(input, weight, **dict(options, per_sample_weights=sample))
    if grad_output is not None:
        result.backward(grad_output)
    return result.detach(), weight.detach(), weight.grad, None if sample is None else sample.grad


def assert_near(ours, theirs, n_terms, largest):
    """Allow two orders of rounding of n terms of at most `largest`: 2 n eps n `largest`."""
    bound = 2 * n_terms**2 * torch.finfo(ours.dtype).eps * float(largest)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=bound)


# The signature, and importing


def test_the_signature_is_that_of_torch_with_more_keywords():
    def parameters(function):
        signature = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in signature]

    more = [("default_idx", None), ("invalid", "raise"), ("normalize", False)]
    assert parameters(embedding_bag) == [
        *parameters(F.embedding_bag),
        *((name, inspect.Parameter.KEYWORD_ONLY, default) for name, default in more),
    ]
    ours, theirs = embag.torch.EmbeddingBag, torch.nn.EmbeddingBag
    optimizer = ("optimizer", inspect.Parameter.KEYWORD_ONLY, None)
    assert parameters(ours) == [*parameters(theirs), optimizer]
    assert parameters(ours.from_pretrained) == [*parameters(theirs.from_pretrained), optimizer]
    assert parameters(ours.forward) == parameters(theirs.forward)


def test_embag_imports_no_torch():
    run_python("-c", "import embag, sys; assert 'torch' not in sys.modules")


def test_importing_without_torch_names_the_extra():
    code = "import sys; sys.modules['torch'] = None; import embag.torch"
    finished = run_python("-c", code, check=False)
    assert finished.stderr.splitlines()[-1] == (
        "ImportError: embag.torch needs torch: pip install 'embag-cpu[torch]'"
    )


def test_importing_does_not_import_the_compiler_of_torch():
    run_python("-c", "import embag.torch, sys; assert 'torch._dynamo' not in sys.modules")


# Values: embag's bits


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_results_have_the_bits_of_embag(case, reduction):
    for dtype, index_dtype in itertools.product((np.float32, np.float64), (np.int32, np.int64)):
        arrays, array_options = call_arguments(case, reduction, dtype, index_dtype)
        expected = embag.embedding_bag(*arrays, **array_options)
        given = np.random.default_rng(3).standard_normal(expected.shape).astype(dtype)
        for sparse in (False,) if reduction == "max" else (False, True):
            grads = embag.embedding_bag_backward(given, *arrays, sparse=sparse, **array_options)
            input, weight, sample, options = tensors_of(case, reduction, dtype, index_dtype)
            result = embedding_bag(
                input, weight, sparse=sparse, per_sample_weights=sample, **options
            )
            np.testing.assert_array_equal(result.detach().numpy(), expected, strict=True)
            wanted = [weight] if sample is None else [weight, sample]
            ours = torch.autograd.grad(result, wanted, torch.from_numpy(given))
            if sparse:
                assert ours[0].layout is torch.sparse_coo
                assert ours[0].is_coalesced()
                assert ours[0].shape == weight.shape
                assert ours[0].indices()[0].tolist() == grads.weight.indices.tolist()
                np.testing.assert_array_equal(ours[0].values().numpy(), grads.weight.values)
            else:
                np.testing.assert_array_equal(ours[0].numpy(), grads.weight, strict=True)
            if sample is not None:
                np.testing.assert_array_equal(
                    ours[1].numpy(), grads.per_sample_weights, strict=True
                )


# Gradients: against finite differences

# torch's gradcheck takes no tensor without entries.
NOTHING_TO_CHECK = {"no_rows", "no_columns"}
NO_WEIGHTS_TO_CHECK = {"two_d_no_bags", "two_d_empty_bags"}
CHECKED = [case for case in CASES if case.name not in NOTHING_TO_CHECK and case.dim <= 100]


class DenseGradient(torch.autograd.Function):
    """Make the gradient of a dense tensor dense, as gradcheck requires."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to_dense()


@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.name)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(case, reduction):
    input, weight, sample, options = tensors_of(case, reduction)
    inputs = [weight]
    if sample is not None and case.name not in NO_WEIGHTS_TO_CHECK:
        inputs.append(sample)

    def function(weight, sample=sample, sparse=False):
        return embedding_bag(input, weight, sparse=sparse, per_sample_weights=sample, **options)

    def with_sparse_gradient(weight, sample=sample):
        return function(DenseGradient.apply(weight), sample, sparse=True)

    # The whole Jacobian where it is small, else a random product with it.
    fast = weight.numel() > 400 or input.numel() > 100
    assert torch.autograd.gradcheck(function, inputs, fast_mode=fast)
    if reduction != "max":
        assert torch.autograd.gradcheck(with_sparse_gradient, inputs, fast_mode=True)


@pytest.mark.parametrize("frozen", ["weight", "per_sample_weights"])
def test_gradcheck_with_one_of_two_frozen(frozen):
    input, options = small_call(weighted=True, dtype=torch.float64)
    weight = table(dtype=torch.float64, requires_grad=frozen != "weight")
    sample = options.pop("per_sample_weights").requires_grad_(frozen == "weight")
    assert torch.autograd.gradcheck(
        lambda weight, sample: embedding_bag(input, weight, per_sample_weights=sample, **options),
        [weight, sample],
    )


# Default and invalid rows, and normalization

FAULTY = torch.tensor([1, 2, -3, 5, 2, 30]), torch.tensor([0, 2, 2, 5])


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
@pytest.mark.parametrize("invalid", ["skip", -7])
@pytest.mark.parametrize("normalize", [False, True])
def test_default_and_invalid_rows_and_normalization(mode, invalid, normalize):
    weight, sample = table(dtype=torch.float64), None
    if mode not in ("max", "min"):
        sample = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        sample = (sample + 0.5).requires_grad_()
    options = {"mode": mode, "default_idx": -1, "invalid": invalid, "normalize": normalize}
    input, offsets = FAULTY

    def function(weight, sample):
        return embedding_bag(input, weight, offsets, per_sample_weights=sample, **options)

    expected = embag.embedding_bag(
        input.numpy(),
        weight.detach().numpy(),
        offsets.numpy(),
        per_sample_weights=None if sample is None else sample.detach().numpy(),
        **options,
    )
    np.testing.assert_array_equal(function(weight, sample).detach().numpy(), expected)
    assert torch.autograd.gradcheck(function, [weight, sample])

    bags = embag.torch.EmbeddingBag.from_pretrained(weight.detach(), mode=mode)
    bags.default_idx, bags.invalid, bags.normalize = -1, invalid, normalize
    bags = pickle.loads(pickle.dumps(bags))
    np.testing.assert_array_equal(bags(input, offsets, sample).detach().numpy(), expected)


def test_the_repr_has_the_options_that_are_set():
    bags = embag.torch.EmbeddingBag(10, 3, mode="sum")
    theirs = repr(torch.nn.EmbeddingBag(10, 3, mode="sum"))
    assert repr(bags) == theirs
    bags.default_idx, bags.invalid, bags.normalize = 0, "skip", True
    assert repr(bags) == theirs[:-1] + ", default_idx=0, invalid='skip', normalize=True)"


def test_a_table_must_not_change_before_the_gradient_of_a_normalized_result():
    weight = table()
    result = embedding_bag(torch.tensor([[1, 2]]), weight, normalize=True)
    with torch.no_grad():
        weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


# Samples of OpInfo


@pytest.fixture(scope="module")
def op_info():
    pytest.importorskip("expecttest", reason="torch's own test data needs it")
    from torch.testing._internal.common_methods_invocations import op_db  # noqa: PLC0415

    (info,) = (op for op in op_db if op.name == "nn.functional.embedding_bag")
    return info


@DTYPES
def test_samples_of_torch(op_info, dtype):
    torch.manual_seed(0)
    samples = list(op_info.sample_inputs("cpu", dtype, requires_grad=False))
    assert len(samples) >= 49
    n_same_bits = n_scaled = 0
    for sample in samples:
        weight, (input,), options = sample.input, sample.args, sample.kwargs
        mode, factors = options["mode"], options.get("per_sample_weights")
        scaled = options.get("scale_grad_by_freq", False)
        grad_output = torch.randn(len(F.embedding_bag(input, weight.clone(), **options)), 5)
        grad_output = grad_output.to(dtype)

        ours = run(embedding_bag, input, weight, options, grad_output)
        theirs = run(F.embedding_bag, input, weight, options, None if scaled else grad_output)
        size = 1 if factors is None else factors.abs().max()
        n, dim = input.numel(), weight.shape[1]
        if mode != "mean" and factors is None and options.get("max_norm") is None:
            assert torch.equal(ours[0], theirs[0])
            n_same_bits += 1
        assert_near(ours[0], theirs[0], n, size * weight.abs().max())
        assert_near(ours[1], theirs[1], dim, weight.abs().max())  # after max_norm
        assert ours[2].layout is (torch.sparse_coo if options.get("sparse") else torch.strided)
        if scaled:
            # torch 2.13's dense gradient divides by a wrong count (pytorch#190063), and it
            # has no sparse one: the reference decides.
            n_scaled += 1
            arrays = (grad_output, input, ours[1], options.get("offsets"))
            expected, of_factors = reference.embedding_bag_backward(
                *(None if tensor is None else tensor.numpy() for tensor in arrays),
                scale_grad_by_freq=True,
                mode=mode,
                per_sample_weights=None if factors is None else factors.numpy(),
                padding_idx=options.get("padding_idx"),
            )
            np.testing.assert_array_equal(ours[2].to_dense().numpy(), expected)
            if factors is not None:
                np.testing.assert_array_equal(ours[3].numpy(), of_factors)
            continue
        assert_near(ours[2].to_dense(), theirs[2].to_dense(), n, size * grad_output.abs().max())
        if factors is not None:
            assert_near(ours[3], theirs[3], dim, grad_output.abs().max() * weight.abs().max())
    assert n_same_bits >= 16
    assert 1 <= n_scaled <= 6


# Accepted and refused arguments

TAKEN = {
    "int32": lambda i, w, o: (i.int(), w, o.int()),
    "int32 and int64": lambda i, w, o: (i, w, o.int()),
    "every other index": lambda i, w, o: (i.repeat_interleave(2)[::2], w, o),
    "every other offset": lambda i, w, o: (i, w, o.repeat_interleave(2)[::2]),
    "one index, expanded": lambda i, w, o: (i[:1].expand(6), w, o),
    "two-dimensional": lambda i, w, o: (i.reshape(2, 3), w),
    "two-dimensional, transposed": lambda i, w, o: (i.reshape(2, 3).T, w),
    "a column-major table": lambda i, w, o: (i, w.T.contiguous().T, o),
    "every other row": lambda i, w, o: (i, w.repeat_interleave(2, 0)[::2], o),
    "some columns": lambda i, w, o: (i, w.repeat(1, 2)[:, 1:5], o),
    "one row, expanded": lambda i, w, o: (i, w[:1].expand(10, 4), o),
}


@pytest.mark.parametrize("arguments", TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_arguments_that_torch_accepts(arguments, mode):
    results = []
    for function in (F.embedding_bag, embedding_bag):
        weight = table()
        input, options = small_call()
        result = function(*arguments(input, weight, options["offsets"]), mode=mode)
        result.backward(table(*result.shape, seed=2, requires_grad=False))
        results.append((result.detach(), weight.grad))
    assert_near(results[1][0], results[0][0], 6, 4)
    assert_near(results[1][1], results[0][1], 6, 4)


@BOTH
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_nothing_is_recorded_without_gradients(function, without):
    with without():
        input, options = small_call(weighted=True)
        result = function(input, table(), **options)
        assert not result.requires_grad
        assert result.is_inference() == (without is torch.inference_mode)
    assert not function(input.clone(), table(requires_grad=False)[:], options["offsets"]).grad_fn


REFUSED = {
    "3-D input": {"input": torch.zeros(2, 2, 2, dtype=int), "offsets": None},
    "1-D input without offsets": {"offsets": None},
    "2-D input with offsets": {"input": torch.zeros(2, 2, dtype=int)},
    "float input": {"input": torch.zeros(6)},
    "an index too large": {"input": torch.tensor([1, 2, 10])},
    "a negative index": {"input": torch.tensor([1, 2, -1])},
    "2-D offsets": {"offsets": torch.zeros(1, 1, dtype=int)},
    "float offsets": {"offsets": torch.zeros(1)},
    "offsets that start late": {"offsets": torch.tensor([1, 2])},
    "offsets past the end": {"offsets": torch.tensor([0, 7])},
    "1-D weight": {"weight": torch.zeros(10)},
    "integer weight": {"weight": torch.zeros(10, 4, dtype=int)},
    "no such mode": {"mode": "median"},
    "max and sparse": {"mode": "max", "sparse": True},
    "max and scale_grad_by_freq": {"mode": "max", "scale_grad_by_freq": True},
    "weights and max": {"mode": "max", "per_sample_weights": torch.ones(6)},
    "weights of another shape": {"mode": "sum", "per_sample_weights": torch.ones(5)},
    "padding_idx too large": {"padding_idx": 10},
    "padding_idx too small": {"padding_idx": -11},
}


@BOTH
@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_arguments_that_torch_refuses(function, change):
    input, options = small_call()
    with pytest.raises((TypeError, ValueError, IndexError, RuntimeError)):
        function(**{"input": input, "weight": table(requires_grad=False), **options, **change})


def test_a_weighted_mean_which_torch_refuses():
    input, options = small_call()
    weight = table().double().detach().requires_grad_()
    factors = torch.rand(len(input), dtype=torch.float64) + 1
    factors.requires_grad_()

    def mean(weight, factors):
        return embag.torch.embedding_bag(
            input, weight, **options, mode="mean", per_sample_weights=factors
        )

    assert torch.autograd.gradcheck(mean, (weight, factors))


NO_TENSORS = {
    "a list": ({"input": [1, 2]}, TypeError, "input must be a torch.Tensor, got list"),
    "nothing": ({"weight": None}, TypeError, "weight must be a torch.Tensor, got None"),
    "an array": (
        {"weight": np.zeros((10, 4))},
        TypeError,
        "weight must be a torch.Tensor, got ndarray",
    ),
    "float indices": (
        {"input": torch.zeros(6, dtype=torch.bfloat16)},
        TypeError,
        "input must be integers, got torch.bfloat16",
    ),
    "bools for offsets": (
        {"offsets": torch.zeros(1, dtype=bool)},
        TypeError,
        "offsets must be integers, got torch.bool",
    ),
    "complex": (
        {"weight": torch.zeros(10, 4, dtype=torch.complex64)},
        TypeError,
        "weight must be float32, float64, float16 or bfloat16, got torch.complex64",
    ),
    "complex weights": (
        {"per_sample_weights": torch.zeros(6, dtype=torch.complex64), "mode": "sum"},
        TypeError,
        "per_sample_weights must be real numbers, got torch.complex64",
    ),
    "sparse": (
        {"weight": torch.zeros(10, 4).to_sparse()},
        ValueError,
        "weight must be a dense tensor, got layout torch.sparse_coo",
    ),
    **{
        f"{name} elsewhere": (
            {name: torch.zeros(shape, dtype=dtype, device="meta"), "mode": "sum"},
            ValueError,
            f"{name} must be on the CPU, got device meta",
        )
        for name, shape, dtype in (
            ("input", 6, int),
            ("weight", (10, 4), torch.float32),
            ("offsets", 3, int),
            ("per_sample_weights", 6, torch.float32),
        )
    },
}


@pytest.mark.parametrize(("change", "kind", "message"), NO_TENSORS.values(), ids=NO_TENSORS)
def test_errors_of_tensors(change, kind, message):
    input, options = small_call()
    with pytest.raises(kind) as raised:
        embedding_bag(**{"input": input, "weight": table(), **options, **change})
    assert str(raised.value) == message


def test_errors_in_values_are_those_of_embag():
    with pytest.raises(IndexError, match=r"input\[1\] = 10 is out of range for a table of 10 rows"):
        embedding_bag(torch.tensor([1, 10]), table(), torch.tensor([0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.float64], ids=str)
def test_weights_of_another_dtype_have_a_gradient_of_that_dtype(dtype, weight_dtype):
    input, options = small_call(weighted=True)
    weight = table(dtype=weight_dtype)
    sample = options["per_sample_weights"].to(dtype)
    given = table(3, 4, weight_dtype, seed=2, requires_grad=False)
    ours = run(embedding_bag, input, weight, dict(options, per_sample_weights=sample), given)
    same = dict(options, per_sample_weights=sample.to(weight_dtype))
    theirs = run(F.embedding_bag, input, weight, same, given)
    assert ours[0].dtype is weight_dtype
    assert ours[3].dtype is dtype
    largest = 4 * given.abs().max()
    assert_near(ours[2], theirs[2], 6, largest)
    coarse = max(torch.finfo(dtype).eps, torch.finfo(weight_dtype).eps)
    torch.testing.assert_close(ours[3].to(weight_dtype), theirs[3], rtol=coarse, atol=64 * coarse)


# Memory and work


def spied(name):
    """Record the arguments and results of a function that `embag.torch` calls."""
    target = functional if name == "embedding_bag" else _computation
    original, calls = getattr(target, name), []

    def spy(*arguments, **options):
        result = original(*arguments, **options)
        calls.append((arguments, options, result))
        return result

    return mock.patch.object(target, name, spy), calls


def address(array):
    return array.ctypes.data


@pytest.mark.parametrize(
    ("mode", "sparse"),
    [("sum", False), ("mean", False), ("max", False), ("sum", True), ("mean", True)],
)
def test_memory_is_shared(mode, sparse):
    input, options = small_call(weighted=mode == "sum")
    options["mode"] = mode
    weight, offsets = table(), options["offsets"]
    sample = options.get("per_sample_weights")
    if sample is not None:
        sample.requires_grad_()
    forward, calls = spied("embedding_bag")
    with forward:
        result = embedding_bag(input, weight, sparse=sparse, **options)
    (((indices, rows, bounds, *others), _, returned),) = calls
    returned = returned[0] if mode == "max" else returned
    assert address(indices) == input.data_ptr()
    assert address(rows) == weight.data_ptr()
    assert address(bounds) == offsets.data_ptr()
    assert address(returned) == result.data_ptr()
    if sample is not None:
        assert address(others[5]) == sample.data_ptr()

    given = table(3, 4, seed=2, requires_grad=False)
    backward, calls = spied("embedding_bag_backward")
    with backward:
        result.backward(given)
    (((grad_output, indices, rows), _, grads),) = calls
    assert address(grad_output) == given.data_ptr()
    assert address(indices) == input.data_ptr()
    if sample is None:
        assert rows.strides == (0, 0)  # the table is not kept only for its shape
    else:
        assert address(rows) == weight.data_ptr()
        assert sample.grad.data_ptr() == address(grads.per_sample_weights)
    if sparse:
        assert weight.grad._values().data_ptr() == address(grads.weight.values)
    else:
        assert weight.grad.data_ptr() == address(grads.weight)


def test_an_expanded_gradient_stays_one_row():
    backward, calls = spied("embedding_bag_backward")
    input, options = small_call()
    with backward:
        embedding_bag(input, table(), **options).sum().backward()
    assert calls[0][0][0].strides == (0, 0)


def test_a_gradient_that_torch_has_not_negated_yet():
    input, options = small_call()
    grads = []
    for function in (F.embedding_bag, embedding_bag):
        weight = table(dtype=torch.float64)
        given = table(3, 4, torch.complex128, seed=2, requires_grad=False).conj().imag
        assert given.is_neg()
        function(input, weight, **options).backward(given)
        grads.append(weight.grad)
    assert_near(*grads, 6, 4)


@pytest.mark.parametrize(
    ("of_weight", "of_sample", "wrt"),
    [(True, True, None), (True, False, "weight"), (False, True, "per_sample_weights")],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_only_needed_gradients_are_computed(of_weight, of_sample, wrt, sparse):
    input, options = small_call(weighted=True)
    weight = table(requires_grad=of_weight)
    sample = options["per_sample_weights"].requires_grad_(of_sample)
    backward, calls = spied("embedding_bag_backward")
    with backward:
        embedding_bag(input, weight, sparse=sparse, **options).sum().backward()
    assert [used["wrt"] for _, used, _ in calls] == [wrt]
    assert (weight.grad is not None) == of_weight
    assert (sample.grad is not None) == of_sample
    if of_weight:
        # Without weights there is one gradient.
        del options["per_sample_weights"]
        with backward:
            embedding_bag(input, weight, sparse=sparse, **options).sum().backward()
        assert calls[-1][1]["wrt"] == "weight"


def test_winners_are_requested_only_if_a_gradient_is_needed():
    forward, calls = spied("embedding_bag")
    backward, calls_back = spied("embedding_bag_backward")
    input, options = small_call()
    with forward, backward:
        result = embedding_bag(input, table(), mode="max", **options)
        result.sum().backward()
        embedding_bag(input, table(requires_grad=False), mode="max", **options)
        with torch.no_grad():
            embedding_bag(input, table(), mode="max", **options)
        embedding_bag(input, table(), mode="mean", **options)
    asked = [used["return_max_indices"] for _, used, _ in calls]
    assert asked == [True, False, False, False]
    np.testing.assert_array_equal(calls_back[0][1]["max_indices"], calls[0][2][1])


def test_threads_are_limited_by_both_libraries():
    forward, calls = spied("embedding_bag")
    backward, calls_back = spied("embedding_bag_backward")
    input, options = small_call()
    before = torch.get_num_threads()
    try:
        with forward, backward:
            for n in (1, 64):
                torch.set_num_threads(n)
                embedding_bag(input, table(), **options).sum().backward()
    finally:
        torch.set_num_threads(before)
    expected = [1, embag.get_num_threads()]
    assert [used["num_threads"] for _, used, _ in calls] == expected
    assert [used["num_threads"] for _, used, _ in calls_back] == expected


def test_many_threads_at_once():
    generator = torch.Generator().manual_seed(0)
    weight = table(500, 64)
    offsets = torch.arange(0, 4000, 20)

    def gradient(input):
        result = embedding_bag(input, weight, offsets, mode="max")
        return result.detach(), *torch.autograd.grad(result, weight, result.detach())

    inputs = [torch.randint(0, 500, (4000,), generator=generator) for _ in range(24)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(gradient, inputs))
    for input, results in zip(inputs, together, strict=True):
        for ours, alone in zip(results, gradient(input), strict=True):
            assert torch.equal(ours, alone)


# Rules of autograd


def may_change(function, which, mode, of_weight, of_sample):
    """Return whether an argument may change between forward and backward."""
    input, options = small_call(weighted=mode == "weighted")
    options["mode"] = "sum" if mode == "weighted" else mode
    call = {"input": input, "weight": table(requires_grad=of_weight), **options}
    if mode == "weighted":
        call["per_sample_weights"].requires_grad_(of_sample)
    result = function(**call)
    with torch.no_grad():
        call[which].add_(0)
    try:
        result.sum().backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
        return False
    return True


@pytest.mark.parametrize("which", ["input", "offsets", "weight", "per_sample_weights"])
def test_changes_before_backward_are_detected_as_by_torch(which):
    calls = [("weighted", True, True), ("weighted", True, False), ("weighted", False, True)]
    if which != "per_sample_weights":
        calls += [("sum", True, False), ("mean", True, False), ("max", True, False)]
    for call in calls:
        ours = may_change(embedding_bag, which, *call)
        assert ours == may_change(F.embedding_bag, which, *call), call
        # Only the table may change, and only if its values do not matter.
        assert ours == (which == "weight" and not call[2])


def second_derivative(weighted, linear):
    """Differentiate a gradient of a loss that is linear in the bags, or not."""
    input, options = small_call(weighted, torch.float64)
    weight = table(dtype=torch.float64)
    if weighted:
        options["per_sample_weights"].requires_grad_()
    result = embedding_bag(input, weight, **options)
    loss = result.sum() if linear else result.square().sum()
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    (gradient.square().sum() + weight.sum()).backward()
    return weight.grad


@pytest.mark.parametrize("call", [(False, False), (True, False), (True, True)])
def test_there_is_no_second_derivative(call):
    # In the last call the gradient depends on the weights alone.
    with pytest.raises(RuntimeError, match="must be differentiated at most once, got twice"):
        second_derivative(*call)


@pytest.mark.parametrize("sparse", [False, True])
def test_there_is_no_second_derivative_by_named_inputs(sparse):
    # A gradient penalty: torch must not find a way around the error.
    input, options = small_call()
    weight = table()
    loss = embedding_bag(input, weight, mode="sum", sparse=sparse, **options).pow(3).sum()
    (grad,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="must be differentiated at most once, got twice"):
        torch.autograd.grad(loss + grad.to_dense().square().sum(), weight)


def test_memory_taken_from_a_tensor_is_not_read():
    for size in (0, 64):
        weight = torch.ones(4000, 64)
        weight.untyped_storage().resize_(size)
        with pytest.raises(RuntimeError, match="a tensor must have storage of 1024000 bytes"):
            embedding_bag(torch.arange(4000), weight, torch.tensor([0, 2]))
    input = torch.arange(6)
    input.untyped_storage().resize_(8)
    with pytest.raises(RuntimeError, match="a tensor must have storage of 48 bytes, got 8"):
        embedding_bag(input, table(), torch.tensor([0, 2]))


def test_forward_and_backward_use_the_same_padding_row():
    weight, padding = table(), np.array(1)
    result = embedding_bag(
        torch.tensor([1, 2]), weight, torch.tensor([0]), mode="sum", padding_idx=padding
    )
    padding[...] = 2
    result.sum().backward()
    assert weight.grad[1].eq(0).all()
    assert weight.grad[2].eq(1).all()


def test_a_second_derivative_that_is_zero():
    assert torch.equal(second_derivative(False, True), torch.ones(10, 4, dtype=torch.float64))


# torch compiles its own decompositions with a deprecated function.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_there_is_no_forward_mode():
    forward_ad = torch.autograd.forward_ad
    input, options = small_call()
    weight = table(requires_grad=False)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        embedding_bag(input, forward_ad.make_dual(weight, weight), **options)


@pytest.mark.parametrize("mode", ["sum", "max"])
def test_backward_twice_and_with_checkpoints(mode):
    input, options = small_call()
    grads = []
    for repeat in (False, True):
        weight = table()
        if repeat:
            result = torch.utils.checkpoint.checkpoint(
                lambda weight: embedding_bag(input, weight, mode=mode, **options),
                weight,
                use_reentrant=False,
            )
        else:
            result = embedding_bag(input, weight, mode=mode, **options)
            result.square().sum().backward(retain_graph=True)
            weight.grad = None
        result.square().sum().backward()
        grads.append(weight.grad)
    assert torch.equal(*grads)


# max_norm


@DTYPES
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
def test_max_norm(dtype, mode, norm_type):
    input, options = small_call()
    options.update(max_norm=1.0, norm_type=norm_type, mode=mode)
    given = table(3, 4, dtype, seed=2, requires_grad=False)
    versions = []
    results = []
    for function in (F.embedding_bag, embedding_bag):
        weight = torch.nn.Parameter(table(dtype=dtype).detach())
        before = weight.detach().clone()
        result = function(input, weight, **options)
        result.backward(given)
        results.append((result.detach(), weight.detach(), weight.grad))
        versions.append(weight._version)
        used = torch.zeros(10, dtype=bool).index_fill(0, input, True)
        assert not torch.equal(weight[used], before[used])
        assert torch.equal(weight[~used], before[~used])
    assert versions[0] == versions[1] > 0
    for theirs, ours in zip(*results, strict=True):
        assert_near(ours, theirs, 6, 4)


@BOTH
def test_autograd_detects_the_change_by_max_norm(function):
    weight = table()
    input, options = small_call()
    squares = weight.square().sum()
    result = function(input, weight, max_norm=0.1, **options)
    result.sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


@BOTH
def test_max_norm_in_inference_mode(function):
    input, options = small_call()
    weight = table()
    with torch.inference_mode():
        function(input, weight, max_norm=0.5, **options)
        function(input, table(), max_norm=0.5, **options)
    assert weight[input].norm(dim=1).max() < 0.51


def test_max_norm_that_fails_changes_nothing():
    weight = table()
    with pytest.raises(IndexError):
        embedding_bag(torch.tensor([1, 10]), weight, torch.tensor([0]), max_norm=0.1)
    assert torch.equal(weight, table())
    assert weight._version == table()._version


# The module


def modules(mode="sum", **options):
    """Return torch's module and ours with equal parameters."""
    for kind in (torch.nn.EmbeddingBag, embag.torch.EmbeddingBag):
        torch.manual_seed(0)
        yield kind(30, 8, mode=mode, **options)


def test_a_module_differs_from_that_of_torch_only_in_its_call():
    theirs, ours = modules(
        padding_idx=3,
        max_norm=2.0,
        norm_type=1.0,
        sparse=True,
        scale_grad_by_freq=True,
        include_last_offset=True,
    )
    assert isinstance(ours, torch.nn.EmbeddingBag)
    assert repr(ours) == repr(theirs)
    assert torch.equal(ours.weight, theirs.weight)
    forward, calls = spied("embedding_bag")
    input, offsets, sample = torch.arange(6), torch.tensor([0, 4, 6]), torch.rand(6)
    for arguments in ((input.reshape(3, 2),), (input, offsets), (input, offsets, sample)):
        with forward:
            result = ours(*arguments)
        assert_near(result, theirs(*arguments), 4, 2)
    assert_near(ours.weight, theirs.weight, 8, 2)
    assert len(calls) == 3
    for arguments, _, _ in calls:
        assert arguments[3:8] == (2.0, 1.0, True, "sum", True)
        assert arguments[9:] == (True, 3)


def test_state_dicts_load_in_both_directions():
    theirs, ours = modules()
    with torch.no_grad():
        theirs.weight.mul_(2)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    theirs.load_state_dict(ours.state_dict())
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_copies_and_pickles():
    _, ours = modules(mode="max", padding_idx=2)
    input = torch.tensor([[1, 2], [3, 4]])
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is embag.torch.EmbeddingBag
        assert repr(other) == repr(ours)
        assert torch.equal(other(input), ours(input))
        assert other.weight.data_ptr() != ours.weight.data_ptr()


def test_from_pretrained():
    weight = table(requires_grad=False)
    bags = embag.torch.EmbeddingBag.from_pretrained(weight, mode="sum", padding_idx=0)
    assert type(bags) is embag.torch.EmbeddingBag
    assert bags.weight.data_ptr() == weight.data_ptr()
    assert not bags(torch.tensor([[1, 0]])).requires_grad
    assert torch.equal(bags(torch.tensor([[1, 0]])), weight[1:2])


def test_a_functional_call():
    _, ours = modules()
    weight = table(30, 8)
    input = torch.tensor([[1, 2], [3, 4]])
    result = torch.func.functional_call(ours, {"weight": weight}, (input,))
    assert torch.equal(result, weight[input].sum(1))


def train(kind, mode, dtype, sparse, n_steps=50):
    """Train a small model that predicts a number per bag; return its losses."""
    torch.manual_seed(0)
    bags = kind(40, 8, mode=mode, sparse=sparse is not None, padding_idx=0, dtype=dtype)
    layers = [torch.nn.Linear(8, 16, dtype=dtype), torch.nn.Linear(16, 1, dtype=dtype)]
    model = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1])
    lengths = torch.randint(0, 8, (32,))
    offsets = lengths.cumsum(0) - lengths
    input = torch.randint(0, 40, (int(lengths.sum()),))
    sample = torch.rand(len(input), dtype=dtype) if mode == "sum" else None
    wanted = torch.randn(32, 1, dtype=dtype)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]
    if sparse == "adam":
        optimizers.append(torch.optim.SparseAdam(bags.parameters(), lr=0.02))
    else:
        optimizers.append(torch.optim.SGD(bags.parameters(), lr=0.1))
    losses = []
    for _ in range(n_steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = (model(bags(input, offsets, sample)) - wanted).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses


@DTYPES
@pytest.mark.parametrize(
    ("mode", "sparse"),
    [
        ("sum", None),
        ("mean", None),
        ("max", None),
        ("sum", "sgd"),
        ("mean", "sgd"),
        ("sum", "adam"),
        ("mean", "adam"),
    ],
)
def test_training(mode, sparse, dtype):
    theirs = train(torch.nn.EmbeddingBag, mode, dtype, sparse)
    ours = train(embag.torch.EmbeddingBag, mode, dtype, sparse)
    assert theirs[-1] < 0.8 * theirs[0]
    # Each step rounds the loss, of about 1, and the parameters anew, by a few eps; steps
    # this small do not amplify what the steps before left.
    bound = len(theirs) * 10 * torch.finfo(dtype).eps
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


# Tables that are copied at each call


def test_copies_of_large_tables_are_warned_of_at_the_line_of_the_user():
    weight = torch.ones(64, 5000).T.requires_grad_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", embag.PerformanceWarning)
        result = embedding_bag(torch.tensor([[1, 2]]), weight, normalize=True)
        result.sum().backward()
    first, second = caught
    assert first.filename == second.filename == __file__
    assert second.lineno == first.lineno + 1
