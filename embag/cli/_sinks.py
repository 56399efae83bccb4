"""Output files of `embag pool`: kept columns and a column of vectors, or the vectors alone.

A file is put in place when it is complete (embag/_files/replacement.py).

Tested in tests/cli/.
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embag._files.replacement import replacement

_Write = Callable[[pa.Table], None]

_ROWS_AT_ONCE = 1 << 16
# Arrow cannot take views by index.
_PLAIN_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


@dataclasses.dataclass
class Sink:
    """A file that is being written."""

    write: _Write
    n_bytes: int = 0  # the size of the complete file


@contextlib.contextmanager
def open_sink(path: str, schema: pa.Schema) -> Iterator[Sink]:
    """Open a new file for tables of this schema, whose last column is the vectors.

    The file is put in place when the block ends without an error.
    """
    sink = _SINKS.get(_suffix(path))
    if sink is None:
        raise ValueError(f"name must end in {', '.join(_SINKS)}, got {os.path.basename(path)!r}")
    with replacement(path) as file:
        with sink(file, schema) as write:
            opened = Sink(write)
            yield opened
        opened.n_bytes = os.fstat(file.fileno()).st_size


def has_no_columns(path: str) -> bool:
    """Return whether the format holds only vectors."""
    return _suffix(path) == ".npy"


def vectors_field(
    path: str, name: str, dtype: np.dtype[Any], dim: int, *, nullable: bool
) -> pa.Field:
    """Return the field of the column of vectors."""
    # Parquet stores no definition levels for entries that are not nullable: a tenth faster.
    entry = pa.field("item", pa.from_numpy_dtype(dtype), nullable=False)
    if nullable and _SINKS.get(_suffix(path)) is _open_parquet:
        # pyarrow before 26 neither writes nor reads null FixedSizeLists in Parquet.
        return pa.field(name, pa.list_(entry))
    return pa.field(name, pa.list_(entry, dim), nullable=nullable)


def as_column(vectors: NDArray[Any], field: pa.Field, mask: NDArray[np.bool_] | None) -> pa.Array:
    """Return vectors as a column, null where the mask is True; without a copy if possible."""
    nulls = None if mask is None else pa.array(mask)
    if mask is not None and pa.types.is_list(field.type):
        ends = np.cumsum(~mask, dtype=np.int32) * np.int32(vectors.shape[1])
        offsets = np.concatenate([np.zeros(1, np.int32), ends])
        values = pa.array(vectors[~mask].reshape(-1))
        return pa.ListArray.from_arrays(pa.array(offsets), values, type=field.type, mask=nulls)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.reshape(-1)), type=field.type, mask=nulls
    )


def decoded_field(field: pa.Field) -> pa.Field:
    """Return the field of a kept column, with the value types of its dictionaries.

    Dictionaries are decoded because no format can hold a column with a dictionary per chunk:
    an Arrow file has one dictionary for all chunks, polars cannot read the additions to it
    ("deltas"), and no library reads a Parquet file with narrow indices.
    """
    dtype = _decoded_type(field.type)
    # Without the metadata, in which polars stores the categories.
    return field if dtype == field.type else pa.field(field.name, dtype, field.nullable)


def decode_dictionaries(
    batches: Iterable[pa.RecordBatch], names: list[str]
) -> Iterator[pa.RecordBatch]:
    """Yield batches whose columns of these names have the type of their `decoded_field`."""
    for batch in batches:
        columns = {name: batch[name] for name in names}
        if all(column.type == _decoded_type(column.type) for column in columns.values()):
            yield batch
            continue
        # In parts, as values may need far more memory than indices.
        for start in range(0, len(batch), _ROWS_AT_ONCE):
            part = batch.slice(start, _ROWS_AT_ONCE)
            for name in names:
                place = part.schema.get_field_index(name)
                part = part.set_column(
                    place, decoded_field(part.schema.field(place)), _decode(part[place])
                )
            yield part


def _decoded_type(dtype: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(dtype):
        return _PLAIN_VIEWS.get(dtype.value_type, _decoded_type(dtype.value_type))
    if pa.types.is_nested(dtype):
        fields = [decoded_field(dtype.field(i)) for i in range(dtype.num_fields)]
        if fields == [dtype.field(i) for i in range(dtype.num_fields)]:
            return dtype
        if pa.types.is_struct(dtype):
            return pa.struct(fields)
        if pa.types.is_large_list(dtype) or pa.types.is_large_list_view(dtype):
            return pa.large_list(fields[0])
        if not pa.types.is_map(dtype) and not pa.types.is_union(dtype):
            return pa.list_(fields[0])
        raise ValueError(f"column to keep must have no dictionaries in {dtype}")
    return dtype


def _decode(array: pa.Array) -> pa.Array:
    dtype = _decoded_type(array.type)
    if dtype == array.type:
        return array
    if pa.types.is_dictionary(array.type):
        return pc.take(_decode(array.dictionary).cast(dtype), array.indices)
    nulls = pc.is_null(array)
    if pa.types.is_struct(dtype):
        fields = [dtype.field(i) for i in range(dtype.num_fields)]
        return pa.StructArray.from_arrays(
            [_decode(child) for child in array.flatten()], fields=fields, mask=nulls
        )
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if pa.types.is_large_list(dtype):
        kind, offsets = pa.LargeListArray, pa.array(offsets, pa.int64())
    else:
        kind, offsets = pa.ListArray, pa.array(offsets, pa.int32())
    return kind.from_arrays(offsets, _decode(array.flatten()), type=dtype, mask=nulls)


def _suffix(path: str) -> str:
    return os.path.splitext(path.lower())[1]


@contextlib.contextmanager
def _open_parquet(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    import pyarrow.parquet as pq

    # Vectors neither compress nor repeat, and plain pages take half the time (docs/cli.md).
    others = _leaf_paths(schema)[:-1]
    options = {
        "compression": dict.fromkeys(others, "snappy"),
        "use_dictionary": others,
        "write_statistics": others,
    }
    with pa.OSFile(file.name, "wb") as raw, _closing(pq.ParquetWriter(raw, schema, **options)) as w:
        yield lambda table: w.write_table(table, row_group_size=max(1, len(table)))


def _leaf_paths(schema: pa.Schema) -> list[str]:
    """Return the paths of the leaf columns of a Parquet file of this schema."""
    import pyarrow.parquet as pq

    empty = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), empty)
    leaves = pq.read_metadata(pa.BufferReader(empty.getvalue())).schema
    return [leaves.column(i).path for i in range(len(leaves.names))]


@contextlib.contextmanager
def _open_arrow(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    with pa.OSFile(file.name, "wb") as raw, _closing(pa.ipc.new_file(raw, schema)) as writer:
        yield lambda table: writer.write_table(table.combine_chunks())


@contextlib.contextmanager
def _open_arrow_stream(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    with pa.OSFile(file.name, "wb") as raw, _closing(pa.ipc.new_stream(raw, schema)) as writer:
        yield lambda table: writer.write_table(table.combine_chunks())


@contextlib.contextmanager
def _closing(writer: Any) -> Iterator[Any]:
    """Close a writer after the block. It then writes the end of its file.

    After an error in the block, an error of that is ignored.
    """
    try:
        yield writer
    except BaseException:
        with contextlib.suppress(Exception):
            writer.close()
        raise
    writer.close()


@contextlib.contextmanager
def _open_npy(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    vectors = schema.field(0).type
    dtype = np.dtype(vectors.value_type.to_pandas_dtype())
    n_rows = 0

    def header() -> bytes:
        # NumPy pads headers for any number of rows, so the last is as long as the first.
        head = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(dtype)
        shape = n_rows, vectors.list_size
        np.lib.format.write_array_header_1_0(
            head, {"descr": descr, "fortran_order": False, "shape": shape}
        )
        return head.getvalue()

    with pa.OSFile(file.name, "wb") as raw:  # a Python file would copy the data

        def write(table: pa.Table) -> None:
            nonlocal n_rows
            n_rows += len(table)
            for chunk in table.column(0).chunks:
                raw.write(pa.py_buffer(chunk.flatten().to_numpy()))

        raw.write(header())
        yield write
    file.write(header())


_SINKS = {
    **dict.fromkeys([".parquet", ".pq"], _open_parquet),
    **dict.fromkeys([".arrow", ".feather", ".ipc"], _open_arrow),
    ".arrows": _open_arrow_stream,
    ".npy": _open_npy,
}
