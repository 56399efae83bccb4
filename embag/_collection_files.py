"""A collection in a folder: a file for each table, and `collection.json`, which names them.

    {"format": "embag collection 1",
     "invalid": "raise",
     "tables": {"items": {"file": "items-3f2a91c0.safetensors", "shape": [1000, 64]}},
     "features": [{"name": "clicked", "table": "items", "mode": "mean", "padding_idx": null, ...}]}

Each save writes files of new names, then replaces `collection.json`, then deletes the files that
the old one named. So the folder holds one whole collection at any moment, and a process that has
mapped the old files keeps them.

Tested in tests/collection/test_saving.py.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from embag._arguments import describe, prefix_errors
from embag._files.replacement import replacement
from embag._types import Table
from embag.tables import load_table, save_table

INDEX = "collection.json"
_FORMAT = "embag collection 1"
_LONGEST_NAME = 100  # of a table, in the name of its file


class Saved(NamedTuple):
    """What a folder holds."""

    tables: dict[str, Table]
    features: list[dict[str, Any]]
    invalid: Any


def save(
    folder: str, tables: Mapping[str, Table], features: list[dict[str, Any]], invalid: Any
) -> None:
    """Save tables, and what else a collection is made of, to a folder that may not exist yet."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, INDEX)
    old = _files_of(path)
    places: dict[str, dict[str, Any]] = {}
    try:
        for name, table in tables.items():
            file = f"{quote(name, safe='')[:_LONGEST_NAME]}-{os.urandom(4).hex()}.safetensors"
            places[name] = {"file": file, "shape": [len(table), _dim_of(table)]}
            save_table(os.path.join(folder, file), table)
        index = {"format": _FORMAT, "invalid": invalid, "tables": places, "features": features}
        text = json.dumps(index, indent=1) + "\n"
        with replacement(path) as written:
            written.write(text.encode())
    except BaseException:
        _delete(folder, [place["file"] for place in places.values()])
        raise
    _delete(folder, old)


def load(folder: str, memory: Literal["map", "copy"]) -> Saved:
    """Load what `save` wrote; ValueError if the folder does not hold that."""
    path = os.path.join(folder, INDEX)
    with prefix_errors(path):
        index = _read(path)
        places, features, invalid = index["tables"], index["features"], index["invalid"]
        if type(features) is not list or not all(type(one) is dict for one in features):
            raise ValueError("features must be a list of objects, got others")
        tables: dict[str, Table] = {}
        for name, place in _check_places(places).items():
            table = load_table(os.path.join(folder, place["file"]), memory)
            shape = [len(table), _dim_of(table)]
            if shape != place["shape"]:
                raise ValueError(
                    f"table {name!r} must have shape {place['shape']}, got {shape} in "
                    f"{place['file']}"
                )
            tables[name] = table
    return Saved(tables, features, invalid)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            index = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"file must be JSON, got {error!s:.100}") from None
    keys = {"format", "invalid", "tables", "features"}
    if type(index) is not dict or index.get("format") != _FORMAT or index.keys() != keys:
        raise ValueError(f"file must be a collection of the format {_FORMAT!r}, got another")
    return index


def _check_places(places: Any) -> dict[str, dict[str, Any]]:
    if type(places) is not dict:
        raise ValueError(f"tables must be an object, got {describe(places)}")
    for name, place in places.items():
        if type(place) is not dict or place.keys() != {"file", "shape"}:
            raise ValueError(f"table {name!r} must have a file and a shape, got others")
        file = place["file"]
        # A file of another folder is no part of a collection.
        if type(file) is not str or os.path.basename(file) != file or "\\" in file or "\0" in file:
            raise ValueError(f"table {name!r} must be a file of the folder, got {describe(file)}")
    return places


def _files_of(path: str) -> list[str]:
    """Return the files that an index names; none if there is no index, or a broken one."""
    with contextlib.suppress(OSError, ValueError):
        return [place["file"] for place in _check_places(_read(path)["tables"]).values()]
    return []


def _delete(folder: str, files: list[str]) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            os.remove(os.path.join(folder, file))


def _dim_of(table: Any) -> int:
    dim: int = table.shape[1]
    return dim
