"""The types that public signatures name.

`help` writes an alias out unless the annotation is a string. So the modules of the public API
either begin with `from __future__ import annotations` or, where that would turn the fields of
a NamedTuple into ForwardRef, quote long annotations.
"""

from typing import Any, Literal, TypeAlias

from numpy.typing import ArrayLike, NDArray

from embag._modes import ModeName
from embag.quantized import QuantizedTable
from embag.remapped import RemappedTable

Ids: TypeAlias = ArrayLike | Any  # integers: an array or a ragged input of any library
SampleWeights: TypeAlias = ArrayLike | Any  # numbers, as many as there are ids
# Any stands for a column of vectors and for a frame.
Table: TypeAlias = NDArray[Any] | QuantizedTable | RemappedTable | Any
Mode: TypeAlias = ModeName
Invalid: TypeAlias = Literal["raise", "skip"] | int

__all__ = ["Ids", "Invalid", "Mode", "SampleWeights", "Table"]
