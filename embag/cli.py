"""The command line: ``python -m embag``.

A subcommand is a parser here and a function elsewhere. The exit status is 0 if the work
was done, 1 if it failed, 2 for a command line that cannot be understood.

Tested in tests/test_demo.py.
"""

import argparse
import io
import sys
from collections.abc import Sequence

from embag import __version__, demo

_DONE, _FAILED = 0, 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        0 for success, 1 for failure.

    Raises
    ------
    SystemExit
        With status 2 for a wrong command line, with 0 after ``--help``.
    """
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The text has typographic quotes, which not every terminal's encoding has.
        sys.stdout.reconfigure(errors="replace")
    try:
        demo.run(arguments.query, arguments.top)
    except demo.DemoError as error:
        print(f"embag demo: error: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("embag demo: interrupted", file=sys.stderr)
        return _FAILED
    return _DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m embag", description="Embedding bags for NumPy, on the CPU."
    )
    parser.add_argument("--version", action="version", version=f"embag {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    return parser


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "demo",
        help="search the Python language reference with a real embedding model",
        description=(
            "Search the Python language reference, which every Python carries, with the "
            "token table of WordLlama, a static embedding model: each passage is a bag of "
            "tokens, its vector the mean of their rows. The vectors are first checked "
            "against WordLlama's own, then both ways of pooling are timed on the same "
            "tokens, then the passages nearest to QUERY are printed."
        ),
        epilog=(
            f"Needs the extra: {demo.INSTALL_COMMAND}. Takes some seconds; nothing is "
            "downloaded when it runs. The exit status is 0 if all went well, 1 if the "
            "extra is missing or the vectors differ by more than rounding, 2 for a wrong "
            "command line."
        ),
    )
    parser.add_argument(
        "query",
        metavar="QUERY",
        nargs="?",
        type=_query,
        default=demo.DEFAULT_QUERY,
        help='what to look for, in quotes (default: "%(default)s")',
    )
    parser.add_argument(
        "--top",
        metavar="N",
        type=_positive,
        default=3,
        help="how many passages to print (default: %(default)s)",
    )


def _query(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("is not valid text in this locale") from None
    return text


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
