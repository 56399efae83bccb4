"""`save_table` and `load_table`: tables in files, mapped in place or copied into memory.

    save_table    check the table, write a header and the rows to a new file, rename it
    load_table    read the header, then map the rows, or copy them into `aligned_empty`

What a header says, and everything that may be wrong with it, is in _table_files.py: after
it has been read the rows are known to lie in the file. A mapped file that somebody
shortens later is a SIGBUS at the next lookup, against which no check helps; `save_table`
never writes into a file that is there.

Tested in tests/test_table_files.py; which to choose, with figures: docs/tables.md.
"""

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from embag import _cgroups, _encodings, _threads
from embag._arguments import AnyArray, as_count, check_table, describe
from embag._replacing import replacement
from embag._table_files import (
    FLOATS,
    FORMATS,
    Format,
    Packing,
    Place,
    check_regular,
    read_tensors,
)
from embag.memory import aligned_empty
from embag.quantized import QuantizedTable, quantize, row_bytes

# Rows are written so many bytes at a time: what a table that is not contiguous takes.
_BLOCK = 8 << 20
# What a thread reads at least: starting one takes 0.1 ms, 16 MiB from the page cache 2 ms.
_BYTES_PER_THREAD = 16 << 20
_HUGE_PAGE = 2 << 20


def save_table(
    path: str | os.PathLike[str],
    table: NDArray[Any] | QuantizedTable,
    *,
    bits: int | None = None,
    name: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Write a table to a file, all of it or nothing.

    Parameters
    ----------
    path : str or path-like
        The file. Its suffix is the format: ``.npy`` or ``.safetensors``.
    table : ndarray, shape (n_rows, dim), or QuantizedTable
        float16, bfloat16 (of ml_dtypes), float32 or float64 in native byte order. Of any
        strides, and perhaps memory-mapped: it is not copied as a whole.
    bits : {8, 4, 2}, optional
        Quantize a table of floats on the way to the file, as `quantize` does, in chunks of
        rows: neither the table nor the result need fit in memory.
    name : str, optional
        The tensor's name in a ``.safetensors`` file; "weight" by default, as in the state
        dict of ``torch.nn.EmbeddingBag``. A ``.npy`` file has no names.
    progress : callable, optional
        With `bits`, called after each chunk with the numbers of rows done and of all rows.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind, or `table` of another dtype.
    ValueError
        If `path` has another suffix, `table` is not 2-D, `name` is none for the format,
        or `bits` does not go with the table (see `quantize`).
    OSError
        If the file cannot be written.

    See Also
    --------
    load_table : read it, or map it.

    Notes
    -----
    The rows go to a new file in the same folder, which is flushed to the disk and then
    takes the old file's place and permissions. Whoever has the old file open or mapped
    keeps it as it was; a call that fails, or a crash, leaves it whole.

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

    From floats in one file to 8 bits in another, a chunk of rows at a time:

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     embag.save_table(f"{folder}/table.npy", np.eye(3, dtype=np.float32))
    ...     floats = embag.load_table(f"{folder}/table.npy")
    ...     embag.save_table(f"{folder}/small.npy", floats, bits=8)
    ...     embag.load_table(f"{folder}/small.npy")
    QuantizedTable(3 rows, dim=3, bits=8, 33 bytes)
    """
    target, _ = _format_of(path)
    _check_name(name)
    rows, packing = _rows_of(table)
    if bits is not None:
        if packing is not None:
            raise ValueError(
                f"bits must be None for a table that is quantized, got {describe(bits)}"
            )
        with new_quantized_table(target, rows, bits, name, progress):
            return
    if progress is not None:
        raise ValueError(f"progress must be None without bits, got {describe(progress)}")
    with new_table(target, rows.dtype, rows.shape, packing, name) as write:
        for start, stop in _blocks(rows.shape, rows.itemsize):
            write(rows[start:stop])


def load_table(
    path: str | os.PathLike[str],
    memory: Literal["map", "copy"] = "map",
    *,
    name: str | None = None,
    num_threads: int | None = None,
) -> NDArray[Any] | QuantizedTable:
    """Take a table from a file: in place, or into memory.

    Parameters
    ----------
    path : str or path-like
        The file. Its suffix is the format: ``.npy`` or ``.safetensors``.
    memory : {"map", "copy"}, optional
        "map": the rows stay in the file and are read as lookups touch them. All
        processes that map a file share its pages; a table may be larger than memory.
        "copy": the rows are read into memory from `aligned_empty`, where lookups are
        fastest. A ``.npy`` file in Fortran order, or of the other byte order, can be copied
        only.
    name : str, optional
        The tensor in a ``.safetensors`` file. Needed where there are several.
    num_threads : int, optional
        The most threads for a copy, in the place of `get_num_threads`.

    Returns
    -------
    ndarray, shape (n_rows, dim), or QuantizedTable
        What was saved. A map is read-only, and lasts as long as an array that refers to
        it, even if the file is deleted or replaced.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If the file is not a whole table of one of the two formats: truncated, malformed,
        of another dtype or rank. If it can be copied only, and is to be mapped. Or if an
        option is unknown.
    ImportError
        If the table is of bfloat16 and ml_dtypes is not installed.
    OSError
        If the file cannot be read, such as FileNotFoundError.
    MemoryError
        If there is no memory for a copy.

    See Also
    --------
    save_table : write such a file.

    Notes
    -----
    A file that is mapped must not be written to in place. Changes are seen by lookups,
    and the system ends a process (SIGBUS) that touches what was cut off. Replace a file
    by renaming another, as `save_table` does.

    Python objects are never unpickled. Pass the path to other processes, not the array:
    pickling copies it.

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
    if type(memory) is not str or memory not in ("map", "copy"):
        raise ValueError(f"memory must be 'map' or 'copy', got {describe(memory)}")
    if num_threads is not None:
        num_threads = as_count(num_threads, "num_threads")
    with open_table(path, name) as (file, place):
        rows = _map(file, place) if memory == "map" else _copy(file, place, num_threads)
        if place.packing is None:
            return rows
        return QuantizedTable.from_packed(rows, *place.packing)


@contextlib.contextmanager
def open_table(path: Any, name: str | None = None) -> Iterator[tuple[BinaryIO, Place]]:
    """Open a table's file, and find the table; a file that is wrong is a ValueError."""
    _check_name(name)
    with _open(path) as (file, n_bytes, file_format):
        place = file_format.read(file, n_bytes, name)
        if place.packing:
            no_rows = np.empty((0, place.shape[1]), np.uint8)
            QuantizedTable.from_packed(no_rows, *place.packing)  # checks the options
        yield file, place


def list_tensors(path: str) -> dict[str, tuple[str, list[int]]]:
    """Return the dtype and the shape of each tensor in a .safetensors file."""
    with _open(path) as (file, n_bytes, _):
        tensors = read_tensors(file, n_bytes)[1]
    return {name: (tensor["dtype"], tensor["shape"]) for name, tensor in tensors.items()}


@contextlib.contextmanager
def _open(path: Any) -> Iterator[tuple[BinaryIO, int, Format]]:
    source, file_format = _format_of(path)
    check_regular(source)
    with _path_in_errors(source), open(source, "rb") as file:
        try:
            yield file, os.fstat(file.fileno()).st_size, file_format
        except (ValueError, TypeError) as error:  # TypeError: options that are no integers
            # Cut: a message may quote the file, at any length.
            raise ValueError(f"{source}: {error!s:.300}") from error


@contextlib.contextmanager
def _path_in_errors(path: str) -> Iterator[None]:
    """Add the path to errors of the system that lack it, as those of maps and reads do."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def _format_of(path: Any) -> tuple[str, Format]:
    target = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(target, str):
        raise TypeError(f"path must be a str or an os.PathLike of one, got {describe(path)}")
    file_format = FORMATS.get(os.path.splitext(target)[1].lower())
    if file_format is None:
        raise ValueError(f"path must end in {' or '.join(FORMATS)}, got {target!r}")
    return target, file_format


def _check_name(name: Any) -> None:
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a str, got {describe(name)}")


# --- Saving -------------------------------------------------------------------


def _rows_of(table: Any) -> tuple[AnyArray, Packing | None]:
    if issubclass(type(table), QuantizedTable):  # and not what says that it is one
        return table.packed, Packing(table.bits, table.dim, table.layout)
    check_table(
        table,
        "table",
        kinds="a numpy.ndarray or QuantizedTable",
        dtypes=f"{', '.join(FLOATS)} in native byte order",
        is_known=_encodings.is_known,
    )
    return np.ndarray.view(table, np.ndarray), None


def _blocks(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    """Cut a table into runs of rows of about _BLOCK bytes; none without entries."""
    n_rows, n_columns = shape
    step = max(1, _BLOCK // max(1, itemsize * n_columns))
    for start in range(0, n_rows if n_columns else 0, step):
        yield start, min(start + step, n_rows)


def _bytes(rows: AnyArray) -> memoryview:
    return rows.reshape(-1).view(np.uint8).data


@contextlib.contextmanager
def new_table(
    path: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    packing: Packing | None,
    name: str | None = None,
) -> Iterator[Callable[[AnyArray], None]]:
    """Give what writes the next rows of a new file, which is in place when the block has ended."""
    target, file_format = _format_of(path)
    dtype = dtype.newbyteorder("=")
    header = file_format.header(np.broadcast_to(np.zeros((), dtype), shape), packing, name)
    with _path_in_errors(target), replacement(target) as file:
        file.write(header)

        def write(rows: AnyArray) -> None:
            file.write(_bytes(np.ascontiguousarray(rows, dtype)))

        yield write


@contextlib.contextmanager
def new_quantized_table(
    path: str,
    rows: AnyArray,
    bits: int,
    name: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[QuantizedTable]:
    """Give a table, quantized into a new file that is in place when the block has ended."""
    target, file_format = _format_of(path)
    n_rows, dim = rows.shape
    shape = n_rows, row_bytes(bits, dim)
    packing = Packing(int(bits), dim, "fused")
    header = file_format.header(np.broadcast_to(np.uint8(0), shape), packing, name)
    with _path_in_errors(target), replacement(target) as file:
        file.write(header)
        file.flush()
        if n_rows == 0:
            yield QuantizedTable.from_packed(np.empty(shape, np.uint8), *packing)
            return
        # Room first: on a full disk this is an error, and a write to the map a SIGBUS.
        n_bytes = len(header) + n_rows * shape[1]
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        packed = np.memmap(file, np.uint8, "r+", len(header), shape)
        quantize(rows, bits, out=packed, progress=progress)
        packed.flush()
        yield QuantizedTable.from_packed(packed, *packing)


# --- Loading ------------------------------------------------------------------


def _map(file: BinaryIO, place: Place) -> AnyArray:
    remedy = "load it with memory='copy', or convert the file by `embag convert IN OUT`"
    if place.in_fortran_order:
        raise ValueError(f"table must be in C order, got Fortran order: {remedy}")
    if not place.dtype.isnative:
        raise ValueError(
            f"dtype must be in native byte order to be mapped, got {place.dtype.str}: {remedy}"
        )
    if place.start % place.dtype.alignment:
        raise ValueError(
            f"rows must start at a multiple of {place.dtype.alignment} bytes to be mapped, "
            f"got {place.start}: {remedy}"
        )
    pages = mmap.mmap(file.fileno(), place.start + place.n_bytes, access=mmap.ACCESS_READ)
    # A table that memory can hold is best read 2 MiB at a time: soon all of it is there,
    # and where the file system has large pages it is mapped in such. Of a larger one,
    # only the pages that lookups touch should be: reading ahead would drop others.
    # Figures: docs/tables.md.
    advice = "MADV_RANDOM" if place.n_bytes > _memory_limit() // 2 else "MADV_HUGEPAGE"
    if hasattr(mmap, advice):
        with contextlib.suppress(OSError):  # it is advice, and a system may not know it
            pages.madvise(getattr(mmap, advice))
    rows = np.frombuffer(pages, np.uint8)[place.start : place.start + place.n_bytes]
    return rows.view(place.dtype).reshape(place.shape)


def _memory_limit() -> float:
    """Return the bytes of memory of the machine, or of the container."""
    limits = [float("inf")]
    with contextlib.suppress(AttributeError, OSError, ValueError):  # no such question
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = _cgroups.memory_limit()
    return min(limits) if limit is None else min(*limits, limit)


def _copy(file: BinaryIO, place: Place, num_threads: int | None) -> AnyArray:
    rows = aligned_empty(place.shape, place.dtype.newbyteorder("="))
    if place.in_fortran_order or not place.dtype.isnative:
        start = 0
        for block in read_rows(file, place):
            rows[start : start + len(block)] = block
            start += len(block)
        return rows
    memory = _bytes(rows)
    n_bytes = len(memory)
    n_threads = 1
    if n_bytes >= 2 * _BYTES_PER_THREAD and hasattr(os, "preadv"):
        limit = _threads.threads_for(n_bytes, num_threads)
        n_threads = min(limit, n_bytes // _BYTES_PER_THREAD)
    # Each thread reads one part, of whole huge pages.
    n_part = -(-n_bytes // (n_threads * _HUGE_PAGE)) * _HUGE_PAGE

    def read_part(start: int) -> int:
        at, stop = start, min(start + n_part, n_bytes)
        while at < stop:
            n = os.preadv(file.fileno(), [memory[at:stop]], place.start + at)
            if n == 0:
                break
            at += n
        return at - start

    if n_threads == 1:
        _read(file, place.start, memory)
        return rows
    starts = range(0, n_bytes, n_part)
    try:
        # Imported here: it takes 4 ms, a fifth of what importing embag may take.
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

        with ThreadPoolExecutor(n_threads) as pool:
            n_read = sum(pool.map(read_part, starts))
    except RuntimeError:  # no thread can be started, or the interpreter is ending
        n_read = sum(map(read_part, starts))
    _check_read(n_read, n_bytes)
    return rows


def read_rows(file: BinaryIO, place: Place) -> Iterator[AnyArray]:
    """Yield a table's rows, about _BLOCK bytes at a time, in the file's order of bytes."""
    n_rows, n_columns = place.shape
    itemsize = place.dtype.itemsize
    for start, stop in _blocks(place.shape, itemsize):
        if not place.in_fortran_order:
            rows = np.empty((stop - start, n_columns), place.dtype)
            _read(file, place.start + start * n_columns * itemsize, _bytes(rows))
            yield rows
            continue
        columns = np.empty((n_columns, stop - start), place.dtype)
        for number, column in enumerate(columns):
            _read(file, place.start + (number * n_rows + start) * itemsize, _bytes(column))
        yield columns.T


def _read(file: BinaryIO, start: int, memory: memoryview) -> None:
    file.seek(start)
    _check_read(file.readinto(memory), len(memory))  # type: ignore[attr-defined]


def _check_read(n: int, n_bytes: int) -> None:
    if n != n_bytes:
        raise ValueError(f"file must not be cut while it is read, got {n} of {n_bytes} bytes")
