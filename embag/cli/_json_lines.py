"""JSON lines: blocks of whole lines, of which only the wanted columns are parsed.

pyarrow.json parses. Its own reader of blocks takes the types of all columns from the first block,
and refuses later ones that have another type or a new column, also where nobody asked for the
column. So `find_types` finds the types of the wanted columns first, and `read_tables` parses each
block with these types, without the other columns.

Tested in tests/test_cli_json.py.
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
_DEEPEST = 100  # lists and objects in one another: types of some thousands crash Arrow

_Row = dict[str, Any]


def find_types(text: Any, wanted: Sequence[str]) -> pa.Schema:
    """Return the columns of a file and their types, reading as far as the wanted ones take.

    The type of a column is that of the first block where it is not null; what is null within it
    has the type of a later block. A column that is not wanted and has no one type is of JSON.
    """
    types: dict[str, pa.DataType] = {}
    start = 0
    for block in _blocks(text):
        unknown = [name for name in wanted if _has(pa.types.is_null, types.get(name, pa.null()))]
        if start > 0:
            # Arrow sees faster than Python that there is nothing new.
            known = pa.schema([(name, types.get(name, pa.null())) for name in unknown])
            with contextlib.suppress(pa.ArrowInvalid):
                start += len(_parsed(block, known, "ignore"))
                continue
        rows = _rows(block, start)
        for name in dict.fromkeys(name for row in rows for name in row):
            if not wanted:
                types[name] = pa.json_()
                with contextlib.suppress(ValueError):
                    types[name] = _infer(name, rows, start)
            elif name in unknown:
                found = _infer(name, rows, start)
                types[name] = _merged(name, types.get(name, found), found)
            else:
                types.setdefault(name, pa.json_())
        start += len(rows)
        if rows and not any(_has(pa.types.is_null, types.get(name, pa.null())) for name in wanted):
            break
    if start == 0:
        raise ValueError("Empty JSON file")
    return pa.schema(list(types.items()))


def read_tables(text: Any, types: pa.Schema) -> Iterator[pa.Table]:
    """Parse the columns of these types: a table for each block of a file."""
    has_objects = any(_has(pa.types.is_struct, field.type) for field in types)
    start = 0
    for block in _blocks(text):
        if has_objects:
            # In these Arrow ignores new fields as well, which would be lost.
            projected = _projected(_rows(block, start), types.names, start)
            table = _parse(projected, types, start, "error")
        else:
            table = _parse(block, types, start)
        start += len(table)
        yield table


def _infer(name: str, rows: list[_Row], start: int) -> pa.DataType:
    return _parse(_projected(rows, [name], start), None, start).schema.field(name).type


def _merged(name: str, *types: pa.DataType) -> pa.DataType:
    """Return a type with what is null in one of these known from the other."""
    return pa.unify_schemas([pa.schema([(name, one)]) for one in types]).field(0).type


def _blocks(text: Any) -> Iterator[bytes]:
    """Yield a file in parts of whole lines, of about _BLOCK bytes unless a line is longer."""
    rest = b""
    # Of a long line twice as much each time: copying it takes time in proportion to its length.
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


def _parse(
    block: bytes,
    types: pa.Schema | None,
    start: int,
    others: Literal["ignore", "error"] = "ignore",
) -> pa.Table:
    """Parse a block whose first row has this number; errors name the row.

    The columns are those of `types`; without these all.
    """
    try:
        return _parsed(block, types, others)
    except pa.ArrowInvalid as error:
        message, told, number = str(error).rpartition(" in row ")
        row = int(number) if told else _first_bad_row(block, types, others)
        raise ValueError(f"{message or error} in row {start + row}") from error


def _parsed(block: bytes, types: pa.Schema | None, others: str) -> pa.Table:
    read = pa.json.ReadOptions(use_threads=False, block_size=len(block))
    behavior = "infer" if types is None else others
    parse = pa.json.ParseOptions(explicit_schema=types, unexpected_field_behavior=behavior)
    return pa.json.read_json(pa.py_buffer(block), read, parse)


def _first_bad_row(block: bytes, types: pa.Schema | None, others: str) -> int:
    text = block.decode(errors="replace")
    ends: list[int] = []
    with contextlib.suppress(ValueError, RecursionError):
        ends.extend(end for _, end in _decoded(text))
    good, bad = 0, len(ends)  # so many rows can be parsed, and can not
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            _parsed(text[: ends[middle - 1]].encode(), types, others)
            good = middle
        except pa.ArrowInvalid:
            bad = middle
    return good


def _rows(block: bytes, start: int) -> list[_Row]:
    try:
        return [row for row, _ in _decoded(block.decode(errors="replace"))]
    except (ValueError, RecursionError) as error:
        _parse(block, pa.schema([]), start)  # names the row
        raise ValueError(f"from row {start} on: {error}") from error


def _decoded(text: str) -> Iterator[tuple[_Row, int]]:
    """Yield each object, and where it ends."""
    decoder, space = json.JSONDecoder(), re.compile(r"\s*")
    at = 0
    while (at := space.match(text, at).end()) < len(text):  # type: ignore[union-attr]
        row, at = decoder.raw_decode(text, at)
        if not isinstance(row, dict):
            raise ValueError(f"a line must have an object, got {row!r:.50}")
        yield row, at


def _projected(rows: list[_Row], names: Sequence[str], start: int) -> bytes:
    """Return JSON lines with these columns alone."""
    lines = [json.dumps({name: row[name] for name in names if name in row}) for row in rows]
    for i, line in enumerate(lines):
        if line.count("[") + line.count("{") > _DEEPEST and _depth(rows[i], names) > _DEEPEST:
            raise ValueError(f"lists and objects are more than {_DEEPEST} deep in row {start + i}")
    return "\n".join(lines).encode()


def _depth(row: _Row, names: Sequence[str]) -> int:
    depth = 0
    level: list[Any] = [row.get(name) for name in names]
    while level := [v for v in level if isinstance(v, list | dict)]:
        depth += 1
        level = [item for v in level for item in (v.values() if isinstance(v, dict) else v)]
    return depth


def _has(is_a: Any, dtype: pa.DataType) -> bool:
    """Return whether a type, or one within it, is of a kind."""
    return is_a(dtype) or any(_has(is_a, dtype.field(i).type) for i in range(dtype.num_fields))
