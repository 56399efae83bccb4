"""``embag pool``: pool a list column of ids into a column of vectors, file to file.

    reading    record batches of the wanted columns (_sources.py), cut and joined to chunks;
               lists are parsed where they are text (_lists.py); with --by, lists are made of
               the rows of each key (_long_format.py)
    pooling    embag.embedding_bag of each chunk, one thread per chunk
    writing    the kept columns and the vectors (_sinks.py)

The three stages run concurrently (_stages.py). Memory holds the table and a few chunks,
whatever the size of the file or of its row groups; with --by, also the columns of the file.

Tested in tests/cli/.
"""

import contextlib
import dataclasses
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
from embag._modes import MODES
from embag.cli import _ending, _lists, _long_format, _options, _sinks, _sources, _stages
from embag.cli._errors import report_errors
from embag.cli._output import format_bytes, peak_memory, progress_bar


class _Chunk(NamedTuple):
    """Some rows of a file."""

    table: pa.Table
    ids: pa.ChunkedArray  # lists, parsed where they are text
    weights: pa.ChunkedArray | None  # from --weights, or from the column of ids
    place: Callable[[int], str]  # of a row, for messages


class _Counts(NamedTuple):
    """The counts of the summary."""

    rows: int = 0
    ids: int = 0
    invalid_ids: int = 0
    null_weights: int = 0
    null_vectors: int = 0


class _Pooled(NamedTuple):
    """The rows of a chunk, pooled, and their counts."""

    table: pa.Table
    counts: _Counts


class _Done(NamedTuple):
    """The result of a run."""

    counts: _Counts
    n_bytes_in: int
    n_bytes_out: int
    seconds: dict[str, float]  # by stage


def _as_invalid(ctx: click.Context, param: click.Parameter, given: str) -> str | int:
    if given in ("raise", "skip"):
        return given
    if given.isascii() and given.isdigit():
        return int(given)
    raise click.BadParameter("must be raise, skip or a row")


@click.command(epilog="See docs/cli.md for details and examples of output.")
@click.argument("source", metavar="IN")
@click.option(
    "--column",
    metavar="NAME",
    callback=_options.checked_name,
    help="Name of the list column of ids; not for a .npy file.",
)
@click.option(
    "--by",
    metavar="NAME",
    callback=_options.checked_name,
    help="Name of a column of keys, for a file with one id in each row: --column and --weights are "
    "then columns of numbers, and OUT has a row for each key.",
)
@click.option(
    "--table", "table_path", metavar="FILE", required=True, help="The table, with a row per id."
)
@_options.tensor
@click.option(
    "--out", "target", metavar="OUT", required=True, help="The file to create or replace."
)
@click.option("--mode", type=click.Choice(list(MODES)), default="mean", show_default=True)
@click.option(
    "--keep",
    metavar="A,B",
    callback=_options.checked_name,
    multiple=True,
    help="Columns to copy to OUT.",
)
@click.option(
    "--weights",
    metavar="NAME",
    callback=_options.checked_name,
    help="Name of a list column of weights, for --mode sum, mean or sqrtn. Not for a column "
    "that has weights itself: a map, or structs of ids and weights.",
)
@click.option(
    "--name",
    metavar="NAME",
    callback=_options.checked_name,
    help="Name of the column of vectors.  [default: NAME_vector]",
)
@click.option(
    "--invalid",
    metavar="raise|skip|ROW",
    callback=_as_invalid,
    default="raise",
    show_default=True,
    help="For ids out of range: fail, skip and count them, or look up ROW in their place.",
)
@click.option(
    "--n-invalid",
    metavar="NAME",
    callback=_options.checked_name,
    help="Write how many ids of each list are out of range, in a column of this name.",
)
@click.option(
    "--default-idx",
    metavar="ROW",
    type=click.IntRange(0),
    help="The row of a list without an id that counts.  [default: zeros]",
)
@click.option("--normalize", is_flag=True, help="Divide each vector by its Euclidean norm.")
@click.option(
    "--padding-idx",
    metavar="ID",
    type=click.IntRange(0),
    help="An id to skip. If it is out of range, such as -1, use --invalid skip.",
)
@click.option(
    "--null-weights",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="For ids whose weight is null: fail, or skip and count them.",
)
@click.option(
    "--null-empty",
    is_flag=True,
    help="Write null instead of zeros for a list without an id that counts: a null or empty list, "
    "or one whose ids are all skipped.",
)
@click.option(
    "--dtype", type=click.Choice(["float16", "float32"]), help="The dtype of the vectors."
)
@click.option(
    "--load",
    type=click.Choice(["map", "copy"]),
    default="map",
    show_default=True,
    help="Map the table, or copy it into memory first.",
)
@click.option(
    "--threads", metavar="N", type=click.IntRange(1), help="Maximum number of threads for pooling."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    source: str,
    column: str | None,
    by: str | None,
    table_path: str,
    tensor: str | None,
    target: str,
    mode: str,
    keep: tuple[str, ...],
    weights: str | None,
    name: str | None,
    invalid: str | int,
    n_invalid: str | None,
    default_idx: int | None,
    normalize: bool,
    padding_idx: int | None,
    null_weights: str,
    null_empty: bool,
    dtype: str | None,
    load: Any,
    threads: int | None,
    as_json: bool,
) -> None:
    """Pool a list column of ids into a column of vectors.

    For each row of IN, gather the rows of the table that its list names, and reduce them. IN is
    streamed and may be larger than memory. OUT is created or replaced only when it is complete.

    \b
      embag pool events.parquet --column item_ids --table items.npy \\
          --mode mean --keep user_id,ts --out pooled.parquet
      embag pool clicks.parquet --by user_id --column item_id --weights w \\
          --table items.npy --out users.parquet

    \b
    IN    .parquet; .arrow, .feather, .arrows; .csv, .tsv, .jsonl, also with .gz or .zst,
          where lists may be text such as "1 2 3" or "[1, 2, 3]"; .npy: 2-D, a list in each row
    FILE  .npy or .safetensors, as embag.load_table reads them; may be quantized
    OUT   .parquet; .arrow, .feather, .arrows; .npy: only the vectors
    """
    start = time.perf_counter()
    kept = [part.strip() for text in keep for part in text.split(",")]
    adds_columns = bool(kept) or null_empty or n_invalid is not None
    column = _check_options(
        source, column, by, table_path, target, mode, kept, weights, adds_columns
    )
    if by is not None and not _sinks.has_no_columns(target):
        kept = [by]
    if n_invalid is not None and invalid == "raise":
        raise click.UsageError("--n-invalid must come with --invalid skip or a row")
    name = name or f"{column}_vector"
    names = [name, *kept, *([] if n_invalid is None else [n_invalid])]
    if len(set(names)) < len(names):
        raise click.UsageError(
            "the names of --keep, of --n-invalid and of the vectors must differ; see --name"
        )
    if threads is not None:
        embag.set_num_threads(threads)
    table = _options.load_table(table_path, tensor, load)
    dim = table.shape[1]
    with report_errors(table_path):
        pool = functools.partial(
            embag.embedding_bag,
            weight=table,
            mode=mode,
            padding_idx=padding_idx,
            out_dtype=dtype,
            invalid=invalid,
            default_idx=default_idx,
            normalize=normalize,
            return_n_invalid=True,
            return_n_valid=True,
            num_threads=1,
        )
        dtype_of_vectors = pool(np.zeros((0, 1), np.int64))[0].dtype  # also checks the options
        if dim == 0:
            raise ValueError("table must have columns, got none")
    field = _sinks.vectors_field(target, name, dtype_of_vectors, dim, nullable=null_empty)
    run = _Run(
        source=source,
        column=column,
        by=by,
        weights=weights,
        takes_weights=MODES[mode].takes_weights,
        skip_null_weights=null_weights == "skip",
        n_invalid=n_invalid,
        kept=kept,
        table_shape=table.shape,
        pool=pool,
        null_empty=null_empty,
        field=field,
    )
    summary = _summarize(run.write_file(target), target, dim, dtype_of_vectors, start)
    print(json.dumps(summary) if as_json else _format(summary, invalid, null_weights, null_empty))


def _check_options(
    source: str,
    column: str | None,
    by: str | None,
    table: str,
    target: str,
    mode: str,
    kept: list[str],
    weights: str | None,
    adds_columns: bool,
) -> str:
    """Raise unless the options are compatible; return the name of the column."""
    if by is not None and kept:
        raise click.UsageError("--keep must be left out where --by is given: OUT has the keys")
    if _sources.has_no_columns(source):
        if column is not None or by is not None or weights is not None or kept:
            raise click.UsageError(
                "--column, --by, --weights and --keep must be left out: IN is a .npy file, of ids "
                "alone"
            )
        column = _sources.NPY_COLUMN
    elif column is None:
        kind = "ids" if by is not None else "lists of ids"
        raise click.UsageError(f"--column must name the column of {kind}")
    if _sinks.has_no_columns(target) and adds_columns:
        raise click.UsageError(
            "--keep, --null-empty and --n-invalid must be left out: OUT is a .npy file, of "
            "vectors alone"
        )
    if weights is not None and not MODES[mode].takes_weights:
        raise click.UsageError(f"--weights must come with --mode sum, mean or sqrtn, got {mode}")
    _ending.use_output("--out", target, source, table)
    return column


@dataclasses.dataclass(frozen=True)
class _Run:
    """The options of a run, checked."""

    source: str
    column: str
    by: str | None  # the column of keys, in long format
    weights: str | None  # a column
    takes_weights: bool  # the mode does
    skip_null_weights: bool
    n_invalid: str | None  # the column of the number of ids out of range
    kept: list[str]
    table_shape: tuple[int, int]
    pool: Callable[..., Any]  # embedding_bag with its options
    null_empty: bool
    field: pa.Field  # of the vectors

    @property
    def lists(self) -> dict[str, pa.DataType]:
        """The list columns, with the types of their items."""
        lists = {self.column: _lists.INTEGERS}
        if self.weights is not None:
            lists[self.weights] = _lists.NUMBERS
        return lists

    def write_file(self, target: str) -> _Done:
        """Read, pool and write all rows."""
        counts = _Counts()
        with report_errors(self.source), contextlib.ExitStack() as files:
            opened = files.enter_context(self._open_source())
            for name, numbers in self.lists.items():
                _lists.check_lists(opened.schema.field(name), numbers)
            self._check_weights(opened.schema.field(self.column).type)
            fields = [_sinks.decoded_field(opened.schema.field(name)) for name in self.kept]
            counts_field = [pa.field(self.n_invalid, pa.int64())] if self.n_invalid else []
            schema = pa.schema([*fields, *counts_field, self.field])
            show = files.enter_context(progress_bar(self.source, opened.n_rows, opened.n_bytes))

            def write_chunk(pooled: _Pooled) -> None:
                nonlocal counts
                sink.write(pooled.table)
                counts = _Counts(*map(operator.add, counts, pooled.counts))
                show(counts.rows, opened.tell())

            # Within, errors of the source are reported already: others are of the target.
            with report_errors(target):
                with _sinks.open_sink(target, schema) as sink:
                    seconds = _stages.overlap(
                        self._read_chunks(opened.batches),
                        functools.partial(self._pool_chunk, schema=schema),
                        write_chunk,
                        embag.get_num_threads(),
                    )
                    start = time.perf_counter()
                seconds["writing"] += time.perf_counter() - start  # flushing to the disk
        return _Done(counts, opened.n_bytes, sink.n_bytes, seconds)

    def _check_weights(self, ids: pa.DataType) -> None:
        """Raise unless the options about weights fit the type of the column of ids."""
        if self.weights is None and self.skip_null_weights and not _lists.has_weights(ids):
            raise click.UsageError("--null-weights must come with --weights")
        if self.weights is not None and _lists.has_weights(ids):
            raise click.UsageError(
                f"--weights must be left out: column {self.column!r} has weights of its own"
            )

    def _open_source(self) -> contextlib.AbstractContextManager[_sources.Source]:
        if self.by is not None:
            return _long_format.open_grouped(self.source, self.by, self.lists)
        return _sources.open_source(self.source, self.lists, self.kept)

    def _read_chunks(self, batches: Iterable[pa.RecordBatch]) -> Iterator[_Chunk]:
        vector_bytes = self.table_shape[1] * self.field.type.value_type.bit_width // 8
        with report_errors(self.source):
            decoded = _sinks.decode_dictionaries(batches, self.kept)
            for start, rows in _sources.cut_chunks(decoded, vector_bytes):
                yield self._make_chunk(start, pa.Table.from_batches(rows))

    def _make_chunk(self, start: int, table: pa.Table) -> _Chunk:
        place = functools.partial(_name_place, self.by, start, table)
        with _locate_errors(self.column, place):
            ids, weights = _lists.as_lists(table[self.column], _lists.INTEGERS)
        if self.weights is not None:
            with _locate_errors(self.weights, place):
                weights, _ = _lists.as_lists(table[self.weights], _lists.NUMBERS)
        return _Chunk(table, ids, weights if self.takes_weights else None, place)

    def _pool_chunk(self, chunk: _Chunk, schema: pa.Schema) -> _Pooled:
        with report_errors(self.source):
            ids, weights, n_null_weights = self._get_lists(chunk)
            vectors, n_invalid, n_valid = self._pool_lists(ids, weights, chunk)
        nulls = n_valid == 0 if self.null_empty else None
        pooled = _sinks.as_column(vectors, self.field, nulls)
        columns = [chunk.table[name] for name in self.kept]
        if self.n_invalid is not None:
            columns.append(pa.array(_lists.count_out_of_range(ids, self.table_shape[0])))
        columns.append(pooled)
        n_ids = pc.sum(pc.list_value_length(ids)).as_py() or 0
        n_nulls = 0 if nulls is None else int(nulls.sum())
        return _Pooled(
            pa.Table.from_arrays(columns, schema=schema),
            _Counts(len(vectors), n_ids, n_invalid, n_null_weights, n_nulls),
        )

    def _get_lists(self, chunk: _Chunk) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None, int]:
        """Return ids, weights, and the number of ids that were skipped for null weights."""
        if chunk.weights is None:
            return chunk.ids, None, 0
        with _locate_errors(self.weights or self.column, chunk.place):
            ids, n_null = _lists.drop_unweighted(
                chunk.ids, chunk.weights, skip=self.skip_null_weights
            )
        return ids, chunk.weights, n_null

    def _pool_lists(
        self, ids: pa.ChunkedArray, weights: pa.ChunkedArray | None, chunk: _Chunk
    ) -> tuple[NDArray[Any], int, NDArray[np.int64]]:
        """Return vectors, the number of ids out of range, and how many ids count in each list.

        Errors name rows of the file.
        """
        try:
            vectors, n_invalid, n_valid = self.pool(ids, per_sample_weights=weights)
        except IndexError as error:
            n_rows = self.table_shape[0]
            row, found = _lists.find_first_out_of_range(ids, n_rows)
            raise IndexError(
                f"column {self.column!r}, {chunk.place(row)}: id {found} is out of range for a "
                f"table of {n_rows} rows (use --invalid skip to skip such ids)"
            ) from error
        except ValueError as error:
            raise ValueError(f"from {chunk.place(0)} on: {error}") from error
        return vectors, n_invalid, n_valid


def _name_place(by: str | None, start: int, table: pa.Table, row: int) -> str:
    """Return how messages call a row: by its number in the file; in long format, by its key."""
    if by is None:
        return f"row {start + row}"
    return f"{by} {table[by][row].as_py()!r:.50}"


@contextlib.contextmanager
def _locate_errors(column: str, place: Callable[[int], str]) -> Iterator[None]:
    """Name the column, and the place in the file, in errors about a row of a chunk."""
    try:
        yield
    except _lists.BadRow as error:
        raise ValueError(f"column {column!r}, {place(error.row)}: {error}") from error


def _summarize(
    done: _Done, target: str, dim: int, dtype: np.dtype[Any], start: float
) -> dict[str, Any]:
    seconds = time.perf_counter() - start
    return {
        "out": target,
        **done.counts._asdict(),
        "dim": dim,
        "dtype": dtype.name,
        "seconds": round(seconds, 4),
        **{f"{stage}_seconds": round(part, 4) for stage, part in done.seconds.items()},
        "rows_per_second": round(done.counts.rows / seconds),
        "bytes_in": done.n_bytes_in,
        "bytes_out": done.n_bytes_out,
        "peak_memory_bytes": peak_memory(),
        "threads": embag.get_num_threads(),
    }


def _format(
    summary: dict[str, Any], invalid: str | int, null_weights: str, null_empty: bool
) -> str:
    lines = [
        f"{summary['rows']:,} rows, {summary['ids']:,} ids -> {summary['out']}, "
        f"{format_bytes(summary['bytes_out'])}",
        f"{summary['seconds']:.2f} s, {summary['rows_per_second']:,} rows/s; at the same time: "
        + ", ".join(f"{stage} {summary[f'{stage}_seconds']:.2f} s" for stage in _stages.STAGES),
    ]
    if summary["peak_memory_bytes"] is not None:
        lines.append(f"at most {format_bytes(summary['peak_memory_bytes'])} of memory")
    if invalid != "raise":
        done = "skipped" if invalid == "skip" else f"replaced by {invalid}"
        lines.append(f"{summary['invalid_ids']:,} ids {done}: out of range")
    if null_weights == "skip":
        lines.append(f"{summary['null_weights']:,} ids skipped: their weights are null")
    if null_empty:
        lines.append(
            f"{summary['null_vectors']:,} vectors are null: their lists have no id that counts"
        )
    return "\n".join(lines)
