"""`convert_rows`: the rows of a layer as a table, at some number of bits.

Tested in tests/bridges/test_models_as_collections.py.
"""

from typing import Any, NamedTuple

import torch

from embag._arguments import describe
from embag._collection_files import describe_rows
from embag._types import Table
from embag.quantized import QuantizationError, QuantizedTable, compare_rows, quantize
from embag.torch._layers_of_models import Layer
from embag.torch._report import ConvertedTable
from embag.torch._tensors import as_array


class Rows(NamedTuple):
    """The rows of a layer as a table."""

    table: Table
    error: QuantizationError | None
    before: str
    bytes_before: int

    def report(self, name: str, features: tuple[str, ...]) -> ConvertedTable:
        """Return a line of the report."""
        table: Any = self.table
        shape = (int(table.shape[0]), int(table.shape[1]))
        after = describe_rows(self.table), int(table.nbytes)
        return ConvertedTable(
            *(name, features, shape, self.before, after[0], self.bytes_before, after[1]),
            error=self.error,
        )


def check_bits(bits: Any, name: str, *more: str) -> None:
    """Raise unless this is a number of bits to quantize to, None, or one of some words."""
    if bits is None or (type(bits) is str and bits in more):
        return
    if type(bits) is not int or bits not in (8, 4, 2):
        words = "".join(f"{word!r}, " for word in more)
        kind = ValueError if type(bits) in (int, str) else TypeError
        raise kind(f"{name} must be 8, 4, 2, {words}or None, got {describe(bits)}")


def convert_rows(layer: Layer, bits: Any) -> Rows:
    """Return the rows of a layer as a table of `bits` an entry.

    Without bits, the table is in the memory of the weight where that is on the CPU.
    """
    if isinstance(layer.rows, QuantizedTable):  # it stays so
        return Rows(layer.rows, None, describe_rows(layer.rows), layer.rows.nbytes)
    weight = layer.rows.detach().cpu()
    before = str(weight.dtype).removeprefix("torch."), weight.nbytes
    if layer.norm is not None:
        weight = _renorm(weight, *layer.norm)
    if bits is None:
        return Rows(as_array(weight), None, *before)
    floats = as_array(weight)
    if bits == "float16":
        half = weight.to(torch.float16)
        if bool(half.isinf().any()) and not bool(weight.isinf().any()):
            raise ValueError("entries must be at most 65504 for float16, got larger ones")
        table = as_array(half)
        return Rows(table, compare_rows(floats, lambda i, j: table[i:j]), *before)
    quantized = quantize(floats, bits)
    return Rows(quantized, quantized.error(floats), *before)


def _renorm(weight: torch.Tensor, max_norm: float, norm_type: float) -> torch.Tensor:
    """Return a copy whose rows are scaled as a lookup of all of them would."""
    scaled = weight.clone()
    torch.embedding_renorm_(scaled, torch.arange(len(scaled)), max_norm, norm_type)
    return scaled
