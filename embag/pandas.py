"""Embedding bags of pandas columns: `frame["item_ids"].embag.pool(table)`.

Importing this module registers the accessor `embag` of series. Columns of Arrow types are read
in place. Columns of Python objects, with a list or an array in each row, are copied into one
Arrow column. The result is an Arrow column in the memory that `embag.embedding_bag` returned.

Tested in tests/bridges/test_pandas.py.
"""

from __future__ import annotations

from typing import Any

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

__all__ = ["SeriesAccessor"]


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
        in each row.
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
        weight : ndarray of float32, float64, float16 or bfloat16, or QuantizedTable
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
            up this row in their place.
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
        column = pa.array(embag.to_arrow(vectors, mask=mask))
        return pd.Series(
            pd.arrays.ArrowExtensionArray(column), self._series.index, name=self._series.name
        )


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
