"""Table files, and which of their pages are in memory."""

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

import embag
from embag._files.headers import Packing
from embag.tables import new_table

Array = np.ndarray[Any, Any]

DIM = 64
N_DIFFERENT = 1 << 16  # rows: the file repeats them
KINDS = {"float32": 256, "8 bits": 72}  # bytes of a row


def different_rows() -> Array:
    return np.random.default_rng(0).standard_normal((N_DIFFERENT, DIM), dtype=np.float32)


def rows_of(table: Any) -> Array:
    """Return the rows of a table as they are stored."""
    rows: Array = table.packed if isinstance(table, embag.QuantizedTable) else table
    return rows


def make(kind: str, path: Path, n_bytes: int) -> None:
    """Write a table, and remove it from the page cache."""
    rows: Array = different_rows()
    packing = None
    if kind != "float32":
        quantized = embag.quantize(rows)
        rows = quantized.packed
        packing = Packing(quantized.bits, quantized.dim, quantized.layout)
    n_rows = n_bytes // KINDS[kind]
    shape = n_rows, rows.shape[1]
    with new_table(str(path), rows.dtype, shape, packing, None) as write:
        for start in range(0, n_rows, N_DIFFERENT):
            write(rows[: n_rows - start])
    drop(path)


def drop(path: Path) -> None:
    """Remove a file's pages from the page cache. Nobody may have mapped it."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def share_in_memory(rows: Array, ids: Array) -> float:
    """Return the share of some mapped rows whose first page is in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    answer = ctypes.c_ubyte()
    n = 0
    sample = ids.reshape(-1)[:: max(1, ids.size // 2000)]
    for row in sample:
        address = rows.ctypes.data + int(row) * rows.strides[0]
        page = ctypes.c_void_p(address // mmap.PAGESIZE * mmap.PAGESIZE)
        assert libc.mincore(page, ctypes.c_size_t(1), ctypes.byref(answer)) == 0
        n += answer.value & 1
    return n / len(sample)


def facts(folder: Path) -> dict[str, Any]:
    """Return the file system of a folder, and how far its device reads ahead."""
    device = os.stat(folder).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    system = next((m[m.index("-") + 1] for m in mounts if m[2] == name), None)
    block = Path("/sys/dev/block", name).resolve()
    ahead = [f / "queue" / "read_ahead_kb" for f in (block, block.parent)]
    return {
        "kernel": os.uname().release,
        "file system": system,
        "read-ahead, KiB": next((int(f.read_text()) for f in ahead if f.exists()), None),
        "memory, bytes": mmap.PAGESIZE * os.sysconf("SC_PHYS_PAGES"),
    }
