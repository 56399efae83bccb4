"""Files of vectors: a column of them after others, or the vectors alone.

A file takes its place when it is whole (_replacing.py). Tested in tests/test_cli_formats.py.
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

from embag._replacing import replacement

_Write = Callable[[pa.Table], None]

_ROWS_AT_ONCE = 1 << 16
# Views cannot be looked up by index.
_PLAIN_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


@dataclasses.dataclass
class Sink:
    """A file that is being written."""

    write: _Write
    n_bytes: int = 0  # of the file, when it is whole


@contextlib.contextmanager
def open_sink(path: str, schema: pa.Schema) -> Iterator[Sink]:
    """Give what writes tables of a schema to a new file; the vectors are the last column.

    The file is there when the block has ended well.
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
    """Tell whether a file has vectors and nothing else."""
    return _suffix(path) == ".npy"


def vectors_field(
    path: str, name: str, dtype: np.dtype[Any], dim: int, *, nullable: bool
) -> pa.Field:
    """Return the field of a column of vectors in a file."""
    # What is not nullable needs no levels of its own in a Parquet file: a tenth faster.
    entry = pa.field("item", pa.from_numpy_dtype(dtype), nullable=False)
    if nullable and _SINKS.get(_suffix(path)) is _parquet:
        # Null lists of one size are neither written nor read by pyarrow before 26.
        return pa.field(name, pa.list_(entry))
    return pa.field(name, pa.list_(entry, dim), nullable=nullable)


def as_column(vectors: NDArray[Any], field: pa.Field, mask: NDArray[np.bool_] | None) -> pa.Array:
    """Return vectors as a column, null where the mask is True; in place as far as it can be."""
    nulls = None if mask is None else pa.array(mask)
    if mask is not None and pa.types.is_list(field.type):
        ends = np.cumsum(~mask, dtype=np.int32) * np.int32(vectors.shape[1])
        offsets = np.concatenate([np.zeros(1, np.int32), ends])
        values = pa.array(vectors[~mask].reshape(-1))
        return pa.ListArray.from_arrays(pa.array(offsets), values, type=field.type, mask=nulls)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.reshape(-1)), type=field.type, mask=nulls
    )


def plain_field(field: pa.Field) -> pa.Field:
    """Return the field of a column that is carried along: dictionaries become their values.

    Dictionaries of several chunks make one column in no format: an Arrow file has one for all,
    its additions ("deltas") are not read by polars, and a Parquet file whose indices are
    narrow is not read by anybody.
    """
    dtype = _plain_type(field.type)
    # Without the metadata, in which polars keeps what the categories are.
    return field if dtype == field.type else pa.field(field.name, dtype, field.nullable)


def plain_batches(batches: Iterable[pa.RecordBatch], names: list[str]) -> Iterator[pa.RecordBatch]:
    """Give these columns the type of their `plain_field`."""
    for batch in batches:
        columns = {name: batch[name] for name in names}
        if all(column.type == _plain_type(column.type) for column in columns.values()):
            yield batch
            continue
        # Values may take far more memory than indices.
        for start in range(0, len(batch), _ROWS_AT_ONCE):
            part = batch.slice(start, _ROWS_AT_ONCE)
            for name in names:
                place = part.schema.get_field_index(name)
                part = part.set_column(
                    place, plain_field(part.schema.field(place)), _plain(part[place])
                )
            yield part


def _plain_type(dtype: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(dtype):
        return _PLAIN_VIEWS.get(dtype.value_type, _plain_type(dtype.value_type))
    if pa.types.is_nested(dtype):
        fields = [plain_field(dtype.field(i)) for i in range(dtype.num_fields)]
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


def _plain(array: pa.Array) -> pa.Array:
    dtype = _plain_type(array.type)
    if dtype == array.type:
        return array
    if pa.types.is_dictionary(array.type):
        return pc.take(_plain(array.dictionary).cast(dtype), array.indices)
    nulls = pc.is_null(array)
    if pa.types.is_struct(dtype):
        fields = [dtype.field(i) for i in range(dtype.num_fields)]
        return pa.StructArray.from_arrays(
            [_plain(child) for child in array.flatten()], fields=fields, mask=nulls
        )
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if pa.types.is_large_list(dtype):
        kind, offsets = pa.LargeListArray, pa.array(offsets, pa.int64())
    else:
        kind, offsets = pa.ListArray, pa.array(offsets, pa.int32())
    return kind.from_arrays(offsets, _plain(array.flatten()), type=dtype, mask=nulls)


def _suffix(path: str) -> str:
    return os.path.splitext(path.lower())[1]


@contextlib.contextmanager
def _parquet(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    import pyarrow.parquet as pq

    # Vectors neither compress nor repeat: plain pages are half the work. docs/cli.md.
    others = _leaves(schema)[:-1]
    options = {
        "compression": dict.fromkeys(others, "snappy"),
        "use_dictionary": others,
        "write_statistics": others,
    }
    with pa.OSFile(file.name, "wb") as raw, _closing(pq.ParquetWriter(raw, schema, **options)) as w:
        yield lambda table: w.write_table(table, row_group_size=max(1, len(table)))


def _leaves(schema: pa.Schema) -> list[str]:
    """Return what the columns of a Parquet file of this schema are called."""
    import pyarrow.parquet as pq

    empty = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), empty)
    leaves = pq.read_metadata(pa.BufferReader(empty.getvalue())).schema
    return [leaves.column(i).path for i in range(len(leaves.names))]


@contextlib.contextmanager
def _arrow(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    with pa.OSFile(file.name, "wb") as raw, _closing(pa.ipc.new_file(raw, schema)) as writer:
        yield lambda table: writer.write_table(table.combine_chunks())


@contextlib.contextmanager
def _arrow_stream(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    with pa.OSFile(file.name, "wb") as raw, _closing(pa.ipc.new_stream(raw, schema)) as writer:
        yield lambda table: writer.write_table(table.combine_chunks())


@contextlib.contextmanager
def _closing(writer: Any) -> Iterator[Any]:
    """Close a writer: it then writes its file's end, which after an error may fail too."""
    try:
        yield writer
    except BaseException:
        with contextlib.suppress(Exception):
            writer.close()
        raise
    writer.close()


@contextlib.contextmanager
def _npy(file: BinaryIO, schema: pa.Schema) -> Iterator[_Write]:
    vectors = schema.field(0).type
    dtype = np.dtype(vectors.value_type.to_pandas_dtype())
    n_rows = 0

    def header() -> bytes:
        # NumPy leaves room for any number of rows: the last header is as long as the first.
        head = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(dtype)
        shape = n_rows, vectors.list_size
        np.lib.format.write_array_header_1_0(
            head, {"descr": descr, "fortran_order": False, "shape": shape}
        )
        return head.getvalue()

    with pa.OSFile(file.name, "wb") as raw:  # Python's own copies what it writes

        def write(table: pa.Table) -> None:
            nonlocal n_rows
            n_rows += len(table)
            for chunk in table.column(0).chunks:
                raw.write(pa.py_buffer(chunk.flatten().to_numpy()))

        raw.write(header())
        yield write
    file.write(header())


_SINKS = {
    **dict.fromkeys([".parquet", ".pq"], _parquet),
    **dict.fromkeys([".arrow", ".feather", ".ipc"], _arrow),
    ".arrows": _arrow_stream,
    ".npy": _npy,
}
