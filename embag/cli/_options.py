"""What the options of several commands share: names, and which tensor of a file is the table.

Tested in tests/test_cli_endings.py and tests/test_cli_tables.py.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Literal

import click

import embag
from embag.cli._failing import failing


def checked_name(ctx: click.Context, param: click.Parameter, given: Any) -> Any:
    """Return names, of columns or tensors, that are valid text."""
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
    help="The table's name in a .safetensors file of several tensors.",
)


def is_safetensors(path: str) -> bool:
    """Tell whether a file has tensors by name."""
    return os.path.splitext(path.lower())[1] == ".safetensors"


def check_tensor(path: str, name: str | None) -> None:
    """Check that --tensor is given only where it has a meaning."""
    if name is not None and not is_safetensors(path):
        raise click.UsageError(f"--tensor must be left out: {path} is not a .safetensors file")


@contextlib.contextmanager
def opening_table(path: str) -> Iterator[None]:
    """Turn an error into a failure; the argument `name` of load_table is --tensor here."""
    with failing(path):
        try:
            yield
        except ValueError as error:
            raise ValueError(str(error).replace(": name must", ": --tensor must", 1)) from error


def load_table(path: str, name: str | None, memory: Literal["map", "copy"] = "map") -> Any:
    """Load the table that --tensor names."""
    check_tensor(path, name)
    with opening_table(path):
        return embag.load_table(path, memory, name=name)
