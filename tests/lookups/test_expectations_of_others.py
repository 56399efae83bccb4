"""Results of TensorFlow and OpenVINO as literals, and what embag does differently.

The inputs are ours. The results are from `tf.nn.embedding_lookup_sparse` and
`tf.nn.safe_embedding_lookup_sparse` of TensorFlow 2.21.0, and from EmbeddingBagOffsets-15,
EmbeddingBagPacked-15 and EmbeddingSegmentsSum-3 of OpenVINO 2026.4.1, all on the CPU in
float32.
"""

import numpy as np
import pytest

import embag

TABLE = np.array([[1, 2], [3, -1], [0.5, 4], [-2, 0.25], [8, -6]], np.float32)
IDS = [0, 3, 3, 2, 4, 1]
LENGTHS = [3, 0, 1, 2]
WEIGHTS = [0.5, 2, 1, 3, -1, 0.25]
LAST = [8, -6]  # the row 4

# The largest bag has 3 entries; each rounds a product and a sum, and the bag a quotient.
TOLERANCE = 7 * np.finfo(np.float32).eps


def pool(mode="sum", ids=IDS, lengths=LENGTHS, weights=None, **options):
    return embag.embedding_bag(
        ids, TABLE, lengths=lengths, mode=mode, per_sample_weights=weights, **options
    )


def check(result, expected):
    np.testing.assert_allclose(result, np.array(expected, np.float32), rtol=TOLERANCE)


# --- TensorFlow -----------------------------------------------------------------------

# combiner, weights: the results of the bags that are not empty.
TENSORFLOW = {
    ("sum", False): [[-3.0, 2.5], [0.5, 4.0], [11.0, -7.0]],
    ("sum", True): [[-5.5, 1.75], [1.5, 12.0], [-7.25, 5.75]],
    ("mean", False): [[-1.0, 0.8333333730697632], [0.5, 4.0], [5.5, -3.5]],
    ("mean", True): [
        [-1.5714285373687744, 0.5],
        [0.5, 4.0],
        [9.666666984558105, -7.666666507720947],
    ],
    ("sqrtn", False): [
        [-1.7320507764816284, 1.443375587463379],
        [0.5, 4.0],
        [7.77817440032959, -4.949747562408447],
    ],
    ("sqrtn", True): [
        [-2.4003968238830566, 0.7637625932693481],
        [0.5, 4.0],
        [-7.033533096313477, 5.578319549560547],
    ],
}


@pytest.mark.parametrize(("mode", "weighted"), TENSORFLOW)
@pytest.mark.parametrize(("default", "empty"), [(None, [0, 0]), (4, LAST)])
def test_lookups_of_tensorflow(mode, weighted, default, empty):
    first, *others = TENSORFLOW[mode, weighted]
    weights = WEIGHTS if weighted else None
    check(pool(mode, weights=weights, default_idx=default), [first, empty, *others])


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize(("default", "empty"), [(None, [0, 0]), (3, [-2, 0.25])])
def test_negative_ids_are_pruned_in_safe_lookups(mode, default, empty):
    result = pool(mode, [0, -1, 2, -1], [2, 1, 1], invalid="skip", default_idx=default)
    check(result, [[1, 2], [0.5, 4], empty])


@pytest.mark.parametrize(
    ("mode", "weights", "expected"),
    [
        ("sum", [1, -1], [-2, 3]),
        ("mean", [1, -1], [0, 0]),
        ("sqrtn", [1, -1], [-1.4142135381698608, 2.1213204860687256]),
        ("sum", [0, 0], [0, 0]),
        ("mean", [0, 0], [0, 0]),
        ("sqrtn", [0, 0], [0, 0]),
    ],
)
def test_weights_that_cancel(mode, weights, expected):
    check(pool(mode, [0, 1], [2], weights), [expected])


def test_rows_are_clipped_by_their_norms():
    table = TABLE.copy()
    result = embag.embedding_bag([[0, 1]], table, max_norm=1.0, mode="sum")
    # embag adds 1e-7 to norms, as torch, and TensorFlow does not.
    expected = [[1.3958969116210938, 0.5781993865966797]]
    np.testing.assert_allclose(result, expected, rtol=TOLERANCE + 1e-7)


# What a safe lookup gives for bags whose weights are 0, 2 and -1; the mean and the root leave
# out the entries whose weights are not positive, so the second bag gets the default.
SAFE = {"sum": [[6, -2], [-0.5, -4]], "mean": [[3, -1], LAST], "sqrtn": [[3, -1], LAST]}


@pytest.mark.parametrize("mode", SAFE)
def test_only_safe_lookups_leave_out_entries_whose_weights_are_not_positive(mode):
    ids, lengths, weights = [0, 1, 2], [2, 1], [0, 2, -1]
    result = pool(mode, ids, lengths, weights, default_idx=4)
    second = {"sum": [-0.5, -4], "mean": [0.5, 4], "sqrtn": [-0.5, -4]}[mode]
    check(result, [SAFE[mode][0], second])
    if mode != "sum":  # entries that the caller nulls are left out
        lists = [[id if w > 0 else None for id, w in zip(*bag, strict=True)]
                 for bag in (([0, 1], [0, 2]), ([2], [-1]))]  # fmt: skip
        result = embag.embedding_bag(
            lists, TABLE, mode=mode, per_sample_weights=[[0, 2], [-1]], default_idx=4
        )
        check(result, SAFE[mode])


def test_bags_at_the_end_may_be_empty():
    # TensorFlow returns only [[3, -1], [0.5, 4]]: it has as many bags as the last id needs.
    check(pool(ids=[1, 2], lengths=[1, 1, 0]), [[3, -1], [0.5, 4], [0, 0]])


# --- OpenVINO -------------------------------------------------------------------------

# reduction, default_index, weights
OFFSETS = {
    ("sum", None, False): [[-3, 2.5], [0, 0], [0.5, 4], [11, -7]],
    ("sum", None, True): [[-5.5, 1.75], [0, 0], [1.5, 12], [-7.25, 5.75]],
    ("sum", 4, False): [[-3, 2.5], LAST, [0.5, 4], [11, -7]],
    ("sum", 4, True): [[-5.5, 1.75], LAST, [1.5, 12], [-7.25, 5.75]],
    ("mean", None, False): [[-1, 0.8333333134651184], [0, 0], [0.5, 4], [5.5, -3.5]],
    ("mean", 4, False): [[-1, 0.8333333134651184], LAST, [0.5, 4], [5.5, -3.5]],
}


@pytest.mark.parametrize(("mode", "default", "weighted"), OFFSETS)
def test_embedding_bag_offsets(mode, default, weighted):
    expected = OFFSETS[mode, default, weighted]
    weights = WEIGHTS if weighted else None
    check(pool(mode, weights=weights, default_idx=default), expected)


@pytest.mark.parametrize(
    ("mode", "weighted", "expected"),
    [
        ("sum", False, [[-1, 2.25], [-1.5, 4.25], [11, -7]]),
        ("sum", True, [[-3.5, 1.5], [-0.5, 12.25], [-7.25, 5.75]]),
        ("mean", False, [[-0.5, 1.125], [-0.75, 2.125], [5.5, -3.5]]),
    ],
)
def test_embedding_bag_packed(mode, weighted, expected):
    weights = np.reshape(WEIGHTS, (3, 2)) if weighted else None
    check(pool(mode, np.reshape(IDS, (3, 2)), None, weights), expected)


@pytest.mark.parametrize(
    ("default", "weighted", "expected"),
    [
        (None, False, [[-3, 2.5], [0, 0], [0.5, 4], [11, -7], [0, 0]]),
        (4, False, [[-3, 2.5], LAST, [0.5, 4], [11, -7], LAST]),
        (4, True, [[-5.5, 1.75], LAST, [1.5, 12], [-7.25, 5.75], LAST]),
    ],
)
def test_embedding_segments_sum(default, weighted, expected):
    lengths = np.bincount([0, 0, 0, 2, 3, 3], minlength=5)
    weights = WEIGHTS if weighted else None
    check(pool(lengths=lengths, weights=weights, default_idx=default), expected)


def test_a_default_of_minus_one_is_the_last_row():
    # OpenVINO gives zeros for EmbeddingBagOffsets, and an error for EmbeddingSegmentsSum.
    check(pool(default_idx=-1)[1], LAST)
