"""`invalid="skip"`: ids out of range are skipped like padding, and counted."""

import pickle
import re
from itertools import product

import numpy as np
import pytest
import reference
from cases import (
    CASES,
    NARROW_FLOATS,
    QUANTIZED,
    REDUCTIONS,
    assert_same_bits,
    call_arguments,
    low_precision_table,
)

import embag
from embag import EmbeddingBagCollection, Feature

_FAR = [-1, -(2**31), 2**31 - 1, 2**31, 2**32, -(2**63), 2**63 - 1]


def invalidate(input, n_rows, seed=0):
    """Return a copy in which about a third of the ids are out of range."""
    rng = np.random.default_rng(seed)
    info = np.iinfo(input.dtype)
    far = [id for id in [*_FAR, n_rows, n_rows + 1] if info.min <= id <= info.max]
    bad = rng.choice(np.array(far, input.dtype), input.shape)
    return np.where(rng.random(input.shape) < 1 / 3, bad, input)


def count_invalid(input, n_rows, offsets, include_last_offset=False):
    flat = input.reshape(-1)
    used = flat[: offsets[-1]] if include_last_offset else flat
    return int(np.count_nonzero((used < 0) | (used >= n_rows)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reference_bits(case, dtype, reduction, level, eager_threads):
    for index_dtype, n_threads in product((np.int32, np.int64), (1, 3, 8)):
        (input, table, offsets), options = call_arguments(case, reduction, dtype, index_dtype)
        input = invalidate(input, len(table))
        as_given = input.copy()
        options["invalid"] = "skip"
        expected, rows = reference.embedding_bag(input, table, offsets, **options)
        include_last_offset = options.get("include_last_offset", False)
        n_invalid = count_invalid(input, len(table), offsets, include_last_offset)
        options |= {"num_threads": n_threads, "return_n_invalid": True}
        result, n_skipped = embag.embedding_bag(input, table, offsets, **options)
        assert_same_bits(result, expected)
        assert (type(n_skipped), n_skipped) == (int, n_invalid)
        if reduction == "max":
            result, max_indices, n_skipped = embag.embedding_bag(
                input, table, offsets, return_max_indices=True, **options
            )
            assert_same_bits(result, expected)
            np.testing.assert_array_equal(max_indices, rows)
            assert n_skipped == n_invalid
        np.testing.assert_array_equal(input, as_given)


@pytest.mark.parametrize("kind", [*NARROW_FLOATS, *QUANTIZED])
@pytest.mark.parametrize("dim", [1, 37, 600])
def test_low_precision_tables(kind, dim, level, eager_threads):
    table = low_precision_table(kind, 40, dim)
    rng = np.random.default_rng(1)
    lengths = [*rng.integers(0, 70, 12), 0, 1]
    input = invalidate(rng.integers(0, 40, sum(lengths)), 40)
    offsets = np.cumsum(lengths) - lengths
    weights = rng.standard_normal(len(input)).astype(np.float32)
    for reduction, n_threads in product(REDUCTIONS, (1, 4)):
        options = {"mode": "sum" if reduction == "weighted" else reduction, "invalid": "skip"}
        options["padding_idx"] = 2
        if reduction == "weighted":
            options["per_sample_weights"] = weights
        if kind in QUANTIZED:
            expected, _ = reference.quantized_embedding_bag(input, table, offsets, **options)
        else:
            floats = table.astype(np.float32)
            expected, rows = reference.embedding_bag(input, floats, offsets, **options)
        options |= {"num_threads": n_threads, "return_n_invalid": True}
        result, n_skipped = embag.embedding_bag(input, table, offsets, **options)
        assert_same_bits(result, expected)
        assert n_skipped == count_invalid(input, 40, offsets)
        if reduction == "max":
            result, max_indices, n_skipped = embag.embedding_bag(
                input, table, offsets, return_max_indices=True, **options
            )
            assert_same_bits(result, expected)
            assert n_skipped == count_invalid(input, 40, offsets)
            assert (max_indices[-2] == -1).all()
            if kind not in QUANTIZED:
                np.testing.assert_array_equal(max_indices, rows)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_bursts_and_bags_of_one_row(dtype, level, eager_threads):
    # Above 16 MiB rows are prefetched in bursts, and bags of one row have a separate loop.
    rng = np.random.default_rng(4)
    n_rows = 140_000
    table = rng.random((n_rows, 64), np.float32).astype(dtype)
    floats = table.astype(np.float32)
    for lengths in (np.ones(400, int), rng.geometric(0.03, 60) - 1):
        input = invalidate(rng.integers(0, n_rows, lengths.sum()), n_rows)
        offsets = np.cumsum(lengths) - lengths
        for mode in ("sum", "mean", "sqrtn", "max", "min"):
            expected, _ = reference.embedding_bag(input, floats, offsets, mode=mode, invalid="skip")
            for n_threads in (1, 3):
                result = embag.embedding_bag(
                    input, table, offsets, mode=mode, invalid="skip", num_threads=n_threads
                )
                assert_same_bits(result, expected)


def test_bags_of_invalid_ids_are_zeros(level):
    table = np.full((3, 40), np.nan, np.float32)
    for mode in ("sum", "mean", "sqrtn", "max", "min"):
        result = embag.embedding_bag([[3, -1], [7, 2**62]], table, mode=mode, invalid="skip")
        np.testing.assert_array_equal(result, np.zeros((2, 40)))
        nothing = embag.embedding_bag([[0, -1]], table[:0], mode=mode, invalid="skip")
        np.testing.assert_array_equal(nothing, np.zeros((1, 40)))


@pytest.mark.parametrize(
    ("dtype", "far"), [(np.uint64, 2**64 - 1), (np.uint32, 2**32 - 1), (np.int8, -128)]
)
def test_ids_of_other_dtypes(dtype, far):
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    result, n_invalid = embag.embedding_bag(
        np.array([[1, far, 2]], dtype), table, mode="sum", invalid="skip", return_n_invalid=True
    )
    np.testing.assert_array_equal(result, [[6, 8]])
    assert n_invalid == 1


def test_out_and_max_norm():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((20, 8)).astype(np.float32)
    input = invalidate(rng.integers(0, 20, (6, 5)), 20)
    for reference_table in (table.copy(), np.asfortranarray(table)):
        scaled = table.copy()
        expected, _ = reference.embedding_bag(input, scaled, max_norm=0.5, invalid="skip")
        out = np.empty((6, 8), np.float32)
        result, n_invalid = embag.embedding_bag(
            input, reference_table, max_norm=0.5, out=out, invalid="skip", return_n_invalid=True
        )
        assert result is out
        assert n_invalid == count_invalid(input, 20, None)
        np.testing.assert_allclose(result, expected, rtol=1e-6)
        np.testing.assert_allclose(reference_table, scaled, rtol=1e-6)


@pytest.mark.parametrize("row", [0, 2])
def test_max_norm_scales_the_row_that_stands_in(row):
    table = np.full((3, 4), 2, np.float32)  # of norm 4
    embag.embedding_bag([[1, 99]], table, max_norm=1, invalid=row)
    expected = np.full((3, 4), 2, np.float32)
    expected[[1, row]] = 0.5
    np.testing.assert_allclose(table, expected, rtol=1e-6)


def test_bad_offsets_are_errors():
    table = np.zeros((3, 2), np.float32)
    out = np.full((2, 2), 7, np.float32)
    for options in ({}, {"out": out}):
        with pytest.raises(ValueError, match=re.escape("offsets must not exceed the 2 entries")):
            embag.embedding_bag([0, 99], table, [0, 3], invalid="skip", **options)
    np.testing.assert_array_equal(out, 7)


def test_the_policy_is_checked():
    table = np.zeros((3, 2), np.float32)
    for wrong in ("ignore", None, True, 1.0, np.array("skip")):
        with pytest.raises(ValueError, match="invalid must be 'raise', 'skip' or a row, got"):
            embag.embedding_bag([[0]], table, invalid=wrong)
        with pytest.raises(ValueError, match="invalid must be 'raise' or 'skip', got"):
            EmbeddingBagCollection({"t": table}, [], invalid=wrong)
    with pytest.raises(TypeError, match="return_n_invalid must be a bool"):
        embag.embedding_bag([[0]], table, return_n_invalid=1)
    result = embag.embedding_bag([[0]], table, invalid="ra" + "ise", return_n_invalid=True)
    assert result[1] == 0
    with pytest.raises(IndexError, match="out of range"):
        embag.embedding_bag([[3]], table, return_n_invalid=True)


# --- Collections ----------------------------------------------------------------------


def collection():
    rng = np.random.default_rng(0)
    tables = {
        "items": rng.standard_normal((30, 16)).astype(np.float32),
        "wide": rng.standard_normal((50, 600)).astype(np.float16),
        "bytes": low_precision_table("fused8", 40, 20),
    }
    features = [
        Feature("clicked", "items"),
        Feature("bought", "items", "mean", 3),
        Feature("seen", "wide", "max"),
        Feature("shop", "bytes"),
    ]
    return tables, features


def requests(features, tables, n_bags, seed=0):
    """Return ids by feature, a third of them out of range, and the offsets of all."""
    rng = np.random.default_rng(seed)
    ids, lengths = [], []
    for i, feature in enumerate(features):
        n = rng.integers(0, 5, n_bags)
        n_rows = len(getattr(tables[feature.table], "packed", tables[feature.table]))
        ids.append(invalidate(rng.integers(0, n_rows, n.sum()), n_rows, seed + i))
        lengths.append(n)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return ids, lengths, offsets


@pytest.mark.parametrize("n_bags", [1, 7])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_collections_skip_and_count(n_bags, n_threads, level, eager_threads):
    tables, features = collection()
    ebc = EmbeddingBagCollection(tables, features, invalid="skip")
    assert ebc.invalid == "skip"
    ids, lengths, offsets = requests(features, tables, n_bags)
    columns, counts = [], []
    for feature, values, n in zip(features, ids, lengths, strict=True):
        result, n_invalid = embag.embedding_bag(
            values,
            tables[feature.table],
            np.cumsum(n) - n,
            mode=feature.mode,
            padding_idx=feature.padding_idx,
            invalid="skip",
            return_n_invalid=True,
        )
        columns.append(result)
        counts.append(n_invalid)
    assert sum(counts) > 0
    expected = np.hstack(columns)
    named = {
        feature.name: (values, np.cumsum(n) - n)
        for feature, values, n in zip(features, ids, lengths, strict=True)
    }
    lists = {name: (values.tolist(), bounds) for name, (values, bounds) in named.items()}
    all_ids = np.concatenate(ids)
    out = np.empty_like(expected)
    calls = [
        lambda: ebc(all_ids, offsets, num_threads=n_threads),
        lambda: ebc(all_ids, offsets, num_threads=n_threads, out=out),
        lambda: ebc(all_ids.tolist(), offsets, num_threads=n_threads),
        lambda: ebc(named, num_threads=n_threads),
        lambda: ebc(named, num_threads=n_threads, out=out),
        lambda: ebc(lists, num_threads=n_threads),
    ]
    for n_calls, call in enumerate(calls, start=1):
        assert_same_bits(call(), expected)
        assert ebc.n_invalid == {
            feature.name: n_calls * count for feature, count in zip(features, counts, strict=True)
        }


def test_ids_of_tables_without_columns_are_counted():
    tables = {"none": np.zeros((3, 0), np.float32), "one": np.ones((3, 1), np.float32)}
    result, n_invalid = embag.embedding_bag(
        [[0, 3, -1]], tables["none"], invalid="skip", return_n_invalid=True
    )
    assert (result.shape, n_invalid) == ((1, 0), 2)
    features = [Feature("a", "none"), Feature("b", "one")]
    ebc = EmbeddingBagCollection(tables, features, invalid="skip")
    for n_threads in (1, 2):
        result = ebc({"a": [[0, 3, -1]], "b": [[1, 2]]}, num_threads=n_threads)
        np.testing.assert_array_equal(result, [[2]])
    assert ebc.n_invalid == {"a": 4, "b": 0}


def test_calls_that_raise_are_not_counted():
    tables, features = collection()
    ebc = EmbeddingBagCollection(tables, features[:1], invalid="skip")
    out = np.full((2, 16), 7, np.float32)
    for options in ({}, {"out": out}):
        with pytest.raises(ValueError, match="offsets must not exceed the 2 entries of values"):
            ebc(np.array([99, 99]), np.array([0, 1, 3]), **options)
    np.testing.assert_array_equal(out, 7)
    assert ebc.n_invalid == {"clicked": 0}


def test_raising_collections_count_nothing():
    tables, features = collection()
    ebc = EmbeddingBagCollection(tables, features[:1])
    assert ebc.invalid == "raise"
    with pytest.raises(IndexError, match="feature 'clicked': ids"):
        ebc({"clicked": [[99]]})
    assert ebc.n_invalid == {"clicked": 0}


def test_a_copy_keeps_the_policy_and_starts_counting_at_zero():
    tables, features = collection()
    ebc = EmbeddingBagCollection(tables, features[:1], invalid="skip")
    ebc({"clicked": [[99]]})
    other = pickle.loads(pickle.dumps(ebc))
    assert (other.invalid, other.n_invalid) == ("skip", {"clicked": 0})
    other({"clicked": [[99]]})
    assert ebc.n_invalid == other.n_invalid == {"clicked": 1}
