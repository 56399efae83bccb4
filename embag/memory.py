"""Memory for tables: aligned to cache lines, and in huge pages where the system has them.

A row of 256 bytes at a 64-byte boundary takes four cache lines. NumPy allocates at 16 mod
64, so the row takes five. A table of gigabytes in pages of 4 KiB misses the TLB at nearly
every row; in pages of 2 MiB it rarely does.

Tested in tests/tables/test_aligned_memory.py. Figures: docs/design.md, "Alignment".
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from embag._arguments import describe
from embag._columns import vectors

_LINE = 64
_HUGE_PAGE = 2 << 20


def aligned_empty(shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return a new array that starts at a cache line or a huge page.

    Parameters
    ----------
    shape : int or sequence of int
        The shape of the array.
    dtype : data-type, optional
        Any dtype of fixed size without Python objects; float32 by default.

    Returns
    -------
    ndarray
        C-contiguous, with arbitrary values. An array of at least 2 MiB starts at a 2 MiB
        boundary, in huge pages if the system provides them; a smaller one starts at a 64-byte
        boundary. The memory is freed with the last array that refers to it.

    Raises
    ------
    TypeError
        If `dtype` is not a dtype, contains Python objects or has no size, or `shape` is not
        integers.
    ValueError
        If `shape` has a negative number.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    aligned_copy : Copy an array into such memory.

    Examples
    --------
    >>> import embag
    >>> table = embag.aligned_empty((1000, 64), "float32")
    >>> table.shape, table.ctypes.data % 64
    ((1000, 64), 0)
    """
    try:
        dtype = np.dtype(dtype)
    except MemoryError:
        raise
    except Exception as error:  # a user's object can make NumPy raise anything
        raise TypeError(f"dtype must be one that NumPy knows, got {describe(dtype)}") from error
    if dtype.hasobject or dtype.subdtype or dtype.itemsize == 0:
        raise TypeError(f"dtype must be of fixed size without Python objects, got {dtype!r}")
    lengths = _as_shape(shape)
    n_bytes = math.prod(lengths) * dtype.itemsize
    if n_bytes > np.iinfo(np.intp).max - 2 * _HUGE_PAGE:
        raise MemoryError(f"cannot allocate an array of shape {lengths} and dtype {dtype}")
    if n_bytes >= _HUGE_PAGE:
        # Whole huge pages, with room to align the start. Untouched pages take no memory.
        boundary = _HUGE_PAGE
        memory = _map_memory(-(-n_bytes // _HUGE_PAGE) * _HUGE_PAGE + _HUGE_PAGE)
    else:
        boundary = _LINE
        memory = np.empty(n_bytes + _LINE, np.uint8)
    start = -memory.ctypes.data % boundary
    try:
        return memory[start : start + n_bytes].view(dtype).reshape(lengths)
    except ValueError as error:
        raise ValueError(f"shape must be one that an ndarray can have, got {lengths}") from error


def aligned_copy(array: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of an array in memory from `aligned_empty`.

    Lookups in the copy are faster: by a quarter to a half for rows of a few cache lines, by more
    if the table is far larger than the caches.

    Parameters
    ----------
    array : array_like, FixedSizeList column or pandas frame
        The table to copy, of any layout.

    Returns
    -------
    ndarray
        C-contiguous, with the same shape, dtype and values.

    Raises
    ------
    TypeError
        If the dtype contains Python objects or has no size.
    ValueError
        If NumPy cannot convert `array` to an array, or a column has nulls.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    aligned_empty : Fill a table in place, without a second copy in memory.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> table = embag.aligned_copy(np.ones((3, 2), np.float32))
    >>> table
    array([[1., 1.],
           [1., 1.],
           [1., 1.]], dtype=float32)
    """
    source = np.asarray(vectors.as_array(array, "array", kept=True))
    copy = aligned_empty(source.shape, source.dtype)
    copy[...] = source
    return copy


def _as_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        lengths = shape if np.iterable(shape) else (shape,)
        # An endless iterable is cut at more lengths than an ndarray can have.
        result = tuple(operator.index(length) for length in itertools.islice(lengths, 1000))
    except (TypeError, NotImplementedError):  # the latter for a memoryview with two axes
        raise TypeError(f"shape must be integers, got {describe(shape)}") from None
    if any(length < 0 for length in result):
        raise ValueError(f"shape must not be negative, got {result}")
    return result


def _map_memory(n_bytes: int) -> NDArray[np.uint8]:
    try:
        if hasattr(mmap, "MAP_PRIVATE"):
            # Private: shared anonymous memory gets no huge pages, and a fork should copy the
            # table on write, like all other memory.
            pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            pages = mmap.mmap(-1, n_bytes)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"cannot allocate {n_bytes} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A system built without huge pages raises; its memory is only slower.
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)
