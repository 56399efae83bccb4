"""No result has a byte that was not written, and no call writes beyond the ends of its memory.

MemorySanitizer also finds reads: `make sanitize-memory`.
"""

import pytest
from cases import LEVELS
from preloading import build_library, run_preloaded

pytest.importorskip("ml_dtypes")
pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_library("guarded_memory", tmp_path_factory.mktemp("library"))


@pytest.mark.thorough
@pytest.mark.parametrize("level", LEVELS)
def test_results_do_not_depend_on_new_memory(library, level, tmp_path):
    ((n_calls, n_arrays),) = run_preloaded(library, "fill_memory.py", tmp_path, EMBAG_ISA=level)
    assert int(n_calls) > 5000
    assert int(n_arrays) > 5000


@pytest.mark.thorough
def test_faults_are_found(library, tmp_path):
    found = dict(run_preloaded(library, "fill_memory.py", tmp_path, "faults"))
    assert found == {
        "leave_a_row_unwritten": "depends on memory that was not written",
        "write_past_an_array": "a write beyond the ends",
        "write_before_an_array": "a write beyond the ends",
        "write_past_a_block": "a write beyond the ends",
    }
