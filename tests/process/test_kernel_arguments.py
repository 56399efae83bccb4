"""The compiled functions look at arrays once more: whatever these have become, nothing crashes."""

import re

from processes import SCRIPTS, run_python


def test_arrays_that_do_not_fit():
    script = SCRIPTS / "corrupt_kernel_calls.py"
    output = run_python("-X", "faulthandler", script, timeout=300).stdout
    returned, raised = map(int, re.findall(r"\d+", output))
    assert returned > 100
    assert raised > 1000
