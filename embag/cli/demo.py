"""``embag demo``: the command of embag/demo.py.

Tested in tests/test_demo.py.
"""

import click

from embag import demo


def _checked(ctx: click.Context, param: click.Parameter, query: str) -> str:
    if not query.strip():
        raise click.BadParameter("must not be empty")
    try:
        query.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("is not valid text in this locale") from None
    return query


@click.command(
    epilog=f"Needs the extra: {demo.INSTALL_COMMAND}. Takes some seconds; nothing is downloaded "
    "when it runs. The exit status is 1 too if the vectors differ by more than rounding."
)
@click.argument("query", callback=_checked, default=demo.DEFAULT_QUERY)
@click.option(
    "--top",
    metavar="N",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="How many passages to print.",
)
def command(query: str, top: int) -> None:
    """Search the Python language reference, which every Python carries.

    The token table is that of WordLlama, a static embedding model: each passage is a bag of
    tokens, its vector the mean of their rows. The vectors are first checked against
    WordLlama's own, then both ways of pooling are timed on the same tokens, then the passages
    nearest to QUERY are printed. QUERY is in quotes, "how do I catch an exception" by default.
    """
    try:
        demo.run(query, top)
    except demo.DemoError as error:
        raise click.ClickException(str(error)) from error
