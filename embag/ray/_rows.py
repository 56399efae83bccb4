"""Some rows of a table, as a table of their own that has the same encoding.

Tested in tests/sharding/test_rows.py.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embag import _arguments
from embag.memory import aligned_copy
from embag.quantized import QuantizedTable
from embag.remapped import RemappedTable, RowsTable


def cut_block(table: Any, start: int, stop: int, is_copied: bool) -> Any:
    """Return the rows ``start:stop`` of a table: in its memory, or copied."""
    rows: Any = table[start:stop]
    if is_copied:
        rows = copy_table(rows)
    return rows


def copy_table(table: Any) -> Any:
    """Return a table of any kind in memory of its own."""
    if type(table) is RemappedTable:
        rows = copy_table(table.table)
        return RemappedTable(rows, table.index_map, table.scales, table.first_id)
    if type(table) is QuantizedTable:
        return _with_rows(table, aligned_copy(table.packed), table.scales)
    return aligned_copy(table)


def take_rows(table: RowsTable, rows: NDArray[Any]) -> RowsTable:
    """Return rows of a table."""
    if type(table) is QuantizedTable:
        scales = table.scales
        if scales is not None and scales.ndim:
            scales = scales[rows]
        return _with_rows(table, table.packed[rows], scales)
    taken: RowsTable = np.asarray(table)[rows]
    return taken


def round_rows(rows: RowsTable) -> RowsTable:
    """Return rows as a collection reads them: those of float64 are rounded to float32."""
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float64:
        return rows
    return _arguments.cast(rows, np.dtype(np.float32))


def join_rows(tables: list[RowsTable]) -> RowsTable:
    """Return the rows of tables of one encoding, one table after the other."""
    first = tables[0]
    if type(first) is not QuantizedTable:
        return np.concatenate(tables)  # type: ignore[arg-type]
    quantized: list[Any] = tables
    packed = np.concatenate([table.packed for table in quantized])
    scales = None
    if first.scales is not None:  # one of each row, or one for all rows of a table
        each = [np.broadcast_to(table.scales, len(table)) for table in quantized]
        scales = np.concatenate(each)
    return _with_rows(first, packed, scales)


def _with_rows(table: QuantizedTable, packed: NDArray[Any], scales: Any) -> QuantizedTable:
    """Return a table of other rows, encoded as those of `table`."""
    if scales is None:
        return QuantizedTable.from_packed(packed, table.bits, table.dim, table.layout)
    make, _ = table.__reduce__()
    made: QuantizedTable = make(packed, scales)
    return made
