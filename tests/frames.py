"""What columns of lists must pool to: the same lists, from plain arrays."""

import numpy as np
from ragged_columns import arrays

import embag

TABLE = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)

LISTS = [[3, 1, 4], [], [1], None, [59, 2, 6, 5, 3], [None, 5], [None], [], [8, 9, 7]]
# As long as the lists, and null where their ids are.
FACTORS = [
    None if bag is None else [None if id is None else 0.5 + id / 7 for id in bag] for bag in LISTS
]
EMPTY = [not any(id is not None for id in bag or ()) for bag in LISTS]


def expected(lists, weights=None, weight=TABLE, **options):
    """Pool lists from plain arrays; null lists are empty, null ids are left out."""
    ids, offsets = arrays(lists, np.int64)
    if weights is not None:
        options["per_sample_weights"] = arrays(weights, np.float32)[0]
    return embag.embedding_bag(ids, weight, offsets, include_last_offset=True, **options)


def assert_pooled(column, bits):
    """Hold a column to an array, bit for bit."""
    values = np.array(column.to_list(), bits.dtype).reshape(bits.shape)
    assert values.tobytes() == bits.tobytes()
