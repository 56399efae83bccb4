"""``embag quantize``: quantize a table of floats to 8, 4 or 2 bits, file to file.

Tested in tests/cli/.
"""

import json
import time

import click
import numpy as np

from embag import tables
from embag.cli import _ending, _options
from embag.cli._errors import report_errors
from embag.cli._output import format_bytes, progress_bar


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option(
    "--bits", type=click.Choice([8, 4, 2]), default=8, show_default=True, help="Bits per entry."
)
@_options.tensor
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(source: str, target: str, bits: int, tensor: str | None, as_json: bool) -> None:
    """Quantize the table in IN to 8, 4 or 2 bits per entry, and report the error.

    IN is read in blocks of rows, so neither table needs to fit in memory. OUT is created or
    replaced only when it is complete.

    \b
      embag quantize items.npy items8.npy --bits 8

    \b
    IN, OUT    .npy or .safetensors
    """
    start = time.perf_counter()
    _ending.use_output("OUT", target, source)
    table = _options.load_table(source, tensor)
    with report_errors(source):
        if not isinstance(table, np.ndarray):
            raise ValueError(f"table must be of floats, got {table}")
    n_rows, dim = table.shape
    with (
        progress_bar(source, n_rows, table.nbytes) as show,
        report_errors(target),
        tables.new_quantized_table(
            target, table, bits, progress=lambda done, _: show(done, done)
        ) as small,
    ):
        error = small.error(table)  # before the file is put in place
    summary = {
        "out": target,
        "rows": n_rows,
        "dim": dim,
        "bits": bits,
        "bytes_in": table.nbytes,
        "bytes_out": small.nbytes,
        "largest_error": error.max_abs,
        "mean_error": error.mean_abs,
        "mean_cosine": error.cosine,
        "seconds": round(time.perf_counter() - start, 4),
    }
    if as_json:
        print(json.dumps(summary))
        return
    print(
        f"{n_rows:,} x {dim} of {table.dtype}, {format_bytes(table.nbytes)} -> {target}, "
        f"{bits} bits, {format_bytes(small.nbytes)}\n"
        f"entries are off by {error.max_abs:.3g} at most, {error.mean_abs:.3g} on average; "
        f"mean cosine of the rows {error.cosine:.6f}\n"
        f"{summary['seconds']:.2f} s"
    )
