"""`failing`: what a file may be the cause of becomes a failure of the command."""

import contextlib
from collections.abc import Iterator

import click

# Arrow's errors are of these kinds: ArrowInvalid a ValueError, ArrowKeyError a KeyError, ...
# NumPy says EOFError of an empty file.
_CAUSES = (
    *(OSError, ValueError, TypeError, LookupError, EOFError),
    *(NotImplementedError, MemoryError, ImportError),
)


@contextlib.contextmanager
def failing(what: str) -> Iterator[None]:
    """Turn an error into one line that begins with `what`: a file's name as a rule."""
    try:
        yield
    except _CAUSES as error:
        if isinstance(error, ModuleNotFoundError):
            raise  # cli/__init__.py tells which extra to install
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            reason = error.strerror
        elif isinstance(error, MemoryError):
            reason = f"not enough memory ({error})" if str(error) else "not enough memory"
        else:
            reason = str(error) or type(error).__name__
        if not reason.startswith(what):
            reason = f"{what}: {reason}"
        raise click.ClickException(reason) from error
