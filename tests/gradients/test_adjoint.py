"""The backward pass is the derivative of the forward pass, and obeys its laws.

These tests compare the two functions with each other, without a reference.
"""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from cases import CASES, REDUCTIONS, call_arguments
from hypothesis import given, settings
from hypothesis import strategies as st

import embag
from embag._process import threads

settings.register_profile("embag", deadline=None, derandomize=True, max_examples=150)
settings.load_profile("embag")

EPS = np.finfo(np.float64).eps


@pytest.fixture(autouse=True, scope="module")
def _eager_threads():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "ENTRIES_PER_THREAD", 1)
        patch.setattr(threads, "_N_MACHINE", 64)
        yield


def bag(input, table, offsets, **options):
    return embag.embedding_bag(input, table, offsets, num_threads=1 + len(input) % 4, **options)


def backward(grad_output, input, table, offsets, **options):
    return embag.embedding_bag_backward(
        grad_output, input, table, offsets, num_threads=1 + len(input) % 4, **options
    )


# --- Finite differences ---------------------------------------------------------------


def differences(function, array):
    """Return the central differences of step 1/2 by each entry of an array."""
    result = np.empty(array.shape)
    for place in np.ndindex(array.shape):
        value = array[place]
        array[place] = value + 0.5
        above = function()
        array[place] = value - 0.5
        result[place] = above - function()
        array[place] = value
    return result


# Small, with empty bags, repeated rows, padding, a short last offset and two dimensions.
SMALL = [
    ([1, 2, 1, 3, 3, 3, 0], [0, 2, 2, 6], {}),
    ([1, 2, 1, 3, 3, 3, 0, 1], [0, 2, 2, 6], {"padding_idx": 3}),
    ([1, 2, 1, 3, 3, 0, 2, 2], [0, 0, 4, 6], {"include_last_offset": True, "padding_idx": -4}),
    ([[0, 1, 2], [2, 2, 2], [3, 0, 3]], None, {}),
]


@pytest.mark.parametrize(("input", "offsets", "options"), SMALL)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_finite_differences(input, offsets, options, reduction, level):
    # All factors and addends are small multiples of 1/2, so sums and differences are exact.
    # The function is linear in each entry, also for max: a step of 1/2 does not change the
    # winner among distinct integers. So the difference equals the derivative to the bit,
    # except for means of three, see below.
    rng = np.random.default_rng(0)
    table = rng.permutation(4 * 5).reshape(4, 5).astype(np.float64)
    options = dict(options, mode="sum" if reduction == "weighted" else reduction)
    if reduction == "weighted":
        options["per_sample_weights"] = rng.integers(-5, 6, np.shape(input)).astype(np.float64)
    pooled = embag.embedding_bag(input, table, offsets, **options)
    grad_output = rng.integers(-5, 6, pooled.shape).astype(np.float64)

    def function():
        return np.sum(grad_output * embag.embedding_bag(input, table, offsets, **options))

    # For means, each of the two sums has pooled.size products. Each product is rounded twice
    # and added, which costs at most eps / 2 times the sum of all magnitudes. The gradient
    # adds one rounded quotient per position: at most eps for both.
    sizes = np.abs(grad_output).sum() * (np.abs(table).max() + 0.5)
    n = pooled.size + 1 + np.size(input)
    tolerance = n * EPS * sizes if reduction == "mean" else 0
    grads = embag.embedding_bag_backward(grad_output, input, table, offsets, **options)
    assert np.abs(grads.weight - differences(function, table)).max() <= tolerance
    if reduction == "weighted":
        expected = differences(function, options["per_sample_weights"])
        padding = options.get("padding_idx")
        np.testing.assert_array_equal(grads.per_sample_weights, expected)
        if padding is not None:
            assert not grads.per_sample_weights[np.array(input) == padding % 4].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_finite_differences_along_a_direction(reduction, level):
    # One direction per case: all entries move at once, by less than half of the smallest
    # distance between two, so that no winner of a max changes. Then the function is linear,
    # and the difference is the derivative except for rounding: each side is a sum of
    # pooled.size products with n roundings, divided by the step.
    for case in CASES:
        (input, table, offsets), options = call_arguments(case, reduction, np.float64)
        rng = np.random.default_rng(0)
        table = rng.permutation(table.size).reshape(table.shape) / max(1, table.size)
        direction = rng.uniform(-1, 1, table.shape)
        step = 0.25 / max(1, table.size)
        pooled = embag.embedding_bag(input, table, offsets, **options)
        grad_output = rng.uniform(-1, 1, pooled.shape)
        above, below = (
            np.vdot(grad_output, embag.embedding_bag(input, moved, offsets, **options))
            for moved in (table + step * direction, table - step * direction)
        )
        grad = embag.embedding_bag_backward(grad_output, input, table, offsets, **options).weight
        factor = np.abs(options.get("per_sample_weights", np.ones(1))).max(initial=1)
        longest = 1 if reduction in ("mean", "max") else len(input.reshape(-1))
        sizes = np.abs(grad_output).sum() * 2 * factor * max(1, longest)
        n = pooled.size + input.size + 3
        error = abs((above - below) / (2 * step) - np.vdot(grad, direction))
        assert error <= n * EPS * sizes / step, case.name


# --- The adjoint ----------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_adjoint(reduction, level, eager_threads):
    # <G, bag(W)> = <backward(G), W>, and the same for the weights of positions. Both sides
    # sum the same products of a gradient, an entry and possibly a factor or a divisor, with
    # at most n additions and three more roundings per product. So either side differs from
    # the exact sum by at most (n + 3) eps / (1 - ...) times the sum of magnitudes.
    for case in CASES:
        (input, table, offsets), options = call_arguments(case, reduction, np.float64)
        pooled = embag.embedding_bag(input, table, offsets, **options)
        grad_output = np.random.default_rng(2).standard_normal(pooled.shape)
        grads = embag.embedding_bag_backward(grad_output, input, table, offsets, **options)
        product = np.sum(grad_output * pooled)
        if reduction == "max":
            sizes = np.sum(np.abs(grad_output * pooled))
        else:
            absolute = dict(options)
            if reduction == "weighted":
                absolute["per_sample_weights"] = np.abs(options["per_sample_weights"])
            pooled_sizes = embag.embedding_bag(input, np.abs(table), offsets, **absolute)
            sizes = np.sum(np.abs(grad_output) * pooled_sizes)
        tolerance = 2 * (input.size * case.dim + 4) * EPS * sizes
        assert abs(product - np.sum(grads.weight * table)) <= tolerance, case.name
        if reduction == "weighted":
            by_weights = np.sum(grads.per_sample_weights * options["per_sample_weights"])
            assert abs(product - by_weights) <= tolerance, case.name


# --- Laws, on inputs drawn by hypothesis ----------------------------------------------

# Means of up to 9 multiples of this are integers, so everything is exact.
DIVISIBLE = 2520


@st.composite
def calls(draw):
    """Draw the arguments of a call whose values are integers."""
    n_rows = draw(st.integers(1, 12))
    dim = draw(st.integers(1, 40) | st.sampled_from([70, 130]))
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    seed = draw(st.integers(0, 2**32 - 1))  # drawing the values one by one would take long
    rng = np.random.default_rng(seed)
    input = draw(hnp.arrays(np.int64, sum(lengths), elements=st.integers(0, n_rows - 1)))
    table = rng.integers(-9, 10, (n_rows, dim)).astype(np.float64)
    grad_output = DIVISIBLE * rng.integers(-9, 10, (len(lengths), dim)).astype(np.float64)
    return grad_output, input, table, np.cumsum(lengths) - lengths


reductions = st.sampled_from(REDUCTIONS)


def options_of(reduction, input):
    if reduction != "weighted":
        return {"mode": reduction}
    factors = np.random.default_rng(len(input)).integers(-9, 10, input.shape)
    return {"mode": "sum", "per_sample_weights": factors}


def assert_same(grads, expected):
    np.testing.assert_array_equal(grads.weight, expected.weight)
    if expected.per_sample_weights is None:
        assert grads.per_sample_weights is None
    else:
        np.testing.assert_array_equal(grads.per_sample_weights, expected.per_sample_weights)


@given(calls(), reductions, st.integers(-5, 5))
def test_gradients_are_linear_in_grad_output(call, reduction, factor):
    first, input, table, offsets = call
    options = options_of(reduction, input)
    second = first[::-1, ::-1]
    grads = [
        backward(g, input, table, offsets, **options)
        for g in (first, second, factor * first + second)
    ]
    np.testing.assert_array_equal(grads[2].weight, factor * grads[0].weight + grads[1].weight)
    if reduction == "weighted":
        samples = [g.per_sample_weights for g in grads]
        np.testing.assert_array_equal(samples[2], factor * samples[0] + samples[1])


@given(calls(), reductions, st.randoms(use_true_random=False))
def test_the_order_of_bags_does_not_matter(call, reduction, random):
    grad_output, input, table, offsets = call
    options = options_of(reduction, input)
    positions = np.split(np.arange(len(input)), offsets[1:])
    order = list(range(len(positions)))
    random.shuffle(order)
    lengths = np.array([len(positions[i]) for i in order])
    moved = np.concatenate([positions[i] for i in order])
    shuffled = dict(options)
    if reduction == "weighted":
        shuffled["per_sample_weights"] = options["per_sample_weights"][moved]
    grads = backward(
        grad_output[order], input[moved], table, np.cumsum(lengths) - lengths, **shuffled
    )
    expected = backward(grad_output, input, table, offsets, **options)
    if reduction == "weighted":
        expected = expected._replace(per_sample_weights=expected.per_sample_weights[moved])
    assert_same(grads, expected)


@given(calls(), reductions)
def test_padding_equals_absence(call, reduction):
    grad_output, input, table, offsets = call
    options = options_of(reduction, input)
    keep = input != 0
    without = dict(options)
    if reduction == "weighted":
        without["per_sample_weights"] = options["per_sample_weights"][keep]
    kept = np.concatenate([[0], np.cumsum(keep)])
    expected = backward(grad_output, input[keep], table, kept[offsets], **without)
    if reduction == "weighted":
        spread = np.zeros(len(input))
        spread[keep] = expected.per_sample_weights
        expected = expected._replace(per_sample_weights=spread)
    assert_same(backward(grad_output, input, table, offsets, padding_idx=0, **options), expected)


@given(calls(), st.sampled_from(["sum", "weighted", "mean"]), st.booleans())
def test_dense_equals_sparse(call, reduction, scale_grad_by_freq):
    grad_output, input, table, offsets = call
    options = options_of(reduction, input) | {"scale_grad_by_freq": scale_grad_by_freq}
    grad_output = grad_output / 7  # to the bit, also if sums are rounded
    dense = backward(grad_output, input, table, offsets, **options)
    sparse = backward(grad_output, input, table, offsets, sparse=True, **options)
    np.testing.assert_array_equal(sparse.weight.indices, np.unique(input))
    assert_same(sparse._replace(weight=sparse.weight.to_dense()), dense)


@given(calls(), calls(), reductions)
def test_two_calls_are_one_call_of_both(first, second, reduction):
    # Both use the table of the first; the rows and columns of the second are fitted to it.
    grad_output, input, table, offsets = first
    columns = np.arange(table.shape[1]) % second[0].shape[1]
    other = second[0][:, columns], second[1] % len(table), table, second[3]
    options = [options_of(reduction, each) for each in (input, other[1])]
    grads = [backward(*call, **each) for call, each in zip((first, other), options, strict=True)]
    both = dict(options[0])
    if reduction == "weighted":
        both["per_sample_weights"] = np.concatenate([o["per_sample_weights"] for o in options])
    result = backward(
        np.concatenate([grad_output, other[0]]),
        np.concatenate([input, other[1]]),
        table,
        np.concatenate([offsets, other[3] + len(input)]),
        **both,
    )
    np.testing.assert_array_equal(result.weight, grads[0].weight + grads[1].weight)
    if reduction == "weighted":
        np.testing.assert_array_equal(
            result.per_sample_weights, np.concatenate([g.per_sample_weights for g in grads])
        )


@given(calls())
def test_scaling_by_frequency_divides_by_the_count(call):
    grad_output, input, table, offsets = call
    counts = np.bincount(input, minlength=len(table))
    plain = backward(grad_output, input, table, offsets, mode="sum").weight
    scaled = backward(
        grad_output, input, table, offsets, mode="sum", scale_grad_by_freq=True
    ).weight
    np.testing.assert_array_equal(scaled, plain / np.maximum(counts, 1)[:, None])


@given(calls())
def test_the_weights_gradient_is_the_dot_product_with_the_row(call):
    grad_output, input, table, offsets = call
    lengths = np.diff(np.append(offsets, len(input)))
    bags = np.repeat(np.arange(len(offsets)), lengths)
    grads = backward(
        grad_output, input, table, offsets, mode="sum", per_sample_weights=np.ones(len(input))
    )
    np.testing.assert_array_equal(
        grads.per_sample_weights, np.sum(grad_output[bags] * table[input], axis=1)
    )
    np.testing.assert_array_equal(
        grads.weight, backward(grad_output, input, table, offsets, mode="sum").weight
    )


@given(calls(), st.sampled_from(["sum", "max"]))
def test_one_row_gets_the_gradient_of_a_maximum_and_all_rows_that_of_a_sum(call, reduction):
    grad_output, input, table, offsets = call
    lengths = np.diff(np.append(offsets, len(input)))
    grads = backward(grad_output, input, table, offsets, mode=reduction)
    times = lengths if reduction == "sum" else lengths > 0
    np.testing.assert_array_equal(
        grads.weight.sum(axis=0), (times[:, None] * grad_output).sum(axis=0)
    )
