"""Embedding bags of polars columns: `pl.col("item_ids").embag.pool(table)`.

Importing this module registers the namespace `embag` of expressions and series. Columns are
read in place where `embag.embedding_bag` can, and the result is an Array column in the memory
that it returned. Each list is pooled on its own. So polars may pass a column in pieces, in any
order and from any thread, as its streaming engine does.

Tested in tests/bridges/test_polars.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import embag
from embag._types import Invalid, Mode, Table

try:
    import polars as pl
except ImportError as error:
    raise ImportError("embag.polars needs polars: pip install polars 'embag-cpu[arrow]'") from error

__all__ = ["ExprNamespace", "SeriesNamespace"]


@pl.api.register_expr_namespace("embag")
class ExprNamespace:
    """The namespace `pl.Expr.embag`.

    Parameters
    ----------
    expr : polars.Expr
        A column of lists of ids: of dtype List or Array, with integers of any width.
    """

    def __init__(self, expr: pl.Expr) -> None:
        self._expr = expr

    def pool(
        self,
        weight: Table,
        mode: Mode = "mean",
        per_sample_weights: pl.Expr | str | None = None,
        padding_idx: int | None = None,
        *,
        num_threads: int | None = None,
        invalid: Invalid = "raise",
        null_empty: bool = False,
        default_idx: int | None = None,
        normalize: bool = False,
    ) -> pl.Expr:
        """Gather rows of a table and reduce them per list.

        Parameters
        ----------
        weight : ndarray of float32, float64, float16 or bfloat16, or QuantizedTable
            The table, of shape (n_rows, dim). It is read when the query runs, in place if its
            layout allows (see `embag.embedding_bag`).
        mode : {"mean", "sum", "sqrtn", "max", "min"}, optional
            How the rows of a list are reduced.
        per_sample_weights : polars.Expr or str, optional
            A column of lists as long as those of ids: a factor for each gathered row. Not with
            ``mode="max"`` and ``mode="min"``.
        padding_idx : int, optional
            A row that is skipped; a negative number counts from the end.
        num_threads : int, optional
            The largest number of threads for each call. ``with embag.num_threads(n):`` does not
            affect the threads of polars; `embag.set_num_threads` does.
        invalid : {"raise", "skip"} or int, optional
            What to do with ids out of range: raise an IndexError, skip them like padding, or look
            up this row in their place.
        null_empty : bool, optional
            If True, lists without ids (null, empty or with nulls only) become null instead of
            zeros.
        default_idx : int, optional
            The row of a list in which no id counts; by default its result is zeros.
        normalize : bool, optional
            If True, divide each row of the result by its Euclidean norm.

        Returns
        -------
        polars.Expr
            Of dtype ``Array(Float32, dim)``, or Float64 for a float64 table. It has the name of the
            column of ids.

        Raises
        ------
        TypeError, ValueError
            If the table or an option is invalid. Errors in the columns are raised when the
            query runs.

        See Also
        --------
        embag.embedding_bag : The same for arrays, with all rules.

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
        no_bags = [pl.Series(dtype=pl.List(pl.Int64))]
        if per_sample_weights is not None:
            columns.append(per_sample_weights)
            no_bags.append(pl.Series(dtype=pl.List(pl.Float32)))
        options = {
            "mode": mode,
            "padding_idx": padding_idx,
            "num_threads": num_threads,
            "invalid": invalid,
            "default_idx": default_idx,
            "normalize": normalize,
        }
        pool = partial(_pool, weight=weight, null_empty=null_empty, options=options)
        # Pooling no bags now gives the dtype. It also raises for an invalid table or option
        # here, not in the middle of a query.
        return pl.map_batches(columns, pool, return_dtype=pool(no_bags).dtype, is_elementwise=True)


@pl.api.register_series_namespace("embag")
class SeriesNamespace:
    """The namespace `pl.Series.embag`.

    Parameters
    ----------
    series : polars.Series
        Lists of ids: of dtype List or Array, with integers of any width.
    """

    def __init__(self, series: pl.Series) -> None:
        self._series = series

    def pool(
        self,
        weight: Table,
        mode: Mode = "mean",
        per_sample_weights: pl.Series | None = None,
        padding_idx: int | None = None,
        *,
        num_threads: int | None = None,
        invalid: Invalid = "raise",
        null_empty: bool = False,
        default_idx: int | None = None,
        normalize: bool = False,
    ) -> pl.Series:
        """Gather rows of a table and reduce them per list.

        Parameters
        ----------
        weight, mode, padding_idx, num_threads, invalid, null_empty, default_idx, \
normalize : optional
            As in `ExprNamespace.pool`.
        per_sample_weights : polars.Series, optional
            Lists as long as those of ids: a factor for each gathered row. Not with
            ``mode="max"`` and ``mode="min"``.

        Returns
        -------
        polars.Series
            Of dtype ``Array(Float32, dim)``, or Float64 for a float64 table. It has the name of the
            series of ids.

        Raises
        ------
        TypeError, ValueError, IndexError, MemoryError, RuntimeError
            As in `embag.embedding_bag`.

        See Also
        --------
        embag.embedding_bag : The same for arrays, with all rules.

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
            "default_idx": default_idx,
            "normalize": normalize,
        }
        return _pool(columns, weight=weight, null_empty=null_empty, options=options)


def _pool(
    columns: list[pl.Series],
    *,
    weight: Table,
    null_empty: bool,
    options: dict[str, Any],
    return_dtype: Any = None,  # polars passes the dtype of the expression
) -> pl.Series:
    """Pool a column, or a piece of one. The second column, if any, has the weights."""
    ids, *factors = columns
    if not isinstance(ids.dtype, (pl.List, pl.Array)):
        raise TypeError(f"the column must be lists of integers, got dtype {ids.dtype}")
    vectors = embag.embedding_bag(
        ids, weight, per_sample_weights=factors[0] if factors else None, **options
    )
    if vectors.shape[1] == 0:
        raise ValueError("weight must have at least 1 column where polars takes the result, got 0")
    mask = embag.empty_bags(ids) if null_empty else None
    # The name is set last: a Series made from an Arrow column ignores the argument `name`.
    return pl.Series(embag.to_arrow(vectors, mask=mask)).alias(ids.name)
