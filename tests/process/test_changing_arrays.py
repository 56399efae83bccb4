"""Arrays that change during a call: an error or a stale result, never a wild access.

Each test runs in a process of its own, so that a crash is a failure.
"""

import json
import os
import sys
import sysconfig

import pytest
from cases import LEVELS
from processes import SCRIPTS, run_python


def run(script, *arguments, level="baseline"):
    # Since glibc 2.34 its checks are in a library of their own.
    checks = "libc_malloc_debug.so.0" if sys.platform == "linux" else ""
    run_python(
        *("-W", "ignore", "-X", "faulthandler", SCRIPTS / script, *arguments),
        timeout=120,
        LD_PRELOAD=os.environ.get("LD_PRELOAD", checks),  # perhaps a sanitizer's library
        EMBAG_ISA=level,
        # A free-threaded Python has an allocator of its own for objects, and takes no other.
        PYTHONMALLOC="" if sysconfig.get_config_var("Py_GIL_DISABLED") else "malloc",
        MALLOC_CHECK_="3",
    )


def run_lookups(scenario, *arguments, **options):
    run("change_arrays_of_lookups.py", scenario, *arguments, **options)


def run_collections(scenario, *arguments, **options):
    run("change_arrays_of_collections.py", scenario, *arguments, **options)


@pytest.mark.parametrize("level", LEVELS)
def test_values_written_by_another_thread(level):
    run_lookups("values_of_a_lookup", level=level)


def test_segment_ids_written_by_another_thread():
    run_lookups("values_of_segment_ids")


def test_ids_that_a_finalizer_resizes():
    run("resize_in_finalizers.py")


@pytest.mark.parametrize("level", LEVELS)
def test_values_written_by_another_thread_with_encoded_tables(level):
    pytest.importorskip("ml_dtypes")
    run_lookups("values_with_encoded_tables", level=level)


@pytest.mark.parametrize("level", LEVELS)
def test_values_written_by_another_thread_during_a_backward_call(level):
    run_lookups("values_of_a_backward_call", level=level)


@pytest.mark.parametrize("level", LEVELS)
def test_offsets_that_break_every_estimate_of_the_plan(level):
    run_lookups("offsets_that_mislead_the_plan", level=level)


@pytest.mark.parametrize("level", LEVELS)
def test_offsets_that_shrink_between_the_check_and_the_kernel(level):
    run_lookups("offsets_that_shrink_after_the_check", level=level)


LAYOUT_CHANGES = {  # the array, its attribute, the new value
    "weight, to a wider dtype": ("weight", "dtype", "float64"),
    "weight, to integers": ("weight", "dtype", "int32"),
    "weight, its shape": ("weight", "shape", [20, 3200]),
    "input, to a narrower dtype": ("input", "dtype", "int8"),
    "input, to a larger number": ("input", "dtype", "int32"),
    "offsets, its shape": ("offsets", "shape", [1, 3]),
    "offsets, to int32": ("offsets", "dtype", "int32"),
    "weights, to float16": ("per_sample_weights", "dtype", "float16"),
    "out, its shape": ("out", "shape", [64, 3]),
}


@pytest.mark.parametrize("name", LAYOUT_CHANGES)
def test_layouts_changed_by_the_conversion_of_another_argument(name):
    run_lookups("layouts_of_a_lookup", json.dumps(LAYOUT_CHANGES[name]))


def test_subclasses_that_misreport_themselves():
    run_lookups("subclasses_that_misreport")


BACKWARD_CHANGES = {
    "grad, to a wider dtype": ("grad", "dtype", "float64"),
    "grad, to integers": ("grad", "dtype", "int32"),
    "grad, its shape": ("grad", "shape", [64, 500]),
    "input, to a larger number": ("input", "dtype", "int32"),
    "input, its shape": ("input", "shape", [10, 100]),
}


@pytest.mark.parametrize("name", BACKWARD_CHANGES)
def test_layouts_changed_by_the_conversion_of_another_argument_of_backward(name):
    run_lookups("layouts_of_a_backward_call", json.dumps(BACKWARD_CHANGES[name]))


@pytest.mark.parametrize("level", LEVELS)
def test_values_written_by_another_thread_during_a_call_of_a_collection(level):
    run_collections("values_of_a_call", level=level)


@pytest.mark.parametrize("level", LEVELS)
def test_offsets_that_break_every_estimate_of_the_plan_of_a_collection(level):
    run_collections("offsets_that_mislead_the_plan", level=level)


COLLECTION_CHANGES = {
    "nothing": None,
    "values, to a narrower dtype": ("values", "dtype", "int8"),
    "values, to a larger number": ("values", "dtype", "int32"),
    "values, to floats": ("values", "dtype", "float64"),
    "values, their shape": ("values", "shape", [51, 10]),
    "offsets, to int32": ("offsets", "dtype", "int32"),
    "offsets, their shape": ("offsets", "shape", [1, -1]),
    "offsets, their values": ("offsets", "flat", 2**62),
    "weights, to float16": ("weights", "dtype", "float16"),
    "weights, their shape": ("weights", "shape", [51, 10]),
    "out, its shape": ("out", "shape", [-1, 2]),
    "a table, its shape": ("table", "shape", [33, 1000]),
    "a table, its dtype": ("table", "dtype", "float64"),
    "a quantized table, its shape": ("packed", "shape", [36, 400]),
}


@pytest.mark.parametrize("name", COLLECTION_CHANGES)
def test_layouts_changed_by_the_conversion_of_another_argument_of_a_collection(name):
    run_collections("layouts_of_a_call", json.dumps(COLLECTION_CHANGES[name]))


def test_tables_changed_while_a_collection_is_made():
    run_collections("layouts_during_construction")
