"""Lists with nulls, and the expected result of pooling columns of them."""

import numpy as np
from ragged_columns import arrays

import embag

TABLE = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)

LISTS = [[3, 1, 4], [], [1], None, [59, 2, 6, 5, 3], [None, 5], [None], [], [8, 9, 7]]
# Weights of the lists, with nulls in the same places.
FACTORS = [
    None if bag is None else [None if id is None else 0.5 + id / 7 for id in bag] for bag in LISTS
]
EMPTY = [not any(id is not None for id in bag or ()) for bag in LISTS]


def expected(lists, weights=None, weight=TABLE, **options):
    """Pool lists as plain arrays; null lists are empty, and null ids are skipped."""
    ids, offsets = arrays(lists, np.int64)
    if weights is not None:
        options["per_sample_weights"] = arrays(weights, np.float32)[0]
    return embag.embedding_bag(ids, weight, offsets, include_last_offset=True, **options)


def assert_pooled(column, bits):
    """Check that a column of vectors has the bits of an array."""
    values = np.array(column.to_list(), bits.dtype).reshape(bits.shape)
    assert values.tobytes() == bits.tobytes()
