"""Features of an `EmbeddingBagCollection` without bags: a row for each id.

Tested in tests/collection/test_unpooled.py.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embag import _arguments
from embag._call import Call
from embag._encodings import Table
from embag.backward import call_of
from embag.embedding import as_ids, check_ids, gather


class Unpooled(NamedTuple):
    """A feature without bags, and its table."""

    name: str
    table: Table
    refuse: bool  # raise for ids out of range
    stand_in: int  # otherwise, the row that replaces them; -1: they give zeros
    normalizes: bool

    def read(self, given: Any) -> NDArray[Any]:
        """Return ids as the kernels read them; raise for the first invalid one."""
        with _arguments.prefix_errors(f"feature {self.name!r}"):
            if isinstance(given, tuple):
                raise TypeError("ids must be an array or a list where mode is 'none', got a tuple")
            ids = as_ids(given, "ids")
            self._check(given, ids)
        return ids

    def gather(
        self, ids: NDArray[Any], counter: NDArray[np.int64] | None, num_threads: int | None
    ) -> NDArray[np.float32]:
        """Return the row of each id; add the number of ids out of range to `counter`."""
        shape = (*ids.shape, self.table.dim)
        rows = _arguments.new_array(np.empty, shape, np.dtype(np.float32))
        counter = None if self.refuse else counter
        if not gather(
            self.table, ids, rows, counter, self.stand_in, num_threads, normalizes=self.normalizes
        ):
            with _arguments.prefix_errors(f"feature {self.name!r}"):
                self._check(ids, ids)
            _arguments.raise_for_change()
        return rows

    def call(self, ids: NDArray[Any], table: Any) -> Call:
        """Return the lookup as one with bags, of one id each."""
        invalid: Any = "raise" if self.refuse else "skip" if self.stand_in < 0 else self.stand_in
        return call_of(
            *(ids.reshape(-1, 1), table, None),
            mode="sum",
            invalid=invalid,
            normalize=self.normalizes,
        )

    def _check(self, given: Any, ids: NDArray[Any]) -> None:
        """Raise for the first invalid id, as it was given."""
        check_ids(given, ids, self.table, "ids", refuse=self.refuse, stand_in=self.stand_in)
