"""Calls from many Python threads, with the GIL or without: results, counts and steps.

The threads run in a process of their own, so that a crash is a failure.
"""

import sysconfig

import pytest
from cases import LEVELS
from processes import SCRIPTS, run_python


@pytest.mark.thorough
@pytest.mark.parametrize("level", LEVELS)
def test_threads_share_all_that_has_state(level):
    options = "-W", "error", "-W", "ignore:a row of:UserWarning"
    run_python(*options, SCRIPTS / "call_from_many_threads.py", EMBAG_ISA=level, timeout=120)


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this interpreter has a GIL"
)
def test_importing_embag_leaves_the_gil_disabled():
    code = """
import embag, importlib, sys
for name in ("_core", "_core_v3", "_core_v4", "_process._teams", "_columns._cdata"):
    if importlib.util.find_spec(f"embag.{name}"):
        importlib.import_module(f"embag.{name}")
assert not sys._is_gil_enabled()
"""
    run_python("-W", "error", "-c", code, PYTHON_GIL="")
