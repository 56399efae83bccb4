"""`quantize`, `QuantizedTable`: tables in 8, 4 or 2 bits an entry, a scale and a bias per row.

A row is its packed integers q and two numbers; entry d of it stands for
`scale * q[d] + bias`. The bytes are those of torch's `embedding_bag_*_prepack` and of
FBGEMM, so their tables are read in place.

    layout      a row's bytes, in order
    "fused"     the integers, then scale and bias: float32 for 8 bits, else float16
    "tbe"       scale and bias, float16, then the integers; perhaps padding after them

In a byte the entry of the lowest column has the lowest bits.

What is read and written is walked through in chunks of rows, so that tables larger than
memory can be memory-mapped.

Tested in tests/test_quantize.py and tests/test_quantized.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments, _encodings, _threads
from embag._dispatch import kernels
from embag.memory import aligned_empty

Layout = Literal["fused", "tbe"]

# Entries of a chunk: enough that starting threads for each costs nothing, 16 MiB of float32.
CHUNK_ENTRIES = 4 << 20
# The same where NumPy does the work: what it makes of a chunk stays in the cache.
SMALL_CHUNK_ENTRIES = 128 << 10


class QuantizationError(NamedTuple):
    """How far a quantized table is from the one that it stands for.

    Attributes
    ----------
    max_abs : float
        The largest absolute difference of two entries.
    mean_abs : float
        The mean of the absolute differences of all entries.
    cosine : float
        The mean over the rows of the cosine of the angle between a row and its stand-in:
        1 where they have the same direction. Where one of the two is zero it is 0, where
        both are it is 1.
    """

    max_abs: float
    mean_abs: float
    cosine: float


@dataclass(frozen=True, init=False, eq=False, repr=False, slots=True)
class QuantizedTable:
    """A table of 8-, 4- or 2-bit entries with a scale and a bias per row.

    Made by `quantize`, or by `from_packed` of a table that torch or FBGEMM has packed.

    Attributes
    ----------
    packed : ndarray of uint8, shape (n_rows, row_bytes)
        The rows' bytes.
    bits : {8, 4, 2}
        Bits of an entry.
    dim : int
        Entries of a row.
    layout : {"fused", "tbe"}
        Where a row has its scale and bias: after its entries, or before.

    See Also
    --------
    quantize : make one of a table of floats.
    embedding_bag : takes one as `weight`.
    """

    packed: NDArray[np.uint8]
    bits: int
    dim: int
    layout: Layout
    _encoded: _encodings.Table

    @classmethod
    def from_packed(
        cls, packed: NDArray[np.uint8], bits: int, dim: int, layout: Layout = "fused"
    ) -> "QuantizedTable":
        """Take a table that is packed already, without a copy.

        Parameters
        ----------
        packed : ndarray of uint8, shape (n_rows, row_bytes)
            Its rows. They may be any distance apart, and memory-mapped; the bytes of each
            are adjacent.
        bits : {8, 4, 2}
            Bits of an entry.
        dim : int
            Entries of a row.
        layout : {"fused", "tbe"}, optional
            "fused": the entries, then scale and bias, in float32 for 8 bits and float16
            for fewer (``torch.ops.quantized.embedding_bag_byte_prepack`` and its like).
            "tbe": scale and bias in float16, then the entries, then perhaps padding
            (FBGEMM's table-batched embeddings).

        Returns
        -------
        QuantizedTable
            It refers to the memory of `packed`.

        Raises
        ------
        TypeError
            If `packed` is no array of uint8, or `bits` or `dim` no integer.
        ValueError
            If the shape of `packed` is not that of such rows, or an option is none.

        Examples
        --------
        Two rows of 4 bits: two bytes of entries, then the float16 numbers 1 and 10.

        >>> import numpy as np
        >>> import embag
        >>> packed = np.array([[0x10, 0x32, 0, 60, 0, 73]] * 2, np.uint8)
        >>> embag.QuantizedTable.from_packed(packed, bits=4, dim=4).dequantize()
        array([[10., 11., 12., 13.],
               [10., 11., 12., 13.]], dtype=float32)
        """
        bits, dim = _as_format(bits, dim, layout)
        _arguments.check_array(packed, "packed")
        # A view: nobody else can change the shape of what is checked here.
        rows = np.ndarray.view(packed, np.ndarray)
        if rows.dtype != np.uint8:
            raise TypeError(f"packed must be uint8, got dtype {rows.dtype}")
        if rows.ndim != 2:
            raise ValueError(f"packed must be 2-D (n_rows, row_bytes), got shape {rows.shape}")
        needed = _row_bytes(bits, dim, layout)
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
        table = object.__new__(cls)
        object.__setattr__(table, "packed", rows)
        object.__setattr__(table, "bits", bits)
        object.__setattr__(table, "dim", dim)
        object.__setattr__(table, "layout", layout)
        encoded = _encodings.Table(rows, _encodings.QUANTIZED[layout, bits], dim)
        object.__setattr__(table, "_encoded", encoded)
        return table

    def __reduce__(self) -> tuple[Any, ...]:
        return QuantizedTable.from_packed, (self.packed, self.bits, self.dim, self.layout)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the table that this stands for: (n_rows, dim)."""
        return len(self.packed), self.dim

    @property
    def nbytes(self) -> int:
        """The bytes of all rows."""
        return self.packed.nbytes

    def __repr__(self) -> str:
        n_rows, dim = self.shape
        return f"QuantizedTable({n_rows} rows, dim={dim}, bits={self.bits}, {self.nbytes} bytes)"

    def dequantize(
        self, rows: ArrayLike | None = None, *, num_threads: int | None = None
    ) -> NDArray[np.float32]:
        """Return the floats that the rows stand for.

        Parameters
        ----------
        rows : array_like of int, shape (n,), optional
            Which rows, in any order, each in ``0 .. n_rows - 1``. All by default.
        num_threads : int, optional
            The most threads for this call, in the place of `get_num_threads`.

        Returns
        -------
        ndarray of float32, shape (n, dim)
            Row i is row ``rows[i]`` of the table, or row i.

        Raises
        ------
        IndexError
            If there is no such row. The message names the first bad position.
        TypeError
            If `rows` or `num_threads` is no integers.
        ValueError
            If `rows` is not 1-D or `num_threads` less than 1.
        MemoryError
            If there is not enough memory.

        Notes
        -----
        An entry is ``scale * q + bias`` in float32: the product is rounded, then the sum.

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
            # Without columns there may be more rows than can be walked through.
            for start, stop in _chunks(n_rows if self.dim else 0, self.dim, CHUNK_ENTRIES):
                self._decode(np.arange(start, stop), values[start:stop], num_threads)
            return values
        indices = _arguments.as_indices(rows, "rows")
        if indices.ndim != 1:
            raise ValueError(f"rows must be 1-D, got shape {indices.shape}")
        k = kernels.first_bad_index(indices, n_rows)
        if k >= 0:
            raise IndexError(
                f"rows[{k}] = {_arguments.integer_at(rows, k)} "
                f"is out of range for a table of {n_rows} rows"
            )
        values = aligned_empty((len(indices), self.dim))
        self._decode(indices, values, num_threads)
        return values

    def _decode(
        self, indices: NDArray[Any], values: NDArray[np.float32], num_threads: int | None
    ) -> None:
        """Fill `values` with these rows, which exist."""
        n_threads = _threads.threads_for(values.size, num_threads)
        if not self._encoded.decode(indices, values, n_threads):
            _arguments.raise_for_change()

    def error(self, weight: NDArray[Any]) -> QuantizationError:
        """Return how far this is from the table that it was made of.

        Parameters
        ----------
        weight : ndarray, shape (n_rows, dim)
            The table of floats, of any dtype that `quantize` takes. It may be
            memory-mapped: it is read in chunks of rows.

        Returns
        -------
        QuantizationError
            ``(max_abs, mean_abs, cosine)``: the largest and the mean absolute difference
            of the entries, and the mean over the rows of the cosine between a row and
            its stand-in (1 where both are zero, 0 where one is). ``(0, 0, 1)`` for a table
            without entries; NaN where an entry of `weight` is not finite.

        Raises
        ------
        TypeError
            If `weight` is no array of such floats.
        ValueError
            If it has another shape.

        Notes
        -----
        Computed in float64; the same for any number of threads.

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
        n_rows, dim = floats.shape
        if floats.size == 0:
            return QuantizationError(0.0, 0.0, 1.0)
        largest, total, cosines = np.float64(0), np.float64(0), np.float64(0)
        for start, stop in _chunks(n_rows, dim, SMALL_CHUNK_ENTRIES):
            values = np.empty((stop - start, dim), np.float32)
            self._decode(np.arange(start, stop), values, None)
            with np.errstate(all="ignore"):
                stand_ins = values.astype(np.float64)
                given = floats[start:stop].astype(np.float64)
                differences = np.abs(stand_ins - given)
                largest = np.maximum(largest, differences.max())
                total += differences.sum()
                cosines += _cosines(given, stand_ins).sum()
        return QuantizationError(
            float(largest), float(total / n_rows / dim), float(cosines / n_rows)
        )


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
        The table, finite. float32 with adjacent columns is read in place, whatever the
        distance of its rows; anything else is converted to that in chunks of rows, each
        entry rounded to the nearest float32. A memory-mapped table is read once, from its
        first row to its last.
    bits : {8, 4, 2}, optional
        Bits of an entry.
    out : ndarray of uint8, shape (n_rows, row_bytes), optional
        Where the result goes instead of into new memory, such as a memory-mapped array.
        C-contiguous and writeable; it shares no memory with `weight`.
        ``embag.quantized.row_bytes(bits, dim)`` is the length of its rows.
    progress : callable, optional
        Called as ``progress(n_done, n_rows)`` after each chunk of rows.
    num_threads : int, optional
        The most threads for this call, in the place of `get_num_threads`.

    Returns
    -------
    QuantizedTable
        With layout "fused". It refers to the memory of `out` where that is given.

    Raises
    ------
    TypeError
        If `weight` is no array of such floats, `out` none of uint8, `progress` not
        callable, or `bits` or `num_threads` no integer.
    ValueError
        If `bits` is another number, `num_threads` is less than 1, or `weight` or `out` is
        of another shape or layout, overlapping or read-only. If a row cannot be
        quantized: it has an entry that is not finite, or a range too large for its scale
        and bias. The message names the first such row.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    QuantizedTable.from_packed : take a table that is packed already.
    QuantizedTable.error : how far the result is from `weight`.

    Notes
    -----
    The bytes are those of torch's ``quantized::embedding_bag_byte_prepack``,
    ``embedding_bag_4bit_prepack`` and ``embedding_bag_2bit_prepack``, which are FBGEMM's.
    8 bits: bias is the least entry of the row, scale its range / 255, both float32. 4 and
    2 bits: bias is the least entry in float16, scale the range above it / 15 or / 3 in
    float16, or 1 where that is 0. An entry becomes ``(entry - bias) * inverse``, rounded to
    the nearest integer, ties to even; ``inverse`` is ``255 / (range + 1e-8)`` for 8 bits,
    else ``1 / scale``. So rows whose range is not far above 1e-8 lose entries to the 1e-8,
    as they do in torch: multiply such a table first. Where `dim` codes do not fill the
    last byte, its other bits are 0. The bytes do not depend on the number of threads nor on the
    instruction-set level.

    Beside `weight` and the result no memory is taken that grows with the table.

    The rows are looked at as they are quantized, not before: that would read a table
    larger than memory twice. So where a row is refused, or `progress` raises, `out` is
    written in part: the rows before the one named, or done, are; the others are
    arbitrary.

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

    Into memory of one's own, which may be a map of a file:

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
    shape = (n_rows, _row_bytes(bits, dim, "fused"))
    packed = aligned_empty(shape, np.uint8) if out is None else _as_out(out, shape, floats)
    for start, stop in _chunks(n_rows, dim, CHUNK_ENTRIES):
        rows = floats[start:stop]
        if rows.dtype != np.float32 or not kernels.is_table(rows):
            with np.errstate(all="ignore"):  # numbers too large for float32 become infinite
                rows = np.array(rows, np.float32, order="C")
        n_threads = _threads.threads_for(rows.size, num_threads)
        if not _threads.run(kernels.quantize, n_threads, rows, bits, packed[start:stop]):
            i = kernels.first_bad_row(rows, bits)
            if i < 0:
                _arguments.raise_for_change()
            _raise_for_row(floats[start + i], start + i, bits)
        if progress is not None:
            progress(stop, n_rows)
    return QuantizedTable.from_packed(packed, bits, dim)


def row_bytes(bits: int, dim: int, layout: Layout = "fused") -> int:
    """Return how many bytes a row of a quantized table takes, padding aside.

    Parameters
    ----------
    bits : {8, 4, 2}
        Bits of an entry.
    dim : int
        Entries of a row.
    layout : {"fused", "tbe"}, optional
        As in `QuantizedTable.from_packed`.

    Returns
    -------
    int
        The bytes of the entries, and 4 or (8 bits, "fused") 8 for scale and bias.

    Raises
    ------
    TypeError
        If `bits` or `dim` is no integer.
    ValueError
        If there is no such format.

    Examples
    --------
    >>> from embag.quantized import row_bytes
    >>> row_bytes(8, 64), row_bytes(4, 64), row_bytes(2, 65)
    (72, 36, 21)
    """
    bits, dim = _as_format(bits, dim, layout)
    return _row_bytes(bits, dim, layout)


def _row_bytes(bits: int, dim: int, layout: Layout) -> int:
    factors = 8 if bits == 8 and layout == "fused" else 4
    return (dim * bits + 7) // 8 + factors


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
    """Return a table of floats as an ndarray that nobody else can change the shape of."""
    floats = weight
    if _arguments.is_array(weight):
        floats = np.ndarray.view(weight, np.ndarray)
    _arguments.check_table(floats, dtypes=_encodings.FLOATS, is_known=_encodings.is_known)
    table: NDArray[Any] = floats
    return table


def _as_out(out: Any, shape: tuple[int, int], floats: NDArray[Any]) -> NDArray[np.uint8]:
    """Return `out` as an ndarray that nobody else can change the shape of."""
    if _arguments.is_array(out):
        out = np.ndarray.view(out, np.ndarray)
    _arguments.check_out(out, shape, np.dtype(np.uint8), ("weight",), (floats,))
    packed: NDArray[np.uint8] = out
    return packed


def _chunks(n_rows: int, dim: int, n_entries: int) -> Iterator[tuple[int, int]]:
    """Cut rows into runs (start, stop) of about so many entries, of one row at least."""
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


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows: 1 of two zeros, 0 of one."""
    a_norms = np.sqrt(np.einsum("ij,ij->i", a, a))
    b_norms = np.sqrt(np.einsum("ij,ij->i", b, b))
    norms = a_norms * b_norms
    result: NDArray[np.float64] = np.einsum("ij,ij->i", a, b) / norms
    result = np.where(norms == 0, a_norms == b_norms, result)
    return np.clip(result, -1, 1)
