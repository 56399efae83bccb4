"""Columns of lists: from text, and which row has what is wrong.

Tested in tests/test_cli_formats.py.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

INTEGERS, NUMBERS = pa.int64(), pa.float64()

_SPACES = bytes.maketrans(b",;|", b"   ")
# Between separators, before the first or after the last, where "(1,)" may be a tuple of Python's.
# Brackets and spaces are no entries.
_EMPTY_ENTRY = r"[,;|][\s\[\](){}]*[,;|]|^[\s\[\](){}]*[,;|]|[;|][\s\[\](){}]*$|,[\s\[\]({}]*$"


class BadRow(ValueError):
    """Something in a row of a column is wrong; rows are counted from the column's first."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


def check_lists(field: pa.Field, numbers: pa.DataType) -> None:
    """Check that a column has lists of numbers of this kind, or text."""
    is_number = [pa.types.is_integer, pa.types.is_floating][: 1 if numbers == INTEGERS else 2]
    if _is_text(field.type):
        return
    if not (_is_list(field.type) and any(is_a(field.type.value_type) for is_a in is_number)):
        kind = "integers" if numbers == INTEGERS else "numbers"
        raise ValueError(f"column {field.name!r} must have lists of {kind}, got {field.type}")


def as_lists(column: pa.ChunkedArray, numbers: pa.DataType) -> pa.ChunkedArray:
    """Return a column of lists as it is, and one of text parsed.

    "1 2 3", "1,2,3", "[1, 2, 3]", "1;2;3" and "1|2|3" are the list of 1, 2 and 3; "1,,2" and
    "1,2," are none.
    """
    if not _is_text(column.type):
        return column
    return pa.chunked_array([_parse(column.combine_chunks(), numbers)])


def outside(ids: pa.Array, n_rows: int) -> NDArray[np.bool_]:
    """Return which ids are no rows of a table; a null is none of them."""
    # By NumPy: Arrow compares no uint64 with an int64.
    numbers = pc.fill_null(ids, 0).to_numpy(zero_copy_only=False)
    valid = pc.is_valid(ids).to_numpy(zero_copy_only=False)
    found: NDArray[np.bool_] = valid & ((numbers < 0) | (numbers >= n_rows))
    return found


def first_outside(column: pa.ChunkedArray, n_rows: int) -> tuple[int, int]:
    """Return the row of the first id that is no row of a table, and that id. There is one."""
    row = 0
    for chunk in column.chunks:
        ids = pc.list_flatten(chunk)
        is_outside = outside(ids, n_rows)
        if is_outside.any():
            place = int(is_outside.argmax())
            return row + pc.list_parent_indices(chunk)[place].as_py(), ids[place].as_py()
        row += len(chunk)
    raise AssertionError


def without_ids(column: pa.ChunkedArray, n_rows: int, padding_idx: int | None) -> NDArray[np.bool_]:
    """Return which lists have no id that counts: all are null, padding or out of range."""
    found = [np.zeros(0, np.bool_)]
    for chunk in column.chunks:
        ids = pc.list_flatten(chunk)
        counts = pc.is_valid(ids).to_numpy(zero_copy_only=False) & ~outside(ids, n_rows)
        if padding_idx is not None:
            numbers = pc.fill_null(ids, 0).to_numpy(zero_copy_only=False)
            counts &= numbers != padding_idx
        before = np.concatenate([[0], np.cumsum(counts)])
        found.append(np.diff(before[_offsets(chunk)]) == 0)
    return np.concatenate(found)


def with_weights(
    ids: pa.ChunkedArray, weights: pa.ChunkedArray, *, skip: bool
) -> tuple[pa.ChunkedArray, int]:
    """Return the ids, those whose weight is null made null, and how many these are.

    Without `skip` a null weight of an id raises.
    """
    some, others = ids.combine_chunks(), weights.combine_chunks()
    offsets, bounds = _offsets(some), _offsets(others)
    differ = np.diff(offsets) != np.diff(bounds)
    if differ.any():
        row = int(differ.argmax())
        n, n_weights = (int(ends[row + 1] - ends[row]) for ends in (offsets, bounds))
        raise BadRow(row, f"there must be as many weights as ids, {n}, got {n_weights}")
    values, factors = pc.list_flatten(some), pc.list_flatten(others)
    if factors.null_count == 0:
        return ids, 0
    missing = pc.and_(pc.is_null(factors), pc.is_valid(values))
    n_missing = pc.sum(missing).as_py() or 0
    if n_missing == 0:
        return ids, 0
    if not skip:
        place = pc.index(missing, True).as_py()
        row = int(np.searchsorted(offsets, place, "right")) - 1
        raise BadRow(
            row,
            f"the weight of id {values[place].as_py()} is null "
            "(--null-weights skip leaves such ids out)",
        )
    values = pc.if_else(missing, None, values)
    return pa.chunked_array([pa.LargeListArray.from_arrays(offsets, values)]), n_missing


def _offsets(lists: pa.Array) -> NDArray[np.int64]:
    """Return where lists begin and end among their items end to end."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _is_list(dtype: pa.DataType) -> bool:
    kinds: Any = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(is_a(dtype) for is_a in kinds)


def _is_text(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype))


def _parse(text: pa.Array, numbers: pa.DataType) -> pa.ListArray:
    spaced = pc.ascii_trim(_without_separators(pc.cast(text, pa.string())), "[](){} \t\r\n")
    # An empty text has no items; split, it would have one.
    has_items = pc.and_(pc.is_valid(text), pc.not_equal(spaced, ""))
    items = pc.ascii_split_whitespace(pc.if_else(has_items, spaced, None))
    offsets = _offsets(items)
    values = pc.list_flatten(items)
    try:
        parsed = pc.cast(values, numbers)
    except pa.ArrowInvalid as error:
        place = _first_unreadable(values, numbers)
        row = int(np.searchsorted(offsets, place, "right")) - 1
        kind = "an integer" if numbers == INTEGERS else "a number"
        raise BadRow(row, f"{values[place].as_py()!r:.50} is not {kind}") from error
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), parsed, mask=pc.is_null(text))


def _without_separators(text: pa.StringArray) -> pa.StringArray:
    """Return text with spaces for separators, and anything for null; refuse empty entries."""
    if len(text) == 0:
        return text
    # By Python: pyarrow takes a pass for each separator.
    _, offsets, data = text.buffers()
    bounds = np.frombuffer(offsets, np.int32)[text.offset :][: len(text) + 1]
    given = b"" if data is None else data[bounds[0] : bounds[-1]].to_pybytes()
    spaced = given.translate(_SPACES)
    if spaced == given:
        return text
    empty = pc.fill_null(pc.match_substring_regex(text, _EMPTY_ENTRY), False)
    row = pc.index(empty, True).as_py()
    if row >= 0:
        raise BadRow(row, f"{text[row].as_py()!r:.50} has an empty entry")
    offsets = pa.py_buffer(bounds - bounds[0])
    return pa.StringArray.from_buffers(len(text), offsets, pa.py_buffer(spaced))


def _first_unreadable(values: pa.Array, numbers: pa.DataType) -> int:
    start, stop = 0, len(values)
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            pc.cast(values.slice(start, middle - start), numbers)
            start = middle
        except pa.ArrowInvalid:
            stop = middle
    return start
