"""`replacement`: write a new file, then replace the old one atomically.

Used by tables.py and by the command line. Tested in tests/tables/.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from embag._files.errors import add_path_to_errors
from embag._files.headers import check_regular

# Temporary files that exist now. A signal handler that ends the process deletes them.
unfinished: set[str] = set()


@contextlib.contextmanager
def replacement(path: str) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block ends without an error.

    The new file gets the mode of the old one. Until then only its owner can read it. Raises if
    `path` leads to something that is no regular file, such as /dev/null, which stays as it is.
    Errors name `path`, not the temporary file.
    """
    target = os.path.realpath(path)  # a link stays a link to the new file
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".embag-{os.urandom(8).hex()}.tmp")
    old = None
    with contextlib.suppress(FileNotFoundError):
        old = os.stat(target)
        check_regular(target)

    def create(name: str, flags: int) -> int:
        return os.open(name, flags, 0o666 if old is None else 0o600)

    try:
        unfinished.add(temporary)
        # Opened inside `try`: a KeyboardInterrupt may come as soon as the file exists.
        with add_path_to_errors(path):
            with open(temporary, "x+b", opener=create) as file:
                yield file
                file.flush()
                if old is not None and hasattr(os, "fchmod"):
                    _copy_mode(old, file.fileno())
                os.fsync(file.fileno())
            os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):  # it may not exist yet, or have been renamed
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename == temporary:
            raise OSError(error.errno, error.strerror, path) from error
        raise
    finally:
        unfinished.discard(temporary)
    if hasattr(os, "O_DIRECTORY"):
        # The file is in place. A system that cannot flush a folder writes it out later.
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _copy_mode(old: os.stat_result, descriptor: int) -> None:
    """Set the mode and the group of a file to those of the old one."""
    new = os.fstat(descriptor)
    mode = stat.S_IMODE(old.st_mode)
    if old.st_gid != new.st_gid:
        try:
            os.fchown(descriptor, -1, old.st_gid)
        except OSError:
            # The file keeps its own group, which gets the rights of others at most.
            mode = mode & ~0o070 | (mode & 0o007) << 3
    if mode != stat.S_IMODE(new.st_mode):
        os.fchmod(descriptor, mode)
