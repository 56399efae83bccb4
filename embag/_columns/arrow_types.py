"""The Arrow types that are ragged inputs, and how each is read.

    list of numbers              ids, or weights; any kind of list
    list of struct<id, weight>   ids and weights: the first field holds the ids
    map<id, weight>              the same
    struct<ids, weights>         the same, of two lists
    numbers                      lists of one number each, if the caller accepts such columns

Integers may be encoded by a dictionary. A table of one column is read as that column. Types are
checked before any data is read, and buffers are read in place (_cdata.pyx).

Tested in tests/columns/.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np

from embag import _arguments
from embag._arguments import AnyArray, describe
from embag._columns import _cdata
from embag._columns.pieces import Chunk, Column, Dictionary, Mask

# Returns the ids and the weights of a chunk.
_Reader: TypeAlias = Callable[[_cdata.Array], tuple[Chunk, Chunk | None]]

# Names of Arrow's formats in messages.
_FORMATS = {
    "b": "booleans",
    "u": "strings",
    "U": "strings",
    "vu": "strings",
    "+s": "structs",
    "+m": "maps",
}


class NotReadableError(ValueError):
    """An object has Arrow's interface but cannot be read through it; it may be an array."""


def read_arrow(value: Any, name: str, flat: bool = False) -> Column | None:
    """Return a column of any Arrow library as a `Column`; None if its type is not ragged.

    With `flat`, each number of a column of numbers is a list.
    """
    source = _open(value, name)
    kind, in_table = source.type, is_table(source.type)
    if in_table and len(kind.children) != 1:
        if any(map(is_list, kind.children)):
            raise TypeError(f"{name} must be one column, got {describe(value)} of several")
        return None
    read = _find_reader(kind.children[0] if in_table else kind, name, flat)
    if read is None:
        return None
    try:
        chunks = source.read_chunks()
        if in_table:
            chunks = [get_field(chunk, 0) for chunk in chunks]
        return _make_column(chunks, read, name)
    except MemoryError:
        raise
    except Exception as error:
        raise _as_not_readable(error, value, name) from error


def read_frame(value: Any, names: Iterable[str], label: str) -> dict[str, Column] | None:
    """Return the columns of a table of any Arrow library that have these names.

    Each number of a column of numbers is a list. Returns None if `value` is a column. Messages
    call the ids `label`.
    """
    source = _open(value, "values", "a frame")
    if not is_table(source.type):
        return None
    places = {field.name: i for i, field in enumerate(source.type.children)}
    check_unique([field.name for field in source.type.children], names)
    readers = {}
    for name in names:
        if name not in places:
            continue
        with _arguments.prefix_errors(f"feature {name!r}"):
            kind = source.type.children[places[name]]
            read = _find_reader(kind, label, flat=True)
            if read is None:
                raise TypeError(f"{label} must be lists of integers, got {_name_type(kind)}")
            readers[name] = read
    try:
        chunks = source.read_chunks()
        return {
            name: _make_column([get_field(chunk, places[name]) for chunk in chunks], read, label)
            for name, read in readers.items()
        }
    except MemoryError:
        raise
    except Exception as error:
        raise _as_not_readable(error, value, "values", "a frame") from error


def _open(value: Any, name: str, kind: str = "a column") -> _cdata.Source:
    try:
        return _cdata.Source(value)
    except MemoryError:
        raise
    except Exception as error:  # the producer's code may raise anything
        raise _as_not_readable(error, value, name, kind) from error


def _as_not_readable(
    error: Exception, value: Any, name: str, kind: str = "a column"
) -> NotReadableError:
    return NotReadableError(f"{name} must be {kind}, got {describe(value)}: {error}")


def check_unique(found: list[Any], names: Iterable[str]) -> None:
    """Raise if a frame has several columns of one of these names."""
    for name in names:
        if found.count(name) > 1:
            raise ValueError(f"values must have one column {name!r}, got {found.count(name)}")


def _make_column(chunks: list[_cdata.Array], read: _Reader, name: str) -> Column:
    parts = [read(chunk) for chunk in chunks]
    column = Column([ids for ids, _ in parts], name, is_flat=read is _read_numbers)
    if read in (_read_pairs, _read_two_lists):
        weights = [factors for _, factors in parts if factors is not None]
        column.weights = Column(weights, f"the weights of {name}")
    return column


# --- Types --------------------------------------------------------------------


def is_table(kind: _cdata.Type) -> bool:
    """Return whether this is a table, which Arrow exports as structs that are never null."""
    return kind.format == "+s" and (not kind.is_nullable or len(kind.children) == 1)


def is_list(kind: _cdata.Type) -> bool:
    return kind.is_fixed or kind.format in ("+l", "+L", "+vl", "+vL")


def _find_reader(kind: _cdata.Type, name: str, flat: bool) -> _Reader | None:
    """Return the function that reads chunks of a type; None for types that are not ragged.

    Raises for lists of anything but numbers.
    """
    if kind.format == "n":
        return _read_nulls
    fields = kind.children
    if kind.format == "+s" and len(fields) == 2 and all(map(is_list, fields)):
        for field in fields:
            _check_items(field, name)
        return _read_two_lists
    if kind.format == "+m" or is_list(kind):
        items = kind.children[0] if kind.children else kind
        if items.format == "+s" and len(items.children) == 2:
            _check_items(items, name)
            return _read_pairs
        _check_items(kind, name)
        return _read_lists
    return _read_numbers if flat and _is_number(kind) else None


def _check_items(kind: _cdata.Type, name: str) -> None:
    """Raise unless all children of a type are numbers, or of the type of nulls."""
    for items in kind.children:
        if items.format != "n" and not _is_number(items):
            seen = _name_type(items)
            raise TypeError(f"{name} must be lists of numbers, got lists of {seen}")


def _is_number(kind: _cdata.Type) -> bool:
    return (kind.dictionary or kind).format in _cdata.TYPES


def _name_type(kind: _cdata.Type) -> str:
    """Return the name of a type in messages."""
    if kind.dictionary is not None:
        return f"dictionaries of {_name_type(kind.dictionary)}"
    return _FORMATS.get(kind.format, f"Arrow's type {kind.format!r}")


# --- Chunks -------------------------------------------------------------------


def get_field(chunk: _cdata.Array, i: int) -> _cdata.Array:
    """Return a column of a chunk of a table."""
    if chunk.valid() is not None:
        raise ValueError("a table must have no rows that are null")
    return chunk.child(i)


def _mask(array: _cdata.Array, also: Mask | None = None) -> Mask | None:
    """Return which entries are valid in an array and in another mask; None if all are."""
    valid = array.valid()
    return also if valid is None else Mask(*valid, also)


def _read_nulls(chunk: _cdata.Array) -> tuple[Chunk, None]:
    return Chunk(chunk.n, np.zeros(0, np.int64)), None


def _read_numbers(chunk: _cdata.Array) -> tuple[Chunk, None]:
    return _make_chunk(chunk.n, chunk, None, None, 1, None, None), None


def _read_lists(chunk: _cdata.Array) -> tuple[Chunk, None]:
    return _make_lists(chunk, chunk.child(0)), None


def _read_pairs(chunk: _cdata.Array) -> tuple[Chunk, Chunk]:
    entries = chunk.child(0)
    valid = _mask(entries)
    ids, weights = (_make_lists(chunk, entries.child(i), items_valid=valid) for i in range(2))
    # The same object, so that the offsets need not be compared.
    return ids, weights._replace(offsets=ids.offsets, sizes=ids.sizes)


def _read_two_lists(chunk: _cdata.Array) -> tuple[Chunk, Chunk]:
    valid = _mask(chunk)
    ids, weights = (chunk.child(i) for i in range(2))
    return _make_lists(ids, ids.child(0), valid), _make_lists(weights, weights.child(0), valid)


def _make_lists(
    lists: _cdata.Array,
    items: _cdata.Array,
    valid: Mask | None = None,
    items_valid: Mask | None = None,
) -> Chunk:
    """Return lists of these items; the masks tell which lists and items are valid."""
    offsets = sizes = None
    list_size = 0
    if lists.type.is_fixed:
        list_size = lists.list_size
    else:
        offsets, sizes = lists.offsets(), lists.sizes()
    valid = _mask(lists, valid)
    return _make_chunk(lists.n, items, offsets, sizes, list_size, valid, items_valid)


def _make_chunk(
    n: int,
    items: _cdata.Array,
    offsets: AnyArray | None,
    sizes: AnyArray | None,
    list_size: int,
    valid: Mask | None,
    items_valid: Mask | None,
) -> Chunk:
    if items.type.format == "n":  # nulls take no memory, so they may be any number
        nulls = np.broadcast_to(np.int64(0), (items.n,))
        return Chunk(n, nulls, offsets, sizes, list_size, valid, all_null=True)
    dictionary = None
    if items.type.dictionary is not None:
        entries = items.dictionary()
        known = _mask(entries)
        dictionary = Dictionary(entries.values(), known and known.unpack(0, entries.n))
    items_valid = _mask(items, items_valid)
    values = items.values()
    return Chunk(n, values, offsets, sizes, list_size, valid, items_valid, False, dictionary)
