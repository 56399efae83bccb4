"""Input files of ids, in any format, as a stream of record batches with the wanted columns.

No file is read at once. Parquet is decoded in batches of rows, also within a row group; CSV and
JSON lines are parsed in blocks; Arrow and .npy files are mapped.

Tested in tests/cli/.
"""

import contextlib
import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embag._files.headers import check_regular, read_npy_header

# What is decoded of a Parquet file at once, and what is read of a column chunk.
_BYTES_AT_ONCE = 4 << 20
_MOST_ROWS_AT_ONCE = 4096
_READ_AHEAD = 1 << 20
_BLOCK = 4 << 20  # of CSV; a line must fit

NPY_COLUMN = "ids"

# Bytes of ids, kept columns and vectors. Origin: docs/cli.md, "Memory".
_CHUNK_BYTES = 16 << 20


class Source(NamedTuple):
    """A file that is being read."""

    schema: pa.Schema  # of the wanted columns; of all columns, if none are named
    batches: Iterator[pa.RecordBatch]  # of these columns
    n_rows: int | None  # None if the file does not state it
    n_bytes: int
    tell: Callable[[], int]  # returns the number of bytes read; used without n_rows


class _Wanted(NamedTuple):
    """The columns to read."""

    lists: dict[str, pa.DataType]  # columns of lists, with the type of numbers parsed from text
    others: Sequence[str]
    texts: Sequence[str]

    @property
    def names(self) -> list[str]:
        """The names of all columns, each once."""
        return list(dict.fromkeys([*self.lists, *self.texts, *self.others]))


@contextlib.contextmanager
def open_source(
    path: str, lists: dict[str, pa.DataType], others: Sequence[str], texts: Sequence[str] = ()
) -> Iterator[Source]:
    """Open a file and read these columns; the suffix names the format.

    `lists` are the columns of lists of numbers, with the type of the numbers. They are text in
    a CSV file, and may be text in others. `texts` are read as text where the format has no types.
    The only column of a .npy file is NPY_COLUMN.
    """
    reader = _READERS.get(_suffix(path))
    if reader is None:
        raise ValueError(f"name must end in {', '.join(_READERS)}, got {os.path.basename(path)!r}")
    check_regular(path)
    with contextlib.ExitStack() as files:
        yield reader(path, _Wanted(lists, others, texts), files)


def is_known(path: str) -> bool:
    """Return whether the suffix is that of a format of ids."""
    return _suffix(path) in _READERS


def has_no_columns(path: str) -> bool:
    """Return whether the format holds only ids."""
    return _suffix(path) == ".npy"


def cut_chunks(
    batches: Iterable[pa.RecordBatch], vector_bytes: int
) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
    """Cut and join batches to chunks of about _CHUNK_BYTES, including their vectors.

    Yields (start, batches): the number of the first row, and the rows.
    """
    start = n_bytes = 0
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        # The size of the buffers, as Arrow cannot compute the bytes of a slice of a list view.
        row_bytes = vector_bytes + batch.get_total_buffer_size() / max(1, len(batch))
        step = max(1, int(_CHUNK_BYTES / row_bytes))
        for first in range(0, len(batch), step):
            waiting.append(batch.slice(first, step))
            n_bytes += len(waiting[-1]) * row_bytes
            if n_bytes >= _CHUNK_BYTES:
                yield start, waiting
                start += sum(map(len, waiting))
                waiting, n_bytes = [], 0
    if waiting:
        yield start, waiting


def _suffix(path: str) -> str:
    stem, suffix = os.path.splitext(path.lower())
    if suffix in _COMPRESSIONS:
        suffix = os.path.splitext(stem)[1] + suffix
    return suffix


def _check_names(wanted: _Wanted, names: Sequence[str]) -> None:
    for column in wanted.names:
        n = names.count(column)
        if n > 1:
            raise ValueError(f"there are {n} columns {column!r}")
        if n == 0:
            near = difflib.get_close_matches(column, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"there is no column {column!r}{hint} (its columns: {', '.join(names)})"
            )


def _make_source(
    wanted: _Wanted,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    n_rows: int | None,
    n_bytes: int,
    tell: Callable[[], int] = int,
) -> Source:
    _check_names(wanted, schema.names)
    if wanted.names:
        schema = pa.schema([schema.field(name) for name in wanted.names])
        batches = (batch.select(wanted.names) for batch in batches)
    return Source(schema, iter(batches), n_rows, n_bytes, tell)


# --- Each format --------------------------------------------------------------


def _open_parquet(path: str, wanted: _Wanted, files: contextlib.ExitStack) -> Source:
    import pyarrow.parquet as pq

    # Otherwise Arrow reads all wanted column chunks at once.
    options = {"pre_buffer": False, "buffer_size": _READ_AHEAD}
    file = files.enter_context(pq.ParquetFile(path, **options))
    _check_names(wanted, file.schema_arrow.names)
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    row_bytes = max((g.total_byte_size / g.num_rows for g in groups if g.num_rows), default=1)
    n_rows = int(min(_MOST_ROWS_AT_ONCE, max(1, _BYTES_AT_ONCE / max(1, row_bytes))))
    batches = file.iter_batches(n_rows, columns=wanted.names or None)
    n_bytes = os.path.getsize(path)
    n_all = file.metadata.num_rows
    return _make_source(wanted, file.schema_arrow, _check_rows(batches, n_all), n_all, n_bytes)


def _check_rows(batches: Iterable[pa.RecordBatch], n_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a Parquet file; Arrow takes the end of a file that shrinks for theirs.

    Raises ValueError then.
    """
    n_read = 0
    for batch in batches:
        n_read += len(batch)
        yield batch
    if n_read != n_rows:
        raise ValueError(f"file must not shrink while it is read, got {n_read} of {n_rows} rows")


def _open_arrow(path: str, wanted: _Wanted, files: contextlib.ExitStack) -> Source:
    """Open an Arrow file or stream, which is validated."""
    memory = files.enter_context(pa.memory_map(path))
    is_file = memory.read(6) == b"ARROW1"
    opener = pa.ipc.open_file if is_file else pa.ipc.open_stream
    memory.seek(0)
    with opener(memory) as unread:
        schema = unread.schema
    _check_names(wanted, schema.names)
    # Only wanted columns are decoded and validated.
    fields = [schema.names.index(name) for name in wanted.names]
    memory.seek(0)
    reader = opener(memory, options=pa.ipc.IpcReadOptions(included_fields=fields))
    files.enter_context(reader)
    n_batches = reader.num_record_batches if is_file else 0
    n_read = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal n_read
        for batch in map(reader.get_batch, range(n_batches)) if is_file else reader:
            # Arrow does not check the offsets in a file, and would read outside its memory.
            batch.validate(full=True)
            yield batch
            n_read += 1

    def tell() -> int:
        return int(memory.size() * n_read / max(1, n_batches)) if is_file else int(memory.tell())

    return _make_source(wanted, reader.schema, batches(), None, memory.size(), tell)


def _open_csv(path: str, wanted: _Wanted, files: contextlib.ExitStack) -> Source:
    import pyarrow.csv

    delimiter = "\t" if _suffix(path).startswith(".tsv") else ","
    read = pyarrow.csv.ReadOptions(block_size=_BLOCK)
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter)
    with contextlib.ExitStack() as first:
        schema = pyarrow.csv.open_csv(_open_text(path, first)[1], read, parse).schema
    _check_names(wanted, schema.names)
    # Lists are read as text, as "7" is a list of one id. So are columns that are empty in the
    # first block: their type is unknown.
    empty = [field.name for field in schema if pa.types.is_null(field.type)]
    convert = pyarrow.csv.ConvertOptions(
        include_columns=wanted.names,
        column_types=dict.fromkeys([*wanted.lists, *wanted.texts, *empty], pa.string()),
        strings_can_be_null=True,
        null_values=[""] if wanted.texts else None,  # a text may be "NA"
    )
    raw, text = _open_text(path, files)
    reader = files.enter_context(pyarrow.csv.open_csv(text, read, parse, convert))
    batches = _check_end(reader, raw, text)
    return _make_source(wanted, reader.schema, batches, None, raw.size(), _make_tell(raw))


def _open_json(path: str, wanted: _Wanted, files: contextlib.ExitStack) -> Source:
    from embag.cli import _json_lines

    with contextlib.ExitStack() as first:
        schema = _json_lines.find_types(_open_text(path, first)[1], wanted.names)
    _check_names(wanted, schema.names)
    for name, numbers in wanted.lists.items():
        i = schema.names.index(name)
        schema = schema.set(i, pa.field(name, _as_wanted(schema.field(i).type, numbers)))
    for name in wanted.texts:  # which Arrow may have taken for times, or for nulls
        i = schema.names.index(name)
        if pa.types.is_null(schema.field(i).type) or pa.types.is_timestamp(schema.field(i).type):
            schema = schema.set(i, pa.field(name, pa.string()))
    if wanted.names:
        schema = pa.schema([schema.field(name) for name in wanted.names])
    raw, text = _open_text(path, files)
    tables = _json_lines.read_tables(text, schema)
    batches = _check_end((batch for table in tables for batch in table.to_batches()), raw, text)
    return _make_source(wanted, schema, batches, None, raw.size(), _make_tell(raw))


def _as_wanted(dtype: pa.DataType, numbers: pa.DataType) -> pa.DataType:
    """Return the type in which to read a column that was inferred as `dtype`.

    The first rows may have no numbers, or integers where later ones have floats.
    """
    if pa.types.is_null(dtype):
        return pa.list_(numbers)
    if pa.types.is_list(dtype):
        return pa.list_(_as_wanted_items(dtype.value_type, numbers))
    if pa.types.is_struct(dtype) and dtype.num_fields == 2:  # of two lists: ids and weights
        fields = [dtype.field(i) for i in range(2)]
        if all(pa.types.is_list(field.type) for field in fields):
            kinds = zip(fields, (numbers, pa.float64()), strict=True)
            return pa.struct([(field.name, _as_wanted(field.type, kind)) for field, kind in kinds])
    return dtype


def _as_wanted_items(dtype: pa.DataType, numbers: pa.DataType) -> pa.DataType:
    """Return the type in which to read items of lists."""
    if pa.types.is_struct(dtype) and dtype.num_fields == 2:  # an id and its weight
        kinds = zip([dtype.field(i) for i in range(2)], (numbers, pa.float64()), strict=True)
        return pa.struct(
            [(field.name, _as_wanted_items(field.type, kind)) for field, kind in kinds]
        )
    is_a_number = (pa.types.is_null, pa.types.is_integer, pa.types.is_floating)
    return numbers if any(is_a(dtype) for is_a in is_a_number) else dtype


def _open_text(path: str, files: contextlib.ExitStack) -> tuple[Any, Any]:
    """Open a file; return it and a stream of its text, decompressed if necessary."""
    raw = files.enter_context(pa.OSFile(path))
    codec = _COMPRESSIONS.get(os.path.splitext(path.lower())[1])
    return raw, pa.CompressedInputStream(raw, codec) if codec else raw


def _check_end(batches: Iterable[pa.RecordBatch], raw: Any, text: Any) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a text; raise ValueError if its file shrinks.

    A compressed text has an end of its own.
    """
    n_bytes = raw.size()
    yield from batches
    if text is raw and raw.tell() < n_bytes:
        raise ValueError(
            f"file must not shrink while it is read, got {raw.tell()} of {n_bytes} bytes"
        )


def _make_tell(raw: Any) -> Callable[[], int]:
    n_bytes: int = raw.size()

    def tell() -> int:
        try:
            return int(raw.tell())
        except (ValueError, OSError):  # closed: a decompressing stream closes it at its end
            return n_bytes

    return tell


def _open_npy(path: str, wanted: _Wanted, files: contextlib.ExitStack) -> Source:
    with open(path, "rb") as file:
        n_bytes = os.fstat(file.fileno()).st_size
        header = read_npy_header(file)
        start, dtype, shape, fortran_order = header
        if len(shape) != 2 or dtype.kind not in "iu" or not 0 < shape[1] < 2**31:
            raise ValueError(
                f"ids must be 2-D integers, a bag in each row, got shape {shape} and dtype {dtype}"
            )
        header.check_length(n_bytes)
        n_rows, n = shape
        ids: NDArray[Any] = np.zeros((0, n), dtype)
        if n_rows:  # NumPy cannot map empty arrays
            ids = np.memmap(file, dtype, "r", start, shape, "F" if fortran_order else "C")
    step = max(1, _BYTES_AT_ONCE // (n * dtype.itemsize))
    bags = pa.list_(pa.from_numpy_dtype(dtype), n)

    def batch(start: int) -> pa.RecordBatch:
        # Copied to native byte order and C order, which Arrow needs.
        rows = np.array(ids[start : start + step], dtype.newbyteorder("="), order="C")
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=bags)
        return pa.record_batch([column], names=[NPY_COLUMN])

    batches = map(batch, range(0, n_rows, step))
    return _make_source(wanted, pa.schema([(NPY_COLUMN, bags)]), batches, n_rows, n_bytes)


_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_TEXTS = {
    ".csv": _open_csv,
    ".tsv": _open_csv,
    ".jsonl": _open_json,
    ".ndjson": _open_json,
    ".json": _open_json,
}
_READERS = {
    **dict.fromkeys([".parquet", ".pq"], _open_parquet),
    **dict.fromkeys([".arrow", ".feather", ".ipc", ".arrows"], _open_arrow),
    **_TEXTS,
    **{text + suffix: _TEXTS[text] for text in _TEXTS for suffix in _COMPRESSIONS},
    ".npy": _open_npy,
}
