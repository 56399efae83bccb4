"""`to_arrow`: results as Arrow columns, without a copy, for any library that reads Arrow.

It needs the extra `arrow` (the package nanoarrow) and imports it when it is called.

Tested in tests/columns/test_to_arrow.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments

if TYPE_CHECKING:
    from nanoarrow import Array as ArrowColumn
else:
    ArrowColumn = Any  # nanoarrow is an extra, and annotations resolve without it

_DTYPES = ("float16", "float32", "float64")


def to_arrow(array: NDArray[Any], *, mask: ArrayLike | None = None) -> ArrowColumn:
    """Return the rows of an array as an Arrow column of lists of equal size.

    Parameters
    ----------
    array : ndarray of float16, float32 or float64, shape (n_rows, dim)
        The result of a lookup. If it is C-contiguous, the column uses its memory and it must not
        be modified afterwards. Otherwise it is copied.
    mask : array_like of bool, shape (n_rows,), optional
        True for the rows that become null, such as those from `empty_bags`.

    Returns
    -------
    nanoarrow.Array
        A column of type FixedSizeList. Libraries that support Arrow's PyCapsule interface read it
        without a copy: ``pyarrow.array(column)``, ``polars.Series(column)``.

    Raises
    ------
    ImportError
        If nanoarrow is not installed.
    TypeError
        If `array` or `mask` has another dtype.
    ValueError
        If `array` or `mask` has the wrong shape.

    See Also
    --------
    empty_bags : Find the bags without ids.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> column = embag.to_arrow(np.array([[1, 2], [0, 0]], np.float32), mask=[False, True])
    >>> column.to_pylist()
    [[1.0, 2.0], None]
    """
    _arguments.check_array(array, "array")
    array = np.ndarray.view(array, np.ndarray)
    if array.dtype.name not in _DTYPES:
        raise TypeError(f"array must be float16, float32 or float64, got {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"array must be 2-D (n_rows, dim), got shape {array.shape}")
    n_rows, dim = array.shape
    if dim >= 2**31:
        raise ValueError(f"array must have less than 2**31 columns, got {dim}")
    valid = None
    if mask is not None:
        null = np.asarray(mask)
        if null.dtype != np.bool_:
            raise TypeError(f"mask must be bools, got dtype {null.dtype}")
        if null.shape != (n_rows,):
            raise ValueError(f"mask must have shape {(n_rows,)}, got {null.shape}")
        if null.any():
            valid = np.packbits(~null, bitorder="little")
    try:
        import nanoarrow  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "to_arrow needs the package nanoarrow: pip install 'embag-cpu[arrow]'"
        ) from error
    entries = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    item = getattr(nanoarrow, array.dtype.name)()  # nullable, as in pyarrow.list_(float32(), dim)
    items = nanoarrow.c_array_from_buffers(item, n_rows * dim, [None, entries.reshape(-1)])
    lists = nanoarrow.fixed_size_list(item, dim, nullable=valid is not None)
    return nanoarrow.Array(nanoarrow.c_array_from_buffers(lists, n_rows, [valid], children=[items]))
