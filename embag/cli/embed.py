"""``embag embed``: a column of texts into a column of vectors, file to file.

    reading    record batches of the wanted columns (_sources.py), cut and joined to chunks
    pooling    embag.text.StaticModel.encode of each chunk
    writing    the kept columns and the vectors (_sinks.py)

The three stages run concurrently, as those of ``embag pool`` do (_stages.py). Two chunks are
encoded at a time: the tokenizer uses all processors for one, while the tokens of the other are
joined, which only one thread can do.

Tested in tests/cli/test_embed_command.py.
"""

import contextlib
import dataclasses
import json
import operator
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import click
import numpy as np
import pyarrow as pa

import embag
from embag.cli import _ending, _options, _sinks, _sources, _stages
from embag.cli._errors import report_errors
from embag.cli._output import format_bytes, peak_memory, progress_bar

_AT_A_TIME = 2  # chunks
# Of a batch, whose tokens take some fifty times as many bytes.
_BATCH_BYTES = 1 << 20


class _Counts(NamedTuple):
    """The counts of the summary."""

    rows: int = 0
    tokens: int = 0
    null_vectors: int = 0


class _Encoded(NamedTuple):
    """The rows of a chunk, encoded, and their counts."""

    table: pa.Table
    counts: _Counts


@click.command(epilog="See docs/text.md for the folders of models, docs/cli.md for files.")
@click.argument("source", metavar="IN")
@click.option(
    "--column",
    metavar="NAME",
    required=True,
    callback=_options.checked_name,
    help="Name of the column of texts.",
)
@click.option(
    "--model",
    "folder",
    metavar="FOLDER",
    required=True,
    help="A folder of model2vec, of sentence-transformers (StaticEmbedding) or of WordLlama.",
)
@click.option(
    "--out", "target", metavar="OUT", required=True, help="The file to create or replace."
)
@click.option(
    "--keep",
    metavar="A,B",
    callback=_options.checked_name,
    multiple=True,
    help="Columns to copy to OUT.",
)
@click.option(
    "--name",
    metavar="NAME",
    callback=_options.checked_name,
    help="Name of the column of vectors.  [default: NAME_vector]",
)
@click.option(
    "--max-length",
    metavar="N",
    type=click.IntRange(1),
    help="How many tokens of a text count.  [default: as the model says]",
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Whether to divide each vector by its Euclidean norm.  [default: as the model says]",
)
@click.option(
    "--dim", metavar="N", type=click.IntRange(1), help="Take the first N entries of each vector."
)
@click.option(
    "--null-empty",
    is_flag=True,
    help="Write null instead of zeros for a text without a token that counts: a null or empty "
    "text, or one of unknown tokens that the model skips.",
)
@click.option(
    "--dtype", type=click.Choice(["float16", "float32"]), help="The dtype of the vectors."
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(1),
    help="Maximum number of threads for tokenizing and for pooling.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    source: str,
    column: str,
    folder: str,
    target: str,
    keep: tuple[str, ...],
    name: str | None,
    max_length: int | None,
    normalize: bool | None,
    dim: int | None,
    null_empty: bool,
    dtype: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Turn a column of texts into a column of vectors.

    Each text becomes the mean of the vectors of its tokens, as the library that made the model
    computes it. IN is streamed and may be larger than memory. OUT is created or replaced only when
    it is complete.

    \b
      embag embed texts.parquet --column text --model potion-base-8M \\
          --keep id --out vectors.parquet

    \b
    IN    .parquet; .arrow, .feather, .arrows; .csv, .tsv, .jsonl, also with .gz or .zst
    OUT   .parquet; .arrow, .feather, .arrows; .npy: only the vectors
    """
    start = time.perf_counter()
    kept = [part.strip() for text in keep for part in text.split(",")]
    name = name or f"{column}_vector"
    if len({name, *kept}) < 1 + len(kept):
        raise click.UsageError("the names of --keep and of the vectors must differ; see --name")
    if _sources.has_no_columns(source):
        raise click.UsageError("IN must have a column of texts, got a .npy file")
    if _sinks.has_no_columns(target) and (kept or null_empty):
        raise click.UsageError(
            "--keep and --null-empty must be left out: OUT is a .npy file, of vectors alone"
        )
    _ending.use_output("--out", target, source)
    if threads is not None:
        embag.set_num_threads(threads)
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # read when the tokenizer first works
    with report_errors(folder):
        from embag.text import StaticModel

        model = StaticModel.from_folder(folder, dim=dim)
        options: dict[str, Any] = {
            "max_length": "model" if max_length is None else max_length,
            "normalize": normalize,
            "out_dtype": dtype,
        }
        dtype_of_vectors = model.encode([], **options).dtype
    field = _sinks.vectors_field(target, name, dtype_of_vectors, model.dim, nullable=null_empty)
    run = _Run(source, column, kept, model, options, field)
    summary = _summarize(run, target, start)
    print(json.dumps(summary) if as_json else _format(summary, null_empty))


@dataclasses.dataclass
class _Run:
    """The options of a run, checked, and what it has done."""

    source: str
    column: str
    kept: list[str]
    model: Any  # a StaticModel
    options: dict[str, Any]  # of its `encode`
    field: pa.Field  # of the vectors
    counts: _Counts = dataclasses.field(default_factory=_Counts)
    n_bytes_in: int = 0
    n_bytes_out: int = 0

    def write_file(self, target: str) -> dict[str, float]:
        """Read, encode and write all rows; return the seconds of each stage."""
        with report_errors(self.source), contextlib.ExitStack() as files:
            opened = files.enter_context(
                _sources.open_source(self.source, {}, self.kept, [self.column])
            )
            _check_texts(opened.schema.field(self.column))
            fields = [_sinks.decoded_field(opened.schema.field(name)) for name in self.kept]
            schema = pa.schema([*fields, self.field])
            show = files.enter_context(progress_bar(self.source, opened.n_rows, opened.n_bytes))

            def write_chunk(encoded: _Encoded) -> None:
                sink.write(encoded.table)
                self.counts = _Counts(*map(operator.add, self.counts, encoded.counts))
                show(self.counts.rows, opened.tell())

            # Within, errors of the source are reported already: others are of the target.
            with report_errors(target):
                with _sinks.open_sink(target, schema) as sink:
                    seconds = _stages.overlap(
                        self._read_chunks(opened.batches),
                        lambda chunk: self._encode_chunk(*chunk, schema),
                        write_chunk,
                        _AT_A_TIME,
                    )
                    start = time.perf_counter()
                seconds["writing"] += time.perf_counter() - start  # flushing to the disk
        self.n_bytes_in, self.n_bytes_out = opened.n_bytes, sink.n_bytes
        return seconds

    def _read_chunks(self, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, pa.Table]]:
        vector_bytes = self.model.dim * self.field.type.value_type.bit_width // 8
        with report_errors(self.source):
            decoded = _sinks.decode_dictionaries(batches, [self.column, *self.kept])
            for start, rows in _sources.cut_chunks(decoded, vector_bytes):
                yield start, pa.Table.from_batches(rows)

    def _encode_chunk(self, start: int, chunk: pa.Table, schema: pa.Schema) -> _Encoded:
        texts = [text or "" for text in chunk[self.column].to_pylist()]
        text_bytes = chunk[self.column].nbytes / max(1, len(texts))
        batch_size = max(1, min(1024, int(_BATCH_BYTES / max(1, text_bytes))))
        with report_errors(self.source):
            try:
                vectors, n_tokens = self.model.encode(
                    texts, batch_size=batch_size, return_n_valid=True, **self.options
                )
            except ValueError as error:
                raise ValueError(f"column {self.column!r}, from row {start} on: {error}") from error
        nulls = n_tokens == 0 if self.field.nullable else None
        columns = [chunk[name] for name in self.kept]
        columns.append(_sinks.as_column(vectors, self.field, nulls))
        n_nulls = 0 if nulls is None else int(np.count_nonzero(nulls))
        return _Encoded(
            pa.Table.from_arrays(columns, schema=schema),
            _Counts(len(texts), int(n_tokens.sum()), n_nulls),
        )


def _check_texts(field: pa.Field) -> None:
    dtype = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(is_a(dtype) for is_a in is_text):
        raise ValueError(f"column {field.name!r} must be text, got {field.type}")


def _summarize(run: _Run, target: str, start: float) -> dict[str, Any]:
    stages = run.write_file(target)
    seconds = time.perf_counter() - start
    return {
        "out": target,
        **run.counts._asdict(),
        "dim": run.model.dim,
        "dtype": str(run.field.type.value_type.to_pandas_dtype().__name__),
        "library": run.model.library,
        "seconds": round(seconds, 4),
        **{f"{stage}_seconds": round(stages[stage], 4) for stage in _stages.STAGES},
        "rows_per_second": round(run.counts.rows / seconds),
        "bytes_in": run.n_bytes_in,
        "bytes_out": run.n_bytes_out,
        "peak_memory_bytes": peak_memory(),
        "threads": embag.get_num_threads(),
    }


def _format(summary: dict[str, Any], null_empty: bool) -> str:
    lines = [
        f"{summary['rows']:,} rows, {summary['tokens']:,} tokens -> {summary['out']}, "
        f"{format_bytes(summary['bytes_out'])}",
        f"{summary['seconds']:.2f} s, {summary['rows_per_second']:,} rows/s; at the same time: "
        + ", ".join(f"{stage} {summary[f'{stage}_seconds']:.2f} s" for stage in _stages.STAGES),
    ]
    if summary["peak_memory_bytes"] is not None:
        lines.append(f"at most {format_bytes(summary['peak_memory_bytes'])} of memory")
    if null_empty:
        lines.append(
            f"{summary['null_vectors']:,} vectors are null: their texts have no token that counts"
        )
    return "\n".join(lines)
