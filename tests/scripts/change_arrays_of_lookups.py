"""Change arrays during calls of functions: an error or a stale result, never a wild access.

Run as ``change_arrays_of_lookups.py SCENARIO [CHANGE]``; a scenario is a function below, and a
change is the JSON of an array's name, an attribute and its new value.
"""

import json
import sys
from functools import partial

import numpy as np
from scribbling import ERRORS, call_while_scribbling

import embag
from embag._kernels.dispatch import kernels

# --- Values written by another thread -------------------------------------------------


def values_of_a_lookup():
    rng = np.random.default_rng(0)
    outcomes = set()
    for n_rows, dim in ((5000, 64), (300, 700), (70_000, 70)):
        lengths = np.concatenate([rng.integers(0, 60, 100), [900]])
        offsets = np.cumsum(lengths) - lengths
        input = rng.integers(0, n_rows, lengths.sum())
        table = np.ones((n_rows, dim), np.float32)
        weights = np.ones(len(input), np.float32)
        calls = [
            partial(embag.embedding_bag, input, table, offsets, num_threads=n, **options)
            for options in (
                {"mode": "sum"},
                {"mode": "max"},
                {"mode": "mean", "padding_idx": 3},
                {"mode": "sum", "per_sample_weights": weights},
                {"mode": "sum", "max_norm": 3.0},
                {"mode": "max", "return_max_indices": True},
                {"mode": "mean", "invalid": "skip"},
                {"mode": "sum", "invalid": "skip", "max_norm": 3.0},
                {"mode": "max", "invalid": "skip", "return_max_indices": True},
            )
            for n in (1, 3, 8)
        ]
        half, out = table.astype(np.float16), np.empty((len(input), dim), np.float32)
        calls += [
            partial(embag.embedding, input, rows, num_threads=n, **options)
            for rows, options in (
                (table, {}),
                (table, {"out": out}),
                (table, {"invalid": "skip"}),
                (table, {"invalid": -1}),
                (half, {"out_dtype": np.float16}),
                (half, {"invalid": "skip"}),
            )
            for n in (1, 3, 8)
        ]
        outcomes |= call_while_scribbling(calls, [input, offsets])
    assert outcomes - {"result"}, outcomes


def values_with_encoded_tables():
    import ml_dtypes  # noqa: PLC0415

    rng = np.random.default_rng(0)
    outcomes = set()
    for n_rows, dim in ((300, 33), (20_000, 70)):
        tables = [
            np.ones((n_rows, dim), np.float16),
            np.ones((n_rows, dim), ml_dtypes.bfloat16),
            np.ones((n_rows, dim)),
        ]
        for layout in ("fused", "tbe"):
            for bits in (8, 4, 2):
                n_bytes = embag.quantized.row_bytes(bits, dim, layout)
                packed = np.zeros((n_rows, n_bytes), np.uint8)
                tables.append(embag.QuantizedTable.from_packed(packed, bits, dim, layout))
        lengths = np.concatenate([rng.integers(0, 40, 60), [700]])
        offsets = np.cumsum(lengths) - lengths
        input = rng.integers(0, n_rows, lengths.sum())
        weights = np.ones(len(input), np.float32)
        out = np.empty((len(offsets), dim), np.float16)
        ebc = embag.EmbeddingBagCollection(
            {str(i): table for i, table in enumerate(tables)},
            [embag.Feature(str(i), str(i)) for i in range(len(tables))],
        )
        named = dict.fromkeys(ebc.slices, (input, offsets))
        calls = []
        for n_threads in (1, 3, 8):
            for table in tables:
                bag = partial(embag.embedding_bag, input, table, offsets, num_threads=n_threads)
                calls += [
                    partial(bag, mode="max"),
                    partial(bag, mode="sum", per_sample_weights=weights),
                    partial(bag, mode="max", return_max_indices=True),
                ]
                if table is not tables[2]:  # float64 is not rounded to float16
                    calls.append(partial(bag, out=out, out_dtype="f2"))
                if isinstance(table, embag.QuantizedTable):
                    calls.append(partial(table.dequantize, input, num_threads=n_threads))
            calls.append(partial(ebc, named, num_threads=n_threads))
        outcomes |= call_while_scribbling(calls, [input, offsets])
    assert outcomes - {"result"}, outcomes


def values_of_a_backward_call():
    rng = np.random.default_rng(0)
    outcomes = set()
    # Numbers of bags that are powers of two: one more does not fit their bits.
    for n_bags, n_rows, dim in ((1, 300, 20), (4, 5000, 64), (64, 70, 300)):
        offsets = np.linspace(0, 4000, n_bags + 1).astype(np.int64)
        input = rng.integers(0, n_rows, offsets[-1])
        table, grad = np.ones((n_rows, dim), np.float32), np.ones((n_bags, dim), np.float32)
        winners = rng.integers(-1, n_rows, (n_bags, dim))
        weights = np.ones(len(input), np.float32)
        backward = partial(
            embag.embedding_bag_backward, grad, input, table, offsets, include_last_offset=True
        )
        calls = [
            partial(backward, num_threads=n_threads, **options)
            for options in (
                {"mode": "sum"},
                {"mode": "mean", "padding_idx": 3},
                {"mode": "sum", "sparse": True},
                {"mode": "mean", "sparse": True, "padding_idx": -1},
                {"mode": "sum", "sparse": True, "per_sample_weights": weights},
                {"mode": "sum", "per_sample_weights": weights},
                {"mode": "sum", "scale_grad_by_freq": True},
                {"mode": "max"},
                {"mode": "max", "max_indices": winners},
            )
            for n_threads in (1, 3, 8)
        ]
        outcomes |= call_while_scribbling(calls, [input, offsets, winners.reshape(-1)])
    assert outcomes - {"result"}, outcomes


def values_of_segment_ids():
    rng = np.random.default_rng(0)
    outcomes = set()
    table = np.ones((300, 20), np.float32)
    weights = np.ones(5000, np.float32)
    for is_sorted in (False, True):
        segments = rng.integers(0, 400, 5000)
        segments = np.sort(segments) if is_sorted else segments
        input = rng.integers(0, 300, 5000)
        grad = np.ones((400, 20), np.float32)
        calls = []
        for n_threads in (1, 3, 8):
            # Without `n_bags`, an id of 10**9 would take gigabytes.
            options = {"segment_ids": segments, "n_bags": 400, "num_threads": n_threads}
            bag = partial(embag.embedding_bag, input, table, **options)
            backward = partial(embag.embedding_bag_backward, grad, input, table, **options)
            calls += [
                bag,
                partial(bag, mode="max", return_max_indices=True),
                partial(bag, per_sample_weights=weights, invalid="skip"),
                partial(backward, per_sample_weights=weights),
            ]
        outcomes |= call_while_scribbling(calls, [input, segments])
    assert outcomes - {"result"}, outcomes


# --- Offsets that the kernels must not trust ------------------------------------------


def offsets_that_mislead_the_plan():
    table = np.zeros((100, 2048), np.float32)
    input = np.zeros(20_000, np.int64)
    rng = np.random.default_rng(0)
    for n_bags in (7, 63, 1023):
        even = np.linspace(0, len(input), n_bags).astype(np.int64)
        for k in range(60):
            offsets = even.copy()
            where = rng.random(n_bags) < rng.choice([0.05, 0.5, 0.95])
            if k == 0:
                where[:] = False
                where[::2] = True
            offsets[where] = rng.choice([2**62, -(2**62), 0, 19_999], where.sum())
            offsets[0], offsets[n_bags // 2] = 0, 2**62
            for n_threads in (3, 8, 64):
                try:
                    embag.embedding_bag(input, table, offsets, mode="sum", num_threads=n_threads)
                    raise SystemExit("bad offsets were accepted")
                except ValueError as error:
                    assert "offsets must" in str(error)


def offsets_that_shrink_after_the_check():
    """Call the kernels with offsets that no longer cover the positions."""
    n_positions = 200_000
    input = np.zeros(n_positions, np.int64)
    weights = np.ones(n_positions, np.float32)
    table, out = np.ones((2, 8), np.float32), np.zeros(n_positions, np.float32)
    for bounds in ([0, 0], [0, 1, 2, 3, 5], [0, n_positions, 0], [0, 7, -9, 2**40, 9]):
        offsets = np.array(bounds)
        grad = np.ones((len(offsets) - 1, 8), np.float32)
        for n_threads in (1, 3, 8):
            bags = input, offsets, True
            groups = kernels.group_by_row(n_threads, *bags, True, n_positions, 2, -1)
            positions = np.arange(n_positions)
            looked_up = kernels.look_up_weights(n_threads, *bags, weights, positions, n_positions)
            done = kernels.dot_rows(n_threads, table, *bags, grad, n_positions, -1, out)
            if 2**40 in bounds:  # every position may find a bag, but no bag that does not exist
                assert groups is None or groups[2].max() < 4
                assert looked_up is None or positions.max() < 4
                continue
            assert groups is None, bounds
            assert looked_up is None, bounds
            assert not done, bounds
            shares = np.zeros_like(grad)
            mean, divisors = kernels.MODE_CODES["mean"], np.empty(len(grad), np.float32)
            done = kernels.divide_by_divisors(
                n_threads, grad, *bags, None, mean, 1, shares, divisors
            )
            assert not done or divisors.sum() <= n_threads * n_positions


# --- Layouts that change during the conversion of another argument --------------------


def layouts_of_a_lookup(change):
    name, attribute, value = json.loads(change)

    class Index:
        def __init__(self, arrays):
            self.arrays = arrays

        def __index__(self):
            setattr(self.arrays[name], attribute, value)
            return 1

    for case in range(20):
        arrays = {
            "input": np.arange(1000),
            "weight": np.ones((1000, 64), np.float32),
            "offsets": np.array([0, 2, 500]),
            "per_sample_weights": np.ones(1000, np.float32),
            "out": np.empty((3, 64), np.float32),
        }
        option = "padding_idx" if case % 2 else "num_threads"
        try:
            embag.embedding_bag(**arrays, mode="sum", **{option: Index(arrays)})
            raise SystemExit("a changed array was accepted")
        except (TypeError, *ERRORS):
            pass


def layouts_of_a_backward_call(change):
    """Numbers are converted first, and of the arrays grad_output last."""
    name, attribute, value = json.loads(change)

    class Grad:
        def __init__(self, arrays):
            self.arrays = arrays

        def __array__(self, dtype=None, copy=None):
            self.arrays["grad"] = np.ones((500, 64), np.float32)
            setattr(self.arrays[name], attribute, value)
            return self.arrays["grad"]

    class Index:
        def __init__(self, arrays):
            self.arrays = arrays

        def __index__(self):
            setattr(self.arrays[name], attribute, value)
            return 1

    modes = [{"mode": "mean"}, {"mode": "sum", "sparse": True}, {"mode": "max"}]
    for case in range(12):
        arrays = {
            "grad": np.ones((500, 64), np.float32),
            "input": np.arange(1000).reshape(500, 2),
            "weight": np.ones((1000, 64), np.float32),
        }
        options = dict(modes[case % 3])
        grad = Grad(arrays)
        if case % 2:
            grad = arrays["grad"]
            options["num_threads"] = Index(arrays)
        try:
            grads = embag.embedding_bag_backward(grad, arrays["input"], arrays["weight"], **options)
            result = grads.weight.to_dense() if "sparse" in options else grads.weight
            assert result.shape == (1000, 64)
            assert result.dtype == np.float32
            # A change before the array is looked at is a different argument.
            assert case % 2 or name != "input", "a changed array was accepted"
        except (TypeError, *ERRORS):
            pass


# --- Arrays that misreport themselves -------------------------------------------------


class WrongDtype(np.ndarray):
    dtype = property(lambda self: np.dtype(np.float32))


class WrongShape(np.ndarray):
    shape = property(lambda self: (4, 10**6))


class WrongLength(np.ndarray):
    def __len__(self):
        return 10**6


def subclasses_that_misreport():
    ids = np.arange(1000).reshape(500, 2)
    for _ in range(20):
        for kind in (WrongDtype, WrongShape):
            for options in ({}, {"return_max_indices": True, "mode": "max"}):
                try:
                    result = embag.embedding_bag(ids, np.ones((1000, 64)).view(kind), **options)
                    for array in result if options else [result]:
                        assert array.shape == (500, 64), array.shape
                except (RuntimeError, MemoryError):
                    pass
        offsets = np.array([0, 3]).view(WrongLength)
        result = embag.embedding_bag(np.arange(9), np.ones((10, 3)), offsets, mode="sum")
        assert result.tolist() == [[3] * 3, [6] * 3]


if __name__ == "__main__":
    scenario, *arguments = sys.argv[1:]
    globals()[scenario](*arguments)
