"""Columns of lists: from text, and which row has what is wrong.

Tested in tests/test_cli_formats.py.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

INTEGERS, NUMBERS = pa.int64(), pa.float64()


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

    "1 2 3", "1,2,3", "[1, 2, 3]", "1;2;3" and "1|2|3" are the list of 1, 2 and 3.
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
    spaced = pc.cast(text, pa.string())
    for separator in ",;|":  # five times as fast as a regular expression
        spaced = pc.replace_substring(spaced, separator, " ")
    spaced = pc.ascii_trim(spaced, "[](){} \t\r\n")
    # An empty text has no items; split, it would have one.
    items = pc.ascii_split_whitespace(pc.if_else(pc.equal(spaced, ""), None, spaced))
    lengths = pc.fill_null(pc.list_value_length(items), 0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    values = pc.list_flatten(items)
    try:
        parsed = pc.cast(values, numbers)
    except pa.ArrowInvalid as error:
        place = _first_unreadable(values, numbers)
        row = int(np.searchsorted(offsets, place, "right")) - 1
        kind = "an integer" if numbers == INTEGERS else "a number"
        raise BadRow(row, f"{values[place].as_py()!r:.50} is not {kind}") from error
    return pa.ListArray.from_arrays(pa.array(offsets), parsed, mask=pc.is_null(text))


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
