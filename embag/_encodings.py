"""Encodings: how the entries of a row are stored, and tables as the kernels read them.

`ENCODINGS` is the table of all encodings. Its counterpart in the kernels is in
`_kernels/encodings.pxi`. Tables of all kinds reach the kernels as a `Table`.

Tested in tests/tables/.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from embag import _arguments
from embag._kernels.dispatch import kernels
from embag._process import threads

AnyArray = NDArray[Any]
Layout: TypeAlias = Literal["fused", "tbe"]

_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)
_FLOAT16 = np.dtype(np.float16)


class Encoding(NamedTuple):
    """How the entries of a row are stored."""

    name: str  # for floats, the name of the dtype
    code: int  # in the kernels
    bits: int  # of an entry
    sums_dtype: np.dtype[Any]  # the dtype in which rows are summed
    rounds: bool  # results may have it
    # For integers, whose rows have a scale and a bias each:
    layout: Layout | None = None
    factor_dtype: np.dtype[Any] = _FLOAT32  # of scale and bias
    factors_first: bool = False  # scale and bias come before the entries

    @property
    def is_plain(self) -> bool:
        """Whether entries are stored in the dtype in which they are summed."""
        return self.layout is None and self.bits == self.sums_dtype.itemsize * 8

    def row_bytes(self, dim: int) -> int:
        """Return the bytes of a row of `dim` entries, without padding bytes."""
        n_bytes: int = kernels.row_bytes(self.code, dim)
        return n_bytes


def _encoding(key: str | tuple[Layout, int], code: int) -> Encoding:
    bits, factor_bytes, factors_first, rounds = kernels.encoding_traits(code)
    if isinstance(key, str):
        return Encoding(key, code, bits, _FLOAT64 if key == "float64" else _FLOAT32, rounds)
    layout, _ = key
    factor_dtype = _FLOAT32 if factor_bytes == 4 else _FLOAT16
    return Encoding(
        f"{layout} int{bits}", code, bits, _FLOAT32, rounds, layout, factor_dtype, factors_first
    )


# The keys are the names of dtypes, and (layout, bits) of a QuantizedTable.
ENCODINGS: dict[str | tuple[Layout, int], Encoding] = {
    key: _encoding(key, code) for key, code in kernels.ENCODING_CODES.items()
}
FLOAT32, BFLOAT16 = ENCODINGS["float32"], ENCODINGS["bfloat16"]
FLOATS = tuple(key for key in ENCODINGS if isinstance(key, str))
FLOATS_NAMES = f"{', '.join(FLOATS[:-1])} or {FLOATS[-1]}"
FLOATS_RULE = f"{FLOATS_NAMES} in native byte order"

# Hashing a dtype takes 0.2 us, so `encoding_of` tests for float32 first.
_BY_DTYPE = {np.dtype(name): ENCODINGS[name] for name in ("float32", "float64", "float16")}


class Table(NamedTuple):
    """A table as the kernels read it."""

    rows: AnyArray
    code: int  # of the encoding; the compiled lookup reads the first three fields
    dim: int
    encoding: Encoding

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return len(self.rows)

    @property
    def sums_dtype(self) -> np.dtype[Any]:
        """The dtype in which rows are summed."""
        return self.encoding.sums_dtype

    def to_keep(self) -> "Table":
        """Return the table with a view of the rows, whose layout no other code can change."""
        return self._replace(rows=np.ndarray.view(self.rows, np.ndarray))

    def decode(self, indices: AnyArray, values: AnyArray, team: threads.Team) -> bool:
        """Fill `values` with these rows in float32; return False if an id is out of range.

        Each row is decoded as the maximum of a bag of one row, which leaves its entries as
        they are.
        """
        return threads.run(
            kernels.reduce_bags,
            team,
            self.rows,
            self.code,
            self.dim,
            (indices.reshape(-1, 1),),
            (None,),
            False,
            (None,),
            kernels.MODE_CODES["max"],
            -1,
            None,
            values,
            FLOAT32.code,
        )


def as_table(weight: Any, name: str = "weight") -> Table:
    """Return a table of any kind as the kernels read it, copied if necessary."""
    encoded = getattr(weight, "_encoded", None)  # of a QuantizedTable
    if type(encoded) is Table:
        return encoded
    _arguments.check_table(
        weight,
        name,
        kinds="a numpy.ndarray or a QuantizedTable",
        dtypes=f"{FLOATS_RULE}, or a QuantizedTable",
        is_known=is_known,
    )
    encoding = encoding_of(weight.dtype)
    assert encoding is not None
    n_rows, dim = weight.shape
    if kernels.is_table(weight):  # not a view, so that the kernels notice a change of layout
        return Table(weight, encoding.code, dim, encoding)
    rows = np.ndarray.view(weight, np.ndarray)
    if not rows.flags.aligned or (n_rows > 0 and dim > 1 and rows.strides[1] != rows.itemsize):
        rows = np.array(rows, order="C")
    if encoding is BFLOAT16:
        # The kernels read bfloat16 as integers. The view needs no copy, for any distance
        # between rows.
        rows = rows.view(np.uint16)
    return Table(rows, encoding.code, dim, encoding)


def shape_of(weight: AnyArray) -> Table:
    """Return a table of which only the shape and the dtype are used; it is never copied."""
    encoding = encoding_of(weight.dtype)
    assert encoding is not None
    return Table(np.ndarray.view(weight, np.ndarray), encoding.code, weight.shape[1], encoding)


def encoding_of(dtype: np.dtype[Any]) -> Encoding | None:
    """Return the encoding of an array of this dtype; None if it cannot be a table."""
    encoding = FLOAT32 if dtype is _FLOAT32 else _BY_DTYPE.get(dtype)
    # The dtype of the optional package ml_dtypes.
    if encoding is None and dtype.kind == "V" and dtype.itemsize == 2 and dtype.name == "bfloat16":
        return BFLOAT16 if dtype.isnative else None
    return encoding


def is_known(dtype: np.dtype[Any]) -> bool:
    """Return whether an array of this dtype can be a table."""
    return encoding_of(dtype) is not None


def as_out_dtype(out_dtype: DTypeLike | None, sums: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of results that are rounded from sums in the dtype `sums`.

    None stands for `sums`.
    """
    if out_dtype is None:
        return sums
    seen: Any = out_dtype
    try:
        seen = np.dtype(out_dtype)
        encoding = encoding_of(seen)
    except Exception:  # an object of the user's may raise anything
        encoding = None
    if encoding is None or encoding.sums_dtype != sums or not encoding.rounds:
        rule = "float64" if sums == _FLOAT64 else "float32, float16 or bfloat16"
        raise TypeError(
            f"out_dtype must be {rule} for a table that is summed in {sums}, "
            f"got {seen if isinstance(seen, np.dtype) else _arguments.describe(seen)}"
        )
    return sums if seen == sums else seen


def as_result(result: AnyArray) -> tuple[AnyArray, int]:
    """Return a result as the kernels write to it, and the code of its encoding."""
    encoding = encoding_of(result.dtype)
    assert encoding is not None
    if encoding is BFLOAT16:
        return np.ndarray.view(result, np.ndarray).view(np.uint16), encoding.code
    return result, encoding.code
