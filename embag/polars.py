"""Embedding bags of polars columns: `pl.col("item_ids").embag.pool(table)`.

Importing this registers the namespace `embag` of expressions and of series. Columns go to
`embag.embedding_bag` as they lie in memory, and the result is a column of dtype Array in the
memory that it returned. Each list is pooled by itself, so polars may hand a column over in
pieces, in any order, from any of its threads: that is how its streaming engine works.

Tested in tests/test_polars.py.
"""

from functools import partial
from typing import Any

from numpy.typing import NDArray

import embag
from embag.functional import Invalid, Mode
from embag.quantized import QuantizedTable

try:
    import polars as pl
except ImportError as error:
    raise ImportError("embag.polars needs polars: pip install polars 'embag-cpu[arrow]'") from error

__all__ = ["ExprNamespace", "SeriesNamespace"]


@pl.api.register_expr_namespace("embag")
class ExprNamespace:
    """`pl.Expr.embag`.

    Parameters
    ----------
    expr : polars.Expr
        A column of lists of ids: of dtype List or Array, of integers of any width.
    """

    def __init__(self, expr: pl.Expr) -> None:
        self._expr = expr

    def pool(
        self,
        weight: NDArray[Any] | QuantizedTable,
        mode: Mode = "mean",
        per_sample_weights: pl.Expr | str | None = None,
        padding_idx: int | None = None,
        *,
        num_threads: int | None = None,
        invalid: Invalid = "raise",
        null_empty: bool = False,
    ) -> pl.Expr:
        """Gather rows of a table and reduce them per list.

        Parameters
        ----------
        weight : ndarray of float32, float64, float16 or bfloat16, or QuantizedTable
            The table, of shape (n_rows, dim): read when the query runs, and then where it
            is if its layout allows (see `embag.embedding_bag`).
        mode : {"mean", "sum", "max"}, optional
            The reduction.
        per_sample_weights : polars.Expr or str, optional
            A column of lists as long as those of ids: factors for the rows, with
            ``mode="sum"`` only.
        padding_idx : int, optional
            A row, which may be counted from the end. Ids equal to it are left out.
        num_threads : int, optional
            The most threads for each call. ``with embag.num_threads(n):`` does not reach the
            threads of polars, `embag.set_num_threads` does.
        invalid : {"raise", "skip"}, optional
            What is done about ids that are no rows of the table: IndexError, or they are
            left out.
        null_empty : bool, optional
            Lists without an id (null, empty or of nulls alone) become null, not zeros.

        Returns
        -------
        polars.Expr
            Of dtype ``Array(Float32, dim)``, with Float64 for a float64 table. It has the
            name of the column of ids.

        Raises
        ------
        TypeError, ValueError
            For a bad table or option, at once. What is wrong with the columns is raised
            when the query runs.

        See Also
        --------
        embag.embedding_bag : the rules.

        Examples
        --------
        >>> import numpy as np
        >>> import polars as pl
        >>> import embag.polars
        >>> items = np.array([[0, 1], [10, 11], [20, 21]], np.float32)
        >>> frame = pl.LazyFrame({"item_ids": [[1, 2], [], [2, None]]})
        >>> frame.select(pl.col("item_ids").embag.pool(items)).collect()["item_ids"].to_list()
        [[15.0, 16.0], [0.0, 0.0], [20.0, 21.0]]
        """
        columns: list[pl.Expr | str] = [self._expr]
        nothing = [pl.Series(dtype=pl.List(pl.Int64))]
        if per_sample_weights is not None:
            columns.append(per_sample_weights)
            nothing.append(pl.Series(dtype=pl.List(pl.Float32)))
        options = {
            "mode": mode,
            "padding_idx": padding_idx,
            "num_threads": num_threads,
            "invalid": invalid,
        }
        pool = partial(_pool, weight=weight, null_empty=null_empty, options=options)
        # No bags are pooled at once: that gives the dtype, and tells what is wrong with the
        # table or the options where they are written, not in the middle of a query.
        return pl.map_batches(columns, pool, return_dtype=pool(nothing).dtype, is_elementwise=True)


@pl.api.register_series_namespace("embag")
class SeriesNamespace:
    """`pl.Series.embag`.

    Parameters
    ----------
    series : polars.Series
        Lists of ids: of dtype List or Array, of integers of any width.
    """

    def __init__(self, series: pl.Series) -> None:
        self._series = series

    def pool(
        self,
        weight: NDArray[Any] | QuantizedTable,
        mode: Mode = "mean",
        per_sample_weights: pl.Series | None = None,
        padding_idx: int | None = None,
        *,
        num_threads: int | None = None,
        invalid: Invalid = "raise",
        null_empty: bool = False,
    ) -> pl.Series:
        """Gather rows of a table and reduce them per list.

        Parameters
        ----------
        weight, mode, padding_idx, num_threads, invalid, null_empty : optional
            As of expressions: `ExprNamespace.pool`.
        per_sample_weights : polars.Series, optional
            Lists as long as those of ids: factors for the rows, with ``mode="sum"`` only.

        Returns
        -------
        polars.Series
            Of dtype ``Array(Float32, dim)``, with Float64 for a float64 table. It has the
            name of the series of ids.

        See Also
        --------
        embag.embedding_bag : the rules.

        Examples
        --------
        >>> import numpy as np
        >>> import polars as pl
        >>> import embag.polars
        >>> items = np.array([[0, 1], [10, 11], [20, 21]], np.float32)
        >>> pl.Series([[1, 2], [], [2]]).embag.pool(items, mode="sum").to_list()
        [[30.0, 32.0], [0.0, 0.0], [20.0, 21.0]]
        """
        columns = [self._series]
        if per_sample_weights is not None:
            columns.append(per_sample_weights)
        options = {
            "mode": mode,
            "padding_idx": padding_idx,
            "num_threads": num_threads,
            "invalid": invalid,
        }
        return _pool(columns, weight=weight, null_empty=null_empty, options=options)


def _pool(
    columns: list[pl.Series],
    *,
    weight: NDArray[Any] | QuantizedTable,
    null_empty: bool,
    options: dict[str, Any],
    return_dtype: Any = None,  # what an expression has promised: polars tells that too
) -> pl.Series:
    """Pool a column, or a piece of one; the second, if any, has the factors."""
    ids, *factors = columns
    if not isinstance(ids.dtype, (pl.List, pl.Array)):
        raise TypeError(f"the column must be lists of integers, got dtype {ids.dtype}")
    vectors = embag.embedding_bag(
        ids, weight, per_sample_weights=factors[0] if factors else None, **options
    )
    if vectors.shape[1] == 0:
        raise ValueError("weight must have at least 1 column where polars takes the result, got 0")
    mask = embag.empty_bags(ids) if null_empty else None
    # The name is set last: a Series takes that of an Arrow column, whatever it is told.
    return pl.Series(embag.to_arrow(vectors, mask=mask)).alias(ids.name)
