"""``embag pool``: a column of lists of ids in, a column of pooled vectors out.

    reading    record batches of the wanted columns   _sources.py
               cut and joined to chunks, and parsed where they are text
    pooling    embag.embedding_bag of a chunk's column, a thread each
    writing    the kept columns and the vectors       _sinks.py

The three go on at the same time (_stages.py). Memory is that of the
table and of some chunks, whatever the size of the file or of its row groups.

Tested in tests/test_cli_pool.py, test_cli_formats.py and test_cli_failures.py.
"""

import contextlib
import functools
import json
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

import embag
from embag.cli import _ending, _lists, _options, _sinks, _sources, _stages
from embag.cli._failing import failing
from embag.cli._output import megabytes, peak_memory, progress_bar

# Bytes of ids, kept columns and vectors. Origin: docs/cli.md, "Memory".
_CHUNK_BYTES = 16 << 20


class _Chunk(NamedTuple):
    """Some rows of a file."""

    start: int  # the first row's number in the file
    table: pa.Table
    lists: dict[str, pa.ChunkedArray]  # of its columns, parsed where they are text


class _Counts(NamedTuple):
    """How many of these there are in some rows."""

    rows: int = 0
    ids: int = 0
    invalid_ids: int = 0
    null_weights: int = 0
    null_vectors: int = 0


class _Pooled(NamedTuple):
    """The same rows, pooled, and what the summary counts of them."""

    table: pa.Table
    counts: _Counts


class _Done(NamedTuple):
    """What has been done."""

    counts: _Counts
    n_bytes_in: int
    n_bytes_out: int
    seconds: dict[str, float]  # by stage


@click.command(epilog="docs/cli.md has more, with what it prints.")
@click.argument("source", metavar="IN")
@click.option(
    "--column",
    metavar="NAME",
    callback=_options.checked_name,
    help="The column of lists of ids; none for .npy.",
)
@click.option(
    "--table", "table_path", metavar="FILE", required=True, help="The table: a row an id."
)
@_options.tensor
@click.option("--out", "target", metavar="OUT", required=True, help="The file to write or replace.")
@click.option(
    "--mode", type=click.Choice(["mean", "sum", "max"]), default="mean", show_default=True
)
@click.option(
    "--keep",
    metavar="A,B",
    callback=_options.checked_name,
    multiple=True,
    help="Columns to carry along.",
)
@click.option(
    "--weights",
    metavar="NAME",
    callback=_options.checked_name,
    help="A column of lists of weights, for sums.",
)
@click.option(
    "--name",
    metavar="NAME",
    callback=_options.checked_name,
    help="What to call the vectors.  [default: NAME_vector]",
)
@click.option(
    "--invalid",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="Of ids that are no rows: fail, or leave them out and count them.",
)
@click.option(
    "--padding-idx",
    metavar="ID",
    type=click.IntRange(0),
    help="An id to leave out. One that is no row, such as -1, is left out by --invalid skip.",
)
@click.option(
    "--null-weights",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="For an id whose weight is null: fail, or leave the id out and count it.",
)
@click.option(
    "--null-empty",
    is_flag=True,
    help="Null instead of zeros for a list without an id that counts: it is null or empty, or all "
    "its ids are left out.",
)
@click.option("--dtype", type=click.Choice(["float16", "float32"]), help="Of the vectors.")
@click.option(
    "--load",
    type=click.Choice(["map", "copy"]),
    default="map",
    show_default=True,
    help="Read the table where it is, or copy it into memory first.",
)
@click.option(
    "--threads", metavar="N", type=click.IntRange(1), help="The most threads for pooling."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    source: str,
    column: str | None,
    table_path: str,
    tensor: str | None,
    target: str,
    mode: str,
    keep: tuple[str, ...],
    weights: str | None,
    name: str | None,
    invalid: str,
    padding_idx: int | None,
    null_weights: str,
    null_empty: bool,
    dtype: str | None,
    load: Any,
    threads: int | None,
    as_json: bool,
) -> None:
    """Pool a column of lists of ids into a column of vectors.

    For each row of IN, the rows of the table that its list names are gathered and reduced.
    IN is streamed: it may be larger than memory. OUT is there when it is whole, or not at all.

    \b
      embag pool events.parquet --column item_ids --table items.npy \\
          --mode mean --keep user_id,ts --out pooled.parquet

    \b
    IN    .parquet; .arrow, .feather, .arrows; .csv, .tsv, .jsonl, also with .gz or .zst,
          where lists may be text such as "1 2 3" or "[1, 2, 3]"; .npy: 2-D, a list a row
    FILE  .npy or .safetensors, as embag.load_table reads it, quantized ones too
    OUT   .parquet; .arrow, .feather, .arrows; .npy: the vectors alone
    """
    start = time.perf_counter()
    kept = [part.strip() for text in keep for part in text.split(",")]
    column = _check(source, column, table_path, target, mode, kept, weights, null_empty)
    if null_weights == "skip" and weights is None:
        raise click.UsageError("--null-weights must come with --weights")
    name = name or f"{column}_vector"
    if len({name, *kept}) <= len(kept):
        raise click.UsageError("the names of --keep and of the vectors must differ; see --name")
    if threads is not None:
        embag.set_num_threads(threads)
    table = _options.load_table(table_path, tensor, load)
    with failing(table_path):
        pool = functools.partial(
            embag.embedding_bag,
            weight=table,
            mode=mode,
            padding_idx=padding_idx,
            out_dtype=dtype,
            invalid=invalid,
            return_n_invalid=True,
            num_threads=1,
        )
        dtype_of_vectors = pool(np.zeros((0, 1), np.int64))[0].dtype  # checks the options, too
        if table.shape[1] == 0:
            raise ValueError("table must have columns, got none")
    dim = table.shape[1]
    field = _sinks.vectors_field(target, name, dtype_of_vectors, dim, nullable=null_empty)

    def find_nulls(ids: pa.ChunkedArray) -> NDArray[np.bool_] | None:
        return _lists.without_ids(ids, table.shape[0], padding_idx) if null_empty else None

    skip = null_weights == "skip"
    done = _pool_file(source, target, column, weights, skip, kept, field, table, pool, find_nulls)
    seconds = time.perf_counter() - start
    summary = {
        "out": target,
        **done.counts._asdict(),
        "dim": dim,
        "dtype": dtype_of_vectors.name,
        "seconds": round(seconds, 4),
        **{f"{stage}_seconds": round(part, 4) for stage, part in done.seconds.items()},
        "rows_per_second": round(done.counts.rows / seconds),
        "bytes_in": done.n_bytes_in,
        "bytes_out": done.n_bytes_out,
        "peak_memory_bytes": peak_memory(),
        "threads": embag.get_num_threads(),
    }
    print(json.dumps(summary) if as_json else _text(summary, invalid, null_weights, null_empty))


def _check(
    source: str,
    column: str | None,
    table: str,
    target: str,
    mode: str,
    kept: list[str],
    weights: str | None,
    null_empty: bool,
) -> str:
    """Check that the options go together; return the column's name."""
    if _sources.has_no_columns(source):
        if column is not None or weights is not None or kept:
            raise click.UsageError(
                "--column, --weights and --keep must be left out: IN is a .npy file, of ids alone"
            )
        column = _sources.NPY_COLUMN
    elif column is None:
        raise click.UsageError("--column must name the column of lists of ids")
    if _sinks.has_no_columns(target) and (kept or null_empty):
        raise click.UsageError(
            "--keep and --null-empty must be left out: OUT is a .npy file, of vectors alone"
        )
    if weights is not None and mode != "sum":
        raise click.UsageError(f"--weights must come with --mode sum, got {mode}")
    _ending.use_output("--out", target, source, table)
    return column


def _pool_file(
    source: str,
    target: str,
    column: str,
    weights: str | None,
    skip_null_weights: bool,
    kept: list[str],
    field: pa.Field,
    table: Any,
    pool: Callable[..., Any],
    find_nulls: Callable[[pa.ChunkedArray], NDArray[np.bool_] | None],
) -> _Done:
    lists = {column: _lists.INTEGERS}
    if weights is not None:
        lists[weights] = _lists.NUMBERS
    vector_bytes = table.shape[1] * field.type.value_type.bit_width // 8
    counts = _Counts()
    with contextlib.ExitStack() as files:
        with failing(source):
            opened = files.enter_context(_sources.open_source(source, lists, kept))
            for name, numbers in lists.items():
                _lists.check_lists(opened.schema.field(name), numbers)
            fields = [_sinks.plain_field(opened.schema.field(name)) for name in kept]
        schema = pa.schema([*fields, field])
        show = files.enter_context(progress_bar(source, opened.n_rows, opened.n_bytes))

        def read() -> Iterator[_Chunk]:
            with failing(source):
                batches = _sinks.plain_batches(opened.batches, kept)
                yield from _chunks(batches, lists, vector_bytes)

        def pool_chunk(chunk: _Chunk) -> _Pooled:
            ids = chunk.lists[column]
            sample, n_null_weights = None, 0
            with failing(source):
                if weights is not None:
                    sample = chunk.lists[weights]
                    with _named(weights, chunk.start):
                        ids, n_null_weights = _lists.with_weights(
                            ids, sample, skip=skip_null_weights
                        )
                try:
                    vectors, n = pool(ids, per_sample_weights=sample)
                except IndexError as error:
                    row, found = _lists.first_outside(ids, table.shape[0])
                    raise IndexError(
                        f"column {column!r}, row {chunk.start + row}: {found} is no row of a table "
                        f"of {table.shape[0]} rows (--invalid skip leaves such ids out)"
                    ) from error
                except ValueError as error:
                    raise ValueError(f"from row {chunk.start} on: {error}") from error
            nulls = find_nulls(ids)
            pooled = _sinks.as_column(vectors, field, nulls)
            columns = [*(chunk.table[name] for name in kept), pooled]
            n_ids = pc.sum(pc.list_value_length(ids)).as_py() or 0
            n_nulls = 0 if nulls is None else int(nulls.sum())
            return _Pooled(
                pa.Table.from_arrays(columns, schema=schema),
                _Counts(len(vectors), n_ids, n, n_null_weights, n_nulls),
            )

        def write_chunk(pooled: _Pooled) -> None:
            nonlocal counts
            sink.write(pooled.table)
            counts = _Counts(*map(operator.add, counts, pooled.counts))
            show(counts.rows, opened.tell())

        # Outside of all: what is not said to be of the source is of the target.
        with failing(target):
            with _sinks.open_sink(target, schema) as sink:
                seconds = _stages.overlap(read(), pool_chunk, write_chunk, embag.get_num_threads())
                start = time.perf_counter()
            seconds["writing"] += time.perf_counter() - start  # to the disk
    return _Done(counts, opened.n_bytes, sink.n_bytes, seconds)


def _chunks(
    batches: Iterable[pa.RecordBatch], lists: dict[str, pa.DataType], vector_bytes: int
) -> Iterator[_Chunk]:
    """Cut and join batches to chunks that take, with their vectors, about _CHUNK_BYTES."""
    start = n_bytes = 0
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        # Buffers, since Arrow does not know how many bytes a part of a list view has.
        row_bytes = vector_bytes + batch.get_total_buffer_size() / max(1, len(batch))
        step = max(1, int(_CHUNK_BYTES / row_bytes))
        for first in range(0, len(batch), step):
            waiting.append(batch.slice(first, step))
            n_bytes += len(waiting[-1]) * row_bytes
            if n_bytes >= _CHUNK_BYTES:
                yield _chunk(start, waiting, lists)
                start += sum(map(len, waiting))
                waiting, n_bytes = [], 0
    if waiting:
        yield _chunk(start, waiting, lists)


def _chunk(start: int, batches: list[pa.RecordBatch], lists: dict[str, pa.DataType]) -> _Chunk:
    table = pa.Table.from_batches(batches)
    columns = {}
    for name, numbers in lists.items():
        with _named(name, start):
            columns[name] = _lists.as_lists(table[name], numbers)
    return _Chunk(start, table, columns)


@contextlib.contextmanager
def _named(column: str, start: int) -> Iterator[None]:
    """Name the column and the row of the file in what is said of a row."""
    try:
        yield
    except _lists.BadRow as error:
        raise ValueError(f"column {column!r}, row {start + error.row}: {error}") from error


def _text(summary: dict[str, Any], invalid: str, null_weights: str, null_empty: bool) -> str:
    lines = [
        f"{summary['rows']:,} rows, {summary['ids']:,} ids -> {summary['out']}, "
        f"{megabytes(summary['bytes_out'])}",
        f"{summary['seconds']:.2f} s, {summary['rows_per_second']:,} rows/s; at the same time: "
        + ", ".join(f"{stage} {summary[f'{stage}_seconds']:.2f} s" for stage in _stages.STAGES),
    ]
    if summary["peak_memory_bytes"] is not None:
        lines.append(f"at most {megabytes(summary['peak_memory_bytes'])} of memory")
    if invalid == "skip":
        lines.append(f"{summary['invalid_ids']:,} ids left out that are no rows of the table")
    if null_weights == "skip":
        lines.append(f"{summary['null_weights']:,} ids left out whose weights are null")
    if null_empty:
        lines.append(
            f"{summary['null_vectors']:,} vectors are null: their lists have no id that counts"
        )
    return "\n".join(lines)
