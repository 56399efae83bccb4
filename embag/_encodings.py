"""Encodings: how the entries of a row are stored, and tables as the kernels read them.

`ENCODINGS` is the table of all encodings. Its counterpart in the kernels is in
`_kernels/encodings.pxi`. Tables of all kinds reach the kernels as a `Table`.

Tested in tests/tables/.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from embag import _arguments, _performance
from embag._columns import vectors
from embag._kernels.dispatch import kernels
from embag._process import threads

AnyArray = NDArray[Any]
Layout: TypeAlias = Literal["fused", "tbe", "symmetric"]

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
    # For integers of a layout, whose rows have a scale and a bias each:
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
FLOAT32, FLOAT64 = ENCODINGS["float32"], ENCODINGS["float64"]


def _join(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


# The dtypes of tables, and those that `quantize` reads.
DTYPES = tuple(key for key in ENCODINGS if isinstance(key, str))
DTYPES_NAMES = _join(DTYPES)
DTYPES_RULE = f"{DTYPES_NAMES} in native byte order"
FLOATS = tuple(name for name in DTYPES if ENCODINGS[name].rounds)
FLOATS_RULE = f"{_join(FLOATS)} in native byte order"

_FIRST_OF_USERS = 256  # NumPy's number of the first dtype of another package
LOW_FLOATS = ("bfloat16", "float8_e4m3fn", "float8_e5m2")  # of the package ml_dtypes
# Hashing a dtype takes 0.2 us, so `encoding_of` tests for float32 first.
_BY_DTYPE = {np.dtype(name): ENCODINGS[name] for name in DTYPES if name not in LOW_FLOATS}


class Mapping(NamedTuple):
    """The map from ids to the rows of a table, as the kernels read it."""

    index_map: AnyArray | None  # (n_ids,) the row of each id, -1 for none; None: id - first_id
    scales: AnyArray | None  # (n_ids,) of the dtype of sums
    first_id: int
    n_ids: int

    def check(self, n_rows: int, ids: AnyArray | None = None) -> None:
        """Raise unless each of these ids that is in range is mapped to a row, or to -1.

        All ids are checked if none are given.
        """
        if self.index_map is None:
            return
        places = np.arange(self.n_ids)
        if ids is not None:
            places = ids.reshape(-1).astype(np.int64) - self.first_id
            places = places[(places >= 0) & (places < self.n_ids)]
        rows = self.index_map[places]
        bad = (rows < -1) | (rows >= n_rows)
        if bad.any():
            i = int(places[bad.argmax()])
            raise ValueError(
                f"index_map must hold rows of a table of {n_rows} rows, or -1, "
                f"got index_map[{i}] = {self.index_map[i]}"
            )

    def is_pruned(self, ids: AnyArray) -> NDArray[np.bool_]:
        """Return which of these ids have no row."""
        if self.index_map is None:
            return np.zeros(ids.shape, np.bool_)
        pruned: NDArray[np.bool_] = self.index_map[ids - self.first_id] < 0
        return pruned


class Table(NamedTuple):
    """A table as the kernels read it."""

    rows: AnyArray
    code: int  # of the encoding
    dim: int
    mapping: Mapping | None  # None: an id is the number of its row
    scales: NDArray[np.float32] | None  # (n_rows,), or () for all rows
    encoding: Encoding  # the compiled lookup reads the fields above

    @classmethod
    def of(
        cls,
        rows: AnyArray,
        encoding: Encoding,
        dim: int,
        scales: NDArray[np.float32] | None = None,
    ) -> "Table":
        """Return the table of these rows."""
        return cls(rows, encoding.code, dim, None, scales, encoding)

    @property
    def n_rows(self) -> int:
        """The number of ids: of rows, unless ids are mapped."""
        return len(self.rows) if self.mapping is None else self.mapping.n_ids

    @property
    def first_id(self) -> int:
        """The lowest id."""
        return 0 if self.mapping is None else self.mapping.first_id

    @property
    def is_plain(self) -> bool:
        """Whether rows are stored as they are summed, and ids are their numbers."""
        return self.encoding.is_plain and self.mapping is None

    def check_map(self, ids: AnyArray) -> None:
        """Raise unless each of these ids that is in range is mapped to a row, or to none."""
        if self.mapping is not None:
            self.mapping.check(len(self.rows), ids)

    @property
    def has_scaled_ids(self) -> bool:
        """Whether ids have scales."""
        return self.mapping is not None and self.mapping.scales is not None

    def memory(self) -> list[AnyArray]:
        """Return the arrays of the table."""
        mapped = () if self.mapping is None else (self.mapping.index_map, self.mapping.scales)
        return [array for array in (self.rows, self.scales, *mapped) if array is not None]

    @property
    def sums_dtype(self) -> np.dtype[Any]:
        """The dtype in which rows are summed."""
        return self.encoding.sums_dtype

    def to_keep(self) -> "Table":
        """Return the table with a view of the rows, whose layout no other code can change."""
        return self._replace(rows=np.ndarray.view(self.rows, np.ndarray))

    def decode(self, indices: AnyArray, values: AnyArray, team: threads.Team) -> bool:
        """Fill `values` with rows in the dtype of sums; return False if an id is out of range.

        An id without a row gives zeros. Each row is decoded as the maximum of a bag of one row,
        which leaves its entries as they are.
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
            -1,  # no padding
            None,
            values,
            _BY_DTYPE[values.dtype].code,
            None,
            None,
            -1,
            -1,
            False,
            None,
            self.mapping,
            self.scales,
        )


def as_table(weight: Any, name: str = "weight", kept: bool = False) -> Table:
    """Return a table of any kind as the kernels read it, copied if necessary.

    Warns if a large table is copied, unless the caller keeps the copy (`kept`).
    """
    encoded = getattr(weight, "_encoded", None)  # of a QuantizedTable or a RemappedTable
    if type(encoded) is Table:
        return encoded
    weight = vectors.as_array(weight, name, kept)
    _arguments.check_table(
        weight,
        name,
        kinds="a numpy.ndarray, a QuantizedTable or a RemappedTable",
        dtypes=f"{DTYPES_RULE}, or a QuantizedTable",
        is_known=is_known,
    )
    encoding = encoding_of(weight.dtype)
    assert encoding is not None
    n_rows, dim = weight.shape
    if kernels.is_table(weight):  # not a view, so that the kernels notice a change of layout
        return Table.of(weight, encoding, dim)
    rows = np.ndarray.view(weight, np.ndarray)
    if not rows.flags.aligned or (n_rows > 0 and dim > 1 and rows.strides[1] != rows.itemsize):
        spread = "the entries of its rows are not adjacent"
        reason = spread if rows.flags.aligned else "it is not aligned"
        rows = np.array(rows, order="C")
        if not kept:
            _performance.warn_of_copies(name, rows.nbytes, reason)
    return Table.of(as_numpy_type(rows), encoding, dim)


def memory_of(weight: Any) -> list[Any]:
    """Return the arrays of a table of any kind, as given."""
    encoded = getattr(weight, "_encoded", None)
    return encoded.memory() if type(encoded) is Table else [weight]


def as_numpy_type(array: AnyArray) -> AnyArray:
    """Return an array of a type that NumPy has: low-precision floats are viewed as integers.

    The view needs no copy, whatever the distance between rows.
    """
    if array.dtype.num < _FIRST_OF_USERS:
        return array
    return np.ndarray.view(array, np.ndarray).view(f"u{array.itemsize}")


def shape_of(weight: AnyArray) -> Table:
    """Return a table of which only the shape and the dtype are used; it is never copied."""
    encoding = encoding_of(weight.dtype)
    assert encoding is not None
    return Table.of(np.ndarray.view(weight, np.ndarray), encoding, weight.shape[1])


def encoding_of(dtype: np.dtype[Any]) -> Encoding | None:
    """Return the encoding of an array of this dtype; None if it cannot be a table."""
    encoding = FLOAT32 if dtype is _FLOAT32 else _BY_DTYPE.get(dtype)
    if encoding is None and dtype.num >= _FIRST_OF_USERS and dtype.name in LOW_FLOATS:
        return ENCODINGS[dtype.name] if dtype.isnative else None
    return encoding


def is_known(dtype: np.dtype[Any]) -> bool:
    """Return whether an array of this dtype can be a table."""
    return encoding_of(dtype) is not None


def is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether `quantize` reads arrays of this dtype."""
    encoding = encoding_of(dtype)
    return encoding is not None and encoding.name in FLOATS


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
    except MemoryError:
        raise
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
    return as_numpy_type(result), encoding.code
