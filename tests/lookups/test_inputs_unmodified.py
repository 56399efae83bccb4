"""No call changes its inputs, except a table with `max_norm`; none requires writeable inputs."""

import numpy as np
import pytest
from cases import CASES, REDUCTIONS, call_arguments

import embag


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_inputs_are_unchanged(reduction, level, eager_threads):
    for case in CASES:
        arguments, options = call_arguments(case, reduction, np.float32)
        arrays = [array for array in arguments if array is not None]
        arrays += [value for value in options.values() if isinstance(value, np.ndarray)]
        copies = [array.copy() for array in arrays]
        for array in arrays:
            array.flags.writeable = False
        embag.embedding_bag(*arguments, num_threads=2, **options)
        for array, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(array, copy, case.name)


def test_inputs_of_a_collection_are_unchanged(level, eager_threads):
    rng = np.random.default_rng(0)
    tables = {
        "a": rng.random((9, 5), np.float32),
        "b": rng.random((9, 40)),
        "c": embag.quantize(rng.random((9, 20), np.float32), 4).packed,
    }
    values, offsets = rng.integers(0, 9, 40), np.arange(0, 41, 2)[:19]
    weights = rng.random(40, np.float32)
    arrays = [*tables.values(), values, offsets, weights]
    copies = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    tables["c"] = embag.QuantizedTable.from_packed(tables["c"], 4, 20)
    ebc = embag.EmbeddingBagCollection(tables, [embag.Feature(name, name) for name in tables])
    out = np.empty((6, ebc.dim), np.float32)
    for given in (values, values.tolist()):
        for result in (None, out):
            ebc(given, offsets, weights, out=result, num_threads=2)
    ids = values.reshape(20, 2)
    ebc(dict.fromkeys(tables, ids), per_sample_weights={"b": weights.reshape(20, 2)})
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
