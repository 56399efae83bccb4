"""`replacement`: a new file that takes the place of another when it is whole.

Used by tables.py and by the command line. Tested in tests/test_table_files.py.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def replacement(path: str) -> Iterator[BinaryIO]:
    """Give a new file that takes the place of `path` if the block ends well."""
    target = os.path.realpath(path)  # of a link, what it leads to
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".embag-{os.urandom(8).hex()}.tmp")
    try:
        # Opened in here: a KeyboardInterrupt may come as soon as the file is there.
        with open(temporary, "x+b") as file:
            if hasattr(os, "fchmod"):
                with contextlib.suppress(FileNotFoundError):
                    os.fchmod(file.fileno(), stat.S_IMODE(os.stat(target).st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):  # it may not be there yet, or have been renamed
            os.unlink(temporary)
        raise
    if hasattr(os, "O_DIRECTORY"):
        # The new file is there. A system that cannot flush a folder now does so later.
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
