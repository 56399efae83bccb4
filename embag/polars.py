"""Embedding bags of polars columns: `pl.col("item_ids").embag.pool(table)`.

`pool` reduces lists of ids. `pool_rows` reduces a column with one id in each row, per group.

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
from embag import _arguments
from embag._columns import readers
from embag._columns.pieces import Column
from embag._columns.vectors import as_array
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
        A column of lists of ids: of dtype List or Array, with integers of any width. Or a column of
        ids and weights: lists of structs of an id and a weight, or structs of two lists.
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
        return_n_invalid: bool = False,
        return_n_valid: bool = False,
    ) -> pl.Expr:
        """Gather rows of a table and reduce them per list.

        Parameters
        ----------
        weight : ndarray, QuantizedTable or RemappedTable
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
            up this row instead.
        null_empty : bool, optional
            If True, lists without ids (null, empty or with nulls only) become null instead of
            zeros.
        default_idx : int, optional
            The row of a list in which no id counts; by default its result is zeros.
        normalize : bool, optional
            If True, divide each row of the result by its Euclidean norm.
        return_n_invalid : bool, optional
            If True, also return how many ids of each list are out of range. They are counted by a
            second pass over the ids.
        return_n_valid : bool, optional
            If True, also return how many ids count in each list: those that are neither null nor
            padding nor skipped.

        Returns
        -------
        polars.Expr
            Of dtype ``Array(Float32, dim)``, or Float64 for a float64 table. It has the name of the
            column of ids. With `return_n_invalid` or `return_n_valid`: of dtype Struct, with the
            field "vector" and the requested "n_invalid" and "n_valid" (Int64).

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

        With the number of ids that were skipped:

        >>> frame = pl.DataFrame({"item_ids": [[1, 99], [2]]})
        >>> pool = pl.col("item_ids").embag.pool(items, invalid="skip", return_n_invalid=True)
        >>> frame.select(pool.struct.unnest())["n_invalid"].to_list()
        [1, 0]
        """
        _arguments.check_flags(return_n_invalid=return_n_invalid, return_n_valid=return_n_valid)
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
        weight = as_array(weight, "weight", kept=True)  # chunks are joined once
        pool = partial(
            _pool,
            weight=weight,
            null_empty=null_empty,
            counts=(return_n_invalid, return_n_valid),
            options=options,
        )
        # Pooling no bags now gives the dtype. It also raises for an invalid table or option
        # here, not in the middle of a query.
        return pl.map_batches(columns, pool, return_dtype=pool(no_bags).dtype, is_elementwise=True)

    def pool_rows(
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
        """Gather rows of a table by a column of ids, one in each row, and reduce them to one row.

        This is an aggregation, like ``pl.Expr.sum``: in ``group_by(...).agg(...)`` there is a
        result for each group, elsewhere one for the whole column.

        Parameters
        ----------
        weight, mode, padding_idx, num_threads, invalid, null_empty, default_idx, normalize
            As in `pool`.
        per_sample_weights : polars.Expr or str, optional
            A column of numbers: a factor for each gathered row. Not with ``mode="max"`` and
            ``mode="min"``.

        Returns
        -------
        polars.Expr
            As in `pool`.

        Raises
        ------
        TypeError, ValueError
            If the table or an option is invalid. Errors in the columns are raised when the
            query runs.

        See Also
        --------
        embag.embedding_bag : The same for arrays, with `segment_ids`.

        Examples
        --------
        >>> import numpy as np
        >>> import polars as pl
        >>> import embag.polars
        >>> items = np.array([[0, 1], [10, 11], [20, 21]], np.float32)
        >>> events = pl.LazyFrame({"user_id": [7, 9, 7], "item_id": [1, 0, 2]})
        >>> users = events.group_by("user_id", maintain_order=True).agg(
        ...     vector=pl.col("item_id").embag.pool_rows(items)
        ... )
        >>> users.collect().to_dicts()
        [{'user_id': 7, 'vector': [15.0, 16.0]}, {'user_id': 9, 'vector': [0.0, 1.0]}]
        """
        factors: Any = per_sample_weights
        if factors is not None:
            factors = (pl.col(factors) if isinstance(factors, str) else factors).implode()
        return ExprNamespace(self._expr.implode()).pool(
            weight,
            mode,
            factors,
            padding_idx,
            num_threads=num_threads,
            invalid=invalid,
            null_empty=null_empty,
            default_idx=default_idx,
            normalize=normalize,
        )


@pl.api.register_series_namespace("embag")
class SeriesNamespace:
    """The namespace `pl.Series.embag`.

    Parameters
    ----------
    series : polars.Series
        Lists of ids: of dtype List or Array, with integers of any width. Or ids and weights: lists
        of structs of an id and a weight, or structs of two lists.
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
        return_n_invalid: bool = False,
        return_n_valid: bool = False,
    ) -> pl.Series:
        """Gather rows of a table and reduce them per list.

        Parameters
        ----------
        weight, mode, padding_idx, num_threads, invalid, null_empty, default_idx, \
normalize, return_n_invalid, return_n_valid : optional
            As in `ExprNamespace.pool`.
        per_sample_weights : polars.Series, optional
            Lists as long as those of ids: a factor for each gathered row. Not with
            ``mode="max"`` and ``mode="min"``.

        Returns
        -------
        polars.Series
            Of dtype ``Array(Float32, dim)``, or Float64 for a float64 table, or of dtype Struct, as
            in `ExprNamespace.pool`. It has the name of the series of ids.

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
        _arguments.check_flags(return_n_invalid=return_n_invalid, return_n_valid=return_n_valid)
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
        counts = return_n_invalid, return_n_valid
        return _pool(columns, weight=weight, null_empty=null_empty, counts=counts, options=options)


def _pool(
    columns: list[pl.Series],
    *,
    weight: Table,
    null_empty: bool,
    counts: tuple[bool, bool],
    options: dict[str, Any],
    return_dtype: Any = None,  # polars passes the dtype of the expression
) -> pl.Series:
    """Pool a column, or a piece of one. The second column, if any, has the weights.

    `counts`: whether to return how many ids are out of range, and how many count.
    """
    ids, *factors = columns
    is_nested = isinstance(ids.dtype, (pl.List, pl.Array, pl.Struct))
    column = readers.as_input(ids, "input") if is_nested else None
    if type(column) is not Column:
        raise TypeError(f"the column must be lists of integers, got dtype {ids.dtype}")
    returns_n_invalid, returns_n_valid = counts
    vectors = embag.embedding_bag(
        column,
        weight,
        per_sample_weights=factors[0] if factors else None,
        return_n_valid=returns_n_valid,
        **options,
    )
    if returns_n_valid:
        vectors, n_valid = vectors
    if vectors.shape[1] == 0:
        raise ValueError("weight must have at least 1 column where polars takes the result, got 0")
    mask = embag.empty_bags(column) if null_empty else None
    # The name is set last: a Series made from an Arrow column ignores the argument `name`.
    result = pl.Series(embag.to_arrow(vectors, mask=mask))
    fields = {"vector": result}
    if returns_n_invalid:
        fields["n_invalid"] = pl.Series(column.count_out_of_range(weight.shape[0]))
    if returns_n_valid:
        fields["n_valid"] = pl.Series(n_valid)
    if len(fields) > 1:
        result = pl.DataFrame(fields).to_struct()
    return result.alias(ids.name)
