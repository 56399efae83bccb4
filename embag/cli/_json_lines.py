"""JSON lines: read blocks of whole lines, and parse only the wanted columns.

pyarrow.json parses the blocks. Its own reader takes the types of all columns from the first
block, and then fails for a block with another type or a new column, even in a column that is
not wanted. So `find_types` finds the types of the wanted columns first, and `read_tables` parses
each block with these types, without the other columns.

Tested in tests/cli/.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.json

_BLOCK = 4 << 20
_LONGEST_LINE = 1 << 30  # Arrow parses less than 2 GiB at once
_DEEPEST = 100  # levels of nested lists and objects; Arrow crashes for some thousands

_Row = dict[str, Any]


def find_types(text: Any, wanted: Sequence[str]) -> pa.Schema:
    """Return the types of the columns of a file, reading as many blocks as necessary.

    The type of a wanted column is that of the first block where it is not null; parts of it
    that are null there get their types from later blocks. Without wanted columns, a column of
    mixed types gets the type of JSON.
    """
    types: dict[str, pa.DataType] = {}
    start = 0
    for block in _blocks(text):
        unknown = [
            name for name in wanted if _contains_type(pa.types.is_null, types.get(name, pa.null()))
        ]
        if start > 0:
            # Arrow finds faster than Python that a block has nothing new.
            known = pa.schema([(name, types.get(name, pa.null())) for name in unknown])
            with contextlib.suppress(pa.ArrowInvalid):
                start += len(_parse_block(block, known, "ignore"))
                continue
        rows = _decode_rows(block, start)
        for name in dict.fromkeys(name for row in rows for name in row):
            if not wanted:
                types[name] = pa.json_()
                with contextlib.suppress(ValueError):
                    types[name] = _infer_type(name, rows, start)
            elif name in unknown:
                found = _infer_type(name, rows, start)
                types[name] = _merge_types(name, types.get(name, found), found)
            else:
                types.setdefault(name, pa.json_())
        start += len(rows)
        if rows and not any(
            _contains_type(pa.types.is_null, types.get(name, pa.null())) for name in wanted
        ):
            break
    if start == 0:
        raise ValueError("Empty JSON file")
    return pa.schema(list(types.items()))


def read_tables(text: Any, types: pa.Schema) -> Iterator[pa.Table]:
    """Parse the columns in `types`; yield a table for each block of a file."""
    has_objects = any(_contains_type(pa.types.is_struct, field.type) for field in types)
    start = 0
    for block in _blocks(text):
        if has_objects:
            # "ignore" would also drop new fields within objects, so only the wanted columns are
            # parsed, with "error".
            selected = _select_columns(_decode_rows(block, start), types.names, start)
            table = _parse_named(selected, types, start, "error")
        else:
            table = _parse_named(block, types, start)
        start += len(table)
        yield table


def _infer_type(name: str, rows: list[_Row], start: int) -> pa.DataType:
    return _parse_named(_select_columns(rows, [name], start), None, start).schema.field(name).type


def _merge_types(name: str, *types: pa.DataType) -> pa.DataType:
    """Return the type whose null parts in one of these types come from the other."""
    return pa.unify_schemas([pa.schema([(name, one)]) for one in types]).field(0).type


def _blocks(text: Any) -> Iterator[bytes]:
    """Yield blocks of whole lines, of about _BLOCK bytes unless a line is longer."""
    rest = b""
    # Reading twice as much of a long line each time keeps the time to copy it linear.
    while data := text.read(max(_BLOCK, len(rest))):
        end = data.rfind(b"\n") + 1
        if end > 0:
            yield rest + data[:end]
            rest = data[end:]
            continue
        rest += data
        if len(rest) > _LONGEST_LINE:
            raise ValueError(f"a line must have at most {_LONGEST_LINE} bytes, got a longer one")
    if rest:
        yield rest


def _parse_named(
    block: bytes,
    types: pa.Schema | None,
    start: int,
    others: Literal["ignore", "error"] = "ignore",
) -> pa.Table:
    """Parse a block; errors name the row, where `start` is the number of the first row.

    Without `types`, all columns are parsed.
    """
    try:
        return _parse_block(block, types, others)
    except pa.ArrowInvalid as error:
        message, has_row, number = str(error).rpartition(" in row ")
        row = int(number) if has_row else _find_bad_row(block, types, others)
        raise ValueError(f"{message or error} in row {start + row}") from error


def _parse_block(block: bytes, types: pa.Schema | None, others: str) -> pa.Table:
    read = pa.json.ReadOptions(use_threads=False, block_size=len(block))
    behavior = "infer" if types is None else others
    parse = pa.json.ParseOptions(explicit_schema=types, unexpected_field_behavior=behavior)
    return pa.json.read_json(pa.py_buffer(block), read, parse)


def _find_bad_row(block: bytes, types: pa.Schema | None, others: str) -> int:
    """Return the first row that cannot be parsed, by bisection."""
    text = block.decode(errors="replace")
    ends: list[int] = []
    with contextlib.suppress(ValueError, RecursionError):
        ends.extend(end for _, end in _iterate_objects(text))
    good, bad = 0, len(ends)  # the first `good` rows can be parsed, the first `bad` cannot
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            _parse_block(text[: ends[middle - 1]].encode(), types, others)
            good = middle
        except pa.ArrowInvalid:
            bad = middle
    return good


def _decode_rows(block: bytes, start: int) -> list[_Row]:
    try:
        return [row for row, _ in _iterate_objects(block.decode(errors="replace"))]
    except (ValueError, RecursionError) as error:
        _parse_named(block, pa.schema([]), start)  # names the row
        raise ValueError(f"from row {start} on: {error}") from error


def _iterate_objects(text: str) -> Iterator[tuple[_Row, int]]:
    """Yield each object, and the position of its end."""
    decoder, space = json.JSONDecoder(), re.compile(r"\s*")
    at = 0
    while (at := space.match(text, at).end()) < len(text):  # type: ignore[union-attr]
        row, at = decoder.raw_decode(text, at)
        if not isinstance(row, dict):
            raise ValueError(f"a line must have an object, got {row!r:.50}")
        yield row, at


def _select_columns(rows: list[_Row], names: Sequence[str], start: int) -> bytes:
    """Return JSON lines with only these columns."""
    lines = [json.dumps({name: row[name] for name in names if name in row}) for row in rows]
    for i, line in enumerate(lines):
        if line.count("[") + line.count("{") > _DEEPEST and _depth(rows[i], names) > _DEEPEST:
            raise ValueError(f"lists and objects are more than {_DEEPEST} deep in row {start + i}")
    return "\n".join(lines).encode()


def _depth(row: _Row, names: Sequence[str]) -> int:
    """Return how deep lists and objects are nested in these columns."""
    depth = 0
    level: list[Any] = [row.get(name) for name in names]
    while level := [v for v in level if isinstance(v, list | dict)]:
        depth += 1
        level = [item for v in level for item in (v.values() if isinstance(v, dict) else v)]
    return depth


def _contains_type(is_a: Any, dtype: pa.DataType) -> bool:
    """Return whether a predicate holds for a type or a type nested in it."""
    return is_a(dtype) or any(
        _contains_type(is_a, dtype.field(i).type) for i in range(dtype.num_fields)
    )
