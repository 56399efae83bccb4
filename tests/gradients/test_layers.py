"""`EmbeddingBag`: the results of the functions, the arguments of torch, full error messages."""

import copy
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import CASES, NATIVE, REDUCTIONS, SWAPPED, call_arguments
from differences import differences

import embag

IDS, OFFSETS = np.array([1, 2, 4, 5, 4, 3, 2, 9]), np.array([0, 4])


def layer_of(case, reduction, dtype, **changes):
    """Return a layer with the table of a case, and the arguments of its call."""
    (input, table, offsets), options = call_arguments(case, reduction, dtype)
    sample = options.pop("per_sample_weights", None)
    return embag.EmbeddingBag.from_pretrained(table, **options, **changes), (input, offsets, sample)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_forward_is_embedding_bag(reduction):
    for case in CASES:
        (input, table, offsets), options = call_arguments(case, reduction, np.float32)
        expected = embag.embedding_bag(input, table, offsets, **options)
        layer, arguments = layer_of(case, reduction, np.float32)
        for result in (layer(*arguments), layer.forward(*arguments, num_threads=2)):
            np.testing.assert_array_equal(result, expected, case.name)
        out = np.empty_like(expected)
        assert layer(*arguments, out=out) is out
        np.testing.assert_array_equal(out, expected, case.name)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("scale_grad_by_freq", [False, True])
def test_backward_is_embedding_bag_backward(reduction, scale_grad_by_freq):
    if reduction == "max" and scale_grad_by_freq:
        return
    for case in CASES:
        (input, table, offsets), options = call_arguments(case, reduction, np.float32)
        layer, arguments = layer_of(
            case, reduction, np.float32, scale_grad_by_freq=scale_grad_by_freq
        )
        grad_output = layer(*arguments) + 1
        expected = embag.embedding_bag_backward(
            grad_output, input, table, offsets, scale_grad_by_freq=scale_grad_by_freq, **options
        )
        result = layer.backward(grad_output, *arguments, num_threads=2)
        np.testing.assert_array_equal(result.weight, expected.weight, case.name)
        if reduction != "weighted":
            assert result.per_sample_weights is None
            continue
        np.testing.assert_array_equal(result.per_sample_weights, expected.per_sample_weights)
        one = layer.backward(grad_output, *arguments, wrt="weight")
        assert one.per_sample_weights is None


def test_max_indices_of_forward_serve_backward():
    layer = embag.EmbeddingBag(10, 3, mode="max", rng=0)
    pooled, rows = layer(IDS, OFFSETS, return_max_indices=True)
    np.testing.assert_array_equal(pooled, layer.weight[rows, np.arange(3)])
    grad_output = np.ones((2, 3))
    searched = layer.backward(grad_output, IDS, OFFSETS).weight
    layer.weight[:] = np.nan  # not read, if the rows are given
    given = layer.backward(grad_output, IDS, OFFSETS, max_indices=rows).weight
    np.testing.assert_array_equal(given, searched)


def test_sparse_gradients():
    layer = embag.EmbeddingBag(10, 3, mode="sum", sparse=True, padding_idx=4)
    grads = layer.backward(np.ones((2, 3)), IDS, OFFSETS).weight
    assert isinstance(grads, embag.SparseRows)
    assert grads.indices.tolist() == [1, 2, 3, 5, 9]
    assert grads.shape == (10, 3)


# Ids below 0 and beyond the table, and an empty bag.
FAULTY, FAULTY_OFFSETS = np.array([1, 2, -3, 5, 2, 30]), np.array([0, 2, 2, 5])


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
@pytest.mark.parametrize("invalid", ["skip", 3])
@pytest.mark.parametrize("normalize", [False, True])
def test_default_and_invalid_rows_and_normalization_in_both_passes(mode, invalid, normalize):
    rng = np.random.default_rng(0)
    weights = None if mode in ("max", "min") else rng.uniform(0.5, 2, len(FAULTY))
    options = {"mode": mode, "default_idx": -1, "invalid": invalid, "normalize": normalize}
    table = rng.standard_normal((10, 3))
    layer = embag.EmbeddingBag.from_pretrained(table, **options)
    arguments = FAULTY, FAULTY_OFFSETS, weights
    np.testing.assert_array_equal(
        layer(*arguments),
        embag.embedding_bag(FAULTY, table, FAULTY_OFFSETS, per_sample_weights=weights, **options),
    )
    grad_output = rng.standard_normal((4, 3))
    grads = layer.backward(grad_output, *arguments)

    def loss():
        return float((layer(*arguments) * grad_output).sum())

    np.testing.assert_allclose(grads.weight, differences(loss, table), rtol=1e-6, atol=1e-8)
    assert grads.weight[9].any()  # of the empty bag
    if weights is not None:
        expected = differences(loss, weights)
        np.testing.assert_allclose(grads.per_sample_weights, expected, rtol=1e-6, atol=1e-8)


def test_forward_counts_ids():
    layer = embag.EmbeddingBag(10, 3, mode="max", invalid="skip")
    pooled, rows, n_invalid, n_valid = layer(
        FAULTY, FAULTY_OFFSETS, return_max_indices=True, return_n_invalid=True, return_n_valid=True
    )
    assert pooled.shape == rows.shape == (4, 3)
    assert n_invalid == 2
    assert n_valid.tolist() == [2, 0, 2, 0]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_update_is_backward_and_a_step(reduction):
    for case in CASES:
        layer, arguments = layer_of(case, reduction, np.float32)
        grad_output = layer(*arguments) + 1
        grads = layer.backward(grad_output, *arguments)
        table = layer.weight.copy()
        embag.optim.SGD(table, 0.25).step(grads.weight)
        layer.weight = layer.weight.copy()
        optimizer = embag.optim.SGD(layer.weight, 0.25)
        wrt = None if reduction == "weighted" else "weight"
        result = layer.update(grad_output, *arguments, optimizer=optimizer, wrt=wrt, num_threads=2)
        np.testing.assert_array_equal(layer.weight, table, case.name)
        if wrt is None:
            np.testing.assert_array_equal(result, grads.per_sample_weights)
        else:
            assert result is None


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn", "max", "min"])
@pytest.mark.parametrize("invalid", ["skip", 3])
def test_update_has_the_options_of_the_layer(mode, invalid):
    table = np.random.default_rng(0).standard_normal((10, 3))
    options = {"mode": mode, "default_idx": -1, "invalid": invalid, "normalize": True}
    options |= {"padding_idx": 5, "include_last_offset": True}
    options |= {"scale_grad_by_freq": mode not in ("max", "min")}
    offsets = np.append(FAULTY_OFFSETS, len(FAULTY))
    layers = [embag.EmbeddingBag.from_pretrained(table.copy(), **options) for _ in range(2)]
    grad_output = np.arange(12.0).reshape(4, 3)
    embag.optim.SGD(layers[0].weight, 0.5).step(
        layers[0].backward(grad_output, FAULTY, offsets).weight
    )
    optimizer = embag.optim.SGD(layers[1].weight, 0.5)
    given = {}
    if mode in ("max", "min"):
        given["max_indices"] = layers[1](FAULTY, offsets, return_max_indices=True)[1]
    assert layers[1].update(grad_output, FAULTY, offsets, optimizer=optimizer, **given) is None
    np.testing.assert_array_equal(layers[1].weight, layers[0].weight)
    assert (layers[1].weight != table).any()
    assert optimizer.n_steps == 1


def test_update_needs_an_optimizer_of_the_weight():
    layer = embag.EmbeddingBag(10, 3, rng=0)
    other = embag.optim.SGD(layer.weight.copy(), 1)
    for optimizer, error, message in (
        (other, ValueError, "optimizer must be made for the layer's weight, got one of another"),
        (None, TypeError, "optimizer must be an Optimizer of embag.optim, got None"),
    ):
        with pytest.raises(error, match=message):
            layer.update(np.ones((2, 3)), IDS, OFFSETS, optimizer=optimizer)
    assert other.n_steps == 0


def test_max_norm_scales_the_table_in_place():
    table = np.full((10, 4), 3.0)
    layer = embag.EmbeddingBag.from_pretrained(table, max_norm=1, norm_type=np.inf)
    layer([[1, 2]])
    np.testing.assert_allclose(table[1:3], 1.0, rtol=1e-7)
    assert (table[3:] == 3).all()


def test_the_constructor_has_the_arguments_of_torch():
    parameters = list(inspect.signature(embag.EmbeddingBag).parameters.values())
    assert [(p.name, p.default) for p in parameters[2:10]] == [
        ("max_norm", None),
        ("norm_type", 2.0),
        ("scale_grad_by_freq", False),
        ("mode", "mean"),
        ("sparse", False),
        ("_weight", None),
        ("include_last_offset", False),
        ("padding_idx", None),
    ]
    assert [p.name for p in parameters[:2]] == ["num_embeddings", "embedding_dim"]
    assert [(p.name, p.kind) for p in parameters[10:]] == [
        ("default_idx", inspect.Parameter.KEYWORD_ONLY),
        ("invalid", inspect.Parameter.KEYWORD_ONLY),
        ("normalize", inspect.Parameter.KEYWORD_ONLY),
        ("dtype", inspect.Parameter.KEYWORD_ONLY),
        ("rng", inspect.Parameter.KEYWORD_ONLY),
    ]


def test_attributes():
    layer = embag.EmbeddingBag(
        10, 3, 1, 3, True, "sum", True, None, True, -1, default_idx=-2, invalid=-3, normalize=True
    )
    assert vars(layer) | {"weight": None} == {
        "num_embeddings": 10,
        "embedding_dim": 3,
        "max_norm": 1.0,
        "norm_type": 3.0,
        "scale_grad_by_freq": True,
        "mode": "sum",
        "sparse": True,
        "include_last_offset": True,
        "padding_idx": 9,  # counted from the start, as torch does
        "default_idx": 8,
        "invalid": 7,
        "normalize": True,
        "weight": None,
    }
    layer.mode, layer.default_idx, layer.normalize = "mean", None, False  # the call reads them
    assert layer([9, 9, 1], [0, 2, 3]).tolist() == [[0] * 3, layer.weight[1].tolist()]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, "float32", "d", float])
def test_a_new_table_is_standard_normal(dtype):
    table = embag.EmbeddingBag(2000, 50, dtype=dtype, rng=1, padding_idx=3).weight
    assert table.shape == (2000, 50)
    assert table.dtype == dtype
    assert table.ctypes.data % 64 == 0
    assert not table[3].any()
    drawn = np.delete(table, 3, axis=0).astype(np.float64)
    n = drawn.size
    # Five standard errors of the mean, and of the variance (2 / n for a normal variate).
    assert abs(drawn.mean()) < 5 / np.sqrt(n)
    assert abs(drawn.var() - 1) < 5 * np.sqrt(2 / n)


def test_a_seed_repeats_a_table_and_a_generator_does_not():
    first, second = (embag.EmbeddingBag(5, 4, rng=7).weight for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (embag.EmbeddingBag(5, 4).weight != embag.EmbeddingBag(5, 4).weight).any()
    generator = np.random.default_rng(7)
    tables = [embag.EmbeddingBag(5, 4, rng=generator).weight for _ in range(2)]
    np.testing.assert_array_equal(tables[0], first)
    assert (tables[0] != tables[1]).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_tables_may_be_empty(shape):
    layer = embag.EmbeddingBag(*shape)
    assert layer.weight.shape == shape
    assert layer(np.zeros((2, 0), int)).shape == (2, shape[1])


def test_from_pretrained_shares_memory_and_keeps_the_padding_row():
    table = np.ones((6, 4), np.float32)
    for given in (table, table[::2], table[:, 1:3], np.asfortranarray(table)):
        layer = embag.EmbeddingBag.from_pretrained(given, padding_idx=0)
        assert layer.weight is given
        assert (layer.num_embeddings, layer.embedding_dim) == given.shape
        assert given[0].all()
    assert embag.EmbeddingBag(6, 4, _weight=table).weight is table
    table.flags.writeable = False
    assert embag.EmbeddingBag.from_pretrained(table)([[1]]).tolist() == [[1] * 4]


def test_freeze_is_refused():
    with pytest.raises(TypeError, match="positional argument"):
        embag.EmbeddingBag.from_pretrained(np.ones((2, 2)), True)
    with pytest.raises(TypeError, match="freeze"):
        embag.EmbeddingBag.from_pretrained(np.ones((2, 2)), freeze=True)


def test_constructors_of_subclasses():
    class Words(embag.EmbeddingBag):
        pass

    layer = Words.from_pretrained(np.ones((2, 3), np.float32))
    assert type(layer) is Words
    assert repr(layer) == "Words(2, 3, mode='mean')"


def test_calling_a_layer_is_its_forward():
    class Doubled(embag.EmbeddingBag):
        def forward(self, *arguments, **options):
            return 2 * super().forward(*arguments, **options)

    assert Doubled.from_pretrained(np.ones((2, 3), np.float32))([0], [0]).tolist() == [[2, 2, 2]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "EmbeddingBag(10, 3, mode='mean')"),
        ({"mode": "sum", "sparse": True}, "EmbeddingBag(10, 3, mode='sum')"),
        ({"max_norm": 0.5}, "EmbeddingBag(10, 3, max_norm=0.5, mode='mean')"),
        ({"norm_type": 1.0}, "EmbeddingBag(10, 3, norm_type=1.0, mode='mean')"),
        (
            {
                "max_norm": np.float32(2),
                "norm_type": np.inf,
                "scale_grad_by_freq": True,
                "padding_idx": -1,
            },
            "EmbeddingBag(10, 3, max_norm=2.0, norm_type=inf, scale_grad_by_freq=True, "
            "mode='mean', padding_idx=9)",
        ),
        ({"padding_idx": 0, "mode": "max"}, "EmbeddingBag(10, 3, mode='max', padding_idx=0)"),
        (
            {"default_idx": -1, "invalid": np.int8(-2), "normalize": np.True_},
            "EmbeddingBag(10, 3, mode='mean', default_idx=9, invalid=8, normalize=True)",
        ),
        (
            {"default_idx": 0, "invalid": "skip"},
            "EmbeddingBag(10, 3, mode='mean', default_idx=0, invalid='skip')",
        ),
    ],
)
def test_repr_is_that_of_torch(options, expected):
    assert repr(embag.EmbeddingBag(10, 3, **options)) == expected


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
def test_pickles_and_deep_copies_hold_the_table(duplicate):
    layer = embag.EmbeddingBag(
        10, 3, max_norm=2.0, mode="sum", padding_idx=-2, default_idx=1, invalid=3, normalize=True
    )
    twin = duplicate(layer)
    assert vars(twin) | {"weight": None} == vars(layer) | {"weight": None}
    np.testing.assert_array_equal(twin.weight, layer.weight)
    np.testing.assert_array_equal(twin(IDS, OFFSETS), layer(IDS, OFFSETS))
    twin.weight[:] = 0
    assert layer.weight.any()
    # Two layers with one table share it after the copy.
    tied = duplicate([layer, embag.EmbeddingBag.from_pretrained(layer.weight)])
    assert tied[0].weight is tied[1].weight


def test_a_shallow_copy_shares_the_table():
    layer = embag.EmbeddingBag(10, 3)
    assert copy.copy(layer).weight is layer.weight


def test_many_threads_may_call_one_layer(eager_threads):
    layer = embag.EmbeddingBag(500, 32, mode="sum", rng=0)
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 500, 300), np.arange(0, 300, 10)) for _ in range(8)]
    pooled = [layer(*batch) for batch in batches]
    grads = [layer.backward(p, *batch).weight for p, batch in zip(pooled, batches, strict=True)]

    def work(i):
        result = layer(*batches[i % 8], num_threads=1 + i % 3)
        return i % 8, result, layer.backward(result, *batches[i % 8], num_threads=1 + i % 3).weight

    with ThreadPoolExecutor(8) as pool:
        for i, result, grad in pool.map(work, range(200)):
            np.testing.assert_array_equal(result, pooled[i])
            np.testing.assert_array_equal(grad, grads[i])


def make(*shape, **options):
    return lambda: embag.EmbeddingBag(*(shape or (10, 3)), **options)


READ_ONLY = np.broadcast_to(np.float32(0), (10, 3))
TABLE_KINDS = "must be float32 or float64 in native byte order"

ERRORS = [
    (make(1.0, 3), TypeError, "num_embeddings must be an integer, got 1.0"),
    (make(True, 3), TypeError, "num_embeddings must be an integer, got True"),
    (make(-1, 3), ValueError, "num_embeddings must be at least 0, got -1"),
    (make(10, None), TypeError, "embedding_dim must be an integer, got None"),
    (make(10, "3"), TypeError, "embedding_dim must be an integer, got '3'"),
    (make(10, -(2**70)), ValueError, "embedding_dim must be at least 0, got an integer of 71 bits"),
    (make(max_norm=-1), ValueError, "max_norm must be at least 0, got -1.0"),
    (make(max_norm="1"), TypeError, "max_norm must be a number, got '1'"),
    (
        make(max_norm=1, _weight=READ_ONLY),
        ValueError,
        "weight must be writeable where max_norm is given, got a read-only array",
    ),
    (make(norm_type=0), ValueError, "norm_type must be greater than 0, got 0.0"),
    (make(norm_type=None), TypeError, "norm_type must be a number, got None"),
    (make(scale_grad_by_freq=1), TypeError, "scale_grad_by_freq must be a bool, got 1"),
    (make(sparse=None), TypeError, "sparse must be a bool, got None"),
    (make(include_last_offset="no"), TypeError, "include_last_offset must be a bool, got 'no'"),
    (
        make(mode="avg"),
        ValueError,
        "mode must be 'sum', 'mean', 'sqrtn', 'max' or 'min', got 'avg'",
    ),
    (
        make(mode="max", sparse=True),
        ValueError,
        "sparse must be False where mode is 'max', got True",
    ),
    (
        make(mode="max", scale_grad_by_freq=True),
        ValueError,
        "scale_grad_by_freq must be False where mode is 'max', got True",
    ),
    (make(padding_idx=10), ValueError, "padding_idx must name one of weight's 10 rows, got 10"),
    (make(padding_idx=-11), ValueError, "padding_idx must name one of weight's 10 rows, got -11"),
    (make(padding_idx=1.0), TypeError, "padding_idx must be an integer, got 1.0"),
    (make(default_idx=10), ValueError, "default_idx must name one of weight's 10 rows, got 10"),
    (make(default_idx="0"), TypeError, "default_idx must be an integer, got '0'"),
    (make(invalid=10), ValueError, "invalid must name one of weight's 10 rows, got 10"),
    (make(invalid=True), ValueError, "invalid must be 'raise', 'skip' or a row, got True"),
    (make(invalid=None), ValueError, "invalid must be 'raise', 'skip' or a row, got None"),
    (make(normalize=1), TypeError, "normalize must be a bool, got 1"),
    (make(_weight=[[1.0]]), TypeError, "_weight must be a numpy.ndarray, got list"),
    (make(_weight=np.ones((10, 3), int)), TypeError, f"_weight {TABLE_KINDS}, got int64"),
    (make(_weight=np.ones(3)), ValueError, "_weight must be 2-D (n_rows, dim), got shape (3,)"),
    (make(_weight=np.ones((3, 10))), ValueError, "_weight must have shape (10, 3), got (3, 10)"),
    (make(dtype=int), TypeError, f"dtype {TABLE_KINDS}, got int64"),
    (make(dtype=f"{SWAPPED}f4"), TypeError, f"dtype {TABLE_KINDS}, got {SWAPPED}f4"),
    (make(dtype=np.float16), TypeError, f"dtype {TABLE_KINDS}, got float16"),
    (make(dtype=None), TypeError, f"dtype {TABLE_KINDS}, got None"),
    (make(dtype="real"), TypeError, f"dtype {TABLE_KINDS}, got 'real'"),
    (make(rng="abc"), TypeError, "rng must be valid for numpy.random.default_rng, got 'abc'"),
    (make(rng=-1), ValueError, "rng must be valid for numpy.random.default_rng, got -1"),
    (
        lambda: embag.EmbeddingBag.from_pretrained([[1.0]]),
        TypeError,
        "embeddings must be a numpy.ndarray, got list",
    ),
    (
        lambda: embag.EmbeddingBag.from_pretrained(np.ones((2, 2), np.float16)),
        TypeError,
        f"embeddings {TABLE_KINDS}, got {NATIVE}f2",
    ),
    (
        lambda: embag.EmbeddingBag.from_pretrained(np.ones((2, 2)), padding_idx=2),
        ValueError,
        "padding_idx must name one of weight's 2 rows, got 2",
    ),
    # Errors of the call.
    (
        lambda: embag.EmbeddingBag(10, 3)([1, 10], [0]),
        IndexError,
        "input[1] = 10 is out of range for a table of 10 rows (bag 0)",
    ),
    (
        lambda: embag.EmbeddingBag(10, 3).backward([[1, 2, 3]], [1, 10], [0]),
        IndexError,
        "input[1] = 10 is out of range for a table of 10 rows (bag 0)",
    ),
    (
        lambda: embag.EmbeddingBag(10, 3, mode="max")([1], [0], [1.0]),
        ValueError,
        "per_sample_weights must be None where mode is 'max', got list",
    ),
]


@pytest.mark.parametrize(("failing", "kind", "message"), ERRORS, ids=[e[2] for e in ERRORS])
def test_error(failing, kind, message):
    with pytest.raises(kind) as caught:
        failing()
    assert str(caught.value) == message
    assert type(caught.value) is kind


def test_tables_too_large_for_memory_are_memory_errors():
    with pytest.raises(MemoryError):
        embag.EmbeddingBag(2**50, 2**10)
