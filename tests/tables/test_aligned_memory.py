"""`aligned_empty` and `aligned_copy`: alignment, values, errors and lifetime."""

import gc
import re
from pathlib import Path

import numpy as np
import pytest

import embag


@pytest.mark.parametrize("shape", [(), 0, 7, (3, 0), (5, 3), (1000, 64)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "complex128", "S5"])
def test_small_arrays_start_on_a_cache_line(shape, dtype):
    array = embag.aligned_empty(shape, dtype)
    assert array.shape == np.empty(shape).shape
    assert array.dtype == dtype
    assert array.size == 0 or array.ctypes.data % 64 == 0
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned


@pytest.mark.parametrize("n_bytes", [(2 << 20) - 1, 2 << 20, (2 << 20) + 1, 5 << 20])
def test_large_arrays_start_on_a_huge_page(n_bytes):
    array = embag.aligned_empty(n_bytes, np.uint8)
    assert array.ctypes.data % ((2 << 20) if n_bytes >= 2 << 20 else 64) == 0
    array[:] = 7
    assert array[-1] == 7


def test_copies_have_the_same_values():
    for array in (
        np.arange(12.0).reshape(3, 4).T,
        np.arange(3_000_000, dtype=np.float32).reshape(-1, 3)[::-1],
        np.float64(3),
        [[1, 2], [3, 4]],
    ):
        copy = embag.aligned_copy(array)
        np.testing.assert_array_equal(copy, array)
        assert copy.dtype == np.asarray(array).dtype
        assert copy.flags.c_contiguous


def test_errors():
    with pytest.raises(
        TypeError, match=r"^dtype must be of fixed size without Python objects, got "
    ):
        embag.aligned_empty(3, object)
    with pytest.raises(TypeError, match=r"^dtype must be of fixed size"):
        embag.aligned_empty(3, ("f4", 3))
    with pytest.raises(TypeError, match=r"^dtype must be of fixed size"):
        embag.aligned_empty(3, "S")
    with pytest.raises(TypeError, match=r"^shape must be integers, got 2\.5$"):
        embag.aligned_empty(2.5)
    with pytest.raises(ValueError, match=r"^shape must not be negative, got \(3, -1\)$"):
        embag.aligned_empty((3, -1))
    with pytest.raises(MemoryError):
        embag.aligned_empty((2**62, 2**62))
    with pytest.raises(MemoryError):
        embag.aligned_empty((2**46, 8))


def test_memory_is_freed_with_the_last_view():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")

    def resident():
        return int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) << 10

    n_bytes = 64 << 20
    gc.collect()  # free what other tests left, so that it is not counted below
    before = resident()
    array = embag.aligned_empty(n_bytes, np.uint8)
    array[:] = 1
    view = array[100:200]
    del array
    gc.collect()
    assert resident() - before > n_bytes // 2
    assert (view == 1).all()
    del view
    gc.collect()
    assert resident() - before < n_bytes // 2


def test_huge_pages_are_requested():
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[never]" in enabled.read_text():
        pytest.skip("this system gives no huge pages")
    array = embag.aligned_empty(8 << 20, np.uint8)
    address = array.ctypes.data
    blocks = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    for block in blocks:
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", block):
            start, stop = (int(group, 16) for group in match.groups())
            if start <= address < stop:
                assert " hg" in re.search("VmFlags:(.*)", block)[1]
                return
    pytest.fail("the array's mapping is not in smaps")
