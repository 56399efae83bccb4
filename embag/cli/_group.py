"""The group of the commands: imports one when it is called, and makes its end a status."""

import contextlib
import importlib
import io
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

import click

from embag import __version__

_COMMANDS = {
    "pool": "Pool a column of ids into a column of vectors, file to file.",
    "quantize": "Quantize a table to 8, 4 or 2 bits an entry.",
    "info": "Tell what is in a file: a table, or ids.",
    "doctor": "Tell how embag runs here, and what to change.",
    "bench": "Measure embag on this machine.",
    "demo": "Search Python's language reference with a real embedding model.",
}


class Ended(BaseException):
    """A signal asks the process to end. No Exception: nothing is to go on after it."""


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"embag.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; one line says why it failed."""
        try:
            return super().invoke(ctx)
        except click.UsageError:
            raise
        except click.ClickException as error:
            message, status = f"error: {' '.join(error.message.split())}", 1
        except KeyboardInterrupt:
            message, status = "interrupted", 128 + signal.SIGINT
        except Ended as error:
            message, status = "ended by SIGTERM", 128 + error.args[0]
        print(f"embag {ctx.invoked_subcommand}: {message}", file=sys.stderr)
        raise click.exceptions.Exit(status)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="embag", message="%(prog)s %(version)s")
def _embag() -> None:
    """Embedding bags for NumPy, on the CPU: rows of a table, gathered and pooled."""


def run(argv: Sequence[str] | None) -> int:
    """Run the command line and return the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What is printed has typographic quotes, which not every terminal's encoding has.
        sys.stdout.reconfigure(errors="replace")
    try:
        with _sigterm_raises():
            status = _embag.main(argv, prog_name="embag", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return error.exit_code
    return status or 0


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise, as Ctrl-C does, so that temporary files are removed."""

    def end(number: int, _: FrameType | None) -> None:
        raise Ended(number)

    if threading.current_thread() is not threading.main_thread():  # no place for handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
