"""Headers of table files: .npy and .safetensors, validated when read, and written.

A reader gets a file and its length and returns the place of the table in it, or raises
ValueError. A returned place lies inside the file and has exactly the bytes that its shape
needs, so that mapping or copying it needs no further checks.

    .npy            8 bytes, the length of the header, a Python dict, the data. NumPy parses it.
    .safetensors    the length of the header in 8 bytes, JSON, the data. Parsed and written here:
                    the safetensors package cannot map an array, and writes only contiguous ones.

Neither format can express quantized tables, and .npy cannot express bfloat16 or 8-bit floats. In
.npy, a quantized table is an array of records whose field names describe the bytes, and a
low-precision float is a record with one field of that name. In .safetensors, the metadata hold
the options of `QuantizedTable.from_packed`, and list the tensors that belong to a table: its
`index_map` and its scales. docs/tables.md documents both, byte by byte.

.safetensors is little-endian, and .npy says which it is. Rows of a quantized table have a scale and
a bias in that byte order, in memory in the machine's.

Tested in tests/tables/.
"""

import errno
import io
import json
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from embag._arguments import AnyArray, describe
from embag._encodings import DTYPES, DTYPES_NAMES, ENCODINGS, LOW_FLOATS, Encoding, Layout
from embag._files import checksums
from embag._files.errors import add_path_to_errors

IS_LITTLE_ENDIAN = sys.byteorder == "little"
_ALIGNMENT = 64  # of the data in a file: a cache line, as NumPy aligns it
_NPY_HEADER = 12 + 10_000  # the longest that NumPy parses
# Enough for 80,000 tensors; files of the largest models have about a thousand. Refusing a
# malicious header takes 1 s and 300 MB at this length, and up to 35 s and 2.6 GB at 100 MB, the
# limit of the safetensors package.
_SAFETENSORS_HEADER = 8_000_000
_SAFETENSORS_DTYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
# Arrays that are not tables may have these, too.
_ARRAY_DTYPES = {
    **_SAFETENSORS_DTYPES,
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (16, 32, 64)},
}
ARRAY_DTYPES_RULE = f"{', '.join(_ARRAY_DTYPES.values())}, in native byte order"
_RECORDS = {name: np.dtype([(name, f"u{ENCODINGS[name].bits // 8}")]) for name in LOW_FLOATS}
# The tensors that may belong to a table, and their dtypes.
_PARTS = {
    "row_scales": {"F32": "float32"},
    "index_map": {"I32": "int32", "I64": "int64"},
    "scales": {"F32": "float32", "F64": "float64"},
}


class Packing(NamedTuple):
    """The arguments of `QuantizedTable.from_packed` beside the rows."""

    bits: int
    dim: int
    layout: Layout

    @property
    def encoding(self) -> Encoding:
        """The encoding of the rows."""
        return ENCODINGS[self.layout, self.bits]


class Parts(NamedTuple):
    """What a table has besides its rows: the map and scales of a remapped or symmetric table."""

    first_id: int | None = None  # None: ids are the numbers of rows
    arrays: Mapping[str, AnyArray] = MappingProxyType({})  # by their names in _PARTS


NO_PARTS = Parts()


class Place(NamedTuple):
    """Where a table is in a file."""

    start: int  # the first byte
    dtype: np.dtype[Any]  # in native byte order
    shape: tuple[int, int]
    packing: Packing | None  # of a quantized table, whose dtype is uint8
    is_native: bool  # the file has the machine's byte order
    in_fortran_order: bool = False
    parts: Parts = NO_PARTS

    @property
    def n_bytes(self) -> int:
        """The bytes of all rows."""
        return math.prod(self.shape) * self.dtype.itemsize


class ArrayPlace(NamedTuple):
    """Where an array of any rank is in a .safetensors file."""

    start: int  # the first byte
    dtype: np.dtype[Any]  # in native byte order
    shape: tuple[int, ...]


class Format(NamedTuple):
    """The functions that read and write the header of a format."""

    read: Callable[[BinaryIO, int, str | None], Place]  # (file, its bytes, name)
    # (rows, packing, name, parts)
    header: Callable[[AnyArray, Packing | None, str | None, Parts], bytes]
    is_native: bool  # files are written in the machine's byte order


# --- .npy ---------------------------------------------------------------------


class NpyHeader(NamedTuple):
    """The header of a .npy file: any array except one of Python objects."""

    start: int  # the first byte
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool

    @property
    def n_bytes(self) -> int:
        """The bytes of all entries."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check_length(self, n_file_bytes: int) -> None:
        """Raise unless the array fills the rest of the file."""
        if min(self.shape, default=0) < 0:
            raise ValueError(f"shape must not be negative, got {self.shape}")
        if self.start + self.n_bytes != n_file_bytes:
            raise ValueError(
                f"file must have {self.n_bytes} bytes of data after its header, "
                f"got {n_file_bytes - self.start}"
            )


def read_npy_header(file: BinaryIO) -> NpyHeader:
    """Read the header of a .npy file; `check_length` then checks the data behind it."""
    head = io.BytesIO(file.read(_NPY_HEADER))
    try:
        version = np.lib.format.read_magic(head)
        if version == (1, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(head)
        elif version == (2, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(head)
        else:
            raise ValueError(f"version {version}")
    # A malicious header can make NumPy raise almost anything, such as MemoryError for one that is
    # nested too deeply.
    except Exception as error:
        raise ValueError(f"header must be one that NumPy writes, got {error}") from error
    if dtype.hasobject:
        raise ValueError("dtype must be of numbers, got Python objects, which are not unpickled")
    return NpyHeader(head.tell(), dtype, shape, fortran_order)


def _read_npy(file: BinaryIO, n_file_bytes: int, name: str | None) -> Place:
    _check_no_name(name)
    header = read_npy_header(file)
    start, dtype, shape, fortran_order = header
    is_native = dtype.isnative
    if not is_native:
        dtype = dtype.newbyteorder("S")
    packing = _packing_of(dtype)
    floats = next((name for name, record in _RECORDS.items() if dtype == record), None)
    if floats is not None:
        dtype = numpy_dtype(floats)
    elif dtype == "V2":
        raise ValueError(
            "dtype must be a named one, got |V2: if it is bfloat16, whose name numpy.save "
            "loses, view it as bfloat16 and save it with save_table"
        )
    elif packing is None and dtype.name not in DTYPES:
        raise ValueError(
            f"dtype must be {DTYPES_NAMES}, or the records of a quantized table, "
            f"got {header.dtype.str if dtype.kind == 'f' else header.dtype}"
        )
    if len(shape) != (1 if packing else 2) or not 0 <= min(shape) <= max(shape) < 2**63:
        kind = "(n_rows,) for records" if packing else "(n_rows, dim)"
        raise ValueError(f"shape must be {kind}, got {shape}")
    header.check_length(n_file_bytes)
    if packing:
        shape, dtype = (shape[0], dtype.itemsize), np.dtype(np.uint8)
    n_rows, n_columns = shape
    return Place(start, dtype, (n_rows, n_columns), packing, is_native, bool(fortran_order))


def _npy_header(rows: AnyArray, packing: Packing | None, name: str | None, parts: Parts) -> bytes:
    _check_no_name(name)
    if parts != NO_PARTS:
        raise ValueError(
            "path must end in .safetensors for a table with a map or scales of its own: "
            "a .npy file holds one array"
        )
    dtype, shape = rows.dtype, rows.shape
    if packing:
        dtype, shape = _record_dtype(shape[1], packing), shape[:1]
    else:
        dtype = _RECORDS.get(dtype.name, dtype)
    head = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        head, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return head.getvalue()


def _check_no_name(name: str | None) -> None:
    if name is not None:
        raise ValueError(f"name must be None for a .npy file, got {describe(name)}")


def _record_dtype(n_bytes: int, packing: Packing) -> np.dtype[Any]:
    """Return the record dtype of a row of a quantized table; `q8x64` is 64 entries of 8 bits."""
    bits, dim, _ = packing
    factor = packing.encoding.factor_dtype
    entries = [(f"q{bits}x{dim}", np.uint8, ((dim * bits + 7) // 8,))]
    factors = [("scale", factor), ("bias", factor)]
    fields: list[Any] = factors + entries if packing.encoding.factors_first else entries + factors
    padding = n_bytes - packing.encoding.row_bytes(dim)
    if padding:
        fields.append(("padding", np.uint8, (padding,)))
    return np.dtype(fields)


def _packing_of(dtype: np.dtype[Any]) -> Packing | None:
    """Return the packing whose record dtype this is; None for other dtypes."""
    names = dtype.names or ()
    places: list[tuple[Layout, int]] = [("fused", 0), ("tbe", 2)]
    for layout, index in places:
        match = re.fullmatch("q([842])x([0-9]{1,18})", names[index]) if len(names) > index else None
        if match:
            packing = Packing(int(match[1]), int(match[2]), layout)
            n_bytes = dtype.itemsize
            needed = packing.encoding.row_bytes(packing.dim)
            if needed <= n_bytes and dtype == _record_dtype(n_bytes, packing):
                return packing
    return None


# --- .safetensors -------------------------------------------------------------


def read_tensors(file: BinaryIO, n_file_bytes: int) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Read the header of a .safetensors file.

    Returns (start, tensors, metadata): the first byte of the data, the entry of each tensor by
    name, and the strings of the metadata.
    """
    if n_file_bytes < 10:
        raise ValueError(f"file must have a header of at least 10 bytes, got {n_file_bytes}")
    n_header = int.from_bytes(file.read(8), "little")
    most = min(n_file_bytes - 8, _SAFETENSORS_HEADER)
    if not 2 <= n_header <= most:
        raise ValueError(f"header's length must be 2 to {most} in this file, got {n_header}")
    start = 8 + n_header
    header = parse_object(file.read(n_header), "header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(text) is str for text in metadata.values()):
        raise ValueError("__metadata__ must be an object of strings, got other values")
    for key, tensor in header.items():
        _check_tensor(key, tensor)
    _check_offsets(header, n_file_bytes - start)
    return start, header, metadata


def _read_safetensors(file: BinaryIO, n_file_bytes: int, name: str | None) -> Place:
    start, header, metadata = read_tensors(file, n_file_bytes)
    belong = {
        f"{key}.{part}"
        for key in header
        for part in _parse_parts(metadata.get(f"embag.{key}.parts"))[1]
    }
    tables = [key for key in header if key not in belong]
    if name is None and len(tables) == 1:
        name = tables[0]
    if name not in header:
        names = ", ".join([*map(describe, tables[:5]), *["..."][: len(tables) > 5]])
        raise ValueError(f"name must be one of the file's tensors ({names}), got {describe(name)}")
    code, shape = header[name]["dtype"], header[name]["shape"]
    packing = metadata.get(f"embag.{name}") if code == "U8" else None
    # Bytes without metadata may be those of a quantized table.
    is_bytes = code == "U8" and packing is None and f"embag.{name}.parts" not in metadata
    if is_bytes or code not in _SAFETENSORS_DTYPES:
        codes = [code for code in _SAFETENSORS_DTYPES if code != "U8"]
        raise ValueError(
            f"dtype of {describe(name)} must be {', '.join(codes)}, "
            f"or U8 with embag's metadata, got {describe(code)}"
        )
    if len(shape) != 2:
        raise ValueError(f"shape of {describe(name)} must be [n_rows, dim], got {shape}")
    dtype = numpy_dtype(_SAFETENSORS_DTYPES[code]) if packing is None else np.dtype(np.uint8)
    place = Place(
        start + header[name]["data_offsets"][0],
        dtype,
        (shape[0], shape[1]),
        None if packing is None else _parse_packing(packing),
        IS_LITTLE_ENDIAN or (packing is None and dtype.itemsize == 1),
        parts=_read_parts(file, start, header, metadata, name),
    )
    _check_span(name, header[name], place.n_bytes)
    return place


def place_array(key: str, tensor: dict[str, Any], start: int) -> ArrayPlace:
    """Return the place of a tensor in a file whose data begin at `start`."""
    name = _ARRAY_DTYPES.get(tensor["dtype"])
    if name is None:
        raise ValueError(
            f"dtype of {describe(key)} must be {', '.join(_ARRAY_DTYPES)}, "
            f"got {describe(tensor['dtype'])}"
        )
    dtype, shape = numpy_dtype(name), tuple(tensor["shape"])
    _check_span(key, tensor, math.prod(shape) * dtype.itemsize)
    return ArrayPlace(start + tensor["data_offsets"][0], dtype, shape)


def _check_span(key: str, tensor: dict[str, Any], n_bytes: int) -> None:
    begin, end = tensor["data_offsets"]
    if n_bytes != end - begin:
        raise ValueError(
            f"data_offsets of {describe(key)} must span {n_bytes} bytes, got {end - begin}"
        )


def _read_parts(
    file: BinaryIO, start: int, header: dict[str, Any], metadata: dict[str, str], name: str
) -> Parts:
    """Read the arrays that belong to a table."""
    first_id, names = _parse_parts(metadata.get(f"embag.{name}.parts"))
    arrays = {}
    for part in names:
        key = f"{name}.{part}"
        tensor = header.get(key, {"dtype": None, "shape": []})
        dtype = _PARTS[part].get(tensor["dtype"])
        if dtype is None or len(tensor["shape"]) > 1:
            raise ValueError(
                f"tensor {describe(key)} must be 1-D of {' or '.join(_PARTS[part])}, "
                f"got {describe(tensor['dtype'])} of shape {tensor['shape']}"
            )
        n_bytes = math.prod(tensor["shape"]) * np.dtype(dtype).itemsize
        _check_span(key, tensor, n_bytes)
        file.seek(start + tensor["data_offsets"][0])
        data = file.read(n_bytes)
        if len(data) != n_bytes:
            raise ValueError(f"file must not shrink while it is read, got {len(data)} bytes")
        array = np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).astype(dtype, copy=False)
        arrays[part] = array.reshape(tensor["shape"])
    return Parts(first_id, arrays)


def _parse_parts(text: str | None) -> tuple[int | None, list[str]]:
    """Return the first id, and the names of the arrays that belong to a table."""
    if text is None:
        return None, []
    parts = parse_object(text, "metadata of the parts of a table")
    first_id, names = parts.get("first_id"), parts.get("arrays")
    if not (
        parts.keys() == {"first_id", "arrays"}
        and (first_id is None or type(first_id) is int)
        and type(names) is list
        and all(type(name) is str and name in _PARTS for name in names)
        and len(set(names)) == len(names)
        and (first_id is not None or set(names) <= {"row_scales"})
    ):
        raise ValueError("metadata of the parts of a table must be first_id and arrays, got others")
    return first_id, names


def _safetensors_header(
    rows: AnyArray, packing: Packing | None, name: str | None, parts: Parts
) -> bytes:
    key = "weight" if name is None else name
    if key == "__metadata__":
        raise ValueError("name must be another than that of the metadata, got '__metadata__'")
    metadata = {}
    if packing:
        metadata[f"embag.{key}"] = json.dumps(packing._asdict())
    if parts != NO_PARTS or (rows.dtype == np.uint8 and not packing):
        described = {"first_id": parts.first_id, "arrays": list(parts.arrays)}
        metadata[f"embag.{key}.parts"] = json.dumps(described)
    tensors = {key: rows, **{f"{key}.{part}": array for part, array in parts.arrays.items()}}
    return tensors_header(tensors, metadata)


def tensors_header(tensors: Mapping[str, AnyArray], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a .safetensors file that holds these arrays one after another.

    It has room for a checksum.
    """
    codes = {dtype: code for code, dtype in _ARRAY_DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {checksums.KEY: checksums.NONE, **metadata}}
    at = 0
    for key, array in tensors.items():
        header[key] = {
            "dtype": codes[array.dtype.name],
            "shape": array.shape,
            "data_offsets": (at, at + array.nbytes),
        }
        at += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    if len(text) > _SAFETENSORS_HEADER:
        raise ValueError(
            f"names and metadata must fit a header of {_SAFETENSORS_HEADER} bytes, got {len(text)}"
        )
    return len(text).to_bytes(8, "little") + text


def is_array_dtype(dtype: np.dtype[Any]) -> bool:
    """Return whether a .safetensors file can hold arrays of this dtype."""
    return dtype.isnative and dtype.name in _ARRAY_DTYPES.values()


def parse_object(text: bytes | str, what: str) -> dict[str, Any]:
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        parsed = json.loads(decoded, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} must be JSON, got {error}") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{what} must be a JSON object, got {describe(parsed)}")
    return parsed


# Of an index: some 500,000 features of a collection.
MOST_BYTES = 64 << 20


def read_index(path: str) -> bytes:
    """Return the content of an index, a JSON file that names other files."""
    check_regular(path)
    with add_path_to_errors(path), open(path, "rb") as file:
        index = file.read(MOST_BYTES + 1)
    if len(index) > MOST_BYTES:
        raise ValueError(f"{path}: index must have at most {MOST_BYTES} bytes, got more")
    return index


def check_format(found: Any, number: int, writer: str) -> None:
    """Raise unless an index has this number of its format."""
    if type(found) is not int or found != number:
        is_newer = type(found) is int and found > number
        raise ValueError(
            f"format must be {number}, as {writer} writes it, got {describe(found)}"
            f"{': a newer version of embag wrote it' * is_newer}"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a duplicate key")
    return result


def _parse_packing(text: str) -> Packing:
    packing = parse_object(text, "metadata of a quantized table")
    if packing.keys() != set(Packing._fields):
        raise ValueError("metadata of a quantized table must be bits, dim and layout, got others")
    return Packing(**packing)


def _check_tensor(key: str, tensor: Any) -> None:
    if not (
        isinstance(tensor, dict)
        and type(tensor.get("dtype")) is str
        and _are_sizes(tensor.get("shape"))
        and _are_sizes(tensor.get("data_offsets"))
        and len(tensor["data_offsets"]) == 2
    ):
        raise ValueError(
            f"tensor {describe(key)} must have a dtype, a shape and two data_offsets, "
            "all sizes, got other values"
        )


def _are_sizes(sizes: Any) -> bool:
    return type(sizes) is list and all(type(n) is int and 0 <= n < 2**63 for n in sizes)


def _check_offsets(tensors: dict[str, Any], n_bytes: int) -> None:
    """Raise unless the tensors follow one another and fill the data."""
    at = 0
    for key in sorted(tensors, key=lambda key: tensors[key]["data_offsets"]):
        begin, end = tensors[key]["data_offsets"]
        if begin != at or end < begin:
            raise ValueError(
                f"data_offsets of {describe(key)} must start at {at} and not decrease, "
                f"got {begin}, {end}"
            )
        at = end
    if at != n_bytes:
        raise ValueError(f"file must have {at} bytes of tensors after its header, got {n_bytes}")


# --- Both ---------------------------------------------------------------------


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the dtype of this name; those of low precision are of the package ml_dtypes."""
    if name not in LOW_FLOATS:
        return np.dtype(name)
    try:
        import ml_dtypes  # noqa: PLC0415  # optional
    except ImportError as error:
        raise ImportError(
            f"tables of {name} need ml_dtypes: pip install 'embag-cpu[bfloat16]'"
        ) from error
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def swap_bytes(rows: AnyArray, packing: Packing | None = None) -> None:
    """Reverse the bytes of each number, in place; in rows of a quantized table, of its factors."""
    if packing is None:
        rows.view(f"u{rows.itemsize}").byteswap(inplace=True)
        return
    records = rows.view(_record_dtype(rows.shape[1], packing))
    for factor in ("scale", "bias"):
        records[factor].byteswap(inplace=True)


def check_regular(path: str) -> None:
    """Raise unless this is a regular file: opening or reading others may block forever."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        seen = "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
        raise ValueError(f"{path}: path must lead to a regular file, got {seen}")


FORMATS = {
    ".npy": Format(_read_npy, _npy_header, is_native=True),
    ".safetensors": Format(_read_safetensors, _safetensors_header, IS_LITTLE_ENDIAN),
}
