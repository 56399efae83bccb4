"""`replacement`: a new file that takes the place of another when it is whole.

Used by tables.py and by the command line. Tested in tests/test_table_files.py.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

# The temporary files that are there, for a process that ends without unwinding.
unfinished: set[str] = set()


@contextlib.contextmanager
def replacement(path: str) -> Iterator[BinaryIO]:
    """Give a new file that takes the place of `path` if the block ends well.

    It then has the mode of the file that it replaces; until then only its owner can read it.
    """
    target = os.path.realpath(path)  # of a link, what it leads to
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".embag-{os.urandom(8).hex()}.tmp")
    old = None
    with contextlib.suppress(FileNotFoundError):
        old = os.stat(target)

    def create(name: str, flags: int) -> int:
        return os.open(name, flags, 0o666 if old is None else 0o600)

    try:
        unfinished.add(temporary)
        # Opened in here: a KeyboardInterrupt may come as soon as the file is there.
        with open(temporary, "x+b", opener=create) as file:
            yield file
            file.flush()
            if old is not None and hasattr(os, "fchmod"):
                _copy_mode(old, file.fileno())
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):  # it may not be there yet, or have been renamed
            os.unlink(temporary)
        raise
    finally:
        unfinished.discard(temporary)
    if hasattr(os, "O_DIRECTORY"):
        # The new file is there. A system that cannot flush a folder now does so later.
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _copy_mode(old: os.stat_result, descriptor: int) -> None:
    """Give a file the mode and the group of another."""
    new = os.fstat(descriptor)
    mode = stat.S_IMODE(old.st_mode)
    if old.st_gid != new.st_gid:
        try:
            os.fchown(descriptor, -1, old.st_gid)
        except OSError:
            # The new file's group must not read what it could not read before.
            mode = mode & ~0o070 | (mode & 0o007) << 3
    if mode != stat.S_IMODE(new.st_mode):
        os.fchmod(descriptor, mode)
