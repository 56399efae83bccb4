"""No call changes its inputs (but max_norm the table), nor needs them writeable."""

import numpy as np
import pytest
from cases import CASES, REDUCTIONS, call_arguments

import embag


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_inputs_are_left_alone(reduction, level, eager_threads):
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
