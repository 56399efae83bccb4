"""Weighted means, sqrtn, minima; rows that stand in, defaults, counts, and lengths of one.

Bits are those of tests/support/reference.py. The literals are what TensorFlow's
`embedding_lookup_sparse` and `numpy.average` give.
"""

import itertools

import numpy as np
import pytest
import reference

import embag

TABLE = np.arange(1, 13, dtype=np.float32).reshape(4, 3)  # rows 1 2 3, 4 5 6, 7 8 9, 10 11 12
IDS = np.array([0, 1, 3, 2, 2, 9, 0])
OFFSETS = np.array([0, 2, 2, 5, 6])  # the bags 0 1; none; 3 2 2; 9; 0
N_BAGS = 5


def lookup(**options):
    return embag.embedding_bag(IDS, TABLE, OFFSETS, **{"invalid": "skip", **options})


# --- Literals -----------------------------------------------------------------


def test_weighted_mean():
    weights = np.array([1, 3, 1, 1, 2, 5, -2], np.float32)
    rows = np.average(TABLE[[0, 1]], axis=0, weights=[1, 3])
    found = lookup(mode="mean", per_sample_weights=weights)
    assert found[0].tolist() == rows.tolist() == [3.25, 4.25, 5.25]
    assert found[2].tolist() == [7.75, 8.75, 9.75]
    assert found[4].tolist() == TABLE[0].tolist()
    assert not found[[1, 3]].any()


def test_sqrtn():
    found = lookup(mode="sqrtn")
    np.testing.assert_allclose(found[0], (TABLE[0] + TABLE[1]) / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(found[2], (TABLE[3] + 2 * TABLE[2]) / np.sqrt(3), rtol=1e-6)
    weights = np.array([3, 4, 1, 0, 0, 1, 0], np.float32)
    found = lookup(mode="sqrtn", per_sample_weights=weights)
    np.testing.assert_allclose(found[0], (3 * TABLE[0] + 4 * TABLE[1]) / 5, rtol=1e-6)
    assert found[2].tolist() == TABLE[3].tolist()
    assert not found[4].any()  # the divisor is 0


def test_weights_that_cancel_out_give_zeros():
    for mode in ("mean", "sqrtn"):
        weights = np.array([1, -1, 0, 0, 0, 0, 0], np.float32)
        found = lookup(mode=mode, per_sample_weights=weights, default_idx=1)
        assert found[0].any() == (mode == "sqrtn")
        assert not found[2].any()  # zeros, not the default: there are entries that count
        assert found[1].tolist() == TABLE[1].tolist()


def test_min():
    found, winners, n_valid = lookup(mode="min", return_max_indices=True, return_n_valid=True)
    assert found[[0, 2]].tolist() == TABLE[[0, 2]].tolist()
    assert winners.tolist() == [[0] * 3, [-1] * 3, [2] * 3, [-1] * 3, [0] * 3]
    assert n_valid.tolist() == [2, 0, 3, 0, 1]
    assert not found[[1, 3]].any()


def test_the_first_of_equals_and_the_first_nan_win():
    table = np.array([[0.0, np.nan], [-0.0, 1.0], [0.0, np.nan]], np.float32)
    found, winners = embag.embedding_bag([[1, 0, 2]], table, mode="min", return_max_indices=True)
    assert np.signbit(found[0, 0])
    assert np.isnan(found[0, 1])
    assert winners.tolist() == [[1, 0]]


@pytest.mark.parametrize("offsets", [[0, 9, 3], [0, 3, 2], [0, 2, 9], [1, 2, 3]])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_offsets_of_winners_are_checked(offsets, n_threads, eager_threads, level):
    table, ids = np.ones((4, 40), np.float32), np.arange(4)
    for mode in ("max", "min"):
        with pytest.raises(ValueError, match=r"^offsets must "):
            embag.embedding_bag(
                *(ids, table, np.array(offsets)),
                mode=mode,
                return_max_indices=True,
                num_threads=n_threads,
            )


def test_order_of_results():
    result, winners, n_invalid, n_valid = lookup(
        mode="max", return_max_indices=True, return_n_invalid=True, return_n_valid=True
    )
    assert (result.shape, winners.shape, n_invalid) == ((N_BAGS, 3), (N_BAGS, 3), 1)
    assert (n_valid.dtype, n_valid.tolist()) == (np.int64, [2, 0, 3, 0, 1])


def test_a_row_that_stands_in():
    result, n_invalid, n_valid = lookup(
        mode="sum", invalid=-1, return_n_invalid=True, return_n_valid=True
    )
    assert result[3].tolist() == TABLE[3].tolist()
    assert (n_invalid, n_valid.tolist()) == (1, [2, 0, 3, 1, 1])
    weights = np.array([1, 1, 1, 1, 1, 2, 1], np.float32)
    found = lookup(mode="sum", invalid=1, per_sample_weights=weights)
    assert found[3].tolist() == (2 * TABLE[1]).tolist()
    # It is left out if it is the padding row.
    result, n_valid = lookup(mode="sum", invalid=1, padding_idx=1, return_n_valid=True)
    assert not result[3].any()
    assert n_valid.tolist() == [1, 0, 3, 0, 1]


def test_a_default_row():
    for mode in ("sum", "mean", "sqrtn", "max", "min"):
        found, n_valid = lookup(mode=mode, default_idx=2, padding_idx=2, return_n_valid=True)
        assert found[[1, 3]].tolist() == TABLE[[2, 2]].tolist()
        assert n_valid.tolist() == [2, 0, 1, 0, 1]
    _, winners = lookup(mode="max", default_idx=-1, return_max_indices=True)
    assert winners[[1, 3]].tolist() == [[3] * 3] * 2


def test_normalize():
    found = lookup(mode="sum", normalize=True)
    norms = np.linalg.norm(found.astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, [1, 0, 1, 0, 1], rtol=1e-6)
    expected = lookup(mode="sum")[0].astype(np.float64)
    assert found[0].tolist() == (expected / np.linalg.norm(expected)).astype(np.float32).tolist()
    half = lookup(mode="sum", normalize=True, out_dtype=np.float16)
    assert half.tobytes() == found.astype(np.float16).tobytes()


def test_max_norm_scales_the_rows_that_are_used():
    for options, used in (
        ({"invalid": 3}, [0, 1, 2, 3]),
        ({"default_idx": 3}, [0, 1, 2, 3]),
        ({}, [0, 1, 2]),
    ):
        table = TABLE.copy()
        ids, offsets = [0, 1, 2, 9], [0, 3]
        embag.embedding_bag(ids, table, offsets, max_norm=1, **{"invalid": "skip", **options})
        norms = np.linalg.norm(table, axis=1)
        assert np.flatnonzero(norms < 1.001).tolist() == used
    table = TABLE.copy()
    embag.embedding_bag([0], table, [0], max_norm=1, invalid=2, default_idx=3)
    assert np.flatnonzero(np.linalg.norm(table, axis=1) < 1.001).tolist() == [0]


# --- Bits, for all combinations ------------------------------------------------

MODES = ("sum", "mean", "sqrtn", "max", "min")


def tables(dim):
    floats = np.random.default_rng(dim).standard_normal((50, dim)).astype(np.float32)
    floats[7, 0] = np.nan
    yield floats, floats
    yield floats.astype(np.float64), floats.astype(np.float64)
    half = floats.astype(np.float16)
    yield half, half.astype(np.float32)
    finite = np.nan_to_num(floats)
    for bits in (8, 4, 2):
        quantized = embag.quantize(finite, bits)
        yield quantized, quantized


@pytest.mark.parametrize("dim", [1, 65, 300])
@pytest.mark.parametrize("mode", MODES)
def test_bits(mode, dim, level, eager_threads):
    rng = np.random.default_rng(1)
    ids = rng.integers(-3, 53, 80)
    offsets = np.sort(rng.integers(0, 81, 20))
    offsets[0], offsets[10:13] = 0, offsets[10]
    floats = rng.standard_normal(80).astype(np.float32)
    for table, defined in tables(dim):
        define = reference.embedding_bag
        if isinstance(table, embag.QuantizedTable):
            define = reference.quantized_embedding_bag
        for weights, padding, invalid, default, normalize in itertools.product(
            (None, floats), (None, 4), ("skip", 7, -1), (None, 3, 4), (False, True)
        ):
            if weights is not None and mode in ("max", "min"):
                continue
            options = {
                "mode": mode,
                "per_sample_weights": weights,
                "padding_idx": padding,
                "invalid": invalid,
                "default_idx": default,
                "normalize": normalize,
            }
            expected, winners = define(ids, defined, offsets, **options)
            for n_threads in (1, 3):
                found = embag.embedding_bag(ids, table, offsets, num_threads=n_threads, **options)
                np.testing.assert_array_equal(found, expected)
            if mode in ("max", "min"):
                _, found = embag.embedding_bag(
                    ids, table, offsets, return_max_indices=True, **options
                )
                np.testing.assert_array_equal(found, winners)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_collections(n_threads, eager_threads):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((20, 5)).astype(np.float32)
    b = embag.quantize(rng.standard_normal((30, 8)).astype(np.float32))
    options = {
        "x": {"mode": "sqrtn", "default_idx": 3},
        "y": {"mode": "min", "invalid": 2},
        "z": {"mode": "mean", "normalize": True, "padding_idx": 0, "invalid": "skip"},
        "w": {"mode": "mean", "default_idx": -1, "invalid": "skip"},
    }
    names = {"x": "a", "y": "b", "z": "b", "w": "a"}
    features = [embag.Feature(name, names[name], **given) for name, given in options.items()]
    tables = {"a": a, "b": b}
    collection = embag.EmbeddingBagCollection(tables, features)
    sizes = rng.integers(0, 4, 12)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    values = {}
    for name in names:
        low, high = (0, 20) if name == "x" else (-2, 33)
        values[name] = (rng.integers(low, high, sizes.sum()), offsets)
    weights = {"z": rng.standard_normal(sizes.sum()).astype(np.float32)}
    expected, counts = [], []
    for name, given in options.items():
        result, n_valid = embag.embedding_bag(
            values[name][0],
            tables[names[name]],
            offsets,
            per_sample_weights=weights.get(name),
            return_n_valid=True,
            **given,
        )
        expected.append(result)
        counts.append(n_valid)
    found, n_valid = collection(values, None, weights, return_n_valid=True, num_threads=n_threads)
    assert found.tobytes() == np.concatenate(expected, axis=1).tobytes()
    assert n_valid.tolist() == np.stack(counts, axis=1).tolist()
    assert found.tobytes() == collection(values, None, weights, num_threads=n_threads).tobytes()
    assert collection.n_invalid["x"] == 0
    assert collection.n_invalid["y"] == 2 * int(
        ((values["y"][0] < 0) | (values["y"][0] >= 30)).sum()
    )


# --- Ragged inputs -------------------------------------------------------------


def test_lists():
    lists = [part.tolist() for part in np.split(IDS, OFFSETS[1:])]
    for mode in MODES:
        options = {"mode": mode, "invalid": 1, "default_idx": 2, "normalize": True}
        result, n_valid = embag.embedding_bag(lists, TABLE, return_n_valid=True, **options)
        expected, counts = embag.embedding_bag(IDS, TABLE, OFFSETS, return_n_valid=True, **options)
        assert result.tobytes() == expected.tobytes()
        assert n_valid.tolist() == counts.tolist()


def test_the_mean_of_a_matrix_is_weighted():
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.csr_matrix(np.array([[1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 2, 1]], np.float32))
    found = embag.embedding_bag(matrix, TABLE, mode="mean")
    assert found.tolist() == [[3.25, 4.25, 5.25], [0, 0, 0], [8, 9, 10]]
    plain = embag.embedding_bag(matrix.indices, TABLE, matrix.indptr, include_last_offset=True)
    assert plain[0].tolist() == [2.5, 3.5, 4.5]
    found = embag.embedding_bag(matrix, TABLE, mode="max")
    assert found[0].tolist() == TABLE[1].tolist()


# --- Errors --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"invalid": True}, ValueError, "invalid must be 'raise', 'skip' or a row, got True"),
        ({"invalid": 4}, ValueError, "invalid must name one of weight's 4 rows, got 4"),
        ({"invalid": 1.0}, ValueError, "invalid must be 'raise', 'skip' or a row, got 1.0"),
        ({"default_idx": -5}, ValueError, "default_idx must name one of weight's 4 rows, got -5"),
        ({"default_idx": "0"}, TypeError, "default_idx must be an integer, got '0'"),
        ({"normalize": 1}, TypeError, "normalize must be a bool, got 1"),
        ({"return_n_valid": 1}, TypeError, "return_n_valid must be a bool, got 1"),
        (
            {"mode": "min", "sparse": True},
            ValueError,
            "sparse must be False where mode is 'min', got True",
        ),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error) as caught:
        lookup(**options)
    assert str(caught.value) == message


def test_out_is_not_written_by_a_call_that_raises():
    out = np.full((N_BAGS, 3), 7, np.float32)
    with pytest.raises(IndexError):
        embag.embedding_bag(IDS, TABLE, OFFSETS, default_idx=0, out=out)
    assert (out == 7).all()
