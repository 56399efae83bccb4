"""`run_python`: children import the same embag, and their failures are failures of the test."""

import pytest
from processes import run_python

import embag


def test_a_child_imports_the_same_embag():
    child = run_python("-c", "import embag; print(embag.__file__)")
    assert child.stdout.strip() == embag.__file__


def test_a_failure_shows_the_output():
    with pytest.raises(pytest.fail.Exception, match="exit status 1:\nout\nerr"):
        run_python("-c", "print('out'); raise SystemExit('err')")


def test_a_child_that_hangs_is_killed():
    with pytest.raises(pytest.fail.Exception, match="it hangs"):
        run_python("-c", "import time; time.sleep(1000)", timeout=0.1)
