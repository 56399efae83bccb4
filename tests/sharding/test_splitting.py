"""Each id is in its block and its bag, in the order of the bag."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embag.ray._splitting import Cut, invert, split_features, split_ids


def test_literal():
    ids, offsets = np.array([5, 0, 9, 4, 1, 8]), np.array([0, 3, 3, 5, 6])
    first, middle, last, none = split_ids(ids, offsets, 4, 4)
    assert [part.tolist() for part in first] == [[0, 1], [0, 1, 2], [0, 2], [1, 4]]
    assert [part.tolist() for part in middle] == [[5, 4], [0, 1, 2], [0, 2], [0, 3]]
    assert [part.tolist() for part in last] == [[9, 8], [0, 1, 2], [0, 3], [2, 5]]
    assert none is None
    assert invert([first, middle, last], 6).tolist() == [2, 0, 4, 3, 1, 5]
    assert invert([middle], 6).tolist() == [0, -1, -1, 1, -1, -1]


def test_nothing():
    none = np.zeros(0, np.int64)
    assert split_ids(none, np.zeros(1, np.int64), 4, 3) == [None] * 3
    assert split_ids(none, np.zeros(5, np.int64), 4, 2) == [None] * 2
    assert split_features([]) == []
    assert invert([], 3).tolist() == [-1] * 3
    assert invert([], 0).shape == (0,)


BAGS = st.lists(st.lists(st.integers(0, 19), max_size=6), max_size=6)


@given(st.lists(st.tuples(BAGS, st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=3))
def test_each_id_is_in_its_block_and_bag_in_order(features):
    cuts = []
    for bags, block_rows, n_more in features:
        ids = np.array([i for bag in bags for i in bag], np.int64)
        offsets = np.cumsum([0, *map(len, bags)])
        cuts.append(Cut(ids, offsets, block_rows, -(-20 // block_rows) + n_more))
    for (bags, block_rows, _), cut, blocks in zip(
        features, cuts, split_features(cuts), strict=True
    ):
        assert len(blocks) == cut.n_blocks
        for k, block in enumerate(blocks):
            expected = [[i for i in bag if i // block_rows == k] for bag in bags]
            if block is None:
                assert not any(expected)
                continue
            assert block.bags.tolist() == [b for b, bag in enumerate(expected) if bag]
            found = np.split(block.ids, block.offsets[1:-1])
            assert [bag.tolist() for bag in found] == [bag for bag in expected if bag]
            np.testing.assert_array_equal(cut.ids[block.positions], block.ids)
        found = [block for block in blocks if block is not None]
        joined = np.concatenate([np.zeros(0, np.int64), *(block.ids for block in found)])
        np.testing.assert_array_equal(joined[invert(found, len(cut.ids))], cut.ids)
