"""What a kernel reads as a table: an array, and how its rows are encoded.

`Table` is the one form that every table takes on its way to the kernels; the codes are
those of `_layouts.pxi`. Tested in tests/test_low_precision.py.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from embag import _arguments
from embag.quantized import Layout, QuantizedTable

AnyArray = NDArray[Any]

FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = range(4)
_QUANTIZED: dict[tuple[Layout, int], int] = {
    ("fused", 8): 4,
    ("fused", 4): 5,
    ("fused", 2): 6,
    ("tbe", 8): 7,
    ("tbe", 4): 8,
    ("tbe", 2): 9,
}
_LAYOUTS = {code: layout for layout, code in _QUANTIZED.items()}


class Table(NamedTuple):
    """A table as the kernels read it."""

    rows: AnyArray
    encoding: int
    dim: int

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the table that it stands for: (n_rows, dim)."""
        return len(self.rows), self.dim

    @property
    def is_plain(self) -> bool:
        """Whether it is of float32 or float64: summed as it is."""
        return self.encoding <= FLOAT64

    @property
    def sums_dtype(self) -> np.dtype[Any]:
        """The dtype that its rows are summed in."""
        return np.dtype(np.float64 if self.encoding == FLOAT64 else np.float32)

    def take(self, rows: NDArray[np.int64]) -> AnyArray:
        """Return these rows in the dtype of sums; all of them exist."""
        taken = self.rows[rows]
        if self.encoding == BFLOAT16:
            return (taken.astype(np.uint32) << 16).view(np.float32)
        if self.encoding in _LAYOUTS:
            layout, bits = _LAYOUTS[self.encoding]
            return QuantizedTable.from_packed(taken, bits, self.dim, layout).dequantize()
        return taken.astype(self.sums_dtype, copy=False)


def as_table(weight: Any, name: str = "weight") -> Table:
    """Return a table of any kind as the kernels read it; what they cannot read is copied."""
    if isinstance(weight, QuantizedTable):
        return Table(weight.packed, _QUANTIZED[weight.layout, weight.bits], weight.dim)
    if not isinstance(weight, np.ndarray):
        raise TypeError(
            f"{name} must be a numpy.ndarray or a QuantizedTable, got {_arguments.describe(weight)}"
        )
    encoding = encoding_of(weight.dtype)
    if encoding is None:
        raise TypeError(
            f"{name} must be float32, float64, float16 or bfloat16 in native byte order, "
            f"or a QuantizedTable, "
            f"got {weight.dtype.str if weight.dtype.kind == 'f' else weight.dtype}"
        )
    if weight.ndim != 2:
        raise ValueError(f"{name} must be 2-D (n_rows, dim), got shape {weight.shape}")
    rows = np.ndarray.view(weight, np.ndarray)
    if not rows.flags.aligned or (
        rows.size and rows.shape[1] > 1 and rows.strides[1] != rows.itemsize
    ):
        rows = np.array(rows, order="C")
    if encoding == BFLOAT16:
        # NumPy has no such dtype of its own. Its view as integers takes no copy, whatever
        # the distance between rows.
        rows = rows.view(np.uint16)
    return Table(rows, encoding, rows.shape[1])


def encoding_of(dtype: np.dtype[Any]) -> int | None:
    """Return the code of an array's dtype; None if it is no table's."""
    if not dtype.isnative:
        return None
    if dtype.char in "fde":
        return {"f": FLOAT32, "d": FLOAT64, "e": FLOAT16}[dtype.char]
    # The dtype of the package ml_dtypes, which need not be installed.
    if dtype.kind == "V" and dtype.itemsize == 2 and dtype.name == "bfloat16":
        return BFLOAT16
    return None


def as_out_dtype(out_dtype: DTypeLike | None, sums: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of results, which are sums in the dtype `sums`, rounded."""
    if out_dtype is None:
        return sums
    try:
        dtype = np.dtype(out_dtype)
    except Exception:  # whatever a user's object raises
        dtype = None
    encoding = None if dtype is None else encoding_of(dtype)
    allowed = (FLOAT64,) if sums == np.float64 else (FLOAT32, FLOAT16, BFLOAT16)
    if dtype is None or encoding not in allowed:
        rule = "float64" if sums == np.float64 else "float32, float16 or bfloat16"
        seen = out_dtype if dtype is None else dtype
        raise TypeError(
            f"out_dtype must be {rule} for a table that is summed in {sums}, "
            f"got {_arguments.describe(seen) if dtype is None else seen}"
        )
    return dtype


def as_result(result: AnyArray) -> tuple[AnyArray, int]:
    """Return a result as the kernels write it, and the code of its dtype."""
    encoding = encoding_of(result.dtype)
    assert encoding is not None  # as_out_dtype has seen it
    if encoding == BFLOAT16:
        return np.ndarray.view(result, np.ndarray).view(np.uint16), encoding
    return result, encoding
