"""No call loses memory, whether it returns or raises: LeakSanitizer, without a build of its own."""

import pytest
from preloading import find_leak_sanitizer
from processes import SCRIPTS, run_python

pytest.importorskip("ml_dtypes")
pytest.importorskip("scipy")

LEAK = 23  # the exit status of the script


def make_calls(*arguments):
    ended = run_python(
        SCRIPTS / "find_leaks.py",
        *arguments,
        check=False,
        timeout=240,
        LD_PRELOAD=str(find_leak_sanitizer()),
        PYTHONMALLOC="malloc",
    )
    if "LeakSanitizer has encountered a fatal error" in ended.stderr:
        pytest.skip("this system does not let LeakSanitizer trace its process")
    return ended


@pytest.mark.thorough
def test_no_call_loses_memory(tmp_path):
    ended = make_calls(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 5000


@pytest.mark.parametrize("fault", ["lose_a_block", "lose_an_array"])
def test_leaks_are_found(tmp_path, fault):
    ended = make_calls(tmp_path, fault)
    assert ended.returncode == LEAK, ended.stderr
    assert "ERROR: LeakSanitizer: detected memory leaks" in ended.stderr
