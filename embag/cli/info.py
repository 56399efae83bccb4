"""``embag info``: describe a file, a table or ids.

Tested in tests/cli/.
"""

import contextlib
import json
import os
from typing import Any

import click
import pyarrow as pa
import pyarrow.compute as pc

import embag
from embag import tables
from embag._encodings import memory_of
from embag._files import checksums, other_formats
from embag._files.headers import NpyHeader, check_regular, read_npy_header
from embag.cli import _lists, _options, _sources
from embag.cli._errors import report_errors
from embag.cli._output import format_bytes, progress_bar


@click.command()
@click.argument("path", metavar="FILE")
@click.option(
    "--column",
    metavar="NAME",
    callback=_options.checked_name,
    help="Read this list column of ids and summarize it.",
)
@click.option(
    "--table", "table_path", metavar="TABLE", help="Count the ids out of range for this table."
)
@_options.tensor
@click.option(
    "--verify", is_flag=True, help="Read a whole .safetensors file and compare its checksum."
)
@click.option("--json", "as_json", is_flag=True, help="Print the description as JSON.")
def command(
    path: str,
    column: str | None,
    table_path: str | None,
    tensor: str | None,
    verify: bool,
    as_json: bool,
) -> None:
    """Describe FILE: a table, or columns of ids.

    \b
      embag info items.npy
      embag info events.parquet --column item_ids --table items.npy

    For a .safetensors file of several tensors, list them, or describe the one that --tensor
    names.
    """
    _options.check_tensor(table_path or path, tensor)
    if verify and not _options.is_safetensors(path):
        raise click.UsageError(f"--verify must be left out: {path} is not a .safetensors file")
    with report_errors(path):
        if verify:
            with tables.open_file(path) as (file, _, _):
                checksums.verify(file)
        if _is_table(path):
            if column is not None or table_path is not None:
                raise click.UsageError("--column and --table are for files of ids, this is a table")
            found = _describe_tensors(path) if tensor is None else None
            if found is None:
                with _options.report_table_errors(path):
                    found = _describe_table(path, tensor)
        else:
            if _sources.has_no_columns(path):
                column = _sources.NPY_COLUMN
            if table_path is not None and column is None:
                raise click.UsageError("--table must come with --column")
            n_rows = None
            if table_path is not None:
                n_rows = _options.load_table(table_path, tensor).shape[0]
            found = _describe_ids(path, column, n_rows)
    if verify:
        found["verified"] = True
    print(json.dumps(found) if as_json else _format(found))
    if verify and not as_json:
        print("its bytes are those that were written: the checksum agrees")


def _is_table(path: str) -> bool:
    suffix = os.path.splitext(path.lower())[1]
    if suffix != ".npy":
        # Loading a table of another format fails, and says how to convert it.
        is_other = not _sources.is_known(path) and other_formats.explain(path)
        return suffix == ".safetensors" or bool(is_other)
    header = _read_npy_header(path)
    return header.dtype.kind not in "iu" or (header.dtype.itemsize == 1 and len(header.shape) == 2)


def _read_npy_header(path: str) -> NpyHeader:
    check_regular(path)
    with open(path, "rb") as file:
        header = read_npy_header(file)
        header.check_length(os.fstat(file.fileno()).st_size)
        return header


def _describe_tensors(path: str) -> dict[str, Any] | None:
    """List the tensors of a file; None if they are one table."""
    if not _options.is_safetensors(path):
        return None
    tensors = tables.list_tensors(path)
    if len(tensors) == 1:
        return None
    with contextlib.suppress(ValueError):  # one table, with its map or scales
        embag.load_table(path)
        return None
    listed = {name: {"shape": shape, "dtype": dtype} for name, (dtype, shape) in tensors.items()}
    return {"kind": "tensors", "bytes": os.path.getsize(path), "tensors": listed}


def _describe_table(path: str, tensor: str | None) -> dict[str, Any]:
    try:
        table = embag.load_table(path, name=tensor)
    except ValueError as error:
        if not path.lower().endswith(".npy"):
            raise
        # Not a table, but described all the same.
        header = _read_npy_header(path)
        return {
            "kind": "array",
            "shape": list(header.shape),
            "dtype": str(header.dtype),
            "order": "Fortran" if header.fortran_order else "C",
            "bytes": header.n_bytes,
            "problem": str(error).removeprefix(f"{path}: "),
        }
    found: dict[str, Any] = {"kind": "table", "shape": list(table.shape)}
    rows: Any = table
    if isinstance(table, embag.RemappedTable):
        found |= {"first_id": table.first_id, "rows": len(memory_of(table.table)[0])}
        table = table.table
        rows = table
    if isinstance(table, embag.QuantizedTable):
        found |= {"bits": table.bits, "layout": table.layout}
        rows = table.packed
    else:
        found |= {"dtype": table.dtype.name, "order": "C"}
    # A file is mapped from a page boundary, so the alignment is also that in the file.
    address = rows.__array_interface__["data"][0]
    return {
        **found,
        "bytes": table.nbytes,
        "bytes_of_a_row": rows.strides[0],
        "aligned_to": min(64, address & -address) if address else 64,
    }


def _describe_ids(path: str, column: str | None, n_table_rows: int | None) -> dict[str, Any]:
    with _sources.open_source(path, {}, []) as source:
        found: dict[str, Any] = {
            "kind": "ids",
            "bytes": source.n_bytes,
            "rows": source.n_rows,
            "columns": {field.name: str(field.type) for field in source.schema},
        }
    if column is None:
        return found
    with (
        _sources.open_source(path, {column: _lists.INTEGERS}, []) as source,
        progress_bar(path, source.n_rows, source.n_bytes) as show,
    ):
        _lists.check_lists(source.schema.field(column), _lists.INTEGERS)
        seen = _ColumnSummary(n_table_rows)
        for batch in source.batches:
            try:
                seen.add(_lists.as_lists(pa.chunked_array([batch[column]]), _lists.INTEGERS)[0])
            except _lists.BadRow as error:
                row = seen.n_rows + error.row
                raise ValueError(f"column {column!r}, row {row}: {error}") from error
            show(seen.n_rows, source.tell())
    return {**found, "rows": seen.n_rows, "column": {"name": column, **seen.summary()}}


class _ColumnSummary:
    """A summary of the batches of a column that have been added."""

    def __init__(self, n_table_rows: int | None) -> None:
        self.n_table_rows = n_table_rows
        self.n_rows = self.n_null = self.n_empty = 0
        self.n_ids = self.n_null_ids = self.n_outside = 0
        self.lengths: list[int] = []  # the minimum and the maximum so far
        self.ids: list[int] = []  # the same

    def add(self, column: pa.ChunkedArray) -> None:
        lengths = pc.list_value_length(column)
        ids = pc.list_flatten(column)
        self.n_rows += len(column)
        self.n_null += column.null_count
        self.n_empty += pc.sum(pc.equal(lengths, 0)).as_py() or 0
        self.n_ids += len(ids)
        self.n_null_ids += ids.null_count
        self.lengths = _extend_range(self.lengths, lengths)
        self.ids = _extend_range(self.ids, ids)
        if self.n_table_rows is not None:
            for chunk in ids.chunks:
                self.n_outside += int(_lists.find_out_of_range(chunk, self.n_table_rows).sum())

    def summary(self) -> dict[str, Any]:
        n_lists = self.n_rows - self.n_null
        found = {
            "null": self.n_null,
            "empty": self.n_empty,
            "ids": self.n_ids,
            "null_ids": self.n_null_ids,
            "lengths": self.lengths or None,
            "mean_length": self.n_ids / n_lists if n_lists else None,
            "range": self.ids or None,
        }
        if self.n_table_rows is not None:
            found |= {"table_rows": self.n_table_rows, "no_rows": self.n_outside}
        return found


def _extend_range(limits: list[int], values: pa.ChunkedArray) -> list[int]:
    """Return the minimum and the maximum of a range and of values; [] if there are none."""
    found = [limit.as_py() for limit in pc.min_max(values).values()]
    known = [limit for limit in (*limits, *found) if limit is not None]
    return [min(known), max(known)] if known else []


def _format(found: dict[str, Any]) -> str:
    if found["kind"] == "ids":
        return _format_ids(found)
    if found["kind"] == "tensors":
        return _format_tensors(found)
    shape = " x ".join(f"{n:,}" for n in found["shape"])
    if "bits" in found:
        what = f"quantized to {found['bits']} bits, layout {found['layout']}"
    else:
        what = f"{found['dtype']}, {found['order']} order"
    lines = [f"{found['kind']} of {shape}, {what}, {format_bytes(found['bytes'])}"]
    if "problem" in found:
        lines.append(f"not a table: {found['problem']}")
    else:
        lines.append(
            f"rows of {found['bytes_of_a_row']:,} bytes, the first at a multiple of "
            f"{found['aligned_to']} bytes in the file"
        )
    if "first_id" in found:
        lines.append(f"ids from {found['first_id']:,} on, mapped to {found['rows']:,} rows")
    return "\n".join(lines)


def _format_tensors(found: dict[str, Any]) -> str:
    width = max(map(len, found["tensors"]), default=0)
    lines = [f"{len(found['tensors']):,} tensors, {format_bytes(found['bytes'])}"]
    for name, tensor in found["tensors"].items():
        shape = " x ".join(f"{n:,}" for n in tensor["shape"]) or "scalar"
        lines.append(f"  {name:{width}}  {tensor['dtype']:4}  {shape}")
    return "\n".join(lines)


def _format_ids(found: dict[str, Any]) -> str:
    rows = (
        "rows not counted without --column" if found["rows"] is None else f"{found['rows']:,} rows"
    )
    width = max(map(len, found["columns"]), default=0)
    lines = [f"{rows}, {format_bytes(found['bytes'])}"]
    for name, dtype in found["columns"].items():
        lines.append(f"  {name:{width}}  {dtype}")
        seen = found.get("column")
        if seen is None or seen["name"] != name:
            continue
        indent = " " * (width + 4)
        lines.append(f"{indent}{seen['null']:,} null, {seen['empty']:,} empty")
        if seen["lengths"]:
            low, high = seen["lengths"]
            lines.append(
                f"{indent}{seen['ids']:,} ids, {low:,} to {high:,} in a list, "
                f"{seen['mean_length']:.2f} on average"
            )
        if seen["null_ids"]:
            lines.append(f"{indent}{seen['null_ids']:,} of them null")
        if seen["range"]:
            lines.append(f"{indent}from {seen['range'][0]} to {seen['range'][1]}")
        if "no_rows" in seen:
            lines.append(
                f"{indent}{seen['no_rows']:,} out of range for the table of "
                f"{seen['table_rows']:,} rows"
            )
    return "\n".join(lines)
