"""Frames: the columns of a table of pandas, polars, pyarrow or another Arrow library, by name.

Tested in tests/collection/.
"""

from collections.abc import Iterable
from typing import Any

from embag._arguments import describe
from embag._columns.arrow_types import check_unique, read_frame


def read_columns(value: Any, names: Iterable[str], label: str) -> dict[str, Any] | None:
    """Return the columns of a frame that have these names; None if this is not a frame.

    Frames of pandas, polars and pyarrow are taken apart column by column. Tables of other Arrow
    libraries are read at once; messages about their columns call the ids `label`.
    """
    kind = type(value)
    package = str(kind.__module__).partition(".")[0]
    if package == "polars" and hasattr(kind, "collect"):
        raise TypeError(f"values must be a frame, got {describe(value)}: pass values.collect()")
    attribute = {"pandas": "columns", "polars": "columns", "pyarrow": "column_names"}.get(package)
    if attribute is not None and hasattr(kind, attribute):
        # Exporting a whole frame copies it if its columns have different chunks.
        found = list(getattr(value, attribute))
        check_unique(found, names)
        return {name: value[name] for name in names if name in found}
    if not (hasattr(kind, "__arrow_c_stream__") or hasattr(kind, "__arrow_c_array__")):
        return None
    return read_frame(value, names, label)
