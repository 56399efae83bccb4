"""Gradients of ragged inputs and `lengths`: the bits of the equivalent call with arrays."""

import array
import itertools

import numpy as np
import pytest
from cases import assert_same_bits
from differences import differences

import embag
from embag import embedding_bag_backward

N_ROWS, DIM = 9, 5
LISTS = [[1, 2, None, 1], None, [3], [], [None, 4, 4, 8], [None]]
WEIGHTS = [[0.5, 1.0, None, -2.0], None, [2.0], [], [7.0, 0.5, 1.5, 3.0], [None]]
FLAT = np.array([1, 2, 1, 3, 4, 4, 8])
FACTORS = np.array([0.5, 1.0, -2.0, 2.0, 0.5, 1.5, 3.0])
OFFSETS = np.array([0, 3, 3, 4, 4, 7, 7])
# Of the weights that are not null, among the entries of the lists: 4, 0, 1, 0, 4 and 1 of them.
POSITIONS, N_ENTRIES = [0, 1, 3, 4, 6, 7, 8], 10


def table(dtype=np.float64):
    return np.random.default_rng(0).standard_normal((N_ROWS, DIM)).astype(dtype)


def gradient(n=6):
    return np.random.default_rng(1).standard_normal((n, DIM))


def assert_same_grads(found, expected, positions=None, n_entries=None):
    for weight in (found.weight, expected.weight):
        assert type(weight) is type(expected.weight)
    if isinstance(found.weight, embag.SparseRows):
        assert found.weight.indices.tolist() == expected.weight.indices.tolist()
        assert_same_bits(found.weight.values, expected.weight.values)
    elif expected.weight is not None:
        assert_same_bits(found.weight, expected.weight)
    if expected.per_sample_weights is None:
        assert found.per_sample_weights is None
    elif positions is None:
        assert_same_bits(found.per_sample_weights, expected.per_sample_weights)
    else:
        spread = np.zeros(n_entries, expected.per_sample_weights.dtype)
        spread[positions] = expected.per_sample_weights
        assert_same_bits(found.per_sample_weights, spread)


def sequences(lists, kind):
    return [
        None if bag is None else [kind(x) if x is not None else None for x in bag] for bag in lists
    ]


def arrow(make):
    def convert(lists, is_ids):
        pa = pytest.importorskip("pyarrow")
        return make(
            pa, sequences(lists, int if is_ids else float), pa.int32() if is_ids else pa.float32()
        )

    return convert


def as_lists(lists, _is_ids):
    return lists


def as_arrays(lists, is_ids):
    column = np.empty(len(lists), object)
    for b, bag in enumerate(lists):
        plain = bag is not None and None not in bag
        column[b] = np.array(bag, np.int16 if is_ids else np.float32) if plain else bag
    return column


def chunked(pa, lists, item):
    kind = pa.large_list(item)
    return pa.chunked_array([pa.array([[7], *lists[:2]], kind)[1:], pa.array(lists[2:], kind)])


CONTAINERS = {
    "lists": as_lists,
    "arrays": as_arrays,
    "arrow": arrow(lambda pa, lists, item: pa.array([[7, 7], *lists], pa.list_(item))[1:]),
    "chunks": arrow(chunked),
    "views": arrow(lambda pa, lists, item: pa.array(lists, pa.list_view(item))),
    "polars": lambda lists, _: pytest.importorskip("polars").Series(lists),
    "pandas": lambda lists, _: pytest.importorskip("pandas").Series(lists),
}


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_containers(name, mode, dtype):
    ids = CONTAINERS[name](LISTS, True)
    weighted = mode not in ("max", "min")
    for sparse, more in itertools.product(
        (False, True), ({}, {"padding_idx": 4}, {"normalize": True, "default_idx": 2})
    ):
        options = {"mode": mode, "sparse": sparse, **more}
        same = {**options, "include_last_offset": True}
        found = embedding_bag_backward(gradient(), ids, table(dtype), **options)
        expected = embedding_bag_backward(gradient(), FLAT, table(dtype), OFFSETS, **same)
        assert_same_grads(found, expected)
        if weighted:
            factors = CONTAINERS[name](WEIGHTS, False)
            found = embedding_bag_backward(
                gradient(), ids, table(dtype), per_sample_weights=factors, **options
            )
            expected = embedding_bag_backward(
                gradient(), FLAT, table(dtype), OFFSETS, per_sample_weights=FACTORS, **same
            )
            assert_same_grads(found, expected, POSITIONS, N_ENTRIES)


@pytest.mark.parametrize("wrt", ["weight", "per_sample_weights"])
def test_one_gradient(wrt):
    found = embedding_bag_backward(
        gradient(), LISTS, table(), mode="sum", per_sample_weights=WEIGHTS, wrt=wrt
    )
    assert (found.weight is None) == (wrt == "per_sample_weights")
    assert (found.per_sample_weights is None) == (wrt == "weight")


def test_columns_with_weights_of_their_own():
    pa = pytest.importorskip("pyarrow")
    pairs = [
        None if bag is None else list(zip(bag, some, strict=True))
        for bag, some in zip(LISTS, WEIGHTS, strict=True)
    ]
    entry = pa.struct([("id", pa.int64()), ("weight", pa.float64())])
    found = embedding_bag_backward(gradient(), pa.array(pairs, pa.list_(entry)), table())
    expected = embedding_bag_backward(
        gradient(), FLAT, table(), OFFSETS, per_sample_weights=FACTORS, include_last_offset=True
    )
    assert_same_grads(found, expected, POSITIONS, N_ENTRIES)


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max"])
def test_matrices(mode):
    sparse = pytest.importorskip("scipy.sparse")
    parts = FACTORS, FLAT, OFFSETS
    matrix = sparse.csr_array(parts, (len(OFFSETS) - 1, N_ROWS))
    found = embedding_bag_backward(gradient(), matrix, table(), mode=mode)
    expected = embedding_bag_backward(
        gradient(), FLAT, table(), OFFSETS, mode=mode, include_last_offset=True,
        per_sample_weights=None if mode == "max" else FACTORS,
    )  # fmt: skip
    assert_same_grads(found, expected)
    with pytest.raises(ValueError, match=r"^input must have as many columns as the table has row"):
        embedding_bag_backward(gradient(), matrix, table()[1:], mode=mode)


def test_two_dimensional_ids_with_ragged_weights():
    ids = np.array([[1, 2], [3, 3], [0, 8]])
    factors = np.arange(6.0).reshape(3, 2) + 1
    expected = embedding_bag_backward(
        gradient(3), ids, table(), mode="mean", per_sample_weights=factors
    )
    for given in (factors.tolist(), list(factors), [array.array("d", row) for row in factors]):
        for same in (ids, ids.tolist()):
            found = embedding_bag_backward(
                gradient(3), same, table(), mode="mean", per_sample_weights=given
            )
            assert_same_grads(found, expected)
            assert found.per_sample_weights.shape == (3, 2)


@pytest.mark.parametrize("lists", [[], [[]], [[], None], [[None], [None, None]]])
@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_lists_without_ids(lists, mode):
    pa = pytest.importorskip("pyarrow")
    n = sum(len(bag or ()) for bag in lists)
    for item in (pa.int64(), pa.null()):
        column = pa.array(lists, pa.list_(item))
        factors = pa.array(lists, pa.list_(pa.float64()))
        for more in ({}, {"invalid": "skip"}):
            found = embedding_bag_backward(
                gradient(len(lists)), column, table(), mode=mode, per_sample_weights=factors, **more
            )
            assert not found.weight.any()
            assert found.per_sample_weights.tolist() == [0] * n
    found = embedding_bag_backward(gradient(len(lists)), column, table(), mode=mode, default_idx=3)
    np.testing.assert_array_equal(found.weight[3], gradient(len(lists)).sum(axis=0))


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_gradients_of_ragged_weights_are_differences(mode):
    pa = pytest.importorskip("pyarrow")
    weight, factors = table(), np.arange(1.0, N_ENTRIES + 1)
    bounds = np.cumsum([0, *(len(bag or ()) for bag in LISTS)])
    ids = pa.array(LISTS, pa.list_(pa.int64()))
    options = {"mode": mode, "invalid": 5, "normalize": True, "padding_idx": 3}

    def ragged_factors():
        return pa.ListArray.from_arrays(bounds, pa.array(factors))

    def loss():
        out = embag.embedding_bag(ids, weight, per_sample_weights=ragged_factors(), **options)
        return float((out * gradient()).sum())

    found = embedding_bag_backward(
        gradient(), ids, weight, per_sample_weights=ragged_factors(), **options
    )
    expected = differences(loss, weight)
    expected[3] = 0
    np.testing.assert_allclose(found.weight, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        found.per_sample_weights, differences(loss, factors), rtol=1e-6, atol=1e-8
    )


def test_remapped_tables():
    remapped = embag.RemappedTable(table(), [4, -1, 0, 2, 1, 1, 8, 3, 5], np.arange(9.0) + 1)
    for sparse in (False, True):
        options = {"mode": "mean", "sparse": sparse}
        found = embedding_bag_backward(
            gradient(), LISTS, remapped, per_sample_weights=WEIGHTS, **options
        )
        expected = embedding_bag_backward(
            gradient(), FLAT, remapped, OFFSETS,
            per_sample_weights=FACTORS, include_last_offset=True, **options,
        )  # fmt: skip
        assert_same_grads(found, expected, POSITIONS, N_ENTRIES)


def test_threads_give_the_same_bits():
    rng = np.random.default_rng(2)
    lengths = rng.integers(0, 60, 500)
    flat, factors = rng.integers(0, 5000, lengths.sum()), rng.random(lengths.sum())
    offsets = np.cumsum([0, *lengths])
    weight = rng.standard_normal((5000, 32))
    lists, weights = (
        [values[a:b] for a, b in itertools.pairwise(offsets)] for values in (flat, factors)
    )
    grad = rng.standard_normal((500, 32))
    same = {"per_sample_weights": factors, "include_last_offset": True}
    expected = embedding_bag_backward(grad, flat, weight, offsets, **same)
    for n in (1, 3):
        found = embedding_bag_backward(
            grad, lists, weight, per_sample_weights=weights, num_threads=n
        )
        assert_same_grads(found, expected)


def test_lengths():
    options = {"mode": "mean", "per_sample_weights": FACTORS}
    found = embedding_bag_backward(gradient(), FLAT, table(), lengths=np.diff(OFFSETS), **options)
    expected = embedding_bag_backward(
        gradient(), FLAT, table(), OFFSETS, include_last_offset=True, **options
    )
    assert_same_grads(found, expected)


def test_the_layer():
    layer = embag.EmbeddingBag.from_pretrained(table(), mode="sum", padding_idx=4)
    found = layer.backward(gradient(), LISTS, per_sample_weights=WEIGHTS)
    expected = embedding_bag_backward(
        gradient(), LISTS, table(), mode="sum", padding_idx=4, per_sample_weights=WEIGHTS
    )
    assert_same_grads(found, expected)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"input": [[1], [2, 9]]}, IndexError,
         "input[1][1] = 9 is out of range for a table of 9 rows"),
        ({"offsets": [0, 1]}, ValueError, "offsets must be None where input is ragged, got list"),
        ({"lengths": [1, 2]}, ValueError, "lengths must be None where input is ragged, got list"),
        ({"segment_ids": [0]}, ValueError,
         "segment_ids must be None where input is ragged, got list"),
        ({"per_sample_weights": np.ones(3)}, ValueError,
         "per_sample_weights must be ragged where input is, with as many entries in each list, "
         "got ndarray"),
        ({"per_sample_weights": [[1.0], [1.0]]}, ValueError,
         "per_sample_weights must have as many entries in each list as input, got 1 in list 1, "
         "which has 2 there"),
        ({"per_sample_weights": [[1.0], [None, 2.0]]}, ValueError,
         "per_sample_weights must not be null where input is not, got a null in list 1"),
        ({"grad_output": np.ones((3, DIM))}, ValueError,
         "grad_output must have the output's shape (2, 5), got (3, 5)"),
        ({"wrt": "per_sample_weights"}, ValueError,
         "per_sample_weights must be given where wrt names it, got None"),
    ],
)  # fmt: skip
def test_errors(options, kind, message):
    call = {
        "grad_output": np.ones((2, DIM)),
        "input": [[1], [2, 3]],
        "weight": table(),
        "mode": "sum",
    }
    for more in ({}, {"default_idx": 1}):
        with pytest.raises(kind) as caught:
            embedding_bag_backward(**{**call, **options, **more})
        assert str(caught.value) == message


def test_ids_out_of_range_are_skipped_or_replaced():
    lists, factors = [[1, 99, 2], [-1]], [[1.0, 2.0, 3.0], [4.0]]
    for invalid in ("skip", 6):
        options = {"mode": "mean", "invalid": invalid}
        found = embedding_bag_backward(
            gradient(2), lists, table(), per_sample_weights=factors, **options
        )
        expected = embedding_bag_backward(
            gradient(2),
            [1, 99, 2, -1],
            table(),
            [0, 3],
            per_sample_weights=[1.0, 2, 3, 4],
            **options,
        )
        assert_same_grads(found, expected)
