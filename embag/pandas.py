"""Embedding bags of pandas columns: `frame["item_ids"].embag.pool(table)`.

Importing this module registers the accessor `embag`: of series of lists of ids, and of frames
with one id in each row. Columns of Arrow types are read in place. Columns of Python
objects, with a list or an array in each row, are copied into one Arrow column. The result is an
Arrow column in the memory that `embag.embedding_bag` returned.

Tested in tests/bridges/test_pandas.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import embag
from embag._columns import readers
from embag._columns.pieces import Column
from embag._types import Invalid, Mode, Table

try:
    import pandas as pd
    import pyarrow as pa
except ImportError as error:
    raise ImportError(
        "embag.pandas needs pandas and pyarrow: pip install pandas pyarrow 'embag-cpu[arrow]'"
    ) from error

__all__ = ["FrameAccessor", "SeriesAccessor"]


@pd.api.extensions.register_series_accessor("embag")
class SeriesAccessor:
    """The accessor `pd.Series.embag`.

    A series of an Arrow type is read in place. A series of objects is copied at each call, which
    takes as long as the pooling or longer. ``pd.read_parquet(file, dtype_backend="pyarrow")``
    reads Arrow types; without `dtype_backend`, lists with nulls become arrays of floats, which are
    not ids.

    Parameters
    ----------
    series : pandas.Series
        Lists of ids, integers of any width: of an Arrow type of lists
        (``pd.ArrowDtype(pa.list_(pa.int64()))``), or objects, with a list or an array of integers
        in each row. Or ids with weights, of an Arrow type: maps, lists of structs of an id and a
        weight, or structs of two lists.
    """

    def __init__(self, series: pd.Series) -> None:
        self._series = series

    def pool(
        self,
        weight: Table,
        mode: Mode = "mean",
        per_sample_weights: pd.Series | None = None,
        padding_idx: int | None = None,
        *,
        num_threads: int | None = None,
        invalid: Invalid = "raise",
        null_empty: bool = False,
        default_idx: int | None = None,
        normalize: bool = False,
    ) -> pd.Series:
        """Gather rows of a table and reduce them per list.

        Parameters
        ----------
        weight : ndarray, QuantizedTable or RemappedTable
            The table, of shape (n_rows, dim). It is read in place if its layout allows (see
            `embag.embedding_bag`).
        mode : {"mean", "sum", "sqrtn", "max", "min"}, optional
            How the rows of a list are reduced.
        per_sample_weights : pandas.Series, optional
            Lists as long as those of ids, with the same index: a factor for each gathered row. Not
            with ``mode="max"`` and ``mode="min"``.
        padding_idx : int, optional
            A row that is skipped; a negative number counts from the end.
        num_threads : int, optional
            The largest number of threads for this call.
        invalid : {"raise", "skip"} or int, optional
            What to do with ids out of range: raise an IndexError, skip them like padding, or look
            up this row instead.
        null_empty : bool, optional
            If True, lists without ids (missing, empty or with nulls only) become missing instead of
            zeros.
        default_idx : int, optional
            The row of a list in which no id counts; by default its result is zeros.
        normalize : bool, optional
            If True, divide each row of the result by its Euclidean norm.

        Returns
        -------
        pandas.Series
            With the index and the name of the series of ids, of dtype
            ``pd.ArrowDtype(pa.list_(pa.float32(), dim))``, or float64 for a float64 table.

        Raises
        ------
        TypeError, ValueError, IndexError, MemoryError, RuntimeError
            As in `embag.embedding_bag`. ValueError if `per_sample_weights` has another index.

        See Also
        --------
        embag.embedding_bag : The same for arrays, with all rules.

        Examples
        --------
        >>> import numpy as np
        >>> import pandas as pd
        >>> import embag.pandas
        >>> items = np.array([[0, 1], [10, 11], [20, 21]], np.float32)
        >>> baskets = pd.Series([[1, 2], [], [2]], index=["ann", "bob", "eve"])
        >>> baskets.embag.pool(items).to_dict()
        {'ann': [15.0, 16.0], 'bob': [0.0, 0.0], 'eve': [20.0, 21.0]}
        """
        factors: Any = per_sample_weights
        if factors is not None:
            if not self._series.index.equals(factors.index):
                raise ValueError(
                    "per_sample_weights must have the index of the series, got another"
                )
            if factors.dtype != object:
                factors = _as_arrow(factors, "per_sample_weights")
        ids = _as_column(self._series)  # read once, for the mask too
        vectors = embag.embedding_bag(
            ids,
            weight,
            mode=mode,
            per_sample_weights=factors,
            padding_idx=padding_idx,
            num_threads=num_threads,
            invalid=invalid,
            default_idx=default_idx,
            normalize=normalize,
        )
        mask = embag.empty_bags(ids) if null_empty else None
        return _as_series(vectors, self._series.index, self._series.name, mask)


@pd.api.extensions.register_dataframe_accessor("embag")
class FrameAccessor:
    """The accessor `pd.DataFrame.embag`, for frames with one id in each row.

    Parameters
    ----------
    frame : pandas.DataFrame
        A column of keys, a column of ids, which are integers, and perhaps a column of weights.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame

    def pool(
        self,
        by: Any,
        column: str,
        weight: Table,
        mode: Mode = "mean",
        per_sample_weights: str | None = None,
        padding_idx: int | None = None,
        *,
        num_threads: int | None = None,
        invalid: Invalid = "raise",
        null_empty: bool = False,
        default_idx: int | None = None,
        normalize: bool = False,
        sort: bool = True,
        dropna: bool = True,
    ) -> pd.Series:
        """Gather rows of a table and reduce them per key.

        Parameters
        ----------
        by : str or list of str
            The columns of keys, as in ``pandas.DataFrame.groupby``.
        column : str
            The column of ids: integers of any width. Missing ids are skipped.
        per_sample_weights : str, optional
            The column of weights: a factor for each gathered row. Not with ``mode="max"`` and
            ``mode="min"``.
        weight, mode, padding_idx, num_threads, invalid, default_idx, normalize
            As in `SeriesAccessor.pool`.
        null_empty : bool, optional
            If True, keys that have only missing ids get a missing vector instead of zeros.
        sort : bool, optional
            If True, the result is sorted by key; otherwise keys are in the order of their first
            rows.
        dropna : bool, optional
            If True, rows with a missing key are left out; otherwise they have a key of their own.

        Returns
        -------
        pandas.Series
            A vector for each key; within a key, vectors are added in the order of the rows. Its
            index has the keys, and its name is `column`. The dtype is that of
            `SeriesAccessor.pool`.

        Raises
        ------
        KeyError
            If there is no such column.
        TypeError, ValueError, IndexError, MemoryError, RuntimeError
            As in `embag.embedding_bag`. Positions in messages count the rows whose key and id are
            not missing.

        See Also
        --------
        embag.embedding_bag : The same for arrays, with `segment_ids`.

        Examples
        --------
        >>> import numpy as np
        >>> import pandas as pd
        >>> import embag.pandas
        >>> items = np.array([[0, 1], [10, 11], [20, 21]], np.float32)
        >>> events = pd.DataFrame({"user_id": [9, 7, 7], "item_id": [0, 1, 2]})
        >>> events.embag.pool("user_id", "item_id", items).to_dict()
        {7: [15.0, 16.0], 9: [0.0, 1.0]}
        """
        grouped = self._frame.groupby(by, sort=sort, dropna=dropna, observed=True)
        keys, segments = grouped.size().index, grouped.ngroup()
        ids = self._frame[column]
        weights = None if per_sample_weights is None else self._frame[per_sample_weights]
        counts = ids.notna() & segments.notna()
        if not counts.all():
            ids, segments = ids[counts], segments[counts]
            weights = None if weights is None else weights[counts]
        segment_ids = segments.to_numpy(np.int64)
        vectors = embag.embedding_bag(
            ids,
            weight,
            mode=mode,
            per_sample_weights=weights,
            padding_idx=padding_idx,
            num_threads=num_threads,
            invalid=invalid,
            default_idx=default_idx,
            normalize=normalize,
            segment_ids=segment_ids,
            n_bags=len(keys),
        )
        mask = None
        if null_empty:
            mask = np.ones(len(keys), np.bool_)
            mask[segment_ids] = False
        return _as_series(vectors, keys, column, mask)


def _as_series(
    vectors: NDArray[Any], index: pd.Index, name: Any, mask: NDArray[np.bool_] | None
) -> pd.Series:
    """Return vectors as a series, missing where the mask is True."""
    column = pa.array(embag.to_arrow(vectors, mask=mask))
    return pd.Series(pd.arrays.ArrowExtensionArray(column), index, name=name)


def _as_arrow(series: pd.Series, name: str) -> pa.Array | pa.ChunkedArray:
    """Return a series of lists as an Arrow array, in place."""
    column = pa.array(series, from_pandas=True)
    if not pa.types.is_nested(column.type):
        raise TypeError(f"{name} must be lists of numbers, got dtype {series.dtype}")
    return column


def _as_column(series: pd.Series) -> Any:
    """Return a series of lists of ids as embag reads them."""
    ids = series if series.dtype == object else _as_arrow(series, "the series")
    column = readers.as_input(ids, "input")
    if type(column) is not Column:
        raise TypeError("the series must be lists of integers, got numbers")
    return column
