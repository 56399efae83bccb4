"""Arrays that change during a call: an error or a stale result, never a wild access.

Each test runs in a process of its own, so that a crash is a failure.
"""

import os
import sys
import textwrap

import pytest
from cases import LEVELS
from processes import run_python

PREAMBLE = '''
import contextlib, sys, threading, time
import numpy as np
import embag
from embag import _threads
_threads.ENTRIES_PER_THREAD = 1
_threads._N_MACHINE = 64
ERRORS = (IndexError, ValueError, RuntimeError)

@contextlib.contextmanager
def scribbling(*arrays):
    """Have another thread write to an entry of each, often the last, and put it right again."""
    extremes = [2**62, -1, -(2**63), 2**31, 10**9, 0]
    rng, goods, stop = np.random.default_rng(1), [array.copy() for array in arrays], False

    def scribble():
        while not stop:
            places = [-1 if rng.random() < 0.3 else rng.integers(len(array)) for array in arrays]
            for array, k in zip(arrays, places):
                array[k] = rng.choice(extremes)
            time.sleep(0)
            for array, good, k in zip(arrays, goods, places):
                array[k] = good[k]

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        yield
    finally:
        stop = True
        thread.join()
'''


def run(code, level="baseline"):
    # Since glibc 2.34 its checks are in a library of their own.
    checks = "libc_malloc_debug.so.0" if sys.platform == "linux" else ""
    run_python(
        *("-W", "ignore", "-X", "faulthandler", "-c", PREAMBLE + textwrap.dedent(code)),
        timeout=120,
        LD_PRELOAD=os.environ.get("LD_PRELOAD", checks),  # perhaps a sanitizer's library
        EMBAG_ISA=level,
        PYTHONMALLOC="malloc",
        MALLOC_CHECK_="3",
    )


@pytest.mark.parametrize("level", LEVELS)
def test_values_written_by_another_thread(level):
    run(
        """
        rng = np.random.default_rng(0)

        def batch(n_rows, dim):
            lengths = np.concatenate([rng.integers(0, 60, 100), [900]])
            input = rng.integers(0, n_rows, lengths.sum())
            return input, np.ones((n_rows, dim), np.float32), np.cumsum(lengths) - lengths

        outcomes = set()
        for n_rows, dim in ((5000, 64), (300, 700), (70_000, 70)):
            input, table, offsets = batch(n_rows, dim)
            deadline = time.monotonic() + 1
            weights = np.ones(len(input), np.float32)
            calls = [
                dict(mode="sum"), dict(mode="max"), dict(mode="mean", padding_idx=3),
                dict(mode="sum", per_sample_weights=weights), dict(mode="sum", max_norm=3.0),
                dict(mode="max", return_max_indices=True),
                dict(mode="mean", invalid="skip"),
                dict(mode="sum", invalid="skip", max_norm=3.0),
                dict(mode="max", invalid="skip", return_max_indices=True),
            ]
            with scribbling(input, offsets):
                while time.monotonic() < deadline:
                    for options in calls:
                        for n_threads in (1, 3, 8):
                            try:
                                embag.embedding_bag(
                                    input, table, offsets, num_threads=n_threads, **options
                                )
                                outcomes.add("result")
                            except ERRORS as error:
                                outcomes.add(type(error).__name__)
        assert outcomes - {"result"}, outcomes
        """,
        level,
    )


@pytest.mark.parametrize("level", LEVELS)
def test_values_written_by_another_thread_with_encoded_tables(level):
    pytest.importorskip("ml_dtypes")
    run(
        """
        import ml_dtypes
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
            def calls(table, n_threads):
                bag, options = embag.embedding_bag, dict(num_threads=n_threads)
                yield lambda: bag(input, table, offsets, mode="max", **options)
                yield lambda: bag(
                    input, table, offsets, mode="sum", per_sample_weights=weights, **options
                )
                yield lambda: bag(
                    input, table, offsets, mode="max", return_max_indices=True, **options
                )
                if table is not tables[2]:
                    yield lambda: bag(input, table, offsets, out=out, out_dtype="f2", **options)
                if isinstance(table, embag.QuantizedTable):
                    yield lambda: table.dequantize(input, **options)
            deadline = time.monotonic() + 1
            with scribbling(input, offsets):
                while time.monotonic() < deadline:
                    for n_threads in (1, 3, 8):
                        each = [call for table in tables for call in calls(table, n_threads)]
                        for call in [*each, lambda: ebc(named, num_threads=n_threads)]:
                            try:
                                call()
                                outcomes.add("result")
                            except ERRORS as error:
                                outcomes.add(type(error).__name__)
        assert outcomes - {"result"}, outcomes
        """,
        level,
    )


@pytest.mark.parametrize("level", LEVELS)
def test_offsets_that_break_every_estimate_of_the_plan(level):
    run(
        """
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
                        embag.embedding_bag(
                            input, table, offsets, mode="sum", num_threads=n_threads
                        )
                        raise SystemExit("bad offsets were accepted")
                    except ValueError as error:
                        assert "offsets must" in str(error)
        """,
        level,
    )


@pytest.mark.parametrize("level", LEVELS)
def test_values_written_by_another_thread_during_a_backward_call(level):
    run(
        """
        rng = np.random.default_rng(0)
        outcomes = set()
        # Numbers of bags that are powers of two: one more does not fit their bits.
        for n_bags, n_rows, dim in ((1, 300, 20), (4, 5000, 64), (64, 70, 300)):
            offsets = np.linspace(0, 4000, n_bags + 1).astype(np.int64)
            input = rng.integers(0, n_rows, offsets[-1])
            table, grad = np.ones((n_rows, dim), np.float32), np.ones((n_bags, dim), np.float32)
            winners = rng.integers(-1, n_rows, (n_bags, dim))
            weights = np.ones(len(input), np.float32)
            calls = [
                dict(mode="sum"), dict(mode="mean", padding_idx=3),
                dict(mode="sum", sparse=True), dict(mode="mean", sparse=True, padding_idx=-1),
                dict(mode="sum", sparse=True, per_sample_weights=weights),
                dict(mode="sum", per_sample_weights=weights),
                dict(mode="sum", scale_grad_by_freq=True),
                dict(mode="max"), dict(mode="max", max_indices=winners),
            ]
            deadline = time.monotonic() + 1
            with scribbling(input, offsets, winners.reshape(-1)):
                while time.monotonic() < deadline:
                    for options in calls:
                        for n_threads in (1, 3, 8):
                            try:
                                embag.embedding_bag_backward(
                                    grad, input, table, offsets, include_last_offset=True,
                                    num_threads=n_threads, **options
                                )
                                outcomes.add("result")
                            except ERRORS as error:
                                outcomes.add(type(error).__name__)
        assert outcomes - {"result"}, outcomes
        """,
        level,
    )


@pytest.mark.parametrize("level", LEVELS)
def test_offsets_that_shrink_between_the_check_and_the_kernel(level):
    run(
        """
        from embag._dispatch import kernels
        input = np.zeros(200_000, np.int64)
        grad, weights = np.ones((4, 8), np.float32), np.ones(200_000, np.float32)
        table, out = np.ones((2, 8), np.float32), np.zeros(200_000, np.float32)
        for bounds in ([0, 0], [0, 1, 2, 3, 5], [0, 200_000, 0], [0, 7, -9, 2**40, 9]):
            offsets = np.array(bounds)
            grad = np.ones((len(offsets) - 1, 8), np.float32)
            for n_threads in (1, 3, 8):
                bags = input, offsets, True
                groups = kernels.group_by_row(n_threads, *bags, True, 200_000, 2, -1)
                positions = np.arange(200_000)
                looked_up = kernels.look_up_weights(n_threads, *bags, weights, positions, 200_000)
                done = kernels.dot_rows(n_threads, table, *bags, grad, 200_000, -1, out)
                if 2**40 in bounds:  # all may find a bag there: any but one that is not
                    assert groups is None or groups[2].max() < 4
                    assert looked_up is None or positions.max() < 4
                    continue
                assert groups is None and looked_up is None and not done, bounds
                shares = np.zeros_like(grad)
                done = kernels.divide_by_sizes(n_threads, grad, *bags, 1, shares)
                sizes = 1 / shares[:, 0] if done else np.zeros(1)  # 1 for an empty bag
                assert sizes.sum() <= n_threads * 200_000 + len(grad)
        """,
        level,
    )


LAYOUT_CHANGES = {
    "weight, to a wider dtype": "setattr(weight, 'dtype', np.float64)",
    "weight, to integers": "setattr(weight, 'dtype', np.int32)",
    "weight, its shape": "setattr(weight, 'shape', (20, 3200))",
    "input, to a narrower dtype": "setattr(input, 'dtype', np.int8)",
    "input, to a wider count": "setattr(input, 'dtype', np.int32)",
    "offsets, its shape": "setattr(offsets, 'shape', (1, 3))",
    "offsets, to int32": "setattr(offsets, 'dtype', np.int32)",
    "weights, to float16": "setattr(weights, 'dtype', np.float16)",
    "out, its shape": "setattr(out, 'shape', (64, 3))",
}


@pytest.mark.parametrize("name", LAYOUT_CHANGES)
def test_layouts_changed_by_the_conversion_of_another_argument(name):
    run(
        f"""
        class Index:
            def __index__(self):
                {LAYOUT_CHANGES[name]}
                return 1

        for case in range(20):
            weight = np.ones((1000, 64), np.float32)
            input, offsets = np.arange(1000), np.array([0, 2, 500])
            weights, out = np.ones(1000, np.float32), np.empty((3, 64), np.float32)
            options = dict(padding_idx=Index()) if case % 2 else dict(num_threads=Index())
            try:
                embag.embedding_bag(
                    input, weight, offsets, mode="sum", per_sample_weights=weights, out=out,
                    **options,
                )
                raise SystemExit("a changed array was accepted")
            except (TypeError, *ERRORS):
                pass
        """
    )


def test_subclasses_that_lie_about_themselves():
    run(
        """
        class LyingDtype(np.ndarray):
            dtype = property(lambda self: np.dtype(np.float32))

        class LyingShape(np.ndarray):
            shape = property(lambda self: (4, 10**6))

        class LyingLength(np.ndarray):
            def __len__(self):
                return 10**6

        ids = np.arange(1000).reshape(500, 2)
        for _ in range(20):
            for lie in (LyingDtype, LyingShape):
                for options in ({}, {"return_max_indices": True, "mode": "max"}):
                    try:
                        result = embag.embedding_bag(ids, np.ones((1000, 64)).view(lie), **options)
                        for array in result if options else [result]:
                            assert array.shape == (500, 64), array.shape
                    except (RuntimeError, MemoryError):
                        pass
            offsets = np.array([0, 3]).view(LyingLength)
            result = embag.embedding_bag(np.arange(9), np.ones((10, 3)), offsets, mode="sum")
            assert result.tolist() == [[3] * 3, [6] * 3]
        """
    )


BACKWARD_CHANGES = {
    "grad, to a wider dtype": "setattr(grad, 'dtype', np.float64)",
    "grad, to integers": "setattr(grad, 'dtype', np.int32)",
    "grad, its shape": "setattr(grad, 'shape', (64, 3))",
    "input, to a wider count": "setattr(input, 'dtype', np.int32)",
    "input, its shape": "setattr(input, 'shape', (10, 100))",
}


@pytest.mark.parametrize("name", BACKWARD_CHANGES)
def test_layouts_changed_by_the_conversion_of_another_argument_of_backward(name):
    # Numbers are converted first, and of the arrays grad_output last.
    run(
        f"""
        class Grad:
            def __array__(self, dtype=None, copy=None):
                grad = np.ones((500, 64), np.float32)
                {BACKWARD_CHANGES[name]}
                return grad

        class Index:
            def __index__(self):
                {BACKWARD_CHANGES[name]}
                return 1

        for case in range(12):
            weight, grad = np.ones((1000, 64), np.float32), np.ones((500, 64), np.float32)
            input = np.arange(1000).reshape(500, 2)
            options = [dict(mode="mean"), dict(mode="sum", sparse=True), dict(mode="max")][case % 3]
            given = grad if case % 2 else Grad()
            if case % 2:
                options["num_threads"] = Index()
            try:
                grads = embag.embedding_bag_backward(given, input, weight, **options)
                result = grads.weight.to_dense() if "sparse" in options else grads.weight
                assert result.shape == (1000, 64) and result.dtype == np.float32
                # Whatever changed before it was looked at is what was given.
                assert case % 2 or not {name.startswith("input")}, "a changed array was accepted"
            except (TypeError, *ERRORS):
                pass
        """
    )


COLLECTION = """
rng = np.random.default_rng(0)
packed = rng.integers(0, 256, (400, 36), np.uint8)
packed[:, 32:] = np.float16([0.5, -1]).view(np.uint8)
TABLES = {
    "small": np.ones((300, 33), np.float32),
    "large": np.ones((70_000, 64), np.float32),
    "double": np.ones((500, 300)),
    "half": np.ones((600, 600), np.float16),
    "q4": embag.QuantizedTable.from_packed(packed, 4, 64),
}

def collection(*modes, repeat=1, invalid="raise"):
    names = [name for name in TABLES for _ in range(repeat)]
    return embag.EmbeddingBagCollection(TABLES, [
        embag.Feature(str(i), name, modes[i % len(modes)]) for i, name in enumerate(names)
    ], invalid=invalid)

def batch(ebc, n_bags):
    lengths = rng.integers(0, 12, len(ebc.features) * n_bags)
    lengths[rng.integers(len(lengths))] = 900
    return rng.integers(0, 300, lengths.sum()), np.concatenate([[0], np.cumsum(lengths)])

"""


@pytest.mark.parametrize("level", LEVELS)
def test_values_written_by_another_thread_during_a_call_of_a_collection(level):
    run(
        COLLECTION
        + """
outcomes = set()
for ebc, n_bags in (
    (collection("sum", "mean", "max"), 20),
    (collection("sum", repeat=6), 2),
    (collection("sum", "mean", "max", invalid="skip"), 20),
    (collection("sum", repeat=6, invalid="skip"), 2),
):
    values, offsets = batch(ebc, n_bags)
    parts = {
        str(f): (
            values[offsets[f * n_bags] : offsets[(f + 1) * n_bags]],
            offsets[f * n_bags : (f + 1) * n_bags + 1] - offsets[f * n_bags],
        )
        for f in range(len(ebc.features))
    }
    out = np.empty((n_bags, ebc.dim), np.float32)
    calls = [
        ((values, offsets), {}),
        ((values, offsets), dict(out=out)),
        ((values[::1], memoryview(offsets)), {}),
        ((parts,), dict(include_last_offset=True)),
        ((parts,), dict(include_last_offset=True, out=out)),
    ]
    if ebc.features[1].mode == "sum":
        calls.append(((values, offsets, np.ones(len(values), np.float32)), {}))
        calls.append(((values.astype(np.int32), offsets, np.ones(len(values))), {}))
    deadline = time.monotonic() + 0.5
    with scribbling(values, offsets, *(part[1] for part in parts.values())):
        while time.monotonic() < deadline:
            for arguments, options in calls:
                for n_threads in (1, 3, 8):
                    try:
                        ebc(*arguments, num_threads=n_threads, **options)
                        outcomes.add("result")
                    except ERRORS as error:
                        outcomes.add(type(error).__name__)
assert outcomes - {"result"}, outcomes
""",
        level,
    )


@pytest.mark.parametrize("level", LEVELS)
def test_offsets_that_break_every_estimate_of_the_plan_of_a_collection(level):
    # The kernels themselves: in Python such offsets are found before they plan.
    run(
        COLLECTION
        + """
ebc = collection("sum", "max", repeat=3)
for n_bags in (1, 7, 64):
    good_values, good = batch(ebc, n_bags)
    out = np.empty((n_bags, ebc.dim), np.float32)
    for k in range(60):
        values, offsets = good_values.copy(), good.copy()
        where = rng.random(len(offsets)) < rng.choice([0.02, 0.5, 0.98])
        offsets[where] = rng.choice([2**62, -(2**62), 0, len(values), 2**31], where.sum())
        if k % 2:  # the features' own bounds are good: only their bags are not
            offsets[::n_bags] = good[::n_bags]
        values[rng.integers(len(values))] = rng.choice([2**62, -1, 300, 0])
        sound = (offsets[0] == 0 and (offsets[1:] >= offsets[:-1]).all()
                 and offsets[-1] <= len(values))
        parts = [slice(*good[[f * n_bags, (f + 1) * n_bags]]) for f in range(len(ebc.features))]
        inputs = tuple(values[part] for part in parts)
        bounds = tuple(
            offsets[f * n_bags : (f + 1) * n_bags + 1] - good[f * n_bags]
            for f in range(len(parts))
        )
        for n_threads in (1, 3, 64):
            compiled = ebc._state.compiled
            assert sound or compiled.pool(n_threads, values, offsets, None, None) is None
            assert sound or compiled.pool(n_threads, values, offsets, None, out) is None
            compiled.pool_each(n_threads, inputs, bounds, True, (None,) * len(inputs), out)
""",
        level,
    )


COLLECTION_CHANGES = {
    "nothing": "pass",
    "values, to a narrower dtype": "values.dtype = np.int8",
    "values, to a wider count": "values.dtype = np.int32",
    "values, to floats": "values.dtype = np.float64",
    "values, their shape": "values.shape = (51, 10)",
    "offsets, to int32": "offsets.dtype = np.int32",
    "offsets, their shape": "offsets.shape = (1, offsets.size)",
    "offsets, their values": "offsets[...] = 2**62",
    "weights, to float16": "weights.dtype = np.float16",
    "weights, their shape": "weights.shape = (51, 10)",
    "out, its shape": "out.shape = (out.shape[1], 2)",
    "a table, its shape": "table.shape = (33, 1000)",
    "a table, its dtype": "table.dtype = np.float64",
    "a quantized table, its shape": "packed.shape = (36, 400)",
}


@pytest.mark.parametrize("name", COLLECTION_CHANGES)
def test_layouts_changed_by_the_conversion_of_another_argument_of_a_collection(name):
    run(
        COLLECTION
        + f"""
from collections.abc import Mapping

def change():
    {COLLECTION_CHANGES[name]}

class Array:
    def __init__(self, array):
        self.array = array.copy()
    def __array__(self, dtype=None, copy=None):
        change()
        return self.array

class Index:
    def __index__(self):
        change()
        return n_threads

class Changing(Mapping):
    def __init__(self, items):
        self.items_ = items
    def __len__(self):
        return len(self.items_)
    def __iter__(self):
        return iter(self.items_)
    def __getitem__(self, key):
        if key == "13":
            change()
        return self.items_[key]

# Two bags of five ids for each of 51 features.
names = [str(i) for i in range(51)]
outcomes = set()
for case in range(7):
    for n_threads in (1, 3):
        table, packed = np.ones((500, 66), np.float32), np.zeros((400, 36), np.uint8)
        tables = dict(t=table, q=embag.QuantizedTable.from_packed(packed, 4, 64))
        ebc = embag.EmbeddingBagCollection(
            tables, [embag.Feature(name, "tq"[i % 2]) for i, name in enumerate(names)]
        )
        values, weights = np.arange(510) % 300, np.ones(510, np.float32)
        offsets = np.arange(0, 511, 5) if case < 4 else np.array([0, 255])
        out = np.empty((2, ebc.dim), np.float32)
        whole = dict.fromkeys(names, (values, offsets))
        factors = dict.fromkeys(names, weights)
        options = dict(out=out, num_threads=n_threads)
        try:
            if case == 0:
                result = ebc(values, Array(offsets), weights, **options)
            elif case == 1:
                result = ebc(values, offsets, Array(weights), **options)
            elif case == 2:
                result = ebc(Array(values), offsets, weights, **options)
            elif case == 3:
                result = ebc(values, offsets, weights, out=out, num_threads=Index())
            elif case == 4:
                result = ebc(Changing(whole), None, factors, **options)
            elif case == 5:
                result = ebc(whole, None, Changing(factors), **options)
            else:
                whole["4"] = Array(values), offsets
                result = ebc(whole, None, {{"3": weights}}, **options)
            # Whatever an array was when it was looked at is what was given.
            assert result.dtype == np.float32 and result.size == 2 * ebc.dim
            outcomes.add("result")
        except (TypeError, *ERRORS) as error:
            outcomes.add(type(error).__name__)
assert {name != "nothing"} or outcomes == {{"result"}}, outcomes
"""
    )


def test_tables_changed_while_a_collection_is_made():
    run(
        """
        packed, table = np.zeros((400, 36), np.uint8), np.ones((300, 64), np.float32)
        changes = [
            lambda: setattr(packed, "shape", (36, 400)),
            lambda: setattr(packed, "shape", (400, 9, 4)),
            lambda: setattr(packed, "dtype", np.float32),
            lambda: setattr(table, "shape", (64, 300)),
            lambda: setattr(table, "dtype", np.float64),
        ]

        class Index:
            def __index__(self):
                change()
                return 1

        def features():
            yield embag.Feature("a", "t")
            change()
            yield embag.Feature("b", "q")

        for change in changes:
            for lazy in (False, True):
                packed, table = np.zeros((400, 36), np.uint8), np.ones((300, 64), np.float32)
                tables = {"t": table, "q": embag.QuantizedTable.from_packed(packed, 4, 64)}
                given = [embag.Feature("a", "t"), embag.Feature("b", "q", "sum", Index())]
                try:
                    ebc = embag.EmbeddingBagCollection(tables, features() if lazy else given)
                    result = ebc([299, 299], [0, 1, 2])
                    assert result.shape == (1, 128)
                    assert (result[:, :64] == 1).all()
                except RuntimeError as error:
                    assert "a change of layout" in str(error)
                    assert packed.shape != (400, 36)
        """
    )
