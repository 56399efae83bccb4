"""Arrow list columns: documented in _cdata.pyx."""

from typing import Any, TypeAlias

from numpy.typing import NDArray

Bits: TypeAlias = tuple[NDArray[Any], int] | None
Chunk: TypeAlias = tuple[
    int, Bits, NDArray[Any] | None, NDArray[Any] | None, int, NDArray[Any] | int | None, Bits
]

TYPES: dict[str, int]

def read_lists(column: object) -> tuple[str, str, list[Chunk] | None]: ...
