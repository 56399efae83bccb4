"""`save_checkpoint` and `load_checkpoint`: optimizers with their tables, and arrays, in a file.

A checkpoint is a .safetensors file. An optimizer called "item" has its table in the tensor
"item" and each state in one beside it, such as "item.sum"; "item.frozen" says which rows are
frozen. An array is the tensor of its name. The rest is JSON in the file's metadata:

    {"items": {"item": {"optimizer": "Adagrad", "options": {"lr": 0.1, ...}, "n_steps": 3,
                        "has_frozen_rows": false},
               "bias": null},
     "metadata": {}}

A file is read in two passes: first all names, dtypes, shapes and options are checked, then the
arrays are read.

Tested in tests/gradients/test_checkpoints.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, BinaryIO, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from embag import optim
from embag._arguments import check_array, check_flags, describe, prefix_errors, shares_memory, span
from embag._files import checksums
from embag._files.headers import (
    ARRAY_DTYPES_RULE,
    FORMATS,
    ArrayPlace,
    is_array_dtype,
    parse_object,
    place_array,
    read_tensors,
    tensors_header,
)
from embag._files.replacement import replacement
from embag._kernels.dispatch import kernels
from embag._optimizer import MOST_STEPS
from embag.memory import aligned_empty
from embag.optim import Optimizer
from embag.tables import format_of, open_file, read_tensor, write_tensor

# No key of a table's metadata: these begin with "embag." (docs/tables.md).
_KEY = "embag-checkpoint"
_OPTIMIZERS = {name: getattr(optim, name) for name in optim.__all__ if name != "Optimizer"}


def save_checkpoint(
    path: str | os.PathLike[str],
    items: Mapping[str, Optimizer | NDArray[Any]],
    *,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Save optimizers with their tables, and arrays, to one file, atomically.

    Parameters
    ----------
    path : str or path-like
        The file, whose suffix is ``.safetensors``.
    items : mapping of str to Optimizer or ndarray
        What to save, by name: optimizers of `embag.optim`, and arrays such as the weights of
        dense layers. Tables, states and arrays may have any strides.
    metadata : dict, optional
        Values that JSON can hold, such as an epoch or the state of a random number generator.

    Raises
    ------
    TypeError
        If an argument has the wrong kind. An item must be an ndarray or an optimizer of
        `embag.optim` itself, not of a subclass.
    ValueError
        If `path` has another suffix; if a name is invalid, or two tensors would have one name;
        if two items share memory, which they would not after loading; if an optimizer has been
        given invalid options, states or a table of another shape; or if JSON cannot hold
        `metadata`.
    OSError
        If the file cannot be written.
    RuntimeError
        If another call of an optimizer is running.

    See Also
    --------
    load_checkpoint : Load the file.

    Notes
    -----
    An optimizer called "item" becomes the tensor "item", its table, and a tensor for each state,
    such as "item.sum". `load_table` can read the table, and the package safetensors all tensors.

    The file is written as by `save_table`: it replaces the old one when it is complete and on the
    disk, so that a crash at any moment leaves a whole file. A process that is killed may leave
    its unfinished file, ``.embag-*.tmp``, in the folder.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import embag
    >>> optimizer = embag.optim.Adagrad(np.ones((3, 2), np.float32), lr=0.1)
    >>> items = {"item": optimizer, "bias": np.zeros(2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/training.safetensors"
    ...     embag.save_checkpoint(path, items, metadata={"epoch": 1})
    ...     embag.load_checkpoint(path)
    {'item': Adagrad(table of 3 rows, dim=2, float32, lr=0.1, 0 steps), 'bias': array([0., 0.])}
    """
    target = _as_path(path)
    if not isinstance(items, Mapping):
        raise TypeError(f"items must be a mapping, got {describe(items)}")
    metadata = {} if metadata is None else metadata
    if not issubclass(type(metadata), dict):
        raise TypeError(f"metadata must be a dict, got {describe(metadata)}")
    _check_metadata(metadata)
    named: dict[str, Any] = dict(items)
    for name, item in named.items():
        _check_name(name)
        with prefix_errors(f"items[{describe(name)}]"):
            _check_item(item)
    _check_apart(named)
    optimizers = [item for item in named.values() if _is_optimizer(item)]
    turn: Any = kernels.Turn(tuple(optimizer._progress for optimizer in optimizers))
    with turn:
        records: dict[str, Any] = {}
        arrays: dict[str, NDArray[Any]] = {}
        for name, item in named.items():
            records[name] = None
            if _is_optimizer(item):
                with prefix_errors(f"items[{describe(name)}]"):
                    records[name] = _record_of(item)._asdict()
            for key, array in _arrays_of(name, item).items():
                if key in arrays:
                    raise ValueError(f"tensors must have different names, got two {describe(key)}")
                arrays[key] = array
        text = json.dumps({"items": records, "metadata": metadata}, allow_nan=False)
        # Each entry is aligned to its size, so that tables can be mapped.
        arrays = dict(sorted(arrays.items(), key=lambda pair: -pair[1].itemsize))
        header = tensors_header(arrays, {_KEY: text})
        with replacement(target) as file:
            file.write(header)
            for array in arrays.values():
                write_tensor(file, array)
            checksums.add(file)


@overload
def load_checkpoint(
    path: str | os.PathLike[str], *, return_metadata: Literal[False] = ..., verify: bool = ...
) -> dict[str, Any]: ...
@overload
def load_checkpoint(
    path: str | os.PathLike[str], *, return_metadata: Literal[True], verify: bool = ...
) -> tuple[dict[str, Any], dict[str, Any]]: ...
def load_checkpoint(
    path: str | os.PathLike[str], *, return_metadata: bool = False, verify: bool = False
) -> Any:
    """Load the optimizers and arrays of a file of `save_checkpoint`.

    Parameters
    ----------
    path : str or path-like
        The file, whose suffix is ``.safetensors``.
    return_metadata : bool, optional
        If True, also return the metadata.
    verify : bool, optional
        If True, also read the whole file and compare its checksum.

    Returns
    -------
    items : dict of str to Optimizer or ndarray
        The items by name. Each optimizer is a new one on a new table, its `table`. All arrays
        are writeable, in memory from `aligned_empty`. Training that goes on from here gives the
        same bits as if it had never stopped.
    metadata : dict
        With `return_metadata`: the metadata.

    Raises
    ------
    TypeError
        If an argument has the wrong kind.
    ValueError
        If the file is not a complete checkpoint: truncated, malformed, or with an unknown
        optimizer, an invalid option, or a tensor that is missing or has another dtype or shape.
        With `verify`, if the file is damaged or has no checksum.
    ImportError
        If an array is of bfloat16 or 8-bit floats and ml_dtypes is not installed.
    OSError
        If the file cannot be read, such as FileNotFoundError.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    save_checkpoint : Save optimizers and arrays.

    Notes
    -----
    The whole header is checked before an array is read. Nothing in a file is executed.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import embag
    >>> table = np.ones((3, 2), np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/training.safetensors"
    ...     embag.save_checkpoint(path, {"item": embag.optim.Adam(table)}, metadata={"epoch": 1})
    ...     items, metadata = embag.load_checkpoint(path, return_metadata=True)
    >>> items["item"].update([[1, 2]], [[0, 2]], mode="sum")
    >>> metadata
    {'epoch': 1}
    """
    check_flags(return_metadata=return_metadata, verify=verify)
    with open_file(_as_path(path)) as (file, n_bytes, _):
        start, tensors, texts = read_tensors(file, n_bytes)
        records, metadata = _parse_metadata(texts)
        places = {key: place_array(key, tensor, start) for key, tensor in tensors.items()}
        _check_places(records, places)
        items: dict[str, Any] = {}
        for name, record in records.items():
            array = _read(file, name, places)
            if record is not None:
                frozen_rows = f"{name}.frozen"
                frozen = _read(file, frozen_rows, places) if record.has_frozen_rows else None
                optimizer = record.make(array, frozen)
                optimizer.n_steps = record.n_steps
                for state, memory in optimizer.states.items():
                    read_tensor(memory, file, places[f"{name}.{state}"].start)
            items[name] = array if record is None else optimizer
        if verify:  # last: what was read are the bytes that are verified
            checksums.verify(file)
    return (items, metadata) if return_metadata else items


class _Record(NamedTuple):
    """What the metadata say about an optimizer."""

    optimizer: str  # the name of its class
    options: dict[str, Any]
    n_steps: int
    has_frozen_rows: bool

    def make(self, table: NDArray[Any], frozen: NDArray[np.bool_] | None = None) -> Optimizer:
        """Return a new optimizer of a table; raise for an invalid option."""
        optimizer: Optimizer = _OPTIMIZERS[self.optimizer](table, **self.options, frozen=frozen)
        return optimizer

    def make_empty(self, table: NDArray[Any] | ArrayPlace) -> Optimizer:
        """Return an optimizer of a table without rows, but otherwise like this one."""
        return self.make(aligned_empty((0, *table.shape[1:]), table.dtype))


def _as_path(path: Any) -> str:
    target, file_format = format_of(path)
    if file_format is not FORMATS[".safetensors"]:
        raise ValueError(f"path must end in .safetensors, got {target!r}")
    return target


# --- Saving -------------------------------------------------------------------


def _is_optimizer(item: Any) -> bool:
    return type(item) in _OPTIMIZERS.values()


def _check_name(name: Any) -> None:
    if not issubclass(type(name), str):  # isinstance would believe `__class__`
        raise TypeError(f"items must have names of type str, got {describe(name)}")
    if name == "__metadata__":
        raise ValueError("items must have other names than '__metadata__', got it")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"items must have names that UTF-8 can encode, got {error}") from None


def _check_item(item: Any) -> None:
    if _is_optimizer(item):
        for part, array in (("table", item.table), *item.states.items()):
            check_array(array, part)
        return
    if issubclass(type(item), Optimizer):
        raise TypeError(
            f"optimizer must be of a class of embag.optim, got the subclass {describe(item)}: "
            "save its table and its state_dict as arrays"
        )
    check_array(item, "item", "a numpy.ndarray or an optimizer of embag.optim")
    dtype = np.ndarray.view(item, np.ndarray).dtype
    if not is_array_dtype(dtype):
        raise TypeError(f"item must be an array of {ARRAY_DTYPES_RULE}, got {dtype}")


def _check_apart(items: dict[str, Any]) -> None:
    """Raise if items share memory: the loaded ones would not."""
    seen: dict[int, str] = {}
    spans = []
    for name, item in items.items():
        other = seen.setdefault(id(item), name)
        if other != name:
            raise ValueError(_overlap_of(other, name))
        spans += [(*span(array), name, array) for array in _arrays_of(name, item).values()]
    spans.sort(key=lambda entry: entry[:2])
    reach: list[tuple[int, str, NDArray[Any]]] = []  # arrays that may reach into the next ones
    for start, stop, name, array in spans:
        reach = [entry for entry in reach if entry[0] > start]
        for _, other, memory in reach:
            if other != name and shares_memory(array, memory):
                raise ValueError(_overlap_of(other, name))
        reach.append((stop, name, array))


def _overlap_of(one: str, other: str) -> str:
    return f"items must share no memory, got an overlap of {describe(one)} and {describe(other)}"


def _record_of(optimizer: Optimizer) -> _Record:
    """Return the record of an optimizer, which must be what its class makes."""
    table = optimizer._arrays()["table"]
    options = optimizer._options()
    has_frozen_rows = optimizer._active is not None
    record = _Record(type(optimizer).__name__, options, optimizer.n_steps, has_frozen_rows)
    empty = record.make_empty(table)
    return record._replace(options=empty._options())  # floats, whatever the attributes are


def _arrays_of(name: str, item: Any) -> dict[str, NDArray[Any]]:
    """Return the arrays of an item by the names of their tensors."""
    arrays = {name: item}
    if _is_optimizer(item):
        arrays = {name: item.table, **{f"{name}.{state}": a for state, a in item.states.items()}}
        if item._active is not None:
            arrays[f"{name}.frozen"] = ~item._active
    # A subclass may override the shape.
    return {key: np.ndarray.view(array, np.ndarray) for key, array in arrays.items()}


def _check_metadata(metadata: dict[str, Any]) -> None:
    """Raise unless JSON gives the metadata back."""
    try:
        is_same = json.loads(json.dumps(metadata, allow_nan=False)) == metadata
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata must be values that JSON can hold, got {error}") from error
    if not is_same:  # of tuples JSON makes lists, and of keys that are numbers strings
        raise ValueError(
            "metadata must be values that JSON gives back unchanged, "
            "got others, such as a tuple or a key that is no str"
        )


# --- Loading ------------------------------------------------------------------


def _parse_metadata(texts: dict[str, str]) -> tuple[dict[str, _Record | None], dict[str, Any]]:
    """Return the record of each item, None for an array, and the user's metadata."""
    if _KEY not in texts:
        raise ValueError(
            "file must be one that save_checkpoint wrote, got no metadata of it: "
            "load_table reads single tables"
        )
    parsed = parse_object(texts[_KEY], "metadata of a checkpoint")
    if parsed.keys() != {"items", "metadata"} or set(map(type, parsed.values())) != {dict}:
        raise ValueError("metadata of a checkpoint must be items and metadata, got others")
    records = {name: _parse_record(name, record) for name, record in parsed["items"].items()}
    return records, parsed["metadata"]


def _parse_record(name: str, record: Any) -> _Record | None:
    if record is None:
        return None
    with prefix_errors(f"optimizer {describe(name)}"):
        if type(record) is not dict or record.keys() != set(_Record._fields):
            raise ValueError(f"metadata must be {', '.join(_Record._fields)}, got others")
        result = _Record(**record)
        kind = result.optimizer
        if type(kind) is not str or kind not in _OPTIMIZERS:
            raise ValueError(f"class must be {', '.join(_OPTIMIZERS)}, got {describe(kind)}")
        names = _OPTIMIZERS[kind]._option_names()
        if type(result.options) is not dict or result.options.keys() != set(names):
            raise ValueError(f"options must be {', '.join(names)}, got others")
        if type(result.has_frozen_rows) is not bool:
            seen = describe(result.has_frozen_rows)
            raise ValueError(f"has_frozen_rows must be a bool, got {seen}")
        if type(result.n_steps) is not int or not 0 <= result.n_steps <= MOST_STEPS:
            seen = describe(result.n_steps)
            raise ValueError(f"n_steps must be a count below 2**63 - 1, got {seen}")
    return result


def _check_places(records: dict[str, _Record | None], places: dict[str, ArrayPlace]) -> None:
    """Raise unless the tensors of the file are those of the items."""
    seen: set[str] = set()
    for name, record in records.items():
        if name not in places:
            raise ValueError(f"tensor {describe(name)} must be in the file, got none")
        expected: dict[str, tuple[Any, ...]] = {name: places[name][1:]}
        if record is not None:
            with prefix_errors(f"optimizer {describe(name)}"):
                expected = _expected_tensors(name, record, places[name])
        for key, (dtype, shape) in expected.items():
            found = places.get(key)
            if key in seen or found is None or (found.dtype, found.shape) != (dtype, shape):
                got = "none" if found is None else f"{found.dtype} of shape {found.shape}"
                raise ValueError(
                    f"tensor {describe(key)} must be {dtype} of shape {shape}, of one item, "
                    f"got {got}"
                )
            seen.add(key)
    others = places.keys() - seen
    if others:
        raise ValueError(f"tensors must belong to items, got {describe(min(others))} of none")


def _expected_tensors(name: str, record: _Record, table: ArrayPlace) -> dict[str, tuple[Any, ...]]:
    """Return the dtype and the shape of each tensor of an optimizer."""
    if len(table.shape) != 2:
        raise ValueError(f"table must be 2-D (n_rows, dim), got shape {table.shape}")
    empty = record.make_empty(table)
    n_rows = table.shape[0]
    tensors = {name: table[1:]}
    for state, array in empty.states.items():
        tensors[f"{name}.{state}"] = array.dtype, (n_rows, array.shape[1])
    if record.has_frozen_rows:
        tensors[f"{name}.frozen"] = np.dtype(np.bool_), (n_rows,)
    return tensors


def _read(file: BinaryIO, key: str, places: dict[str, ArrayPlace]) -> NDArray[Any]:
    """Read an array into aligned memory."""
    array = aligned_empty(places[key].shape, places[key].dtype)
    read_tensor(array, file, places[key].start)
    if array.dtype == np.bool_ and array.view(np.uint8).max(initial=0) > 1:
        raise ValueError(f"bools of {describe(key)} must be bytes of 0 or 1, got others")
    return array
