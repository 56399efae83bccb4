"""Long format: `segment_ids` and `n_bags` give the bits of the same bags with offsets."""

import itertools

import numpy as np
import pytest
import reference
from cases import NATIVE, SWAPPED
from hypothesis import given
from hypothesis import strategies as st

import embag
from embag._grouping import group_by_segment

RNG = np.random.default_rng(0)
N_ROWS, DIM, N_BAGS = 20, 5, 9
TABLE = RNG.standard_normal((N_ROWS, DIM)).astype(np.float32)
IDS = RNG.integers(0, N_ROWS, 60)
SEGMENTS = RNG.choice([0, 1, 2, 4, 5, 7], 60)  # bags 3, 6 and 8 are empty
MODES = ["sum", "mean", "sqrtn", "max", "min"]


def sorted_call(ids, segments, n_bags, weights=None):
    """Return the ids, the offsets and the weights of the same bags, by plain loops."""
    bags = [
        [k for k, s in enumerate(np.asarray(segments).tolist()) if s == b] for b in range(n_bags)
    ]
    positions = np.array([k for bag in bags for k in bag], np.int64)
    offsets = np.cumsum([0, *map(len, bags)])
    return ids[positions], offsets, None if weights is None else weights[positions], positions


def check(segments, table=TABLE, n_bags=N_BAGS, weights=None, ids=IDS, **options):
    by_bag, offsets, by_bag_weights, _ = sorted_call(ids, segments, n_bags, weights)
    found = embag.embedding_bag(
        ids, table, segment_ids=segments, n_bags=n_bags, per_sample_weights=weights, **options
    )
    expected = embag.embedding_bag(
        by_bag,
        table,
        offsets,
        include_last_offset=True,
        per_sample_weights=by_bag_weights,
        **options,
    )
    if not isinstance(found, tuple):
        found, expected = (found,), (expected,)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, np.ndarray):
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes()
        else:
            assert one == other
    return found[0]


# --- Results ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_definition(mode, is_sorted, dtype, level):
    segments = np.sort(SEGMENTS) if is_sorted else SEGMENTS
    weights = None if mode in ("max", "min") else RNG.standard_normal(60).astype(dtype)
    table = TABLE.astype(dtype)
    by_bag, offsets, by_bag_weights, _ = sorted_call(IDS, segments, N_BAGS, weights)
    expected, _ = reference.embedding_bag(
        by_bag,
        table,
        offsets,
        mode=mode,
        per_sample_weights=by_bag_weights,
        include_last_offset=True,
    )
    found = embag.embedding_bag(
        IDS, table, mode=mode, segment_ids=segments, n_bags=N_BAGS, per_sample_weights=weights
    )
    assert found.tobytes() == expected.tobytes()


def test_a_sum_adds_in_the_order_of_positions():
    table = TABLE.astype(np.float64)
    expected = np.zeros((N_BAGS, DIM))
    np.add.at(expected, SEGMENTS, table[IDS])
    found = embag.embedding_bag(IDS, table, mode="sum", segment_ids=SEGMENTS, n_bags=N_BAGS)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("is_sorted", [False, True])
def test_options(mode, is_sorted):
    segments = np.sort(SEGMENTS) if is_sorted else SEGMENTS
    ids = np.where(IDS == 3, 99, IDS)
    selects = mode in ("max", "min")
    every = itertools.product((None, 2), ("skip", 4), (None, 5), (False, True), (None, 1, 2))
    for padding, invalid, default, normalize, n_threads in every:
        check(
            segments,
            ids=ids,
            weights=None if selects else RNG.standard_normal(60),
            mode=mode,
            padding_idx=padding,
            invalid=invalid,
            default_idx=default,
            normalize=normalize,
            num_threads=n_threads,
            return_n_valid=True,
            return_n_invalid=True,
            return_max_indices=selects,
        )


@pytest.mark.parametrize(
    "kind", [np.int8, np.int32, np.int64, np.uint8, np.uint64, f"{SWAPPED}i8", list]
)
@pytest.mark.parametrize("is_sorted", [False, True])
def test_types_of_segment_ids(kind, is_sorted):
    segments = np.sort(SEGMENTS) if is_sorted else SEGMENTS
    check(segments.tolist() if kind is list else segments.astype(kind), mode="sum")
    check(np.repeat(segments, 2)[::2], mode="sum")  # not contiguous


@pytest.mark.parametrize("dtype", [np.float16, np.float64, "quantized"])
def test_tables(dtype):
    table = embag.quantize(TABLE) if dtype == "quantized" else TABLE.astype(dtype)
    check(SEGMENTS, table, mode="sum", weights=np.arange(60))


def test_ids_that_do_not_fit_32_bits():
    ids = np.where(IDS == 3, IDS + 2**32, IDS)
    check(SEGMENTS, ids=ids, mode="sum", invalid="skip", return_n_invalid=True)
    k = int(np.flatnonzero(IDS == 3)[0])
    with pytest.raises(IndexError, match=rf"^input\[{k}\] = {2**32 + 3} is out of range"):
        embag.embedding_bag(ids, TABLE, segment_ids=SEGMENTS)


def test_the_number_of_bags():
    assert embag.embedding_bag(IDS, TABLE, segment_ids=SEGMENTS).shape == (8, DIM)
    assert check(SEGMENTS, n_bags=30).shape == (30, DIM)
    assert check([5], ids=IDS[:1], n_bags=np.int8(6)).shape == (6, DIM)
    for empty in ([], np.zeros(0, np.int32)):
        assert embag.embedding_bag(empty, TABLE, segment_ids=empty).shape == (0, DIM)
        zeros = embag.embedding_bag(empty, TABLE, segment_ids=empty, n_bags=3)
        assert zeros.tolist() == np.zeros((3, DIM)).tolist()


def test_out_and_max_norm():
    table = TABLE.copy()
    out = np.empty((N_BAGS, DIM), np.float32)
    found = embag.embedding_bag(
        IDS, table, segment_ids=SEGMENTS, n_bags=N_BAGS, max_norm=1.0, out=out
    )
    assert found is out
    by_bag, offsets, _, _ = sorted_call(IDS, SEGMENTS, N_BAGS)
    expected = embag.embedding_bag(by_bag, table, offsets, include_last_offset=True)
    assert out.tobytes() == expected.tobytes()
    assert (np.linalg.norm(table[np.unique(IDS)], axis=1) < 1.001).all()


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, N_ROWS - 1)), max_size=30),
    st.integers(7, 9),
    st.randoms(use_true_random=False),
)
def test_the_order_between_bags_does_not_matter(events, n_bags, random):
    """Only the order within a bag matters, whatever other bags come in between."""
    queues = {s: [r for t, r in events if t == s] for s, _ in events}
    order = [s for s, _ in events]
    random.shuffle(order)
    shuffled = [(s, queues[s].pop(0)) for s in order]
    results = [
        embag.embedding_bag(
            np.array([r for _, r in some], np.int64),
            TABLE,
            mode="sum",
            segment_ids=np.array([s for s, _ in some], np.int64),
            n_bags=n_bags,
        ).tobytes()
        for some in (events, shuffled)
    ]
    assert results[0] == results[1]


def test_grouping():
    segments = RNG.integers(0, 50, 1000)
    found = group_by_segment(segments, 60)
    assert found.order.tolist() == np.argsort(segments, kind="stable").tolist()
    assert found.offsets.tolist() == np.searchsorted(np.sort(segments), np.arange(61)).tolist()
    found = group_by_segment(np.sort(segments), 60)
    assert found.order is None
    assert found.offsets.tolist() == np.searchsorted(np.sort(segments), np.arange(61)).tolist()


# --- Gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("invalid", ["skip", 4])
@pytest.mark.parametrize("is_sorted", [False, True])
def test_gradients(mode, invalid, is_sorted):
    segments = np.sort(SEGMENTS) if is_sorted else SEGMENTS
    ids = np.where(IDS == 3, 99, IDS)
    grad = RNG.standard_normal((N_BAGS, DIM))
    table = TABLE.astype(np.float64)
    weights = None if mode in ("max", "min") else RNG.standard_normal(60)
    by_bag, offsets, by_bag_weights, positions = sorted_call(ids, segments, N_BAGS, weights)
    every = itertools.product((None, 2), (None, 5), (False, True), (False, True))
    for padding, default, normalize, sparse in every:
        options = {
            "mode": mode,
            "padding_idx": padding,
            "invalid": invalid,
            "default_idx": default,
            "normalize": normalize,
            "sparse": sparse,
        }
        found = embag.embedding_bag_backward(
            grad,
            ids,
            table,
            segment_ids=segments,
            n_bags=N_BAGS,
            per_sample_weights=weights,
            **options,
        )
        expected = embag.embedding_bag_backward(
            grad,
            by_bag,
            table,
            offsets,
            include_last_offset=True,
            per_sample_weights=by_bag_weights,
            **options,
        )
        one, other = found.weight, expected.weight
        if sparse:
            one, other = one.to_dense(), other.to_dense()
        assert one.tobytes() == other.tobytes()
        if weights is not None:
            given = found.per_sample_weights[positions]
            assert given.tobytes() == expected.per_sample_weights.tobytes()


def test_gradients_are_differences():
    table = TABLE.astype(np.float64)
    weights = RNG.standard_normal(60) + 3
    grad = RNG.standard_normal((N_BAGS, DIM))

    def loss():
        pooled = embag.embedding_bag(
            IDS, table, segment_ids=SEGMENTS, n_bags=N_BAGS, per_sample_weights=weights
        )
        return float((pooled * grad).sum())

    found = embag.embedding_bag_backward(
        grad, IDS, table, segment_ids=SEGMENTS, n_bags=N_BAGS, per_sample_weights=weights
    )
    for array, result in ((table, found.weight), (weights, found.per_sample_weights)):
        for place in np.ndindex(array.shape):
            kept, step = array[place], 1e-6
            array[place] = kept + step
            above = loss()
            array[place] = kept - step
            assert abs((above - loss()) / (2 * step) - result[place]) < 1e-7
            array[place] = kept


def test_max_indices_of_bags():
    grad = RNG.standard_normal((N_BAGS, DIM)).astype(np.float32)
    given = {"mode": "max", "segment_ids": SEGMENTS, "n_bags": N_BAGS}
    _, winners = embag.embedding_bag(IDS, TABLE, return_max_indices=True, **given)
    found = embag.embedding_bag_backward(grad, IDS, TABLE, max_indices=winners, **given)
    expected = embag.embedding_bag_backward(grad, IDS, TABLE, **given)
    assert found.weight.tobytes() == expected.weight.tobytes()


# --- Errors -----------------------------------------------------------------------------

FEW = np.array([1, 2, 3])
HUGE = 2**63 - 2


def call(**changes):
    arguments = {"input": FEW, "weight": TABLE, "segment_ids": [1, 0, 2]} | changes
    return lambda: embag.embedding_bag(**arguments)


def backward(**changes):
    arguments = {"input": FEW, "weight": TABLE, "segment_ids": [1, 0, 2]} | changes
    return lambda: embag.embedding_bag_backward(np.ones((3, DIM)), **arguments)


ERRORS = [
    (call(segment_ids=None, n_bags=3), ValueError,
     "segment_ids must be given where n_bags is given, got None"),
    (call(offsets=[0]), ValueError, "offsets must be None where segment_ids is given, got list"),
    (call(lengths=[3]), ValueError, "lengths must be None where segment_ids is given, got list"),
    (call(include_last_offset=True), ValueError,
     "include_last_offset must be False where segment_ids is given, got True"),
    (call(input=[[1, 2, 3]]), ValueError,
     "input must be 1-D where segment_ids is given, got shape (1, 3)"),
    (call(input=[[1, 2], [3]]), ValueError,
     "segment_ids must be None where input is ragged, got list"),
    (call(segment_ids=[0, 1]), ValueError,
     "segment_ids must have shape (3,), one for each position of input, got (2,)"),
    (call(segment_ids=1), ValueError,
     "segment_ids must have shape (3,), one for each position of input, got ()"),
    (call(segment_ids=[[0, 1, 2]]), ValueError,
     "segment_ids must have shape (3,), one for each position of input, got (1, 3)"),
    (call(segment_ids=[0.5, 1, 2]), TypeError,
     "segment_ids must be integers, got dtype float64"),
    (call(segment_ids=[True, False, True]), TypeError,
     "segment_ids must be integers, got dtype bool"),
    (call(segment_ids=["a", "b", "c"]), TypeError,
     f"segment_ids must be integers, got dtype {NATIVE}U1"),
    (call(segment_ids=[0, -1, -2]), ValueError,
     "segment_ids must be at least 0 and less than n_bags = 1, got segment_ids[1] = -1"),
    (call(segment_ids=[-3, -2, -1]), ValueError,
     "segment_ids must be at least 0 and less than n_bags = 0, got segment_ids[0] = -3"),
    (call(segment_ids=[0, 3, 2], n_bags=3), ValueError,
     "segment_ids must be at least 0 and less than n_bags = 3, got segment_ids[1] = 3"),
    (call(segment_ids=[0, 3, 4], n_bags=3), ValueError,
     "segment_ids must be at least 0 and less than n_bags = 3, got segment_ids[1] = 3"),
    (call(segment_ids=[0, 0, 0], n_bags=0), ValueError,
     "segment_ids must be at least 0 and less than n_bags = 0, got segment_ids[0] = 0"),
    (call(segment_ids=np.array([0, 2**64 - 1, 2], np.uint64)), ValueError,
     "segment_ids must be at least 0 and less than n_bags = 3, "
     "got segment_ids[1] = 18446744073709551615"),
    (call(segment_ids=[0, 2**70, 2], n_bags=3), ValueError,
     "segment_ids must be at least 0 and less than n_bags = 3, "
     "got segment_ids[1] = 1180591620717411303424"),
    (call(segment_ids=[0, 1, 2**63 - 1]), ValueError,
     f"segment_ids must be at least 0 and less than n_bags = {HUGE}, "
     "got segment_ids[2] = 9223372036854775807"),
    (call(n_bags=True), TypeError, "n_bags must be an integer, got True"),
    (call(n_bags=3.0), TypeError, "n_bags must be an integer, got 3.0"),
    (call(n_bags=-1), ValueError, f"n_bags must be 0 to {HUGE}, got -1"),
    (call(n_bags=2**70), ValueError, f"n_bags must be 0 to {HUGE}, got an integer of 71 bits"),
    (call(input=[1, 20, 3]), IndexError,
     "input[1] = 20 is out of range for a table of 20 rows (bag 0)"),
    (call(input=[-1, 20, 3]), IndexError,
     "input[0] = -1 is out of range for a table of 20 rows (bag 1)"),
    (call(input=[1, 2, 20], segment_ids=[0, 1, 1]), IndexError,
     "input[2] = 20 is out of range for a table of 20 rows (bag 1)"),
    (call(per_sample_weights=[1.0, 2.0]), ValueError,
     "per_sample_weights must have input's shape (3,), got (2,)"),
    (backward(offsets=[0]), ValueError,
     "offsets must be None where segment_ids is given, got list"),
    (backward(segment_ids=None, n_bags=3), ValueError,
     "segment_ids must be given where n_bags is given, got None"),
    (backward(segment_ids=[2, -1, 0]), ValueError,
     "segment_ids must be at least 0 and less than n_bags = 3, got segment_ids[1] = -1"),
    (backward(input=[-1, 20, 3], mode="sum"), IndexError,
     "input[0] = -1 is out of range for a table of 20 rows (bag 1)"),
    (backward(n_bags=4), ValueError,
     "grad_output must have the output's shape (4, 5), got (3, 5)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("n_bags", [2**45, 2**60, 2**62, HUGE])
def test_too_many_bags(n_bags):
    for segment_ids in ([1, 0, 2], [0, 1, 2]):
        with pytest.raises(MemoryError):
            call(segment_ids=segment_ids, n_bags=n_bags)()
        with pytest.raises(MemoryError):
            call(segment_ids=[n_bags - 1, *segment_ids[1:]])()


def test_out_shares_no_memory_with_segment_ids():
    segments = np.zeros(4, np.int64)
    out = segments.view(np.float32)[:5].reshape(1, 5)
    with pytest.raises(ValueError, match="out must share no memory with segment_ids"):
        embag.embedding_bag([1, 2, 3, 4], TABLE, segment_ids=segments, out=out)


def test_a_failing_call_leaves_out_alone():
    out = np.full((3, DIM), 7, np.float32)
    for changes in ({"input": [1, 20, 3]}, {"segment_ids": [2, -1, 0]}):
        with pytest.raises((IndexError, ValueError)):
            call(out=out, **changes)()
        assert (out == 7).all()
