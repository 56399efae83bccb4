"""`report_errors`: errors that a file may cause become one line on stderr."""

import contextlib
from collections.abc import Iterator

import click

# Arrow's errors are subclasses of these: ArrowInvalid of ValueError, ArrowKeyError of KeyError.
# NumPy raises EOFError for an empty file.
_CAUSES = (
    *(OSError, ValueError, TypeError, LookupError, EOFError),
    *(NotImplementedError, MemoryError, ImportError),
)


@contextlib.contextmanager
def report_errors(prefix: str) -> Iterator[None]:
    """Make errors in the block a failure of the command, with `prefix`, usually a file name."""
    try:
        yield
    except _CAUSES as error:
        if isinstance(error, ModuleNotFoundError):
            raise  # cli/__init__.py names the extra to install
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            reason = error.strerror
            path = str(error.filename)
            if path.startswith(prefix) and path != prefix:  # a file in the folder
                reason = f"{path}: {reason}"
        elif isinstance(error, MemoryError):
            reason = f"not enough memory ({error})" if str(error) else "not enough memory"
        else:
            reason = str(error) or type(error).__name__
        if not reason.startswith(prefix):
            reason = f"{prefix}: {reason}"
        raise click.ClickException(reason) from error
