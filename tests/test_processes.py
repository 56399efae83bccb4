"""Tests that run Python in another process test the same embag, and fail where it fails."""

import pytest
from processes import run_python

import embag


def test_the_same_embag_is_tested():
    child = run_python("-c", "import embag; print(embag.__file__)")
    assert child.stdout.strip() == embag.__file__


def test_a_failure_tells_what_was_printed():
    with pytest.raises(pytest.fail.Exception, match="exit status 1:\nout\nerr"):
        run_python("-c", "print('out'); raise SystemExit('err')")


def test_what_hangs_is_killed():
    with pytest.raises(pytest.fail.Exception, match="it hangs"):
        run_python("-c", "import time; time.sleep(1000)", timeout=0.1)
