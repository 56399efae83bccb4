"""`QuantizedTable`: a table in 8, 4 or 2 bits an entry, with a scale and a bias per row.

A row is its packed integers q and two numbers; entry d of it stands for
`scale * q[d] + bias`. The bytes are those of torch's `embedding_bag_*_prepack` and of
FBGEMM, so their tables are read in place.

    layout      a row's bytes, in order
    "fused"     the integers, then scale and bias: float32 for 8 bits, else float16
    "tbe"       scale and bias, float16, then the integers; perhaps padding after them

In a byte the entry of the lowest column has the lowest bits.

Tested in tests/test_quantized.py.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embag import _arguments

Layout = Literal["fused", "tbe"]


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
        """
        bits = _arguments.as_integer(bits, "bits")
        dim = _arguments.as_integer(dim, "dim")
        if bits not in (8, 4, 2):
            raise ValueError(f"bits must be 8, 4 or 2, got {_arguments.describe(bits)}")
        if not 0 <= dim < 2**62:
            raise ValueError(f"dim must be at least 0, got {_arguments.describe(dim)}")
        if type(layout) is not str or layout not in ("fused", "tbe"):
            raise ValueError(f"layout must be 'fused' or 'tbe', got {_arguments.describe(layout)}")
        if not isinstance(packed, np.ndarray):
            raise TypeError(f"packed must be a numpy.ndarray, got {_arguments.describe(packed)}")
        # A view: nobody else can change the shape of what is checked here.
        rows = np.ndarray.view(packed, np.ndarray)
        if rows.dtype != np.uint8:
            raise TypeError(f"packed must be uint8, got dtype {rows.dtype}")
        if rows.ndim != 2:
            raise ValueError(f"packed must be 2-D (n_rows, row_bytes), got shape {rows.shape}")
        needed = row_bytes(bits, dim, layout)
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


def row_bytes(bits: int, dim: int, layout: Layout) -> int:
    """Return how many bytes a row takes, padding aside."""
    factors = 8 if bits == 8 and layout == "fused" else 4
    return (dim * bits + 7) // 8 + factors
