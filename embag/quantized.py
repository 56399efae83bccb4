"""`quantize` and `QuantizedTable`: tables of 8, 4 or 2 bits an entry, with scales and biases.

A row consists of packed integers q and two numbers. Entry d of the row stands for
`scale * q[d] + bias`. The bytes are those of torch's `embedding_bag_*_prepack` and of
FBGEMM, so tables of theirs are read in place.

    layout      the bytes of a row, in order
    "fused"     the integers, then scale and bias: float32 for 8 bits, otherwise float16
    "tbe"       scale and bias in float16, then the integers, then any padding

In a byte, the entry of the lowest column has the lowest bits.

A symmetric table has no biases: entry d of a row stands for `scale * q[d]`. Its entries are an
array of int8 or of 8-bit floats, and its scales a separate array (layout "symmetric"), so arrays
of other libraries are used without a copy.

Tables are read and written in chunks of rows, so memory-mapped tables may be larger than
memory.

Tested in tests/tables/.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments, _encodings
from embag._columns import vectors
from embag._encodings import ENCODINGS, Layout
from embag._kernels.dispatch import kernels
from embag._process import threads
from embag.memory import aligned_empty

_FLOAT32 = np.dtype(np.float32)

# Entries of a chunk, 16 MiB of float32: starting threads for each costs next to nothing.
CHUNK_ENTRIES = 4 << 20
# Entries of a chunk for NumPy: its temporary arrays stay in the cache.
SMALL_CHUNK_ENTRIES = 128 << 10


class QuantizationError(NamedTuple):
    """The difference between a quantized table and the table of floats that it stands for.

    Attributes
    ----------
    max_abs : float
        The largest absolute difference of two entries.
    mean_abs : float
        The mean absolute difference, over all entries.
    cosine : float
        The mean over rows of the cosine between a row and its quantized row: 1 for the same
        direction. If both rows are zero it is 1, if one is zero it is 0.
    """

    max_abs: float
    mean_abs: float
    cosine: float


@dataclass(frozen=True, init=False, eq=False, repr=False, slots=True)
class QuantizedTable:
    """A table of 8-, 4- or 2-bit entries with a scale and a bias per row, or with scales alone.

    Make one with `quantize`, with `from_packed` from a table that torch or FBGEMM packed, or with
    `from_int8` or `from_float8` from entries and scales (a symmetric table). ``len(table)`` is the
    number of rows. A slice of rows, ``table[a:b]``, is a table in the same memory.

    Attributes
    ----------
    packed : ndarray of uint8, shape (n_rows, row_bytes)
        The bytes of the rows. In a symmetric table, the entries, of shape (n_rows, dim) and dtype
        int8, float8_e4m3fn or float8_e5m2.
    bits : {8, 4, 2}
        The bits of an entry.
    dim : int
        The entries of a row.
    layout : {"fused", "tbe", "symmetric"}
        Where the scale and bias of a row are: after the entries ("fused") or before ("tbe").
        "symmetric": rows have no bias, and `scales` holds the scales.
    scales : ndarray of float32, shape () or (n_rows,), or None
        The scale of all rows, or of each row. None for the other layouts.

    See Also
    --------
    quantize : Make one from a table of floats.
    embedding_bag : Takes one as `weight`.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> weight = np.array([[0, 1, 255], [2, 2, 2], [3, 3, 3], [4, 4, 4]], np.float32)
    >>> table = embag.quantize(weight)
    >>> len(table), table.shape
    (4, (4, 3))
    >>> table[1:3]
    QuantizedTable(2 rows, dim=3, bits=8, 22 bytes)
    >>> table[::2].dequantize()
    array([[  0.,   1., 255.],
           [  3.,   3.,   3.]], dtype=float32)
    """

    packed: NDArray[np.uint8]
    bits: int
    dim: int
    layout: Layout
    scales: NDArray[np.float32] | None
    _encoded: _encodings.Table

    @classmethod
    def from_int8(cls, q: NDArray[np.int8], scales: ArrayLike) -> "QuantizedTable":
        """Return a symmetric table of signed 8-bit integers: ``scale * q``.

        Parameters
        ----------
        q : ndarray of int8, shape (n_rows, dim)
            The entries. Those of a row are adjacent; rows may be any distance apart. The array
            may be memory-mapped.
        scales : array_like, shape (), (1,), (n_rows,) or (n_rows, 1)
            One scale for all rows, or one for each, converted to float32.

        Returns
        -------
        QuantizedTable
            A table in the memory of `q`.

        Raises
        ------
        TypeError
            If `q` is not an array of int8, or `scales` are not real numbers.
        ValueError
            If `q` is not 2-D or the entries of a row are not adjacent, or if there are neither
            one scale nor `n_rows`.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> q = np.array([[-2, 4], [1, 0]], np.int8)
        >>> embag.QuantizedTable.from_int8(q, [0.5, 10]).dequantize()
        array([[-1.,  2.],
               [10.,  0.]], dtype=float32)
        """
        return cls._symmetric(q, scales, ("int8",))

    @classmethod
    def from_float8(cls, q: NDArray[Any], scales: ArrayLike = 1.0) -> "QuantizedTable":
        """Return a symmetric table of 8-bit floats: ``scale * q``.

        Parameters
        ----------
        q : ndarray of float8_e4m3fn or float8_e5m2 (of ml_dtypes), shape (n_rows, dim)
            The entries. Those of a row are adjacent; rows may be any distance apart. The array
            may be memory-mapped.
        scales : array_like, shape (), (1,), (n_rows,) or (n_rows, 1), optional
            One scale for all rows, or one for each, converted to float32.

        Returns
        -------
        QuantizedTable
            A table in the memory of `q`.

        Raises
        ------
        TypeError
            If `q` is not an array of such floats, or `scales` are not real numbers.
        ValueError
            If `q` is not 2-D or the entries of a row are not adjacent, or if there are neither
            one scale nor `n_rows`.
        """
        return cls._symmetric(q, scales, ("float8_e4m3fn", "float8_e5m2"))

    @classmethod
    def _symmetric(cls, q: Any, scales: Any, names: tuple[str, ...]) -> "QuantizedTable":
        _arguments.check_array(q, "q")
        rows = np.ndarray.view(q, np.ndarray)  # whose shape nothing else can change
        encoding = _encodings.encoding_of(rows.dtype)
        if encoding is None or encoding.name not in names:
            raise TypeError(f"q must be {' or '.join(names)}, got dtype {rows.dtype}")
        if rows.ndim != 2:
            raise ValueError(f"q must be 2-D (n_rows, dim), got shape {rows.shape}")
        n_rows, dim = rows.shape
        if dim > 1 and n_rows > 0 and rows.strides[1] != 1:
            raise ValueError(
                f"q must have the entries of a row adjacent, got strides {rows.strides}"
            )
        given = _arguments.as_numbers(scales, "scales")
        _arguments.check_castable("scales", given.dtype, np.dtype(np.float32))
        if given.shape not in ((), (1,), (n_rows,), (n_rows, 1)):
            raise ValueError(
                f"scales must be one number or {n_rows}, one for each row, got shape {given.shape}"
            )
        factors = _arguments.cast(given.reshape(() if given.size == 1 else -1), _FLOAT32)
        encoded = _encodings.Table.of(_encodings.as_numpy_type(rows), encoding, dim, factors)
        return cls._of(rows, 8, "symmetric", factors, encoded)

    @classmethod
    def _of(
        cls,
        packed: NDArray[Any],
        bits: int,
        layout: Layout,
        scales: NDArray[np.float32] | None,
        encoded: _encodings.Table,
    ) -> "QuantizedTable":
        table = object.__new__(cls)
        fields = {"packed": packed, "bits": bits, "dim": encoded.dim, "layout": layout}
        for name, value in (fields | {"scales": scales, "_encoded": encoded}).items():
            object.__setattr__(table, name, value)
        return table

    @classmethod
    def from_packed(
        cls, packed: NDArray[np.uint8], bits: int, dim: int, layout: Layout = "fused"
    ) -> "QuantizedTable":
        """Return a table of rows that are already packed, without a copy.

        Parameters
        ----------
        packed : ndarray of uint8, shape (n_rows, row_bytes)
            The rows. The bytes of a row are adjacent; rows may be any distance apart. The array may
            be memory-mapped.
        bits : {8, 4, 2}
            The bits of an entry.
        dim : int
            The entries of a row.
        layout : {"fused", "tbe"}, optional
            "fused": the entries, then scale and bias, in float32 for 8 bits and float16 for fewer
            (``torch.ops.quantized.embedding_bag_byte_prepack`` and its variants). "tbe": scale and
            bias in float16, then the entries, then any padding (FBGEMM's table-batched embeddings).
            The scale and bias have the byte order of the machine.

        Returns
        -------
        QuantizedTable
            A table in the memory of `packed`.

        Raises
        ------
        TypeError
            If `packed` is not an array of uint8, or `bits` or `dim` is not an integer.
        ValueError
            If the shape of `packed` does not fit such rows, or an option is unknown.

        Examples
        --------
        Two rows of 4-bit entries, two bytes of them, then scale 1 and bias 10 in float16:

        >>> import numpy as np
        >>> import embag
        >>> packed = np.array([[0x10, 0x32, 0, 60, 0, 73]] * 2, np.uint8)
        >>> embag.QuantizedTable.from_packed(packed, bits=4, dim=4).dequantize()
        array([[10., 11., 12., 13.],
               [10., 11., 12., 13.]], dtype=float32)
        """
        bits, dim = _as_format(bits, dim, layout)
        _arguments.check_array(packed, "packed")
        # A new view, whose shape nothing else can change after the check.
        rows = np.ndarray.view(packed, np.ndarray)
        if rows.dtype != np.uint8:
            raise TypeError(f"packed must be uint8, got dtype {rows.dtype}")
        if rows.ndim != 2:
            raise ValueError(f"packed must be 2-D (n_rows, row_bytes), got shape {rows.shape}")
        encoding = ENCODINGS[layout, bits]
        needed = encoding.row_bytes(dim)
        n_bytes = rows.shape[1]
        if n_bytes < needed or (layout == "fused" and n_bytes != needed):
            least = "" if layout == "fused" else "at least "
            raise ValueError(
                f"packed must have rows of {least}{needed} bytes for {dim} entries of "
                f"{bits} bits with layout {layout!r}, got {n_bytes}"
            )
        if n_bytes > 1 and rows.strides[1] != 1 and rows.shape[0] > 0:
            raise ValueError(
                f"packed must have the bytes of a row adjacent, got strides {rows.strides}"
            )
        return cls._of(rows, bits, layout, None, _encodings.Table.of(rows, encoding, dim))

    def __reduce__(self) -> tuple[Any, ...]:
        if self.scales is not None:
            is_int8 = self.packed.dtype == np.int8
            make = QuantizedTable.from_int8 if is_int8 else QuantizedTable.from_float8
            return make, (self.packed, self.scales)
        return QuantizedTable.from_packed, (self.packed, self.bits, self.dim, self.layout)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the table of floats that this stands for: (n_rows, dim)."""
        return len(self.packed), self.dim

    @property
    def nbytes(self) -> int:
        """The number of bytes of all rows, and of `scales`."""
        return self.packed.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, rows: slice) -> "QuantizedTable":
        """Return a table of some rows, in the memory of this one.

        Parameters
        ----------
        rows : slice
            The rows: ``table[100:200]``.

        Returns
        -------
        QuantizedTable
            A table of these rows, without a copy.

        Raises
        ------
        TypeError
            If `rows` is not a slice.
        """
        if not isinstance(rows, slice):
            raise TypeError(
                f"rows must be a slice, got {_arguments.describe(rows)}: see dequantize(rows)"
            )
        if self.scales is not None:
            make, (packed, scales) = self.__reduce__()
            table: QuantizedTable = make(packed[rows], scales[rows] if scales.ndim else scales)
            return table
        return QuantizedTable.from_packed(self.packed[rows], self.bits, self.dim, self.layout)

    def __repr__(self) -> str:
        n_rows, dim = self.shape
        entries = f"bits={self.bits}" if self.scales is None else self.packed.dtype
        return f"QuantizedTable({n_rows} rows, dim={dim}, {entries}, {self.nbytes} bytes)"

    def dequantize(
        self, rows: "ArrayLike | None" = None, *, num_threads: int | None = None
    ) -> NDArray[np.float32]:
        """Return the floats that rows stand for.

        Parameters
        ----------
        rows : array_like of int, shape (n,), optional
            The rows, in any order, each in ``0 .. n_rows - 1``. All rows by default.
        num_threads : int, optional
            The largest number of threads for this call, instead of `get_num_threads`.

        Returns
        -------
        ndarray of float32, shape (n, dim)
            The floats of each row in `rows`.

        Raises
        ------
        IndexError
            If a row is out of range. The message names the first.
        TypeError
            If `rows` or `num_threads` are not integers.
        ValueError
            If `rows` is not 1-D or `num_threads` is less than 1.
        MemoryError
            If there is not enough memory.

        Notes
        -----
        An entry is ``scale * q + bias`` in float32. The product is rounded, then the sum. In a
        symmetric table it is ``scale * q``.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> table = embag.quantize(np.array([[0, 1, 255], [3, 3, 3]], np.float32))
        >>> table.dequantize([1, 0, 1])
        array([[  3.,   3.,   3.],
               [  0.,   1., 255.],
               [  3.,   3.,   3.]], dtype=float32)
        """
        if num_threads is not None:
            num_threads = _arguments.as_count(num_threads, "num_threads")
        n_rows = len(self.packed)
        if rows is None:
            values = aligned_empty((n_rows, self.dim))
            # A table without columns may have too many rows to iterate over.
            for start, stop in _cut_rows(n_rows if self.dim else 0, self.dim, CHUNK_ENTRIES):
                self._decode(np.arange(start, stop), values[start:stop], num_threads)
            return values
        indices = _arguments.as_indices(rows, "rows")
        if indices.ndim != 1:
            raise ValueError(f"rows must be 1-D, got shape {indices.shape}")
        k = kernels.first_bad_index(indices, n_rows)
        if k >= 0:
            _arguments.raise_out_of_range(f"rows[{k}]", _arguments.integer_at(rows, k), n_rows)
        values = aligned_empty((len(indices), self.dim))
        self._decode(indices, values, num_threads)
        return values

    def _decode(
        self, indices: NDArray[Any], values: NDArray[np.float32], num_threads: int | None
    ) -> None:
        """Fill `values` with the floats of rows that exist."""
        team = threads.team_for(values.size, num_threads)
        if not self._encoded.decode(indices, values, team):
            _arguments.raise_for_change()

    def error(self, weight: NDArray[Any]) -> QuantizationError:
        """Return the difference between this table and the table of floats it was made from.

        Parameters
        ----------
        weight : ndarray, shape (n_rows, dim)
            The table of floats, of any dtype that `quantize` takes. It is read in chunks of
            rows, so it may be memory-mapped.

        Returns
        -------
        QuantizationError
            The named tuple ``(max_abs, mean_abs, cosine)``. ``(0, 0, 1)`` for a table without
            entries. NaN if `weight` is not finite.

        Raises
        ------
        TypeError
            If `weight` is not an array of such floats.
        ValueError
            If `weight` has another shape.

        Notes
        -----
        Computed in float64. The result is the same for any number of threads.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> weight = np.array([[0.0, 1.0, 2.0, 3.0]], np.float32)
        >>> embag.quantize(weight, bits=2).error(weight)
        QuantizationError(max_abs=0.0, mean_abs=0.0, cosine=1.0)
        """
        floats = _as_floats(weight)
        if floats.shape != self.shape:
            raise ValueError(f"weight must have shape {self.shape}, got {floats.shape}")
        return compare_rows(floats, self._decode_rows)

    def _decode_rows(self, start: int, stop: int) -> NDArray[np.float32]:
        values = np.empty((stop - start, self.dim), np.float32)
        self._decode(np.arange(start, stop), values, None)
        return values


def compare_rows(
    floats: NDArray[Any], read: Callable[[int, int], NDArray[Any]]
) -> QuantizationError:
    """Return the difference between a table of floats and the rows that `read(start, stop)` gives.

    The rows are read in chunks.
    """
    n_rows, dim = floats.shape
    if floats.size == 0:
        return QuantizationError(0.0, 0.0, 1.0)
    largest, total, cosines = np.float64(0), np.float64(0), np.float64(0)
    for start, stop in _cut_rows(n_rows, dim, SMALL_CHUNK_ENTRIES):
        with np.errstate(all="ignore"):
            stand_ins = read(start, stop).astype(np.float64)
            given = floats[start:stop].astype(np.float64)
            differences = np.abs(stand_ins - given)
            largest = np.maximum(largest, differences.max())
            total += differences.sum()
            cosines += _compute_cosines(given, stand_ins).sum()
    return QuantizationError(float(largest), float(total / n_rows / dim), float(cosines / n_rows))


def quantize(
    weight: NDArray[Any],
    bits: int = 8,
    *,
    out: NDArray[np.uint8] | None = None,
    progress: Callable[[int, int], object] | None = None,
    num_threads: int | None = None,
) -> QuantizedTable:
    """Quantize a table of floats to 8, 4 or 2 bits an entry, row by row.

    Parameters
    ----------
    weight : ndarray of float32, float64, float16 or bfloat16, shape (n_rows, dim)
        The table, finite; or a column of vectors or a frame, as in `embedding_bag`. float32
        with adjacent columns is read in place, whatever the distance between rows. Any other
        table is converted in chunks of rows, each entry to the nearest float32. A memory-mapped
        table is read once, from the first row to the last.
    bits : {8, 4, 2}, optional
        The bits of an entry.
    out : ndarray of uint8, shape (n_rows, row_bytes), optional
        The array to write the result to, such as a memory-mapped file: C-contiguous, writeable,
        sharing no memory with `weight`. ``embag.quantized.row_bytes(bits, dim)`` is row_bytes.
    progress : callable, optional
        Called as ``progress(n_done, n_rows)`` after each chunk of rows.
    num_threads : int, optional
        The largest number of threads for this call, instead of `get_num_threads`.

    Returns
    -------
    QuantizedTable
        A table with layout "fused", in the memory of `out` if it was given.

    Raises
    ------
    TypeError
        If `weight` is not an array of such floats, `out` is not an array of uint8, `progress` is
        not callable, or `bits` or `num_threads` is not an integer.
    ValueError
        If `bits` is another number or `num_threads` is less than 1. If `weight` or `out` has the
        wrong shape or layout, or `out` is read-only or overlaps `weight`. If a row has an entry
        that is not finite, or a range too large for its scale and bias; the message names the
        first such row.
    MemoryError
        If there is not enough memory.

    Warns
    -----
    UserWarning
        If a quantized row takes more bytes than a row of `weight`. Rows of few entries do,
        because of the 4 or 8 bytes of scale and bias.

    See Also
    --------
    QuantizedTable.from_packed : Use a table that is already packed.
    QuantizedTable.error : Measure the difference between the result and `weight`.

    Notes
    -----
    The bytes are those of torch's ``quantized::embedding_bag_byte_prepack``,
    ``embedding_bag_4bit_prepack`` and ``embedding_bag_2bit_prepack``, which are FBGEMM's.

    An entry becomes ``(entry - bias) * inverse``, rounded to the nearest integer, ties to even.
    For 8 bits, the bias is the least entry of the row, the scale is its range / 255, both in
    float32, and ``inverse`` is ``255 / (range + 1e-8)``. For 4 and 2 bits, the bias is the least
    entry in float16, the scale is the range above it / 15 or / 3 in float16 (1 if that is 0),
    and ``inverse`` is ``1 / scale``.

    At 8 bits the 1e-8 distorts rows whose range is not much larger, as in torch. Multiply such a
    table by a constant first.

    Unused bits of the last byte of the entries are 0. The bytes do not depend on the number of
    threads or the instruction-set level.

    Apart from the result, the memory in use does not grow with the table.

    Rows are checked as they are quantized, because a check before would read a table larger than
    memory twice. If a row is refused or `progress` raises, `out` is partly written: the rows
    before the one named, or the rows done, are valid, and the others are arbitrary.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> weight = np.array([[0.0, 1.0, 255.0], [3.0, 3.0, 3.0]], np.float32)
    >>> table = embag.quantize(weight)
    >>> table
    QuantizedTable(2 rows, dim=3, bits=8, 22 bytes)
    >>> table.packed[0]
    array([  0,   1, 255,   0,   0, 128,  63,   0,   0,   0,   0], dtype=uint8)

    Into an array, which may be a memory-mapped file:

    >>> out = np.empty((len(weight), embag.quantized.row_bytes(4, 3)), np.uint8)
    >>> embag.quantize(weight, 4, out=out, progress=lambda *done: print("%d of %d rows" % done))
    2 of 2 rows
    QuantizedTable(2 rows, dim=3, bits=4, 12 bytes)
    """
    bits = _as_bits(bits)
    if num_threads is not None:
        num_threads = _arguments.as_count(num_threads, "num_threads")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable, got {_arguments.describe(progress)}")
    floats = _as_floats(weight)
    n_rows, dim = floats.shape
    shape = (n_rows, ENCODINGS["fused", bits].row_bytes(dim))
    if shape[1] > floats.itemsize * dim > 0:
        warnings.warn(
            f"a row of {dim} entries takes {shape[1]} bytes at {bits} bits, "
            f"more than the {floats.itemsize * dim} of {floats.dtype}",
            stacklevel=2,
        )
    packed = aligned_empty(shape, np.uint8) if out is None else _as_out(out, shape, floats)
    for start, stop in _cut_rows(n_rows, dim, CHUNK_ENTRIES):
        rows = floats[start:stop]
        if rows.dtype != np.float32 or not kernels.is_table(rows):
            with np.errstate(all="ignore"):  # entries too large for float32 become infinite
                rows = np.array(rows, np.float32, order="C")
        team = threads.team_for(rows.size, num_threads)
        if not threads.run(kernels.quantize, team, rows, bits, packed[start:stop]):
            i = kernels.first_bad_row(rows, bits)
            if i < 0:
                _arguments.raise_for_change()
            _raise_for_row(floats[start + i], start + i, bits)
        if progress is not None:
            progress(stop, n_rows)
    return QuantizedTable.from_packed(packed, bits, dim)


def row_bytes(bits: int, dim: int, layout: Layout = "fused") -> int:
    """Return the number of bytes of a row of a quantized table, without padding.

    Parameters
    ----------
    bits : {8, 4, 2}
        The bits of an entry.
    dim : int
        The entries of a row.
    layout : {"fused", "tbe"}, optional
        As in `QuantizedTable.from_packed`.

    Returns
    -------
    int
        The bytes of the entries, and 4 for scale and bias (8 for 8 bits with layout "fused").

    Raises
    ------
    TypeError
        If `bits` or `dim` is not an integer.
    ValueError
        If a value is out of range or `layout` is unknown.

    Examples
    --------
    >>> from embag.quantized import row_bytes
    >>> row_bytes(8, 64), row_bytes(4, 64), row_bytes(2, 65)
    (72, 36, 21)
    """
    bits, dim = _as_format(bits, dim, layout)
    return ENCODINGS[layout, bits].row_bytes(dim)


def _as_bits(bits: Any) -> int:
    number = _arguments.as_integer(bits, "bits")
    if number not in (8, 4, 2):
        raise ValueError(f"bits must be 8, 4 or 2, got {_arguments.describe(number)}")
    return number


def _as_format(bits: Any, dim: Any, layout: Any) -> tuple[int, int]:
    """Return `bits` and `dim` as ints."""
    bits = _as_bits(bits)
    dim = _arguments.as_integer(dim, "dim")
    if not 0 <= dim < 2**62:
        raise ValueError(f"dim must be from 0 to 2**62 - 1, got {_arguments.describe(dim)}")
    if type(layout) is not str or layout not in ("fused", "tbe"):
        raise ValueError(f"layout must be 'fused' or 'tbe', got {_arguments.describe(layout)}")
    return bits, dim


def _as_floats(weight: Any) -> NDArray[Any]:
    """Return a table of floats as a new view, whose shape nothing else can change."""
    floats = vectors.as_array(weight, "weight", kept=True)
    if _arguments.is_array(floats):
        floats = np.ndarray.view(floats, np.ndarray)
    _arguments.check_table(floats, dtypes=_encodings.FLOATS_RULE, is_known=_encodings.is_float)
    table: NDArray[Any] = floats
    return table


def _as_out(out: Any, shape: tuple[int, int], floats: NDArray[Any]) -> NDArray[np.uint8]:
    """Return `out` as a new view, whose shape nothing else can change."""
    if _arguments.is_array(out):
        out = np.ndarray.view(out, np.ndarray)
    _arguments.check_out(out, shape, np.dtype(np.uint8), ("weight",), (floats,))
    packed: NDArray[np.uint8] = out
    return packed


def _cut_rows(n_rows: int, dim: int, n_entries: int) -> Iterator[tuple[int, int]]:
    """Yield runs of rows (start, stop) of about `n_entries` entries, at least one row each."""
    step = max(1, n_entries // max(1, dim))
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)


def _raise_for_row(row: NDArray[Any], r: int, bits: int) -> NoReturn:
    """Raise for row r of `weight`, which cannot be quantized."""
    entries = row.astype(np.float64)
    bad = entries[~np.isfinite(entries)]
    if len(bad):
        raise ValueError(f"weight must have finite rows, got {bad[0]:g} in row {r}")
    low, high = entries.min(), entries.max()
    if bits == 8:
        raise ValueError(
            "weight must have entries and ranges of rows that fit float32, "
            f"got entries from {low:g} to {high:g} in row {r}"
        )
    with np.errstate(all="ignore"):
        bias = np.float16(low)
    if not np.isfinite(bias):
        raise ValueError(
            f"weight must have rows whose least entry fits float16, got {low:g} in row {r}"
        )
    raise ValueError(
        f"weight must have rows whose range / {2**bits - 1} fits float16, "
        f"got entries from {low:g} to {high:g} in row {r}"
    )


def _compute_cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows: 1 if both are zero, 0 if one is."""
    a_norms = np.sqrt(np.einsum("ij,ij->i", a, a))
    b_norms = np.sqrt(np.einsum("ij,ij->i", b, b))
    norms = a_norms * b_norms
    result: NDArray[np.float64] = np.einsum("ij,ij->i", a, b) / norms
    result = np.where(norms == 0, a_norms == b_norms, result)
    return np.clip(result, -1, 1)
