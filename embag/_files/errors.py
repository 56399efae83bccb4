"""`add_path_to_errors`: errors of reading and writing name the file.

Tested in tests/tables/ and tests/process/test_failing_system_calls.py.
"""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def add_path_to_errors(path: str) -> Iterator[None]:
    """Add the path to an OSError without one, as maps and reads raise."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # such as io.UnsupportedOperation, which has only a message
            raise OSError(f"{path}: {error}") from error
        if error.filename is None:
            error.filename = path
        raise
