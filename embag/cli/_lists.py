"""List columns: parse text, separate ids from weights, and find the rows of invalid entries.

Tested in tests/cli/.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embag._columns import readers
from embag._columns.pieces import Column

INTEGERS, NUMBERS = pa.int64(), pa.float64()

_SPACES = bytes.maketrans(b",;|", b"   ")
# Nothing but brackets and spaces between two separators, before the first or after the last.
# "(1,)" is allowed: Python writes a tuple so.
_EMPTY_ENTRY = r"[,;|][\s\[\](){}]*[,;|]|^[\s\[\](){}]*[,;|]|[;|][\s\[\](){}]*$|,[\s\[\]({}]*$"


class BadRow(ValueError):
    """A row of a column is invalid; rows are counted from the first of the column."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


def check_lists(field: pa.Field, numbers: pa.DataType) -> None:
    """Raise unless a column has lists of numbers of this kind, or text.

    Lists of ids may have weights beside the ids.
    """
    if _is_text(field.type):
        return
    items = [field.type.value_type] if _is_list(field.type) else []
    if numbers == INTEGERS:
        items = _types_with_weights(field.type) or items
    is_number = [pa.types.is_integer, pa.types.is_floating]
    accepted = [is_number[: 1 if numbers == INTEGERS else 2], is_number]
    if not items or not all(
        any(is_a(_decoded(item)) for is_a in kinds)
        for item, kinds in zip(items, accepted, strict=False)
    ):
        kind = "integers" if numbers == INTEGERS else "numbers"
        raise ValueError(f"column {field.name!r} must have lists of {kind}, got {field.type}")


def check_numbers(field: pa.Field, numbers: pa.DataType) -> None:
    """Raise unless a column has numbers of this kind."""
    dtype = field.type
    is_float = numbers == NUMBERS and pa.types.is_floating(dtype)
    if not (is_float or pa.types.is_integer(dtype)):
        kind = "integers" if numbers == INTEGERS else "numbers"
        raise ValueError(f"column {field.name!r} must have {kind} with --by, got {dtype}")


def has_weights(dtype: pa.DataType) -> bool:
    """Return whether a column of this type has ids with weights."""
    return bool(_types_with_weights(dtype))


def _types_with_weights(dtype: pa.DataType) -> list[pa.DataType]:
    """Return the types of the ids and of the weights of a column; [] if it has no weights."""
    if pa.types.is_map(dtype):
        return [dtype.key_type, dtype.item_type]
    if pa.types.is_struct(dtype):
        fields = [dtype.field(i).type for i in range(dtype.num_fields)]
        is_pair = len(fields) == 2 and all(map(_is_list, fields))
        return [field.value_type for field in fields] if is_pair else []
    items = dtype.value_type if _is_list(dtype) else dtype
    if pa.types.is_struct(items) and items.num_fields == 2:
        return [items.field(i).type for i in range(2)]
    return []


def _decoded(dtype: pa.DataType) -> pa.DataType:
    return dtype.value_type if pa.types.is_dictionary(dtype) else dtype


def as_lists(
    column: pa.ChunkedArray, numbers: pa.DataType
) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
    """Return the lists of a column, and those of the weights in it.

    Text is parsed: "1 2 3", "1,2,3", "[1, 2, 3]", "1;2;3" and "1|2|3" are the list of 1, 2 and
    3. "1,,2" and "1,2," are errors.
    """
    if _is_text(column.type):
        return pa.chunked_array([_parse(column.combine_chunks(), numbers)]), None
    if has_weights(column.type):
        pairs = [_split(chunk) for chunk in column.chunks]
        kinds = [pa.large_list(_decoded(item)) for item in _types_with_weights(column.type)]
        ids, weights = (
            pa.chunked_array([pair[i] for pair in pairs], None if pairs else kinds[i])
            for i in range(2)
        )
        return ids, weights
    if pa.types.is_dictionary(column.type.value_type):
        kind = pa.large_list(_decoded(column.type.value_type))
        return pa.chunked_array(map(_decode, column.chunks), kind), None
    return column, None


def _split(chunk: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return the ids and the weights of a chunk as lists."""
    if pa.types.is_struct(chunk.type):
        ids, weights = chunk.flatten()  # null where the struct is
        return _decode(ids), weights
    if pa.types.is_map(chunk.type):
        bounds = chunk.offsets.to_numpy()
        fields = [chunk.keys, chunk.items]  # of all entries in memory
    else:
        bounds = _offsets(chunk)
        fields = pc.list_flatten(chunk).flatten()
    nulls = pc.is_null(chunk) if chunk.null_count else None
    ids, weights = (
        pa.LargeListArray.from_arrays(pa.array(bounds, pa.int64()), field, mask=nulls)
        for field in fields
    )
    return _decode(ids), weights


def _decode(lists: pa.Array) -> pa.Array:
    """Return lists with the values of their dictionary; others as they are."""
    if not pa.types.is_dictionary(lists.type.value_type):
        return lists
    nulls = pc.is_null(lists) if lists.null_count else None
    values = pc.list_flatten(lists).dictionary_decode()
    return pa.LargeListArray.from_arrays(pa.array(_offsets(lists)), values, mask=nulls)


def find_out_of_range(ids: pa.Array, n_rows: int) -> NDArray[np.bool_]:
    """Return which ids are out of range for a table; nulls are not."""
    # With NumPy, as Arrow cannot compare uint64 with int64.
    numbers = pc.fill_null(ids, 0).to_numpy(zero_copy_only=False)
    valid = pc.is_valid(ids).to_numpy(zero_copy_only=False)
    found: NDArray[np.bool_] = valid & ((numbers < 0) | (numbers >= n_rows))
    return found


def count_out_of_range(lists: pa.ChunkedArray, n_rows: int) -> NDArray[np.int64]:
    """Return how many ids of each list are out of range for a table."""
    column: Column = readers.as_input(lists, "ids")
    return column.count_out_of_range(n_rows)


def find_first_out_of_range(column: pa.ChunkedArray, n_rows: int) -> tuple[int, int]:
    """Return the first id out of range for a table, with its row: (row, id). It must exist."""
    row = 0
    for chunk in column.chunks:
        ids = pc.list_flatten(chunk)
        is_outside = find_out_of_range(ids, n_rows)
        if is_outside.any():
            place = int(is_outside.argmax())
            return row + pc.list_parent_indices(chunk)[place].as_py(), ids[place].as_py()
        row += len(chunk)
    raise AssertionError


def drop_unweighted(
    ids: pa.ChunkedArray, weights: pa.ChunkedArray, *, skip: bool
) -> tuple[pa.ChunkedArray, int]:
    """Make ids null whose weight is null; return the ids, and how many were made null.

    Without `skip`, the null weight of an id raises.
    """
    id_lists, weight_lists = ids.combine_chunks(), weights.combine_chunks()
    offsets, weight_offsets = _offsets(id_lists), _offsets(weight_lists)
    differ = np.diff(offsets) != np.diff(weight_offsets)
    if differ.any():
        row = int(differ.argmax())
        n, n_weights = (int(ends[row + 1] - ends[row]) for ends in (offsets, weight_offsets))
        raise BadRow(row, f"there must be as many weights as ids, {n}, got {n_weights}")
    values, factors = pc.list_flatten(id_lists), pc.list_flatten(weight_lists)
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
            "(use --null-weights skip to skip such ids)",
        )
    values = pc.if_else(missing, None, values)
    return pa.chunked_array([pa.LargeListArray.from_arrays(offsets, values)]), n_missing


def _offsets(lists: pa.Array) -> NDArray[np.int64]:
    """Return the n + 1 offsets of n lists among their concatenated items."""
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
    spaced = pc.ascii_trim(_replace_separators(pc.cast(text, pa.string())), "[](){} \t\r\n")
    # Splitting an empty text would give one item.
    has_items = pc.and_(pc.is_valid(text), pc.not_equal(spaced, ""))
    items = pc.ascii_split_whitespace(pc.if_else(has_items, spaced, None))
    offsets = _offsets(items)
    values = pc.list_flatten(items)
    try:
        parsed = pc.cast(values, numbers)
    except pa.ArrowInvalid as error:
        place = _find_unreadable(values, numbers)
        row = int(np.searchsorted(offsets, place, "right")) - 1
        kind = "an integer" if numbers == INTEGERS else "a number"
        raise BadRow(row, f"{values[place].as_py()!r:.50} is not {kind}") from error
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), parsed, mask=pc.is_null(text))


def _replace_separators(text: pa.StringArray) -> pa.StringArray:
    """Return text with spaces instead of separators; raise for empty entries.

    Nulls become arbitrary text.
    """
    if len(text) == 0:
        return text
    # With Python: pyarrow would need a pass for each separator.
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


def _find_unreadable(values: pa.Array, numbers: pa.DataType) -> int:
    """Return the position of the first value that is not a number, by bisection."""
    start, stop = 0, len(values)
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            pc.cast(values.slice(start, middle - start), numbers)
            start = middle
        except pa.ArrowInvalid:
            stop = middle
    return start
