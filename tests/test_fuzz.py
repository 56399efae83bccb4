"""Malformed arguments of every kind raise documented exceptions, and nothing else."""

import decimal
import warnings

import numpy as np
import pytest

import embag

DOCUMENTED = (TypeError, ValueError, IndexError, MemoryError, RuntimeError)
N_CALLS = 6000


class HasArray:
    def __init__(self, result):
        self.result = result

    def __array__(self, dtype=None, copy=None):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def odd_values(rng):
    """One of everything that is none of the arguments."""
    array = np.arange(6)
    return [
        None, True, False, 0, 1, -1, 2**31, -(2**63), 2**63, 2**64, 10**400, 0.5, -0.0,
        float("nan"), float("inf"), 1j, "", "sum", "x" * 1000, b"ab", (), [], {}, {1: 2}, set(),
        range(3), object(), type, np, lambda: None, decimal.Decimal(1), slice(1), ...,
        array, array[::-1], array[::2], array.astype(np.float32), array.astype(">i4"), array > 2,
        array.astype(np.uint64) + 2**63, array.astype(object), array.astype("U3"), array + 1j,
        array.astype("m8[s]"), np.array(3), np.array([]), np.zeros((0, 0)), np.zeros((2, 0, 3)),
        np.zeros((3, 4), np.float32), np.zeros((3, 4), np.float32).T, np.zeros(3, "f4,i8"),
        np.ma.masked_array([1, 2], [True, False]), np.ones((1, 2)),
        np.broadcast_to(np.float32(1), (2**40, 2**10)), np.broadcast_to(np.int64(1), 2**58)[:9],
        np.longdouble(1), np.float16([1, 2]), np.datetime64("2020"), np.bool_(True), np.int8(-1),
        HasArray(array), HasArray("no array"), HasArray(KeyError("no")),
        [[1], [1, 2]], [1, "a"], [None], [[]], [1.5], [2**70], memoryview(b"abc"), bytearray(4),
        rng.integers(-2, 12, rng.integers(0, 9)), rng.integers(0, 10, (2, 3)).astype(np.int32),
        np.sort(rng.integers(0, 9, rng.integers(0, 9))),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_any_argument_may_be_anything(seed):
    rng = np.random.default_rng(seed)
    weight = np.random.default_rng(0).random((10, 17), dtype=np.float32)
    original = weight.copy()
    names = [
        "input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode",
        "sparse", "per_sample_weights", "include_last_offset", "padding_idx", "out",
        "return_max_indices", "num_threads",
    ]  # fmt: skip
    outcomes = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of some conversions before it fails
        for _ in range(N_CALLS // 4):
            call = {
                "input": rng.integers(0, 10, 8),
                "weight": weight,
                "offsets": np.array([0, 3, 3]),
                "mode": ["sum", "mean", "max"][rng.integers(3)],
            }
            for name in rng.choice(names, rng.integers(1, 4), replace=False):
                values = odd_values(rng)
                call[name] = values[rng.integers(len(values))]
            if call.get("max_norm") is not None and call["weight"] is weight:
                call["weight"] = weight.copy()
            try:
                embag.embedding_bag(**call)
                outcome = "result"
            except DOCUMENTED as error:
                outcome = type(error).__name__
                assert str(error), call
                assert "Buffer" not in str(error), error
                assert "has incorrect type" not in str(error), error
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    np.testing.assert_array_equal(weight, original)
    assert {"result", "TypeError", "ValueError"} <= set(outcomes)


def test_any_integers_may_be_offsets_and_indices(level, eager_threads):
    rng = np.random.default_rng(0)
    table = rng.random((50, 33), dtype=np.float32)
    extremes = np.array([0, 1, -1, 49, 50, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)])
    outcomes = set()
    for _ in range(1500):
        n = rng.integers(0, 40)
        input = rng.integers(0, 50, n)
        offsets = np.sort(rng.integers(0, n + 1, rng.integers(0, 12)))
        if rng.random() < 0.7:
            offsets[:1] = 0
        if n and rng.random() < 0.3:
            input[rng.integers(n)] = rng.choice(extremes)
        if len(offsets) and rng.random() < 0.3:
            offsets[rng.integers(len(offsets))] = rng.choice(extremes)
        try:
            embag.embedding_bag(
                input,
                table,
                offsets,
                mode=["sum", "mean", "max"][rng.integers(3)],
                include_last_offset=bool(rng.integers(2)),
                num_threads=int(rng.integers(1, 9)),
            )
            outcomes.add("result")
        except (ValueError, IndexError) as error:
            outcomes.add(type(error).__name__)
    assert outcomes == {"result", "ValueError", "IndexError"}
