"""What a kernel reads as a table: an array, and how its rows are encoded.

`Table` is the one form that every table takes on its way to the kernels; the codes are
those of `_layouts.pxi`. Tested in tests/test_low_precision.py.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from embag import _arguments, _threads
from embag._dispatch import kernels

AnyArray = NDArray[Any]

_floats: tuple[int, int, int, int] = kernels.FLOAT_ENCODINGS
FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = _floats
QUANTIZED: dict[tuple[str, int], int] = kernels.QUANTIZED_ENCODINGS  # by layout and bits

FLOATS = "float32, float64, float16 or bfloat16 in native byte order"

_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)
_CODES = {_FLOAT32: FLOAT32, _FLOAT64: FLOAT64, np.dtype(np.float16): FLOAT16}


class Table(NamedTuple):
    """A table as the kernels read it."""

    rows: AnyArray
    encoding: int
    dim: int
    sums_dtype: np.dtype[Any] = _FLOAT32  # what its rows are summed in

    @property
    def is_plain(self) -> bool:
        """Whether it is of float32 or float64: summed as it is."""
        return self.encoding <= FLOAT64

    def decode(self, indices: AnyArray, values: AnyArray, n_threads: int) -> bool:
        """Fill `values`, in float32, with these rows; False if one is none.

        An entry is decoded by itself: the maximum of a bag of one row.
        """
        bags = indices.reshape(-1, 1)
        done: bool = _threads.run(
            *(kernels.embedding_bag, n_threads, self.rows, bags, None, False, None, "max", -1),
            *(None, values, None, None, self.encoding, self.dim, FLOAT32),
        )
        return done


def as_table(weight: Any, name: str = "weight") -> Table:
    """Return a table of any kind as the kernels read it; what they cannot read is copied."""
    encoded = getattr(weight, "_encoded", None)  # a QuantizedTable's
    if type(encoded) is Table:
        return encoded
    _arguments.check_table(
        weight,
        name,
        kinds="a numpy.ndarray or a QuantizedTable",
        dtypes=f"{FLOATS}, or a QuantizedTable",
        is_known=is_known,
    )
    rows = np.ndarray.view(weight, np.ndarray)
    encoding = encoding_of(rows.dtype)
    n_rows, dim = rows.shape
    if not rows.flags.aligned or (n_rows > 0 and dim > 1 and rows.strides[1] != rows.itemsize):
        rows = np.array(rows, order="C")
    if encoding == BFLOAT16:
        # NumPy has no such dtype of its own. Its view as integers takes no copy, whatever
        # the distance between rows.
        rows = rows.view(np.uint16)
    assert encoding is not None
    return Table(rows, encoding, dim, _FLOAT64 if encoding == FLOAT64 else _FLOAT32)


def encoding_of(dtype: np.dtype[Any]) -> int | None:
    """Return the code of an array's dtype; None if it is no table's."""
    if dtype is _FLOAT32:  # NumPy has one object for it, and hashing takes 0.2 us
        return FLOAT32
    code = _CODES.get(dtype)
    # The dtype of the package ml_dtypes, which need not be installed.
    if code is None and dtype.kind == "V" and dtype.itemsize == 2 and dtype.name == "bfloat16":
        code = BFLOAT16 if dtype.isnative else None
    return code


def is_known(dtype: np.dtype[Any]) -> bool:
    """Return whether an array of this dtype can be a table."""
    return encoding_of(dtype) is not None


def as_out_dtype(out_dtype: DTypeLike, sums: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of results, which are sums in the dtype `sums`, rounded."""
    seen: Any = out_dtype
    try:
        seen = np.dtype(out_dtype)
        encoding = encoding_of(seen)
    except Exception:  # whatever a user's object raises
        encoding = None
    allowed = (FLOAT64,) if sums == _FLOAT64 else (FLOAT32, FLOAT16, BFLOAT16)
    if encoding not in allowed:
        rule = "float64" if sums == _FLOAT64 else "float32, float16 or bfloat16"
        raise TypeError(
            f"out_dtype must be {rule} for a table that is summed in {sums}, "
            f"got {seen if isinstance(seen, np.dtype) else _arguments.describe(seen)}"
        )
    return sums if seen == sums else seen


def as_result(result: AnyArray) -> tuple[AnyArray, int | None]:
    """Return a result as the kernels write it, and the code of its dtype."""
    encoding = encoding_of(result.dtype)
    if encoding == BFLOAT16:
        return np.ndarray.view(result, np.ndarray).view(np.uint16), encoding
    return result, encoding
