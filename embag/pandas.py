"""Embedding bags of pandas columns: `frame["item_ids"].embag.pool(table)`.

Importing this registers the accessor `embag` of series. Columns of Arrow's types are read in
place. Columns of Python objects, a list or an array in each row, are copied into one column.
The result is an Arrow column in the memory that `embag.embedding_bag` returned.

Tested in tests/test_pandas.py.
"""

from typing import Any

from numpy.typing import NDArray

import embag
from embag import _containers, _ragged
from embag.functional import Invalid, Mode
from embag.quantized import QuantizedTable

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
    """`pd.Series.embag`.

    Parameters
    ----------
    series : pandas.Series
        Lists of ids, integers of any width: of an Arrow type of lists
        (``pd.ArrowDtype(pa.list_(pa.int64()))``), read in place; or objects, a list or an
        array of integers in each row, which are copied into one column at each call. That
        takes as long as the pooling, or longer: let ``pd.read_parquet(file,
        dtype_backend="pyarrow")`` read Arrow's types. Without that, lists with nulls become
        arrays of floats, which are no ids.
    """

    def __init__(self, series: pd.Series) -> None:
        self._series = series

    def pool(
        self,
        weight: NDArray[Any] | QuantizedTable,
        mode: Mode = "mean",
        per_sample_weights: pd.Series | None = None,
        padding_idx: int | None = None,
        *,
        num_threads: int | None = None,
        invalid: Invalid = "raise",
        null_empty: bool = False,
    ) -> pd.Series:
        """Gather rows of a table and reduce them per list.

        Parameters
        ----------
        weight : ndarray of float32, float64, float16 or bfloat16, or QuantizedTable
            The table, of shape (n_rows, dim), read where it is if its layout allows (see
            `embag.embedding_bag`). Lists have the numbers of its rows.
        mode : {"mean", "sum", "max"}, optional
            The reduction.
        per_sample_weights : pandas.Series, optional
            Lists as long as those of ids, with the same index: factors for the rows, with
            ``mode="sum"`` only.
        padding_idx : int, optional
            A row, which may be counted from the end. Ids equal to it are left out.
        num_threads : int, optional
            The most threads for this call.
        invalid : {"raise", "skip"}, optional
            What is done about ids that are no rows of the table: IndexError, or they are
            left out.
        null_empty : bool, optional
            Lists without an id (missing, empty or of nulls alone) become missing, not zeros.

        Returns
        -------
        pandas.Series
            With the index and the name of the series of ids, of dtype
            ``pd.ArrowDtype(pa.list_(pa.float32(), dim))``, float64 for a float64 table.

        See Also
        --------
        embag.embedding_bag : the rules.

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
        ids = _as_column(self._series)  # once, for the mask too
        vectors = embag.embedding_bag(
            ids,
            weight,
            mode=mode,
            per_sample_weights=factors,
            padding_idx=padding_idx,
            num_threads=num_threads,
            invalid=invalid,
        )
        mask = embag.empty_bags(ids) if null_empty else None
        column = pa.array(embag.to_arrow(vectors, mask=mask))
        return pd.Series(
            pd.arrays.ArrowExtensionArray(column), self._series.index, name=self._series.name
        )


def _as_arrow(series: pd.Series, name: str) -> pa.Array | pa.ChunkedArray:
    """Return a series of lists as Arrow's, in place."""
    column = pa.array(series, from_pandas=True)
    if not pa.types.is_nested(column.type):
        raise TypeError(f"{name} must be lists of numbers, got dtype {series.dtype}")
    return column


def _as_column(series: pd.Series) -> Any:
    """Return a series of lists of ids as embag reads them."""
    ids = series if series.dtype == object else _as_arrow(series, "the series")
    column = _containers.as_input(ids, "input")
    if type(column) is not _ragged.Column:
        raise TypeError("the series must be lists of integers, got numbers")
    return column
