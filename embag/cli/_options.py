"""Options that several commands share: names of columns and tensors, and the table.

Tested in tests/cli/.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Literal

import click

import embag
from embag.cli._errors import report_errors


def checked_name(ctx: click.Context, param: click.Parameter, given: Any) -> Any:
    """Return names of columns or tensors, after checking that they are valid text."""
    for name in given if isinstance(given, tuple) else (given or "",):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise click.BadParameter("is not valid text in this locale") from None
    return given


tensor = click.option(
    "--tensor",
    metavar="NAME",
    callback=checked_name,
    help="Name of the table in a .safetensors file of several tensors.",
)


def is_safetensors(path: str) -> bool:
    """Return whether the suffix is that of a file of named tensors."""
    return os.path.splitext(path.lower())[1] == ".safetensors"


def check_tensor(path: str, name: str | None) -> None:
    """Check that --tensor is given only for a .safetensors file."""
    if name is not None and not is_safetensors(path):
        raise click.UsageError(f"--tensor must be left out: {path} is not a .safetensors file")


@contextlib.contextmanager
def report_table_errors(path: str) -> Iterator[None]:
    """Report errors of reading a table; messages about `name` name the option --tensor."""
    with report_errors(path):
        try:
            yield
        except ValueError as error:
            raise ValueError(str(error).replace(": name must", ": --tensor must", 1)) from error


def load_table(path: str, name: str | None, memory: Literal["map", "copy"] = "map") -> Any:
    """Load the table of a file, or the one that --tensor names."""
    check_tensor(path, name)
    with report_table_errors(path):
        return embag.load_table(path, memory, name=name)
