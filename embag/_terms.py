"""`Terms`: the gradient of a table before its terms are added.

`embedding_bag_backward` groups them by row, and adds them by the forward kernel, with rows for
bags. An optimizer's update adds those of one row after the other, and changes the row at once
(`_kernels/steps.pxi`).

Tested in tests/gradients/.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embag import _arguments, _encodings
from embag._bags import ArrayBags
from embag._grouping import group_by_row
from embag._kernels.dispatch import kernels
from embag._process import threads
from embag.sparse_rows import SparseRows


class Terms(NamedTuple):
    """Each id in a bag adds the gradient of the bag to its row. Ids are not checked yet."""

    grad: NDArray[Any]  # (n_bags, dim) of the dtype of sums
    bags: ArrayBags
    n_positions: int  # in bags
    factors: NDArray[Any] | None  # of each id, of the dtype of sums
    padding: int  # a row without a gradient, or -1
    is_divided: bool  # sums are divided by the number of their terms
    n_rows: int  # of the table

    @property
    def fits_keys(self) -> bool:
        """Whether a row and a position fit the 64 bits by which `step_tables` sorts."""
        return self.n_rows.bit_length() + max(self.n_positions, len(self.grad)).bit_length() <= 64

    def summed(self, team: threads.Team, sparse: bool) -> NDArray[Any] | SparseRows | None:
        """Return the gradient; None if an id or an offset is bad."""
        bags, grad, factors = self.bags, self.grad, self.factors
        groups = group_by_row(
            bags.indices,
            self.n_positions,
            self.n_rows,
            self.padding,
            team,
            by_bag=factors is None,
            offsets=bags.offsets,
            include_last_offset=bags.includes_last,
        )
        if groups is None:
            return None
        if factors is not None:
            factors = threads.run(
                kernels.look_up_weights,
                team,
                *(bags.indices, bags.offsets, bags.includes_last, factors),
                groups.members,
                self.n_positions,
            )
            if factors is None:
                return None
        rows, shape = groups.rows, (self.n_rows, grad.shape[1])
        if sparse:
            result = _arguments.new_array(np.empty, (len(rows), shape[1]), grad.dtype)
        else:
            result = _arguments.new_array(np.zeros, shape, grad.dtype)
        table = _encodings.as_table(grad)
        done = threads.run(
            kernels.reduce_bags,
            team,
            table.rows,
            table.code,
            table.dim,
            (groups.members,),
            (groups.starts,),
            True,
            (factors,),
            kernels.DIVIDED_SUM if self.is_divided else kernels.MODE_CODES["sum"],
            -1,
            None,
            result,
            table.code,
            None,
            None if sparse else rows,
        )
        if not done:
            return None
        return SparseRows._of_groups(rows, result, shape) if sparse else result
