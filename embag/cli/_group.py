"""The group of commands: imports a command when it is called, and sets the exit status."""

import contextlib
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence

import click

from embag import __version__
from embag.cli import _ending

_COMMANDS = {
    "pool": "Pool a column of ids into a column of vectors, file to file.",
    "embed": "Turn a column of texts into a column of vectors, file to file.",
    "quantize": "Quantize a table to 8, 4 or 2 bits an entry.",
    "convert": "Copy a table to another file, in an order that can be mapped.",
    "info": "Describe a file: a table, or ids.",
    "doctor": "Report how embag runs on this machine, and what to change.",
    "bench": "Measure embag on this machine.",
    "tune": "Choose how a table's rows are prefetched on this machine.",
    "demo": "Search Python's language reference with a real embedding model.",
}


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
        """Run a command; print one line if it fails."""
        try:
            result = super().invoke(ctx)
            _flush()
            return result
        except click.UsageError:
            raise
        except click.ClickException as error:
            message, status = f"error: {' '.join(error.message.split())}", 1
        except KeyboardInterrupt:
            message, status = "interrupted", 128 + signal.SIGINT
        except BrokenPipeError:
            # `| head` needs no message, unless OUT has been written.
            message, status = "error: stdout: Broken pipe" if _ending.output_note() else "", 1
            _drop_stdout()
        except OSError as error:
            message, status = f"error: {error.filename or 'stdout'}: {error.strerror}", 1
            _drop_stdout()
        if message:
            _print_error(f"embag {ctx.invoked_subcommand}: {message}{_ending.output_note()}")
        raise click.exceptions.Exit(status)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="embag", message="%(prog)s %(version)s")
def _embag() -> None:
    """Embedding bags for NumPy, on the CPU: rows of a table, gathered and pooled."""


def run(argv: Sequence[str] | None) -> int:
    """Run the command line and return the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Not every terminal's encoding has all characters that are printed, such as quotes.
        sys.stdout.reconfigure(errors="replace")
    _ending.forget_output()
    if argv is None:  # the command line of the process, not a call of `main`
        _ending.handle_signals()
    try:
        status = _embag.main(argv, prog_name="embag", standalone_mode=False)
    except click.UsageError as error:
        with contextlib.suppress(OSError):
            error.show()
        status = error.exit_code
    except OSError as error:  # from --help and --version
        _print_error(f"embag: error: stdout: {error.strerror}")
        _drop_stdout()
        status = 1
    if argv is None:
        _ending.ignore_signals()
    return status or 0


def _flush() -> None:
    """Flush stdout, so that errors of writing to it are raised now."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _drop_stdout() -> None:
    """Discard unwritten output: Python would try to write it again when it exits."""
    with (
        contextlib.suppress(OSError, ValueError, AttributeError),
        open(os.devnull, "wb") as nowhere,
    ):
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _print_error(line: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)
