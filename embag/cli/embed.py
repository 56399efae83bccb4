"""``embag embed``: a column of texts into a column of vectors, file to file.

Stages and chunks are those of ``embag pool`` (pool.py). One chunk is encoded at a time, since the
tokenizer uses all processors for it.

Tested in tests/cli/test_embed_command.py.
"""

import functools
import json
import time
from collections.abc import Iterator
from typing import Any

import click
import numpy as np
import pyarrow as pa

from embag.cli import _ending, _options, _sinks, _sources, _stages
from embag.cli._errors import report_errors
from embag.cli._output import format_bytes, peak_memory, progress_bar

INSTALL_COMMAND = "pip install 'embag-cpu[text]'"


@click.command(epilog="See docs/text.md for the folders of models.")
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
    help="A folder of model2vec, sentence-transformers (StaticEmbedding) or WordLlama.",
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
    "--max-length", metavar="N", type=click.IntRange(1), help="Tokens of a text that count."
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Whether vectors get norm 1, if the model is not to say.",
)
@click.option("--dim", metavar="N", type=click.IntRange(1), help="First entries to take.")
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
    as_json: bool,
) -> None:
    """Turn a column of texts into a column of vectors.

    Each text becomes the mean of the vectors of its tokens. A null becomes null. IN is streamed and
    may be larger than memory. OUT is created or replaced only when it is complete.

    \b
      embag embed texts.parquet --column text --model potion-base-8M --out vectors.parquet

    \b
    IN    .parquet; .arrow, .feather, .arrows; .csv, .tsv, .jsonl, also with .gz or .zst
    OUT   .parquet; .arrow, .feather, .arrows; .npy: only the vectors
    """
    start = time.perf_counter()
    kept = [part.strip() for text in keep for part in text.split(",")]
    name = name or f"{column}_vector"
    if len({name, *kept}) < 1 + len(kept):
        raise click.UsageError("the names of --keep and of the vectors must differ; see --name")
    if _sinks.has_no_columns(target) and kept:
        raise click.UsageError("--keep must be left out: OUT is a .npy file, of vectors alone")
    if _sources.has_no_columns(source):
        raise click.UsageError("IN must have columns, got a .npy file")
    _ending.use_output("--out", target, source)
    model = _load_model(folder, dim)
    encode = functools.partial(
        model.encode, max_length="model" if max_length is None else max_length, normalize=normalize
    )
    n_rows = 0
    only_vectors = _sinks.has_no_columns(target)
    field = _sinks.vectors_field(
        target, name, np.dtype(np.float32), model.dim, nullable=not only_vectors
    )
    with report_errors(source), _sources.open_source(source, {}, [column, *kept]) as opened:
        _check_texts(opened.schema.field(column))
        fields = [_sinks.decoded_field(opened.schema.field(one)) for one in kept]
        schema = pa.schema([*fields, field])
        with progress_bar(source, opened.n_rows, opened.n_bytes) as show:

            def encode_chunk(table: pa.Table) -> pa.Table:
                texts = table[column].to_pylist()
                nulls = np.array([text is None for text in texts], np.bool_)
                rows = encode(["" if text is None else text for text in texts])
                mask = None if only_vectors else nulls
                columns = [table[one] for one in kept]
                return pa.Table.from_arrays(
                    [*columns, _sinks.as_column(rows, field, mask)], schema=schema
                )

            def write(table: pa.Table) -> None:
                nonlocal n_rows
                sink.write(table)
                n_rows += len(table)
                show(n_rows, opened.tell())

            with report_errors(target), _sinks.open_sink(target, schema) as sink:
                chunks = _read_chunks(opened, source, [column, *kept], model.dim)
                seconds = _stages.overlap(chunks, encode_chunk, write, 1)
    summary = {
        "out": target,
        "rows": n_rows,
        "dim": model.dim,
        "library": model.library,
        "seconds": round(time.perf_counter() - start, 4),
        "reading_seconds": round(seconds["reading"], 4),
        "encoding_seconds": round(seconds["pooling"], 4),
        "writing_seconds": round(seconds["writing"], 4),
        "bytes_in": opened.n_bytes,
        "bytes_out": sink.n_bytes,
        "peak_memory_bytes": peak_memory(),
    }
    print(json.dumps(summary) if as_json else _format(summary))


def _load_model(folder: str, dim: int | None) -> Any:
    try:
        from embag.text import StaticModel
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    with report_errors(folder):
        return StaticModel.from_folder(folder, dim=dim)


def _check_texts(field: pa.Field) -> None:
    dtype = field.type
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    known = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(is_text(dtype) for is_text in known):
        raise ValueError(f"column {field.name!r} must hold texts, got {field.type}")


def _read_chunks(
    opened: _sources.Source, source: str, names: list[str], dim: int
) -> Iterator[pa.Table]:
    with report_errors(source):
        decoded = _sinks.decode_dictionaries(opened.batches, names)
        for _, batches in _sources.cut_chunks(decoded, 4 * dim):
            yield pa.Table.from_batches(batches)


def _format(summary: dict[str, Any]) -> str:
    rate = summary["rows"] / summary["seconds"]
    lines = [
        f"{summary['rows']:,} rows -> {summary['out']}, {format_bytes(summary['bytes_out'])}",
        f"{summary['seconds']:.2f} s, {rate:,.0f} rows/s; at the same time: reading "
        f"{summary['reading_seconds']:.2f} s, encoding {summary['encoding_seconds']:.2f} s, "
        f"writing {summary['writing_seconds']:.2f} s",
    ]
    if summary["peak_memory_bytes"] is not None:
        lines.append(f"at most {format_bytes(summary['peak_memory_bytes'])} of memory")
    return "\n".join(lines)
