"""`SparseRows`: some rows of a table, such as the gradient of a lookup.

A batch touches few rows of a large table. Its gradient holds only those rows, sorted and
unique: a coalesced sparse tensor with one sparse dimension, in terms of torch.

Tested in tests/gradients/test_sparse_rows.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments
from embag._kernels.dispatch import kernels
from embag._process import threads


@dataclass(frozen=True, init=False, eq=False, repr=False, slots=True)
class SparseRows:
    """Some rows of a table of `shape`; all other rows are zero.

    Parameters
    ----------
    indices : array_like of int, shape (n,)
        The rows, strictly increasing, each in ``0 .. shape[0] - 1``.
    values : ndarray of float32 or float64, shape (n, dim)
        The entries of these rows.
    shape : (int, int)
        The shape of the table: (n_rows, dim).

    Attributes
    ----------
    indices : ndarray of int64, shape (n,)
        The rows, read-only.
    values : ndarray, shape (n, dim)
        The entries of these rows. They may be modified: ``rows.values[...] *= 0.5``.
    shape : (int, int)
        The shape of the table.

    Raises
    ------
    TypeError
        If an argument has the wrong kind or dtype.
    ValueError
        If the shapes contradict each other or the indices do not increase.
    IndexError
        If an index is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> rows = embag.SparseRows([1, 3], np.array([[1.0, 2.0], [3.0, 4.0]]), (5, 2))
    >>> rows
    SparseRows(2 of 5 rows, dim=2, float64, 48 bytes)
    >>> rows.to_dense()
    array([[0., 0.],
           [1., 2.],
           [0., 0.],
           [3., 4.],
           [0., 0.]])
    """

    indices: NDArray[np.int64]
    values: NDArray[Any]
    shape: tuple[int, int]

    def __init__(self, indices: ArrayLike, values: NDArray[Any], shape: tuple[int, int]) -> None:
        if _arguments.is_array(values):  # a subclass may override its attributes
            values = np.ndarray.view(values, np.ndarray)
        _arguments.check_table(values, "values")
        # A copy, which nothing can change after the check.
        rows = np.array(_arguments.as_index_array(indices, "indices"), np.int64)
        n_rows, dim = _arguments.as_table_shape(shape)
        if rows.ndim != 1:
            raise ValueError(f"indices must be 1-D, got shape {rows.shape}")
        if values.shape != (len(rows), dim):
            raise ValueError(f"values must have shape {(len(rows), dim)}, got {values.shape}")
        k = kernels.first_bad_index(rows, n_rows)
        if k >= 0:
            seen = _arguments.integer_at(indices, k)
            _arguments.raise_out_of_range(f"indices[{k}]", seen, n_rows)
        unsorted = np.flatnonzero(rows[1:] <= rows[:-1])
        if len(unsorted):
            k = int(unsorted[0])
            raise ValueError(
                "indices must increase, "
                f"got indices[{k + 1}] = {int(rows[k + 1])} after {int(rows[k])}"
            )
        self._set(rows, values, (n_rows, dim))

    def _set(
        self, indices: NDArray[np.int64], values: NDArray[Any], shape: tuple[int, int]
    ) -> None:
        indices.flags.writeable = False
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "shape", shape)

    @classmethod
    def _of_groups(
        cls, indices: NDArray[np.int64], values: NDArray[Any], shape: tuple[int, int]
    ) -> SparseRows:
        """Return a `SparseRows` of valid parts, without checks."""
        rows = object.__new__(cls)
        rows._set(indices, values, shape)
        return rows

    def __reduce__(self) -> tuple[Any, ...]:
        return SparseRows, (self.indices, self.values, self.shape)

    def __repr__(self) -> str:
        return (
            f"SparseRows({len(self.indices)} of {self.shape[0]} rows, dim={self.shape[1]}, "
            f"{self.values.dtype}, {self.nbytes} bytes)"
        )

    @property
    def nbytes(self) -> int:
        """The number of bytes of `indices` and `values`."""
        return self.indices.nbytes + self.values.nbytes

    def to_dense(self) -> NDArray[Any]:
        """Return the table as an array.

        Returns
        -------
        ndarray, shape (n_rows, dim)
            The rows in `indices`, and zeros for all others.

        Raises
        ------
        MemoryError
            If there is not enough memory.
        """
        dense = _arguments.new_array(np.zeros, self.shape, self.values.dtype)
        dense[self.indices] = self.values
        return dense

    def to_scipy(self) -> Any:
        """Return the table as a SciPy array in coordinate format.

        Returns
        -------
        scipy.sparse.coo_array
            In canonical format, with ``n * dim`` entries. Zeros among the values are stored.

        Raises
        ------
        ImportError
            If SciPy is not installed.
        """
        try:
            from scipy.sparse import coo_array  # noqa: PLC0415  # SciPy is an extra
        except ImportError as error:
            raise ImportError(
                "SparseRows.to_scipy needs scipy: pip install 'embag-cpu[scipy]'"
            ) from error
        n, dim = self.values.shape
        rows = np.repeat(self.indices, dim)
        columns = np.tile(np.arange(dim, dtype=np.int64), n)
        array = coo_array((self.values.reshape(-1), (rows, columns)), shape=self.shape)
        array.has_canonical_format = True
        return array

    def add_to(
        self, weight: NDArray[Any], alpha: float = 1.0, *, num_threads: int | None = None
    ) -> None:
        """Add ``alpha`` times these rows to a table, in place.

        This is ``weight[indices] += alpha * values`` without a temporary array, and with threads.
        A step of gradient descent is ``grads.weight.add_to(weight, -lr)``.

        Parameters
        ----------
        weight : ndarray, shape (n_rows, dim)
            The table: writeable, of this shape, of the dtype of `values`, and with rows that do not
            overlap.
        alpha : float, optional
            The factor, in the dtype of `values`.
        num_threads : int, optional
            The largest number of threads for this call, instead of `get_num_threads`.

        Raises
        ------
        TypeError
            If `weight` has another dtype, or an argument has the wrong kind.
        ValueError
            If `weight` has another shape, is read-only or shares memory with `values`.

        Notes
        -----
        Each product is rounded, then the sum. For a table with non-adjacent columns (Fortran order)
        this takes a temporary array of the size of `values`.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> weight = np.ones((3, 2), np.float32)
        >>> step = embag.SparseRows([2], np.array([[1, 10]], np.float32), (3, 2))
        >>> step.add_to(weight, -0.5)
        >>> weight
        array([[ 1. ,  1. ],
               [ 1. ,  1. ],
               [ 0.5, -4. ]], dtype=float32)
        """
        factor = _arguments.as_number(alpha, "alpha")
        if num_threads is not None:
            num_threads = _arguments.as_count(num_threads, "num_threads")
        _arguments.check_table(weight)
        if weight.dtype != self.values.dtype:
            raise TypeError(f"weight must be {self.values.dtype}, got {weight.dtype}")
        if weight.shape != self.shape:
            raise ValueError(f"weight must have shape {self.shape}, got {weight.shape}")
        if not weight.flags.writeable:
            raise ValueError("weight must be writeable, got a read-only array")
        if _arguments.shares_memory(weight, self.values):
            raise ValueError("weight must share no memory with values, got an overlap")
        values = _arguments.as_table(self.values)
        team = threads.team_for(2 * values.size, num_threads)
        table, indices = weight, self.indices
        if not kernels.is_table(weight):
            table = np.ascontiguousarray(weight.view(np.ndarray)[self.indices])
            indices = np.arange(len(table))
        if not threads.run(kernels.add_rows, team, table, indices, values, factor):
            _arguments.raise_for_change()
        if table is not weight:
            weight.view(np.ndarray)[self.indices] = table
