"""`SparseRows`: some rows of a table, such as the gradient of a lookup.

A batch touches few rows of a large table. Its gradient holds only those rows, sorted and
unique: a coalesced sparse tensor with one sparse dimension, in terms of torch.

Tested in tests/gradients/test_sparse_rows.py.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments
from embag._grouping import group_by_row
from embag._kernels.dispatch import kernels
from embag._process import threads
from embag.functional import embedding_bag


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

    Gradients of one table are added, clipped and restricted to some rows:

    >>> both = rows + 2 * embag.SparseRows([3, 4], np.array([[1.0, 1.0], [0.0, 5.0]]), (5, 2))
    >>> both.to_dense()
    array([[ 0.,  0.],
           [ 1.,  2.],
           [ 0.,  0.],
           [ 5.,  6.],
           [ 0., 10.]])
    >>> round(rows.clip_norm(1.0).norm(), 6)
    1.0
    >>> both.rows([4, 0]).values
    array([[ 0., 10.]])
    """

    # So that arrays and NumPy's numbers leave `+` and `*` to this class.
    __array_ufunc__ = None

    indices: NDArray[np.int64]
    values: NDArray[Any]
    shape: tuple[int, int]

    def __init__(self, indices: ArrayLike, values: NDArray[Any], shape: tuple[int, int]) -> None:
        rows, values, (n_rows, dim) = _check_parts(indices, values, shape)
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

    @classmethod
    def from_pairs(
        cls, indices: ArrayLike, values: NDArray[Any], shape: tuple[int, int]
    ) -> SparseRows:
        """Return the sum of some rows, each with its place in the table.

        Parameters
        ----------
        indices : array_like of int, shape (n,)
            The place of each row, in any order, each in ``0 .. shape[0] - 1``. Rows of one place
            are added.
        values : ndarray of float32 or float64, shape (n, dim)
            The rows. They are copied.
        shape : (int, int)
            The shape of the table: (n_rows, dim).

        Returns
        -------
        SparseRows
            A row for each place that occurs.

        Raises
        ------
        TypeError
            If an argument has the wrong kind or dtype.
        ValueError
            If the shapes contradict each other.
        IndexError
            If an index is out of range.
        MemoryError
            If there is not enough memory.

        Notes
        -----
        A sum starts at 0 and adds rows in the order of pairs, in the dtype of `values`: the bits
        are those of ``numpy.add.at`` on zeros. In addition to its result, a call takes 24 bytes
        for each pair and 16 for each place that occurs.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> pairs = np.array([[1, 2], [3, 4], [10, 20]], np.float32)
        >>> rows = embag.SparseRows.from_pairs([4, 1, 4], pairs, (5, 2))
        >>> rows.indices, rows.values
        (array([1, 4]), array([[ 3.,  4.],
               [11., 22.]], dtype=float32))
        """
        places, values, (n_rows, dim) = _check_parts(indices, values, shape)
        team = threads.team_for(values.size, None)
        groups = group_by_row(places, len(places), n_rows, team=team)
        if groups is None:
            _arguments.raise_for_change()
        sums = embedding_bag(
            groups.members,
            _arguments.as_table(values),
            groups.starts,
            mode="sum",
            include_last_offset=True,
        )
        return cls._of_groups(groups.rows, sums, (n_rows, dim))

    def __reduce__(self) -> tuple[Any, ...]:
        return SparseRows, (self.indices, self.values, self.shape)

    def __repr__(self) -> str:
        return (
            f"SparseRows({len(self.indices)} of {self.shape[0]} rows, dim={self.shape[1]}, "
            f"{self.values.dtype}, {self.nbytes} bytes)"
        )

    def __add__(self, other: SparseRows) -> SparseRows:
        """Return the sum of two of one shape and dtype; common rows start at 0 and are added."""
        if not isinstance(other, SparseRows):
            return NotImplemented
        if other.values.dtype != self.values.dtype:
            raise TypeError(
                f"both sides of + must have one dtype, got {self.values.dtype} and "
                f"{other.values.dtype}"
            )
        if other.shape != self.shape:
            raise ValueError(
                f"both sides of + must have one shape, got {self.shape} and {other.shape}"
            )
        indices = np.concatenate([self.indices, other.indices])
        return self.from_pairs(indices, np.concatenate([self.values, other.values]), self.shape)

    def __mul__(self, factor: float) -> SparseRows:
        """Return these rows times a real number, which is first rounded to their dtype."""
        if not isinstance(factor, numbers.Real):
            return NotImplemented
        factor = _arguments.as_number(factor, "factor")
        with np.errstate(all="ignore"):
            values = self.values * self.values.dtype.type(factor)
        return self._of_groups(self.indices, values, self.shape)

    __rmul__ = __mul__

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

    def norm(self, ord: float = 2) -> float:
        """Return the norm of all entries as one vector, computed in float64.

        Parameters
        ----------
        ord : {2, 1, inf}, optional
            The norm: Euclidean, the sum of magnitudes, or the largest magnitude.

        Returns
        -------
        float
            The norm; 0 without entries, NaN if an entry is NaN.

        Raises
        ------
        TypeError
            If `ord` is not a number.
        ValueError
            If `ord` is another number.

        See Also
        --------
        clip_norm : Scale rows whose norm is too large.

        Notes
        -----
        Squares are summed after a division by a power of two, so they neither overflow nor
        vanish. A call takes up to 16 bytes for each entry.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> rows = embag.SparseRows([1, 3], np.array([[0.0, 3.0], [4.0, 0.0]]), (5, 2))
        >>> rows.norm(), rows.norm(1), rows.norm(np.inf)
        (5.0, 7.0, 4.0)
        """
        order = _arguments.as_number(ord, "ord")
        if order not in (1, 2, math.inf):
            raise ValueError(f"ord must be 1, 2 or inf, got {_arguments.describe(ord)}")
        with np.errstate(all="ignore"):
            sizes = np.abs(self.values, dtype=np.float64)
            largest = sizes.max(initial=0)
            if order == 1:
                return float(sizes.sum())
            if order == math.inf or largest == 0 or not np.isfinite(largest):
                return float(largest)
            _, exponent = np.frexp(largest)
            scale = np.ldexp(1.0, min(-int(exponent), 1022))
            sizes *= scale
            return float(np.sqrt(np.square(sizes, out=sizes).sum()) / scale)

    def clip_norm(self, max_norm: float) -> SparseRows:
        """Return these rows, scaled so that their norm is at most `max_norm`.

        Parameters
        ----------
        max_norm : float
            The largest Euclidean norm of all entries, at least 0.

        Returns
        -------
        SparseRows
            If the norm is at most `max_norm`, this object itself. Otherwise, new rows: these times
            ``max_norm / norm``. Rounding may leave their norm a few units in the last place above
            `max_norm`.

        Raises
        ------
        TypeError
            If `max_norm` is not a number.
        ValueError
            If it is negative or NaN.

        See Also
        --------
        norm : The norm that is compared, in float64.

        Notes
        -----
        This is ``torch.nn.utils.clip_grad_norm_`` for one gradient, except that torch divides by
        ``norm + 1e-6``. As there, a norm that is infinite gives zeros (NaN for the infinite
        entries), and one that is NaN gives NaN.

        For several gradients, scale each by the same factor: ``max_norm`` divided by the norm of
        all of them.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> rows = embag.SparseRows([1, 3], np.array([[0.0, 3.0], [4.0, 0.0]]), (5, 2))
        >>> rows.clip_norm(2.5).values
        array([[0. , 1.5],
               [2. , 0. ]])
        >>> rows.clip_norm(5) is rows
        True
        """
        bound = _arguments.as_number(max_norm, "max_norm")
        if not bound >= 0:
            raise ValueError(f"max_norm must be at least 0, got {bound}")
        norm = self.norm()
        return self if norm <= bound else self * (bound / norm)

    def rows(self, subset: ArrayLike) -> SparseRows:
        """Return those of these rows that are in a subset of the table's rows.

        Parameters
        ----------
        subset : array_like of int, shape (n_subset,), or of bool, shape (n_rows,)
            Rows of the table in any order, each in ``0 .. n_rows - 1``; repeated ones count once.
            Or a bool for each row of the table.

        Returns
        -------
        SparseRows
            The rows of `indices` that are in the subset, with copies of their values.

        Raises
        ------
        TypeError
            If `subset` holds neither integers nor bools.
        ValueError
            If it has the wrong shape.
        IndexError
            If it names a row out of range.

        Examples
        --------
        A step that leaves some rows of the table unchanged:

        >>> import numpy as np
        >>> import embag
        >>> grad = embag.SparseRows([1, 3], np.array([[1.0, 2.0], [3.0, 4.0]]), (5, 2))
        >>> frozen = np.array([True, True, False, False, False])
        >>> grad.rows(~frozen).indices
        array([3])
        >>> grad.rows([4, 1]).indices
        array([1])
        """
        n_rows, _ = self.shape
        mask = _arguments.as_numbers(subset, "subset")
        if mask.dtype == np.bool_:
            if mask.shape != (n_rows,):
                raise ValueError(
                    f"subset must have shape ({n_rows},) where it holds bools, got {mask.shape}"
                )
            kept = mask[self.indices]
        else:
            ids = _arguments.as_index_array(subset, "subset")
            if ids.ndim != 1:
                raise ValueError(f"subset must be 1-D, got shape {ids.shape}")
            _check_range(ids, subset, n_rows, "subset")
            kept = np.isin(self.indices, ids)
        return self._of_groups(self.indices[kept], self.values[kept], self.shape)

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


def _check_parts(
    indices: Any, values: Any, shape: Any
) -> tuple[NDArray[np.int64], NDArray[Any], tuple[int, int]]:
    """Return rows, their entries and the shape of the table, checked except for the order."""
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
    _check_range(rows, indices, n_rows, "indices")
    return rows, values, (n_rows, dim)


def _check_range(rows: NDArray[Any], given: Any, n_rows: int, name: str) -> None:
    """Raise for the first row out of range; the message quotes `given`."""
    k = kernels.first_bad_index(rows, n_rows)
    if k >= 0:
        _arguments.raise_out_of_range(f"{name}[{k}]", _arguments.integer_at(given, k), n_rows)
