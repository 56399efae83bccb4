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


def test_any_argument_of_a_collection_may_be_anything():
    rng = np.random.default_rng(0)
    table = rng.random((10, 3), np.float32)
    table.flags.writeable = False
    feature = embag.Feature("a", "t")
    outcomes = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def odd():
            values = odd_values(rng)
            return values[rng.integers(len(values))]

        def make():
            call = {"tables": {"t": table, "u": table}, "features": [feature]}
            which = rng.integers(7)
            if which < 2:
                call[["tables", "features"][which]] = odd()
            elif which == 2:
                call["tables"]["t"] = odd()
            else:
                field = ["name", "table", "mode", "padding_idx"][which - 3]
                call["features"] = [feature, feature._replace(**{"name": "b", field: odd()})]
            return embag.EmbeddingBagCollection(**call)

        modes = ["sum", "mean", "max"]
        by_mode = [
            embag.EmbeddingBagCollection(
                {"t": table}, [feature, embag.Feature("b", "t", mode, padding_idx=0)]
            )
            for mode in modes
        ]

        def use():
            ids, offsets = rng.integers(0, 10, 9), np.array([0, 2, 4, 4, 9])
            call = {"values": ids, "offsets": offsets, "num_threads": [None, 2][rng.integers(2)]}
            if rng.random() < 0.5:
                parts = {"a": (ids, offsets), "b": ids[:8].reshape(4, 2)}
                name = ["a", "b"][rng.integers(2)]
                which = rng.integers(6)
                if which == 0:
                    parts[name] = odd()
                elif which == 1:
                    parts[name] = (odd(), offsets)
                elif which == 2:
                    parts[name] = (ids, odd())
                elif which == 3:
                    call["per_sample_weights"] = {name: odd()}
                call = {"values": parts, "include_last_offset": bool(which % 2)}
            names = ["values", "offsets", "per_sample_weights", "include_last_offset", "out"]
            for _ in range(rng.integers(1, 3)):
                call[[*names, "num_threads"][rng.integers(6)]] = odd()
            return by_mode[rng.integers(3)](**call)

        for i in range(3000):
            try:
                (make if i % 3 == 0 else use)()
                outcome = "result"
            except DOCUMENTED as error:
                outcome = type(error).__name__
                assert str(error)
                assert "Buffer" not in str(error), error
                assert "has incorrect type" not in str(error), error
                assert "not iterable" not in str(error), error
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert {"result", "TypeError", "ValueError"} <= set(outcomes)


def test_any_integers_may_be_offsets_and_values_of_a_collection(level, eager_threads):
    rng = np.random.default_rng(0)
    tables = {"a": rng.random((50, 33), np.float32), "b": rng.random((20, 300))}
    tables["c"] = embag.quantize(np.ones((9, 2)))
    modes = ["sum", "mean", "max"]
    extremes = [0, 1, -1, 8, 9, 50, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)]
    outcomes = set()
    for seed in range(700):
        ebc = embag.EmbeddingBagCollection(
            tables,
            [embag.Feature(f"{i}", "abc"[rng.integers(3)], modes[i % 3]) for i in range(seed % 7)],
        )
        n_bags = rng.integers(0, 5)
        offsets = np.cumsum(rng.integers(0, 6, n_bags * len(ebc.features) + 1))
        offsets -= offsets[0]
        values = rng.integers(0, 9, offsets[-1] + rng.integers(0, 2))
        for array in (values, offsets):
            if len(array) and rng.random() < 0.4:
                array[rng.integers(len(array))] = rng.choice(extremes)
        in_order = offsets[0] == 0 and (offsets[1:] >= offsets[:-1]).all()
        sound = in_order and offsets[-1] <= len(values)
        results = []
        for given in (values, values.tolist()):
            for n_threads in (1, 3):
                out = np.full((n_bags if ebc.features else 0, ebc.dim), 7, np.float32)
                try:
                    results.append(ebc(given, offsets, out=out, num_threads=n_threads).tolist())
                    assert sound
                except (ValueError, IndexError) as error:
                    assert isinstance(error, IndexError) == sound, error
                    assert (out == 7).all()
                    results.append(str(error))
        assert results[1:] == results[:-1]
        outcomes.add(type(results[0]))
    assert outcomes == {str, list}
