"""The compiled functions look at arrays once more: whatever these have become, nothing crashes."""

import re

import numpy as np
import pytest
from processes import SCRIPTS, run_python

from embag._kernels import dispatch


def test_arrays_that_do_not_fit():
    script = SCRIPTS / "corrupt_kernel_calls.py"
    output = run_python("-X", "faulthandler", script, timeout=300).stdout
    returned, raised = map(int, re.findall(r"\d+", output))
    assert returned > 20_000
    assert raised > 8000


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("row", [3, -2, 2**62])
def test_rows_that_are_out_of_range_by_then(dtype, row, level):
    kernels = dispatch.load_level(level)
    weight, values = np.zeros((3, 2), dtype), np.ones((2, 2), dtype)
    assert not kernels.add_rows(1, weight, np.array([row, 1]), values, 1.0)
    assert not weight.any()
    winners = np.array([[row, 1], [0, 2]])
    assert not kernels.scatter_max(1, values, winners, -1, weight)
