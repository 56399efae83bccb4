"""The compiled kernels: one body, inlined with literal widths."""

import shutil
import subprocess

import pytest

from embag._kernels import dispatch

INLINED = ("reduce_block", "take_row", "fetch_row", "take_half", "copy_block", "copy_row")


@pytest.mark.parametrize("level", dispatch.built_levels())
def test_no_kernel_calls_a_loop_of_unknown_width(level):
    nm = shutil.which("nm")
    if nm is None or level not in dispatch.supported_levels():
        pytest.skip("no nm, or this processor does not run the level")
    file = dispatch.load_level(level).__file__
    names = subprocess.run([nm, str(file)], check=True, capture_output=True, text=True).stdout
    if "reduce_float_by_int64" not in names:
        pytest.skip("the module has no symbols")
    left = [line for line in names.splitlines() if any(name in line for name in INLINED)]
    assert left == []
