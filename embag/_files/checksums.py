"""The checksum of a .safetensors file: the CRC-32 of its bytes, in its metadata.

`add` computes it when the file has been written, `verify` compares it. The eight digits of the
checksum itself count as zeros. Other libraries ignore the entry.

Tested in tests/tables/test_checksums.py.
"""

import os
import zlib
from typing import BinaryIO

KEY = "embag.crc32"
NONE = "00000000"  # the digits of a file that is being written
# The metadata come first in a header, and this entry first in the metadata.
_BEFORE = f'{{"__metadata__":{{"{KEY}":"'.encode()
_START = 8 + len(_BEFORE)  # of the digits
_BLOCK = 1 << 20


def add(file: BinaryIO) -> None:
    """Write the checksum of a file into its header, which has room for one."""
    file.flush()
    digits = f"{_compute(file):08x}"
    n_read, n_bytes = file.tell(), os.fstat(file.fileno()).st_size
    if n_read != n_bytes:
        raise OSError(f"file must be read back as it was written, got {n_read} of {n_bytes} bytes")
    file.seek(_START)
    file.write(digits.encode())


def verify(file: BinaryIO) -> None:
    """Raise ValueError if a file has other bytes than those that were written, or no checksum."""
    file.seek(8)
    head = file.read(len(_BEFORE) + len(NONE))
    if not head.startswith(_BEFORE):
        raise ValueError("file must have a checksum to be verified, got none: save it again")
    digits, found = head[len(_BEFORE) :].decode("ascii", "replace"), f"{_compute(file):08x}"
    if digits != found:
        raise ValueError(f"bytes must have the checksum {digits}, got {found}: the file is damaged")


def _compute(file: BinaryIO) -> int:
    file.seek(0)
    checksum = zlib.crc32(file.read(_START))
    file.seek(len(NONE), 1)
    checksum = zlib.crc32(NONE.encode(), checksum)
    while block := file.read(_BLOCK):
        checksum = zlib.crc32(block, checksum)
    return checksum
