"""Every allocation may fail: MemoryError, and no step is half made.

tests/lookups/test_sizes.py has large allocations, which the system refuses.
"""

import os
import sysconfig
import tempfile
from collections import Counter
from importlib.util import find_spec

import pytest
from preloading import build_library, run_preloaded

pytestmark = [
    pytest.mark.skipif(not find_spec("_testcapi"), reason="needs CPython's _testcapi"),
    pytest.mark.skipif(
        bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="its objects have an allocator"
    ),
]
SOME = [
    *("a remapped table", "counts of a remapped table", "segment ids", "embedding"),
    *("update by Adam", "weighted update", "update of a remapped table"),
    *("gradients of a collection", "load_state_dict"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_library("failing_allocations", tmp_path_factory.mktemp("library"))


def check(library, *names):
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else None) as folder:
        lines = run_preloaded(library, "fail_each_allocation.py", folder, *names)
    n_failed, n_others = Counter(), Counter()
    for *_, kind, failed, others in lines:
        n_failed[kind] += int(failed)
        n_others[kind] += int(others)
    assert all(n_failed[kind] > 0 for kind in ("Python", "NumPy", "embag")), n_failed
    # What CPython and NumPy themselves report as another error.
    assert n_others.total() < n_failed.total() / 20, n_others
    return lines


@pytest.mark.thorough
def test_some_calls(library):
    lines = check(library, *SOME)
    assert {name for name, *_ in lines} == set(SOME)


@pytest.mark.slow
def test_all_calls(library):
    check(library)
