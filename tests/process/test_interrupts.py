"""Ctrl-C at any time: a call may end first, and nothing is left broken or behind.

Each test runs in a process of its own, in which a thread sends the signal.
"""

import sys

import pytest
from processes import SCRIPTS, run_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process")


def run(scenario):
    run_python("-X", "faulthandler", SCRIPTS / "interrupt_calls.py", scenario, timeout=300)


def test_long_calls():
    run("long_calls")


def test_calls_end_between_regions():
    run("between_regions")


def test_thousands_of_short_calls():
    run("short_calls")


def test_files():
    run("files")


def test_steps_of_optimizers():
    run("steps")
