"""`RemappedTable`: a table with a map from ids to rows.

The kernels read the map as an `_encodings.Mapping`. `_kernels/mapping.pxi` turns ids into rows,
piece by piece, before the rows are reduced.

Tested in tests/tables/test_remapped_tables.py.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments, _encodings
from embag._kernels.dispatch import kernels
from embag._tensors import as_ndarray
from embag.quantized import QuantizedTable

RowsTable: TypeAlias = NDArray[Any] | QuantizedTable


@dataclass(frozen=True, init=False, eq=False, repr=False, slots=True)
class RemappedTable:
    """A table with a map from ids to rows: for pruned tables, tokens that share rows, and shards.

    The row of id ``first_id + i`` is ``scales[i] * table[index_map[i]]``. `embedding_bag`,
    `embedding_bag_backward`, `embedding`, `EmbeddingBagCollection` and `save_table` accept it.

    Parameters
    ----------
    table : ndarray or QuantizedTable
        The rows: any table. It is not copied if `embedding_bag` reads it in place.
    index_map : array_like of int, shape (n_ids,), optional
        The row of each id, or -1 for an id without a row, which is skipped like padding. By
        default, id ``first_id + i`` has row i. int32 and int64 arrays are not copied.
    scales : array_like, shape (n_ids,), optional
        A factor for the row of each id, converted to the dtype of sums. Means do not divide by
        the scales.
    first_id : int, optional
        The first id, at least 0. Valid ids are ``first_id .. first_id + n_ids - 1``.

    Attributes
    ----------
    table, index_map, scales, first_id
        As given; the arrays as converted.
    shape : tuple of int
        ``(n_ids, dim)``. ``len(table)`` is `n_ids`.

    Raises
    ------
    TypeError
        If an argument has the wrong kind or dtype. A `RemappedTable` cannot be remapped again.
    ValueError
        If a shape is wrong, or `index_map` has other values than -1 and the rows of `table`.

    See Also
    --------
    embedding_bag : Takes one as `weight`.

    Notes
    -----
    `padding_idx`, `default_idx`, `invalid`, `max_indices` and messages speak of ids. A negative
    `padding_idx` counts from the last id. A `default_idx` without a row gives zeros.

    A row is multiplied by the scale of its id, and the product is added. Several factors are
    multiplied first, each product rounded: the weight by the scale of the id, then, in a symmetric
    table, by the scale of the row. In a row with a scale and a bias, the factor multiplies both.
    Maxima are those of decoded rows, multiplied by the scales of the ids; these take several times
    as long.

    Ids are mapped in pieces of 8,192 positions, or of one longer bag, so memory does not grow
    with the number of ids. If another thread writes an invalid row to `index_map`, a call raises.

    `max_norm` is not supported. Gradients are those of `table`.

    Examples
    --------
    A pruned table: only the ids 0 and 3 have rows.

    >>> import numpy as np
    >>> import embag
    >>> rows = np.array([[1, 2], [10, 20]], np.float32)
    >>> pruned = embag.RemappedTable(rows, index_map=[0, -1, -1, 1])
    >>> embag.embedding_bag([[0, 1, 3], [1, 2, 1]], pruned, mode="mean")
    array([[ 5.5, 11. ],
           [ 0. ,  0. ]], dtype=float32)

    Tokens that share rows, each with a weight of its own:

    >>> tokens = embag.RemappedTable(rows, [1, 1, 0], scales=[1.0, 0.5, 2.0])
    >>> embag.embedding([1, 2], tokens)
    array([[ 5., 10.],
           [ 2.,  4.]], dtype=float32)

    The second half of a table that is spread over two machines:

    >>> shard = embag.RemappedTable(rows, first_id=2)
    >>> embag.embedding_bag([[0, 2, 3]], shard, mode="sum", invalid="skip")
    array([[11., 22.]], dtype=float32)
    """

    table: RowsTable
    index_map: NDArray[np.int32] | NDArray[np.int64] | None
    scales: NDArray[Any] | None
    first_id: int
    _encoded: _encodings.Table

    def __init__(
        self,
        table: RowsTable,
        index_map: ArrayLike | None = None,
        scales: ArrayLike | None = None,
        first_id: int = 0,
    ) -> None:
        if issubclass(type(table), RemappedTable):
            raise TypeError("table must be an array or a QuantizedTable, got a RemappedTable")
        table = as_ndarray(table, "table")
        rows = _encodings.as_table(table, "table", kept=True).to_keep()
        n_ids = len(rows.rows)
        ids_to_rows = None
        if index_map is not None:
            ids_to_rows = _arguments.as_indices(index_map, "index_map")
            if ids_to_rows.ndim != 1:
                raise ValueError(f"index_map must be 1-D, got shape {ids_to_rows.shape}")
            ids_to_rows = np.ndarray.view(ids_to_rows, np.ndarray)
            if getattr(getattr(index_map, "dtype", None), "kind", "") == "u":
                k = kernels.first_bad_index(ids_to_rows, 2**63 - 1)
                if k >= 0:  # a uint64 beyond int64, which is no -1
                    raise ValueError(
                        f"index_map must hold rows of a table of {len(rows.rows)} rows, or -1, "
                        f"got index_map[{k}] = {_arguments.integer_at(index_map, k)}"
                    )
            n_ids = len(ids_to_rows)
        first = _arguments.as_integer(first_id, "first_id")
        if not 0 <= first <= 2**62 - 1 - n_ids:
            raise ValueError(
                f"first_id must be at least 0, and all ids less than 2**62, "
                f"got {_arguments.describe(first)} for {n_ids} ids"
            )
        factors = None
        if scales is not None:
            given = _arguments.as_numbers(scales, "scales")
            _arguments.check_castable("scales", given.dtype, rows.sums_dtype)
            if given.shape != (n_ids,):
                raise ValueError(
                    f"scales must have shape {(n_ids,)}, one for each id, got {given.shape}"
                )
            factors = np.ndarray.view(_arguments.cast(given, rows.sums_dtype), np.ndarray)
        mapping = _encodings.Mapping(ids_to_rows, factors, first, n_ids)
        mapping.check(len(rows.rows))
        encoded = rows._replace(mapping=mapping)
        fields = {"table": table, "index_map": ids_to_rows, "scales": factors, "first_id": first}
        for name, value in (fields | {"_encoded": encoded}).items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemappedTable, (self.table, self.index_map, self.scales, self.first_id)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of ids, and of entries in a row."""
        return self._encoded.n_rows, self._encoded.dim

    @property
    def dim(self) -> int:
        """The entries of a row."""
        return self._encoded.dim

    @property
    def nbytes(self) -> int:
        """The number of bytes of the rows, the map and the scales."""
        return sum(array.nbytes for array in self._encoded.memory())

    def __len__(self) -> int:
        return self._encoded.n_rows

    def __repr__(self) -> str:
        rows = len(self._encoded.rows)
        ids = f"{len(self)} ids from {self.first_id} on" if self.first_id else f"{len(self)} ids"
        return f"RemappedTable({ids}, {rows} rows, dim={self.dim}, {self.nbytes} bytes)"
