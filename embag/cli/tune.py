"""``embag tune``: choose how a table's rows are prefetched, and print what each strategy takes.

Tested in tests/cli/.
"""

import json

import click

from embag import tuning
from embag._kernels import strategies
from embag.cli import _options


@click.command()
@click.argument("path", metavar="FILE")
@_options.tensor
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(1),
    help="Tune for calls with N threads besides those with one; by default, as many as embag uses.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def command(path: str, tensor: str | None, threads: int | None, as_json: bool) -> None:
    """Choose how rows of the table in FILE are prefetched.

    Prints, for each mode and number of threads, the strategy that was chosen and the
    nanoseconds per row that each one took. The choice holds for this process: a service calls
    embag.tune when it starts, or sets EMBAG_PREFETCH to a strategy that is printed here.
    """
    if strategies.pinned() is not None:
        raise click.ClickException(
            f"EMBAG_PREFETCH={strategies.pinned()} leaves nothing to choose; unset it"
        )
    found = tuning.tune(_options.load_table(path, tensor), threads)
    if as_json:
        print(json.dumps([tuned._asdict() for tuned in found]))
        return
    for mode, n_threads, strategy, settled, ns_per_row in found:
        state = "" if settled else ", not settled in the time given"
        print(f"{mode}, {n_threads} thread{'s' * (n_threads > 1)}: {strategy}{state}")
        for name, ns in sorted(ns_per_row.items(), key=lambda item: item[1]):
            print(f"    {name:10} {ns:8.1f} ns per row")
    if not found:
        print("the table has no entries")
