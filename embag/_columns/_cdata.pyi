"""Arrow columns: documented in _cdata.pyx."""

from typing import Any, TypeAlias

from numpy.typing import NDArray

Bits: TypeAlias = tuple[NDArray[Any], int]

TYPES: dict[str, int]

class Type:
    format: str
    name: str
    is_nullable: bool
    children: list[Type]
    dictionary: Type | None
    is_fixed: bool

class Array:
    n: int
    type: Type
    list_size: int
    def valid(self) -> Bits | None: ...
    def values(self) -> NDArray[Any]: ...
    def offsets(self) -> NDArray[Any]: ...
    def sizes(self) -> NDArray[Any] | None: ...
    def child(self, i: int) -> Array: ...
    def dictionary(self) -> Array: ...

class Source:
    type: Type
    def __init__(self, column: object) -> None: ...
    def read_chunks(self) -> list[Array]: ...
