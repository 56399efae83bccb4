"""`Pool`: list columns to columns of vectors, in Ray Data.

Tested in tests/sharding/test_pool.py.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import embag
from embag import _modes
from embag._arguments import describe, prefix_errors
from embag._types import Invalid, Mode, Table
from embag.ray._collection import ShardedCollection
from embag.ray._plan import spec_of

if TYPE_CHECKING:
    import pyarrow
else:
    pyarrow = Any  # an extra, and annotations resolve without it


class Pool:
    """Pool lists of ids batch by batch: a class for `ray.data.Dataset.map_batches`.

    Given the class, Ray Data makes actors, each of which loads the table once. Given an object of
    the class, it makes tasks. These need no start, and are as fast where the table is a file, whose
    path is all that is sent to them.

    Parameters
    ----------
    table : path, ndarray, QuantizedTable, RemappedTable or ShardedCollection
        The table. A file (.npy or .safetensors) is mapped, so that the actors of a machine share
        its pages. A table that no machine can hold is looked up in a `ShardedCollection`, whose
        features say the rest.
    column : str, optional
        The column with lists of ids. Required, except for a `ShardedCollection`, which reads the
        columns that have the names of its features.
    weights : str, optional
        The column with lists of weights.
    output : str, optional
        The name of the new column; of a `ShardedCollection`, what follows the name of a feature
        and an underscore.
    mode, padding_idx, invalid, default_idx, normalize : optional
        As in `embedding_bag`. Not for a `ShardedCollection`.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong kind, an option is unknown, or a file is not a table.
    OSError
        If the file cannot be read.
    ImportError
        If pyarrow is not installed.

    Notes
    -----
    Lists may also be tensors: the columns that Ray Data makes of NumPy arrays.

    Calls use the CPUs that Ray assigned to the actor, one at least, and outside Ray
    `get_num_threads`.

    Examples
    --------
    ::

        dataset.map_batches(
            embag.ray.Pool,
            fn_constructor_args=["items.npy", "item_ids"],
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=4),
        )
        dataset.map_batches(embag.ray.Pool("items.npy", "item_ids"), batch_format="pyarrow")

    A batch, here without Ray:

    >>> import numpy as np
    >>> import pyarrow as pa
    >>> import embag.ray
    >>> pool = embag.ray.Pool(np.array([[1, 2], [10, 20]], np.float32), "item_ids", mode="sum")
    >>> pool(pa.table({"user": [7, 8], "item_ids": [[0, 1], []]}))["vector"].to_pylist()
    [[11.0, 22.0], [0.0, 0.0]]
    """

    def __init__(
        self,
        table: str | os.PathLike[str] | Table | ShardedCollection,
        column: str | None = None,
        *,
        weights: str | None = None,
        output: str = "vector",
        mode: Mode = "mean",
        padding_idx: int | None = None,
        invalid: Invalid = "raise",
        default_idx: int | None = None,
        normalize: bool = False,
    ) -> None:
        _import_pyarrow()
        _check_names(weights=weights, output=output, column=column)
        if output in (column, weights):
            raise ValueError(f"output must be the name of a new column, got {output!r}")
        self._column, self._weights, self._output = column, weights, output
        self._options: dict[str, Any] = {
            "mode": mode,
            "padding_idx": padding_idx,
            "invalid": invalid,
            "default_idx": default_idx,
            "normalize": normalize,
        }
        self._path = table if isinstance(table, (str, os.PathLike)) else None
        self._table: Any = table
        if isinstance(table, ShardedCollection):
            if column is not None or weights is not None:
                raise ValueError(
                    "column and weights must be None for a ShardedCollection, which reads the "
                    f"columns of its features, got {describe(column)} and {describe(weights)}"
                )
            return
        if column is None:
            raise TypeError("column must be a str, got None")
        known = _modes.as_mode(mode)
        if weights is not None:
            _modes.check_weighted(known, weights)
        if self._path is not None:
            self._table = embag.load_table(self._path)
        spec_of(self._table, "table")  # raises unless it is a table
        self._pool(np.zeros((0, 1), np.int64), None)  # raises for an invalid option

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_table": self._table if self._path is None else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._path is not None:
            self._table = embag.load_table(self._path)

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """Return a batch with the vectors of its lists.

        Parameters
        ----------
        batch : pyarrow.Table
            The batch, with the columns named above.

        Returns
        -------
        pyarrow.Table
            The batch with one more column of fixed-size lists of float32 (float64 for a float64
            table); of a `ShardedCollection`, with one for each feature.

        Raises
        ------
        TypeError
            If `batch` is not a table of pyarrow, or a column has no lists.
        ValueError
            If a column is missing or occurs twice, or `batch` has a column with the name of a new
            one.
        TypeError, ValueError, IndexError
            As in `embedding_bag`.
        """
        pa = _import_pyarrow()
        if not isinstance(batch, pa.Table):
            raise TypeError(
                f"batch must be a pyarrow.Table, got {describe(batch)}: "
                "pass batch_format='pyarrow' to map_batches"
            )
        if isinstance(self._table, ShardedCollection):
            columns = {f.name: _column_of(batch, f.name) for f in self._table.features}
            split = self._table.split(self._table(columns))
            found = {f"{name}_{self._output}": rows for name, rows in split.items()}
        else:
            ids = _lists_of(batch, self._column)
            given = None if self._weights is None else _lists_of(batch, self._weights)
            place = f"column {self._column!r}"
            if given is not None:
                place += f" with weights {self._weights!r}"
            with prefix_errors(place):
                found = {self._output: self._pool(ids, given)}
        for name, rows in found.items():
            if name in batch.column_names:
                raise ValueError(f"output must be the name of a new column, got {name!r}")
            vectors = pa.array(embag.to_arrow(np.ascontiguousarray(rows)))
            batch = batch.append_column(name, vectors)
        return batch

    def _pool(self, ids: Any, weights: Any) -> NDArray[Any]:
        pooled: NDArray[Any] = embag.embedding_bag(
            ids,
            self._table,
            per_sample_weights=weights,
            num_threads=_assigned_cpus(),
            **self._options,
        )
        return pooled


def _import_pyarrow() -> Any:
    """Return the package pyarrow; raise an error that says how to install it."""
    try:
        import pyarrow  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("embag.ray.Pool needs pyarrow: pip install 'embag-cpu[ray]'") from error
    return pyarrow


def _assigned_cpus() -> int | None:
    """Return the CPUs that Ray has assigned to this worker, one at least; None outside Ray."""
    ray: Any = sys.modules.get("ray")  # a worker has imported it
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return None
    return max(1, int(context.get_assigned_resources().get("CPU", 1)))


def _check_names(**names: Any) -> None:
    for argument, name in names.items():
        if not isinstance(name, str) and (name is not None or argument == "output"):
            raise TypeError(f"{argument} must be a str, got {describe(name)}")


def _column_of(batch: Any, name: Any) -> Any:
    """Return a column of a batch; of a column of tensors, the lists of their entries."""
    pa = _import_pyarrow()
    if batch.column_names.count(name) != 1:
        raise ValueError(
            f"batch must have one column {name!r}, got {', '.join(map(repr, batch.column_names))}"
        )
    column = batch[name]
    if not isinstance(column.type, pa.BaseExtensionType):
        return column
    kind = column.type.storage_type
    column = pa.chunked_array([chunk.storage for chunk in column.chunks], kind)
    # Tensors of different shapes are structs. As a plain struct of two lists, these would be ids
    # and their weights.
    if pa.types.is_struct(kind) and {field.name for field in kind} == {"data", "shape"}:
        chunks = [chunk.flatten()[kind.get_field_index("data")] for chunk in column.chunks]
        return pa.chunked_array(chunks, kind.field("data").type)
    return column


def _lists_of(batch: Any, name: Any) -> Any:
    """Return a column with lists of a batch."""
    pa = _import_pyarrow()
    column = _column_of(batch, name)
    if not (pa.types.is_nested(column.type) or pa.types.is_null(column.type)):
        raise TypeError(f"column {name!r} must have lists, got {column.type}")
    return column
