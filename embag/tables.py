"""`save_table` and `load_table`: tables in files, mapped in place or copied into memory.

    save_table    check the table, write a header and the rows to a new file, rename it
    load_table    read the header, then map the rows, or copy them into `aligned_empty`

`_files/headers.py` reads and checks headers. After a header was read, the rows are known to
lie in the file. If something truncates a mapped file later, the next lookup ends in a SIGBUS,
which no check can prevent. `save_table` never writes into an existing file.

Tested in tests/tables/test_saving_and_loading.py. docs/tables.md compares mapping and copying.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal

import numpy as np

from embag import _encodings
from embag._arguments import AnyArray, as_count, as_path, check_flags, check_table, describe
from embag._columns import vectors
from embag._encodings import DTYPES_RULE
from embag._files import checksums, other_formats
from embag._files.errors import add_path_to_errors
from embag._files.headers import (
    FORMATS,
    IS_LITTLE_ENDIAN,
    NO_PARTS,
    Format,
    Packing,
    Parts,
    Place,
    check_regular,
    read_tensors,
    swap_bytes,
)
from embag._files.replacement import replacement
from embag._kernels.dispatch import kernels
from embag._process import cgroups, threads
from embag._types import Table
from embag.memory import aligned_empty
from embag.quantized import QuantizedTable, quantize, row_bytes
from embag.remapped import RemappedTable

# Bytes of rows written at a time: the memory that a non-contiguous table takes.
_BLOCK = 8 << 20
# The least that a thread reads. Starting one takes 0.1 ms, 16 MiB from the page cache 2 ms.
_BYTES_PER_THREAD = 16 << 20
_HUGE_PAGE = 2 << 20


def save_table(
    path: str | os.PathLike[str],
    table: Table,
    *,
    bits: int | None = None,
    name: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Save a table to a file, atomically.

    Parameters
    ----------
    path : str or path-like
        The file. Its suffix selects the format: ``.npy`` or ``.safetensors``.
    table : ndarray, shape (n_rows, dim), QuantizedTable or RemappedTable
        The table: an array of any dtype that `embedding_bag` takes, in native byte order, with
        any strides. It is not copied as a whole, so it may be memory-mapped. A RemappedTable
        and a symmetric table need ``.safetensors``. A column of vectors or a frame is accepted,
        as in `embedding_bag`.
    bits : {8, 4, 2}, optional
        Quantize a table of floats to this number of bits, as `quantize` does, in chunks of rows.
        Neither the table nor the result has to fit in memory.
    name : str, optional
        The name of the tensor in a ``.safetensors`` file; "weight" by default, as in the state
        dict of ``torch.nn.EmbeddingBag``. ``.npy`` files have no names.
    progress : callable, optional
        With `bits`: called as ``progress(n_done, n_rows)`` after each chunk of rows.

    Raises
    ------
    TypeError
        If an argument has the wrong kind, or `table` has another dtype.
    ValueError
        If `path` has another suffix, `table` is not 2-D, `name` is invalid for the format, or
        the table cannot be quantized to `bits` (see `quantize`).
    OSError
        If the file cannot be written.

    Warns
    -----
    UserWarning
        If quantized rows take more bytes than rows of `table`.

    See Also
    --------
    load_table : Load or map the table.

    Notes
    -----
    The rows are written to a new file in the same folder, which is flushed to the disk. It then
    replaces the old file and takes over its permissions. Programs that have the old file open or
    mapped keep its contents. A call that fails, or a crash, leaves the old file unchanged.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import embag
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     embag.save_table(f"{folder}/table.npy", np.eye(3, dtype=np.float32))
    ...     np.load(f"{folder}/table.npy")
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.]], dtype=float32)

    From a file of floats to a file of 8-bit entries, in chunks of rows:

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     embag.save_table(f"{folder}/table.npy", np.eye(3, dtype=np.float32))
    ...     floats = embag.load_table(f"{folder}/table.npy")
    ...     embag.save_table(f"{folder}/small.npy", floats, bits=8)
    ...     embag.load_table(f"{folder}/small.npy")
    QuantizedTable(3 rows, dim=3, bits=8, 33 bytes)
    """
    target, _ = format_of(path)
    _check_name(name)
    rows, packing, parts = _as_rows(table)
    if bits is not None:
        if packing is not None or parts != NO_PARTS:
            raise ValueError(f"bits must be None for a quantized table, got {describe(bits)}")
        with new_quantized_table(target, rows, bits, name, progress):
            return
    if progress is not None:
        raise ValueError(f"progress must be None without bits, got {describe(progress)}")
    with new_table(target, rows.dtype, rows.shape, packing, name, parts) as write:
        for start, stop in _cut_rows(rows.shape, rows.itemsize):
            write(rows[start:stop])


def load_table(
    path: str | os.PathLike[str],
    memory: Literal["map", "copy"] = "map",
    *,
    name: str | None = None,
    num_threads: int | None = None,
    verify: bool = False,
) -> Table:
    """Load a table from a file: map it, or copy it into memory.

    Parameters
    ----------
    path : str or path-like
        The file. Its suffix selects the format: ``.npy`` or ``.safetensors``.
    memory : {"map", "copy"}, optional
        "map": the rows stay in the file and are read when lookups touch them. All processes
        that map a file share its pages, and a table may be larger than memory.
        "copy": the rows are read into memory from `aligned_empty`, where lookups are fastest.
        ``.npy`` files in Fortran order or in the other byte order can only be copied.
        ``.safetensors`` files are little-endian.
    name : str, optional
        The tensor in a ``.safetensors`` file. Required if the file has several.
    num_threads : int, optional
        The largest number of threads for a copy, instead of `get_num_threads`.
    verify : bool, optional
        If True, also read the whole file and compare its checksum, which `save_table` writes
        into ``.safetensors`` files. A copy then has the verified bytes, even if another program
        writes to the file meanwhile.

    Returns
    -------
    ndarray, shape (n_rows, dim), QuantizedTable or RemappedTable
        The saved table. A mapped one is read-only. It stays valid as long as an array refers to
        it, even if the file is deleted or replaced. The `index_map` and the scales of a table are
        always copied.

    Raises
    ------
    TypeError
        If an argument has the wrong kind.
    ValueError
        If the file is not a complete table of one of the two formats: truncated, malformed, of
        another dtype or rank. For an .npz archive, a GGUF file and word vectors, the message says
        how to convert them. If `memory` is "map" and the file can only be copied. If an option
        is unknown. With `verify`, if the file is damaged or has no checksum.
    ImportError
        If the table is of bfloat16 or 8-bit floats and ml_dtypes is not installed.
    OSError
        If the file cannot be read, such as FileNotFoundError.
    MemoryError
        If there is not enough memory for a copy.

    See Also
    --------
    save_table : Save a table to a file.

    Notes
    -----
    Do not write to a mapped file in place. Lookups see changed entries, and the system ends a
    process (SIGBUS) that touches a truncated part. To replace a file, rename another one, as
    `save_table` does.

    Python objects are never unpickled. To use a mapped table in other processes, pass them the
    path; pickling the array copies it.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import embag
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/table.safetensors"
    ...     embag.save_table(path, np.eye(3, dtype=np.float32))
    ...     table = embag.load_table(path)
    >>> embag.embedding_bag([0, 2, 2], table, [0], mode="sum")
    array([[1., 0., 2.]], dtype=float32)
    >>> table.flags.writeable
    False
    """
    check_memory(memory)
    if num_threads is not None:
        num_threads = as_count(num_threads, "num_threads")
    check_flags(verify=verify)
    with open_table(path, name) as (file, place):
        if verify and not _has_checksum(path):
            raise ValueError(
                "verify must be False for a .npy file, which has no checksum, got True"
            )
        rows = _map(file, place) if memory == "map" else _copy(file, place, num_threads)
        if verify:  # after the copy, which has the bytes that are verified
            checksums.verify(file)
        return _as_table(rows, place)


def check_memory(memory: Any) -> None:
    """Raise unless this is an option of `load_table`."""
    if type(memory) is not str or memory not in ("map", "copy"):
        raise ValueError(f"memory must be 'map' or 'copy', got {describe(memory)}")


def _as_table(rows: AnyArray, place: Place) -> Table:
    """Return the table of some rows of a file."""
    first_id, arrays = place.parts
    table: Any = rows
    if place.packing is not None:
        if "row_scales" in arrays:
            raise ValueError("row_scales must be left out where rows have scales, got an array")
        table = QuantizedTable.from_packed(rows, *place.packing)
    elif "row_scales" in arrays:
        is_int8 = rows.dtype == np.int8
        make = QuantizedTable.from_int8 if is_int8 else QuantizedTable.from_float8
        table = make(rows, arrays["row_scales"])
    if first_id is None:
        result: Table = table
        return result
    return RemappedTable(table, arrays.get("index_map"), arrays.get("scales"), first_id)


@contextlib.contextmanager
def open_table(path: Any, name: str | None = None) -> Iterator[tuple[BinaryIO, Place]]:
    """Open the file of a table and find the table in it; ValueError if the file is invalid."""
    _check_name(name)
    with open_file(path) as (file, n_bytes, file_format):
        place = file_format.read(file, n_bytes, name)
        # Raises for invalid options and parts. The rows are not read.
        if place.packing is not None or place.parts != NO_PARTS:
            n_rows, n_columns = place.shape
            row = np.zeros(n_columns if n_rows else 0, place.dtype)
            rows = np.broadcast_to(row, place.shape) if n_rows else np.empty(place.shape, row.dtype)
            _as_table(rows, place)
        yield file, place


def list_tensors(path: str) -> dict[str, tuple[str, list[int]]]:
    """Return the dtype and the shape of each tensor in a .safetensors file."""
    with open_file(path) as (file, n_bytes, _):
        tensors = read_tensors(file, n_bytes)[1]
    return {name: (tensor["dtype"], tensor["shape"]) for name, tensor in tensors.items()}


@contextlib.contextmanager
def open_file(path: Any) -> Iterator[tuple[BinaryIO, int, Format]]:
    """Open a file and return it, its bytes and its format; errors in the block name the file."""
    source, file_format = format_of(path, reads=True)
    check_regular(source)
    with add_path_to_errors(source), open(source, "rb") as file:
        try:
            yield file, os.fstat(file.fileno()).st_size, file_format
        except OSError:  # io.UnsupportedOperation is a ValueError, too
            raise
        except (ValueError, TypeError) as error:  # TypeError: an option that is not an integer
            # The message is cut, since it may quote the file at any length.
            raise ValueError(f"{source}: {error!s:.300}") from error


def format_of(path: Any, reads: bool = False) -> tuple[str, Format]:
    """Return the path as a str, and its format.

    With `reads`, the error about a file of another format says how to convert it.
    """
    target = as_path(path, "path")
    file_format = FORMATS.get(os.path.splitext(target)[1].lower())
    if file_format is None:
        remedy = other_formats.explain(target) if reads else ""
        raise ValueError(f"path must end in {' or '.join(FORMATS)}, got {target!r}{remedy}")
    return target, file_format


def _check_name(name: Any) -> None:
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a str, got {describe(name)}")


# --- Saving -------------------------------------------------------------------


def _as_rows(table: Any) -> tuple[AnyArray, Packing | None, Parts]:
    if issubclass(type(table), RemappedTable):  # isinstance would believe `__class__`
        rows, packing, parts = _as_rows(table.table)
        mapping: Any = table._encoded.mapping
        mapping.check(len(rows))  # it may have changed since it was made
        given = {"index_map": table.index_map, "scales": table.scales}
        arrays = {part: array for part, array in given.items() if array is not None}
        return rows, packing, Parts(table.first_id, {**parts.arrays, **arrays})
    if issubclass(type(table), QuantizedTable) and table.scales is not None:
        return table.packed, None, Parts(None, {"row_scales": table.scales})
    if issubclass(type(table), QuantizedTable):
        return table.packed, Packing(table.bits, table.dim, table.layout), NO_PARTS
    table = vectors.as_array(table, "table", kept=True)
    check_table(
        table,
        "table",
        kinds="a numpy.ndarray, a QuantizedTable or a RemappedTable",
        dtypes=DTYPES_RULE,
        is_known=_encodings.is_known,
    )
    return np.ndarray.view(table, np.ndarray), None, NO_PARTS


def _cut_rows(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    """Yield runs of rows (start, stop) of about _BLOCK bytes; none for a table without entries."""
    n_rows, n_columns = shape
    step = max(1, _BLOCK // max(1, itemsize * n_columns))
    for start in range(0, n_rows if n_columns else 0, step):
        yield start, min(start + step, n_rows)


def _as_bytes(rows: AnyArray) -> memoryview:
    return rows.reshape(-1).view(np.uint8).data


@contextlib.contextmanager
def new_table(
    path: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    packing: Packing | None,
    name: str | None = None,
    parts: Parts = NO_PARTS,
) -> Iterator[Callable[[AnyArray], None]]:
    """Yield a function that writes the next rows of a new file.

    The file is in place at the end of the block.
    """
    target, file_format = format_of(path)
    rows = np.broadcast_to(np.zeros((), dtype), shape)
    header = file_format.header(rows, packing, name, parts)
    with replacement(target) as file:
        file.write(header)

        def write(rows: AnyArray) -> None:
            file.write(_as_bytes(_encode(rows, file_format.is_native, packing)))

        yield write
        for array in parts.arrays.values():
            file.write(_as_bytes(_encode(array, file_format.is_native)))
        _add_checksum(file, target)


@contextlib.contextmanager
def new_quantized_table(
    path: str,
    rows: AnyArray,
    bits: int,
    name: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[QuantizedTable]:
    """Yield a table that is quantized into a new file.

    The file is in place at the end of the block.
    """
    target, file_format = format_of(path)
    n_rows, dim = rows.shape
    shape = n_rows, row_bytes(bits, dim)
    packing = Packing(int(bits), dim, "fused")
    header = file_format.header(np.broadcast_to(np.uint8(0), shape), packing, name, NO_PARTS)
    with replacement(target) as file:
        file.write(header)
        file.flush()
        packed: AnyArray = np.empty(shape, np.uint8)
        if n_rows > 0:
            # Allocated first: a full disk is an error here, but a SIGBUS in a write to the map.
            n_bytes = len(header) + n_rows * shape[1]
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            mapped = packed = np.memmap(file, np.uint8, "r+", len(header), shape)
            quantize(rows, bits, out=mapped, progress=progress)
        yield QuantizedTable.from_packed(packed, *packing)
        if not file_format.is_native:
            swap_bytes(packed, packing)
        if n_rows > 0:
            mapped.flush()
        _add_checksum(file, target)


def _add_checksum(file: BinaryIO, path: str) -> None:
    if _has_checksum(path):
        checksums.add(file)


def _has_checksum(path: Any) -> bool:
    """Return whether files of the format of a path have checksums."""
    return format_of(path)[1] is FORMATS[".safetensors"]


def _encode(rows: AnyArray, is_native: bool, packing: Packing | None = None) -> AnyArray:
    """Return contiguous rows in the byte order of a file."""
    rows = np.ascontiguousarray(rows)
    if not is_native:
        rows = rows.copy()
        swap_bytes(rows, packing)
    return rows


def write_tensor(file: BinaryIO, array: AnyArray) -> None:
    """Write the data of an array to a .safetensors file, in blocks."""
    array = np.atleast_1d(array)
    for start, stop in _cut_rows((len(array), math.prod(array.shape[1:])), array.itemsize):
        file.write(_as_bytes(_encode(array[start:stop], IS_LITTLE_ENDIAN)))


# --- Loading ------------------------------------------------------------------


def _map(file: BinaryIO, place: Place) -> AnyArray:
    remedy = "load it with memory='copy', or convert the file by `embag convert IN OUT`"
    if place.in_fortran_order:
        raise ValueError(f"table must be in C order, got Fortran order: {remedy}")
    if not place.is_native:
        dtype = place.packing.encoding.factor_dtype if place.packing else place.dtype
        raise ValueError(
            "dtype must be in native byte order to be mapped, "
            f"got {dtype.newbyteorder('S').str}: {remedy}"
        )
    if place.start % place.dtype.alignment:
        raise ValueError(
            f"rows must start at a multiple of {place.dtype.alignment} bytes to be mapped, "
            f"got {place.start}: {remedy}"
        )
    pages = mmap.mmap(file.fileno(), place.start + place.n_bytes, access=mmap.ACCESS_READ)
    # If a table fits memory, reading ahead by 2 MiB soon has all of it in memory, in large
    # pages where the file system has them. If it does not, reading ahead would evict pages
    # that lookups need, and the kernels prefetch single pages. Figures: docs/tables.md.
    limit = _memory_limit() // 2
    kernels.prefetch_pages_above(limit)
    advice = "MADV_RANDOM" if place.n_bytes > limit else "MADV_HUGEPAGE"
    if hasattr(mmap, advice):
        with contextlib.suppress(OSError):  # only advice, which a system may not support
            pages.madvise(getattr(mmap, advice))
    rows = np.frombuffer(pages, np.uint8)[place.start : place.start + place.n_bytes]
    return rows.view(place.dtype).reshape(place.shape)


def _memory_limit() -> float:
    """Return the bytes of memory of the machine or the container."""
    limits = [float("inf")]
    with contextlib.suppress(AttributeError, OSError, ValueError):  # no sysconf, or no such name
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = cgroups.memory_limit()
    return min(limits) if limit is None else min(*limits, limit)


def _copy(file: BinaryIO, place: Place, num_threads: int | None) -> AnyArray:
    rows = aligned_empty(place.shape, place.dtype)
    if place.in_fortran_order:
        start = 0
        for block in read_rows(file, place):
            rows[start : start + len(block)] = block
            start += len(block)
        return rows
    _read_into(rows, file, place.start, num_threads)
    if not place.is_native:
        swap_bytes(rows, place.packing)
    return rows


def read_tensor(array: AnyArray, file: BinaryIO, start: int) -> None:
    """Fill a contiguous array with the data of a .safetensors file from `start` on."""
    _read_into(array, file, start)
    if not IS_LITTLE_ENDIAN:
        swap_bytes(array)


def _read_into(array: AnyArray, file: BinaryIO, start: int, num_threads: int | None = None) -> None:
    """Fill a contiguous array with the bytes of a file from `start` on."""
    memory = _as_bytes(array)
    n_bytes = len(memory)
    n_threads = 1
    if n_bytes >= 2 * _BYTES_PER_THREAD and hasattr(os, "preadv"):
        limit = threads.threads_for(n_bytes, num_threads)
        n_threads = min(limit, n_bytes // _BYTES_PER_THREAD)
    # Each thread reads one part, a multiple of the huge page.
    n_part = -(-n_bytes // (n_threads * _HUGE_PAGE)) * _HUGE_PAGE

    def read_part(first: int) -> int:
        at, stop = first, min(first + n_part, n_bytes)
        while at < stop:
            n = os.preadv(file.fileno(), [memory[at:stop]], start + at)
            if n == 0:
                break
            at += n
        return at - first

    if n_threads == 1:
        _read(file, start, memory)
        return
    starts = range(0, n_bytes, n_part)
    try:
        # Imported here: it takes 4 ms, a fifth of the budget for importing embag.
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

        with ThreadPoolExecutor(n_threads) as pool:
            n_read = sum(pool.map(read_part, starts))
    except RuntimeError:  # no thread can start, or the interpreter is shutting down
        n_read = sum(map(read_part, starts))
    _check_read(n_read, n_bytes)


def read_rows(file: BinaryIO, place: Place) -> Iterator[AnyArray]:
    """Yield the rows of a table in blocks of about _BLOCK bytes, in native byte order."""
    n_rows, n_columns = place.shape
    itemsize = place.dtype.itemsize
    for start, stop in _cut_rows(place.shape, itemsize):
        if not place.in_fortran_order:
            rows = np.empty((stop - start, n_columns), place.dtype)
            _read(file, place.start + start * n_columns * itemsize, _as_bytes(rows))
            if not place.is_native:
                swap_bytes(rows, place.packing)
            yield rows
            continue
        columns = np.empty((n_columns, stop - start), place.dtype)
        for number, column in enumerate(columns):
            _read(file, place.start + (number * n_rows + start) * itemsize, _as_bytes(column))
        if not place.is_native:
            swap_bytes(columns)
        yield columns.T


def _read(file: BinaryIO, start: int, memory: memoryview) -> None:
    file.seek(start)
    _check_read(file.readinto(memory), len(memory))  # type: ignore[attr-defined]


def _check_read(n: int, n_bytes: int) -> None:
    if n != n_bytes:
        raise ValueError(f"file must not shrink while it is read, got {n} of {n_bytes} bytes")
