"""``embag convert``: copy a table to another file, in an order that can be mapped.

Tested in tests/cli/.
"""

import contextlib
import json
import time
from collections.abc import Iterator

import click

from embag import tables
from embag._arguments import AnyArray
from embag.cli import _ending, _options
from embag.cli._errors import report_errors
from embag.cli._output import format_bytes, progress_bar


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@_options.tensor
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(source: str, target: str, tensor: str | None, as_json: bool) -> None:
    """Copy the table in IN to OUT, in C order and native byte order.

    `embag pool` and `embag.load_table` can map OUT, whatever the order of IN. The entries do
    not change. IN is read in blocks of rows and may be larger than memory. OUT is created or
    replaced only when it is complete.

    \b
      embag convert fortran.npy items.npy
      embag convert model.safetensors items.npy --tensor embedding.weight

    \b
    IN, OUT    .npy or .safetensors; tables may be quantized
    """
    start = time.perf_counter()
    _ending.use_output("OUT", target, source)
    _options.check_tensor(source, tensor)
    with contextlib.ExitStack() as files:
        with _options.report_table_errors(source):
            file, place = files.enter_context(tables.open_table(source, tensor))
        n_rows = place.shape[0]
        show = files.enter_context(progress_bar(source, n_rows, place.n_bytes))

        def read() -> Iterator[AnyArray]:
            with report_errors(source):
                yield from tables.read_rows(file, place)

        with (
            report_errors(target),
            tables.new_table(
                target, place.dtype, place.shape, place.packing, parts=place.parts
            ) as write,
        ):
            n_done = 0
            for rows in read():
                write(rows)
                n_done += len(rows)
                show(n_done, n_done)
    dim = place.packing.dim if place.packing else place.shape[1]
    kind = f"{place.packing.bits} bits" if place.packing else place.dtype.name
    seconds = round(time.perf_counter() - start, 4)
    if as_json:
        summary = {"out": target, "rows": n_rows, "dim": dim, "dtype": kind}
        print(json.dumps({**summary, "bytes": place.n_bytes, "seconds": seconds}))
        return
    print(
        f"{n_rows:,} x {dim} of {kind}, {format_bytes(place.n_bytes)} -> {target}\n{seconds:.2f} s"
    )
