"""A collection in a folder: a file for each table, and an index that names them.

The index is JSON, for people too:

    {
     "format": 1,
     "invalid": "raise",
     "tables": {
      "items": {"file": "items-3c6ef372fe94f82b.safetensors", "shape": [9, 4], "rows": "8 bits"}
     },
     "features": [
      {"name": "clicked", "table": "items", "mode": "mean", "padding_idx": 0}
     ]
    }

A save writes the files of its tables under new names. Then it replaces the index, so the folder
holds a whole collection at any moment. Then it deletes the files that the old index named.

Tested in tests/collection/test_saving.py.
"""

import contextlib
import json
import operator
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from embag._arguments import as_path, describe, prefix_errors
from embag._files.headers import MOST_BYTES, check_format, parse_object, read_index
from embag._files.replacement import replacement
from embag._types import Table
from embag.quantized import QuantizedTable
from embag.remapped import RemappedTable
from embag.tables import load_table, save_table

INDEX = "embag-collection.json"
_FORMAT = 1
_OUR_FILES = re.compile(r"[\w.-]*-[0-9a-f]{16}\.safetensors", re.ASCII)

Record = dict[str, Any]  # the fields of a feature


def save(
    folder: Any, tables: Mapping[str, Table], features: Sequence[Record], invalid: Any
) -> None:
    """Write the tables and the index of a collection."""
    target = as_path(folder, "folder")
    for name in tables:
        if not isinstance(name, str):
            raise TypeError(f"tables must have names of type str, got {describe(name)}")
    files = {name: _new_file_name(name) for name in tables}
    entries = {
        name: {"file": files[name], "shape": list(table.shape), "rows": describe_rows(table)}
        for name, table in tables.items()
    }
    index = _as_json(entries, features, invalid)
    os.makedirs(target, exist_ok=True)
    path = os.path.join(target, INDEX)
    try:
        for name, table in tables.items():
            with prefix_errors(f"table {describe(name)}"):
                save_table(os.path.join(target, files[name]), table)
        before = _files_of_old_index(path)
        with replacement(path) as file:
            file.write(index)
    except BaseException:
        if _is_replaced(path, index):
            _delete(target, files.values())
        raise
    _delete(target, before)


def load(folder: Any, memory: Any, verify: bool) -> tuple[str, dict[str, Table], list[Record], Any]:
    """Return the path of the index, the tables, the features and what to do with invalid ids.

    A save may delete files between the moments at which the index and a file are opened. Then the
    new index is read.
    """
    target = as_path(folder, "folder")
    path = os.path.join(target, INDEX)
    while True:
        index = read_index(path)
        with errors_of(path):
            entries, features, invalid = _parse(index)
        try:
            tables = _load_tables(target, path, entries, memory, verify)
            return path, tables, features, invalid
        except FileNotFoundError:
            if not _is_replaced(path, index):
                raise


@contextlib.contextmanager
def errors_of(path: str) -> Iterator[None]:
    """Raise a ValueError that names the index for what is wrong in it."""
    try:
        yield
    except (ValueError, TypeError) as error:
        # The message is cut, since it may quote the file at any length.
        raise ValueError(f"{path}: {error!s:.300}") from error


def describe_rows(table: Table) -> str:
    """Return how the rows of a table are stored, such as "float32" or "8 bits"."""
    rows = table.table if isinstance(table, RemappedTable) else table
    if isinstance(rows, QuantizedTable):
        return f"{rows.bits} bits" if rows.scales is None else f"{rows.packed.dtype} with scales"
    return str(rows.dtype)


# --- Saving -------------------------------------------------------------------


def _new_file_name(table: str) -> str:
    """Return a name that no other file has: the table's, as far as file systems take it."""
    readable = re.sub(r"[^\w.-]+", "_", table, flags=re.ASCII).lstrip(".")[:80]
    return f"{readable}-{os.urandom(8).hex()}.safetensors"


def _as_json(entries: Mapping[str, Any], features: Sequence[Record], invalid: Any) -> bytes:
    """Return an index, with a line for each table and each feature."""
    tables = ",\n".join(f"  {_dump(name)}: {_dump(entry)}" for name, entry in entries.items())
    lines = ",\n".join(f"  {_dump(feature)}" for feature in features)
    text = (
        f'{{\n "format": {_FORMAT},\n "invalid": {_dump(invalid)},\n'
        f' "tables": {{\n{tables}\n }},\n "features": [\n{lines}\n ]\n}}\n'
    )
    try:
        index = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"names must be ones that UTF-8 can encode, got {error}") from None
    if len(index) > MOST_BYTES:
        raise ValueError(f"names must take at most {MOST_BYTES} bytes, got {len(index)}")
    return index


def _dump(value: Any) -> str:
    # operator.index: an integer of NumPy.
    return json.dumps(value, ensure_ascii=False, default=operator.index)


def _files_of_old_index(path: str) -> list[str]:
    """Return the files of an earlier save; none if there is no index, or an invalid one."""
    try:
        entries, _, _ = _parse(read_index(path))
    except (OSError, ValueError, TypeError):
        return []
    # A person may have written other names into the index. Those files are not ours.
    return [file for file, _, _ in entries.values() if _OUR_FILES.fullmatch(file)]


def _is_replaced(path: str, index: bytes) -> bool:
    """Return whether the folder certainly has another index than this one, or none."""
    try:
        return read_index(path) != index
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False


def _delete(folder: str, files: Any) -> None:
    for file in files:
        with contextlib.suppress(OSError):  # it may not exist, or be open where systems forbid it
            os.unlink(os.path.join(folder, file))


# --- Loading ------------------------------------------------------------------

Entry = tuple[str, tuple[Any, ...], Any]  # the file of a table, its shape, and `describe_rows`


def _parse(index: bytes) -> tuple[dict[str, Entry], list[Record], Any]:
    """Return the tables, the features and `invalid` of an index, of which the types are right."""
    parsed = parse_object(index, "index of a collection")
    check_format(parsed.get("format"), _FORMAT, "EmbeddingBagCollection.save")
    if parsed.keys() != {"format", "invalid", "tables", "features"}:
        raise ValueError("index must be format, invalid, tables and features, got others")
    tables, features = parsed["tables"], parsed["features"]
    if type(tables) is not dict or type(features) is not list:
        raise ValueError("tables must be an object and features a list, got others")
    entries = {}
    for name, entry in tables.items():
        with prefix_errors(f"table {describe(name)}"):
            if type(entry) is not dict or entry.keys() != {"file", "shape", "rows"}:
                raise ValueError("entry must be file, shape and rows, got others")
            _check_file(entry["file"])
            if type(entry["shape"]) is not list:
                raise ValueError(f"shape must be a list, got {describe(entry['shape'])}")
            entries[name] = entry["file"], tuple(entry["shape"]), entry["rows"]
    for i, feature in enumerate(features):
        if type(feature) is not dict:
            raise ValueError(f"features[{i}] must be an object, got {describe(feature)}")
    return entries, features, parsed["invalid"]


def _check_file(file: Any) -> None:
    """Raise unless this is the name of a file in the folder itself."""
    if type(file) is not str or not file or any(part in file for part in "/\\:\0"):
        raise ValueError(f"file must be the name of a file in the folder, got {describe(file)}")


def _load_tables(
    folder: str, path: str, entries: Mapping[str, Entry], memory: Any, verify: bool
) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    for name, (file, shape, rows) in entries.items():
        table = load_table(os.path.join(folder, file), memory=memory, verify=verify)
        seen = table.shape, describe_rows(table)
        with errors_of(path):
            if seen != (shape, rows):
                raise ValueError(
                    f"{file} must have shape {shape} and rows of {describe(rows)}, "
                    f"as the index says of table {describe(name)}, got {seen[0]} and {seen[1]!r}"
                )
        tables[name] = table
    return tables
