"""``embag demo``: sentence search with a real model (_sentence_search.py).

Tested in tests/cli/.
"""

import click

from embag.cli import _sentence_search as demo


def _checked(ctx: click.Context, param: click.Parameter, query: str) -> str:
    if not query.strip():
        raise click.BadParameter("must not be empty")
    try:
        query.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("is not valid text in this locale") from None
    return query


@click.command(
    epilog=f"Needs the extra: {demo.INSTALL_COMMAND}. Takes some seconds and downloads nothing. "
    "The exit status is 1 if the vectors differ by more than rounding."
)
@click.argument("query", callback=_checked, default=demo.DEFAULT_QUERY)
@click.option(
    "--top",
    metavar="N",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Number of passages to print.",
)
def command(query: str, top: int) -> None:
    """Search the Python language reference, which is part of every Python.

    The token table is that of WordLlama, a static embedding model. Each passage is a bag of
    tokens, and its vector is the mean of their rows. The command checks the vectors against
    those of WordLlama, times both ways of pooling on the same tokens, and prints the passages
    nearest to QUERY. QUERY is quoted; the default is "how do I catch an exception".
    """
    try:
        demo.run(query, top)
    except demo.DemoError as error:
        raise click.ClickException(str(error)) from error
