"""Change arrays during calls of collections: an error or a stale result, never a wild access.

Run as ``change_arrays_of_collections.py SCENARIO [CHANGE]``; a scenario is a function below,
and a change is the JSON of an array's name, an attribute and its new value, or null.
"""

import json
import sys
from collections.abc import Mapping
from functools import partial

import numpy as np
from scribbling import ERRORS, call_while_scribbling

import embag

RNG = np.random.default_rng(0)


def quantized_table():
    packed = RNG.integers(0, 256, (400, 36), np.uint8)
    packed[:, 32:] = np.float16([0.5, -1]).view(np.uint8)
    return embag.QuantizedTable.from_packed(packed, 4, 64)


TABLES = {
    "small": np.ones((300, 33), np.float32),
    "large": np.ones((70_000, 64), np.float32),
    "double": np.ones((500, 300)),
    "half": np.ones((600, 600), np.float16),
    "q4": quantized_table(),
}


def collection(*modes, repeat=1, invalid="raise"):
    names = [name for name in TABLES for _ in range(repeat)]
    features = [embag.Feature(str(i), name, modes[i % len(modes)]) for i, name in enumerate(names)]
    return embag.EmbeddingBagCollection(TABLES, features, invalid=invalid)


def batch(ebc, n_bags):
    """Return values and offsets; one bag of them is long."""
    lengths = RNG.integers(0, 12, len(ebc.features) * n_bags)
    lengths[RNG.integers(len(lengths))] = 900
    return RNG.integers(0, 300, lengths.sum()), np.concatenate([[0], np.cumsum(lengths)])


def values_of_a_call():
    """Have another thread write to values and offsets."""
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
        forms = [
            partial(ebc, values, offsets),
            partial(ebc, values, offsets, out=out),
            partial(ebc, values[::1], memoryview(offsets)),
            partial(ebc, parts, include_last_offset=True),
            partial(ebc, parts, include_last_offset=True, out=out),
        ]
        if ebc.features[1].mode == "sum":
            forms.append(partial(ebc, values, offsets, np.ones(len(values), np.float32)))
            forms.append(partial(ebc, values.astype(np.int32), offsets, np.ones(len(values))))
        calls = [partial(form, num_threads=n_threads) for form in forms for n_threads in (1, 3, 8)]
        arrays = [values, offsets, *(bounds for _, bounds in parts.values())]
        outcomes |= call_while_scribbling(calls, arrays, seconds=0.5)
    assert outcomes - {"result"}, outcomes


def offsets_that_mislead_the_plan():
    """Call the compiled collection: in Python such offsets are found before it plans."""
    ebc = collection("sum", "max", repeat=3)
    compiled = ebc._state.compiled
    n_features = len(ebc.features)
    for n_bags in (1, 7, 64):
        good_values, good = batch(ebc, n_bags)
        out = np.empty((n_bags, ebc.dim), np.float32)
        for k in range(60):
            values, offsets = good_values.copy(), good.copy()
            where = RNG.random(len(offsets)) < RNG.choice([0.02, 0.5, 0.98])
            offsets[where] = RNG.choice([2**62, -(2**62), 0, len(values), 2**31], where.sum())
            if k % 2:  # good bounds of the features; bad bags within them
                offsets[::n_bags] = good[::n_bags]
            values[RNG.integers(len(values))] = RNG.choice([2**62, -1, 300, 0])
            in_order = offsets[0] == 0 and (offsets[1:] >= offsets[:-1]).all()
            sound = in_order and offsets[-1] <= len(values)
            starts = good[::n_bags]
            inputs = tuple(values[starts[f] : starts[f + 1]] for f in range(n_features))
            bounds = tuple(
                offsets[f * n_bags : (f + 1) * n_bags + 1] - starts[f] for f in range(n_features)
            )
            for n_threads in (1, 3, 64):
                assert sound or compiled.pool(n_threads, values, offsets, None, None) is None
                assert sound or compiled.pool(n_threads, values, offsets, None, out) is None
                compiled.pool_each(n_threads, inputs, bounds, True, (None,) * n_features, out)


def layouts_of_a_call(change):
    """Change an array while another argument is converted."""
    changed = json.loads(change)
    arrays = {}

    def apply_change():
        if changed is not None:
            name, attribute, value = changed
            setattr(arrays[name], attribute, value)

    class Array:
        def __init__(self, array):
            self.array = array.copy()

        def __array__(self, dtype=None, copy=None):
            apply_change()
            return self.array

    class Index:
        def __init__(self, value):
            self.value = value

        def __index__(self):
            apply_change()
            return self.value

    class Changing(Mapping):
        def __init__(self, contents):
            self.contents = contents

        def __len__(self):
            return len(self.contents)

        def __iter__(self):
            return iter(self.contents)

        def __getitem__(self, key):
            if key == "13":
                apply_change()
            return self.contents[key]

    def call(case, n_threads):
        """Call a collection of 51 features, with two bags of five ids for each."""
        names = [str(i) for i in range(51)]
        table, packed = np.ones((500, 66), np.float32), np.zeros((400, 36), np.uint8)
        tables = {"t": table, "q": embag.QuantizedTable.from_packed(packed, 4, 64)}
        ebc = embag.EmbeddingBagCollection(
            tables, [embag.Feature(name, "tq"[i % 2]) for i, name in enumerate(names)]
        )
        values, weights = np.arange(510) % 300, np.ones(510, np.float32)
        offsets = np.arange(0, 511, 5) if case < 4 else np.array([0, 255])
        out = np.empty((2, ebc.dim), np.float32)
        arrays.update(
            table=table, packed=packed, values=values, weights=weights, offsets=offsets, out=out
        )
        whole = dict.fromkeys(names, (values, offsets))
        factors = dict.fromkeys(names, weights)
        options = {"out": out, "num_threads": n_threads}
        if case == 0:
            result = ebc(values, Array(offsets), weights, **options)
        elif case == 1:
            result = ebc(values, offsets, Array(weights), **options)
        elif case == 2:
            result = ebc(Array(values), offsets, weights, **options)
        elif case == 3:
            result = ebc(values, offsets, weights, out=out, num_threads=Index(n_threads))
        elif case == 4:
            result = ebc(Changing(whole), None, factors, **options)
        elif case == 5:
            result = ebc(whole, None, Changing(factors), **options)
        else:
            whole["4"] = Array(values), offsets
            result = ebc(whole, None, {"3": weights}, **options)
        # A change before the array is looked at is a different argument, with a result.
        assert result.dtype == np.float32
        assert result.size == 2 * ebc.dim

    outcomes = set()
    for case in range(7):
        for n_threads in (1, 3):
            try:
                call(case, n_threads)
                outcomes.add("result")
            except (TypeError, *ERRORS) as error:
                outcomes.add(type(error).__name__)
    assert changed is not None or outcomes == {"result"}, outcomes


def layouts_during_construction():
    """Change tables while a collection is made of them."""
    arrays = {}
    changes = [
        ("packed", "shape", (36, 400)),
        ("packed", "shape", (400, 9, 4)),
        ("packed", "dtype", np.float32),
        ("table", "shape", (64, 300)),
        ("table", "dtype", np.float64),
    ]

    class Index:
        def __init__(self, change):
            self.change = change

        def __index__(self):
            apply_change(self.change)
            return 1

    def apply_change(change):
        name, attribute, value = change
        setattr(arrays[name], attribute, value)

    def changing_features(change):
        yield embag.Feature("a", "t")
        apply_change(change)
        yield embag.Feature("b", "q")

    for change in changes:
        for lazy in (False, True):
            packed, table = np.zeros((400, 36), np.uint8), np.ones((300, 64), np.float32)
            arrays.update(packed=packed, table=table)
            tables = {"t": table, "q": embag.QuantizedTable.from_packed(packed, 4, 64)}
            features = [embag.Feature("a", "t"), embag.Feature("b", "q", "sum", Index(change))]
            if lazy:
                features = changing_features(change)
            try:
                ebc = embag.EmbeddingBagCollection(tables, features)
                result = ebc([299, 299], [0, 1, 2])
                assert result.shape == (1, 128)
                assert (result[:, :64] == 1).all()
            except RuntimeError as error:
                assert "a change of layout" in str(error)
                assert packed.shape != (400, 36)


if __name__ == "__main__":
    scenario, *arguments = sys.argv[1:]
    globals()[scenario](*arguments)
