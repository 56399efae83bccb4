"""Rows of an array by segment: `segment_reduce` and its gradients."""

import numpy as np
import pytest
import reference
from cases import NATIVE
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import embag

RNG = np.random.default_rng(0)
N, DIM, N_SEGMENTS = 60, 5, 9
DATA = RNG.standard_normal((N, DIM)).astype(np.float32)
SEGMENTS = RNG.choice([0, 1, 2, 4, 5, 7], N)  # segments 3, 6 and 8 are empty
MODES = ["sum", "mean", "sqrtn", "max", "min"]


def in_order(segments, n_segments):
    """Return the positions of each segment, end to end, and the offsets."""
    each = [[k for k, s in enumerate(segments.tolist()) if s == b] for b in range(n_segments)]
    return np.array([k for some in each for k in some], np.int64), np.cumsum([0, *map(len, each)])


@pytest.mark.parametrize(
    ("mode", "weighted"),
    [*((mode, False) for mode in MODES), ("sum", True), ("mean", True), ("sqrtn", True)],
)
@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_the_definition(mode, weighted, is_sorted, dtype, level):
    segments = np.sort(SEGMENTS) if is_sorted else SEGMENTS
    data = DATA.astype(dtype)
    weights = RNG.standard_normal(N) if weighted else None
    positions, offsets = in_order(segments, N_SEGMENTS)
    expected, winners = reference.embedding_bag(
        positions,
        data if dtype == np.float64 else data.astype(np.float32),
        offsets,
        mode=mode,
        per_sample_weights=None if weights is None else weights[positions],
        include_last_offset=True,
    )
    found = embag.segment_reduce(data, segments, N_SEGMENTS, mode, per_sample_weights=weights)
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()
    if mode in ("max", "min"):
        again, rows = embag.segment_reduce(data, segments, mode=mode, return_max_indices=True)
        assert again.tobytes() == expected[:8].tobytes()
        assert rows.tolist() == winners[:8].tolist()


@given(
    hnp.arrays(np.int64, st.integers(0, 40), elements=st.integers(0, 6)),
    st.integers(1, 9),
    st.integers(1, 3),
)
def test_a_sum_is_that_of_add_at(segments, dim, num_threads):
    data = np.random.default_rng(len(segments)).standard_normal((len(segments), dim))
    expected = np.zeros((7, dim))
    np.add.at(expected, segments, data)
    found = embag.segment_reduce(data, segments, 7, num_threads=num_threads)
    assert found.tobytes() == expected.tobytes()


def test_maxima_are_those_of_maximum_at():
    expected = np.full((N_SEGMENTS, DIM), -np.inf, np.float32)
    np.maximum.at(expected, SEGMENTS, DATA)
    expected[[3, 6, 8]] = 0
    assert embag.segment_reduce(DATA, SEGMENTS, N_SEGMENTS, "max").tobytes() == expected.tobytes()


def test_layouts_and_dtypes_of_rows():
    expected = embag.segment_reduce(DATA, SEGMENTS)
    wide = np.zeros((N, 2 * DIM), np.float32)
    wide[:, :DIM] = DATA
    for data in (np.asfortranarray(DATA), wide[:, :DIM], np.repeat(DATA, 2, axis=0)[::2]):
        assert embag.segment_reduce(data, SEGMENTS).tobytes() == expected.tobytes()
    quantized = embag.quantize(DATA)
    np.testing.assert_allclose(
        embag.segment_reduce(quantized, SEGMENTS),
        embag.segment_reduce(quantized.dequantize(), SEGMENTS),
        rtol=1e-5,
        atol=1e-5,
    )
    half = embag.segment_reduce(DATA, SEGMENTS, out_dtype=np.float16)
    assert half.tobytes() == expected.astype(np.float16).tobytes()


def test_the_number_of_segments():
    assert embag.segment_reduce(DATA, SEGMENTS).shape == (8, DIM)
    assert embag.segment_reduce(DATA[:0], []).shape == (0, DIM)
    assert not embag.segment_reduce(DATA[:0], [], 3, "mean").any()
    assert embag.segment_reduce(np.zeros((2, 0)), [1, 0]).shape == (2, 0)


def test_out():
    out = np.full((N_SEGMENTS, DIM), 7, np.float32)
    assert embag.segment_reduce(DATA, SEGMENTS, N_SEGMENTS, out=out) is out
    assert out.tobytes() == embag.segment_reduce(DATA, SEGMENTS, N_SEGMENTS).tobytes()


# --- Gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("is_sorted", [False, True])
def test_gradients_are_differences(mode, is_sorted):
    segments = np.sort(SEGMENTS) if is_sorted else SEGMENTS
    data, grad = DATA.astype(np.float64), RNG.standard_normal((N_SEGMENTS, DIM))
    weights = None if mode in ("max", "min") else RNG.standard_normal(N) + 3

    def loss():
        reduced = embag.segment_reduce(data, segments, N_SEGMENTS, mode, per_sample_weights=weights)
        return float((reduced * grad).sum())

    found = embag.segment_reduce_backward(
        grad, data, segments, N_SEGMENTS, mode, per_sample_weights=weights
    )
    for array, result in zip((data, weights), found, strict=True):
        assert (array is None) == (result is None)
        for place in np.ndindex(() if array is None else array.shape):
            if array is None:
                continue
            kept, step = array[place], 1e-6
            array[place] = kept + step
            above = loss()
            array[place] = kept - step
            assert abs((above - loss()) / (2 * step) - result[place]) < 1e-7
            array[place] = kept


def test_the_gradient_of_a_sum_is_a_gather():
    grad = RNG.standard_normal((N_SEGMENTS, DIM)).astype(np.float32)
    found = embag.segment_reduce_backward(grad, DATA, SEGMENTS, N_SEGMENTS)
    assert found.data.tobytes() == grad[SEGMENTS].tobytes()
    assert found.per_sample_weights is None


def test_options_of_gradients():
    grad = RNG.standard_normal((N_SEGMENTS, DIM)).astype(np.float32)
    given = (grad, DATA, SEGMENTS, N_SEGMENTS)
    weights = RNG.standard_normal(N).astype(np.float32)
    both = embag.segment_reduce_backward(*given, per_sample_weights=weights)
    one = embag.segment_reduce_backward(*given, per_sample_weights=weights, wrt="data")
    other = embag.segment_reduce_backward(
        *given, per_sample_weights=weights, wrt="per_sample_weights"
    )
    assert one.per_sample_weights is other.data is None
    assert one.data.tobytes() == both.data.tobytes()
    assert other.per_sample_weights.tobytes() == both.per_sample_weights.tobytes()
    _, winners = embag.segment_reduce(*given[1:], "max", return_max_indices=True)
    known = embag.segment_reduce_backward(*given, "max", max_indices=winners)
    assert known.data.tobytes() == embag.segment_reduce_backward(*given, "max").data.tobytes()


# --- Errors -----------------------------------------------------------------------------

FEW = np.ones((3, 2), np.float32)


def call(**changes):
    arguments = {"data": FEW, "segment_ids": [1, 0, 2]} | changes
    return lambda: embag.segment_reduce(**arguments)


def backward(**changes):
    arguments = {"grad_output": FEW, "data": FEW, "segment_ids": [1, 0, 2]} | changes
    return lambda: embag.segment_reduce_backward(**arguments)


ERRORS = [
    (call(data=embag.RemappedTable(np.ones((3, 2), np.float32))), TypeError,
     "data must be an array or a QuantizedTable, got a RemappedTable"),
    (call(data=[[1.0]]), TypeError,
     "data must be a numpy.ndarray, a QuantizedTable or a RemappedTable, got list"),
    (call(data=np.ones((3, 2), int)), TypeError,
     "data must be float32, float64, float16, bfloat16, int8, uint8, float8_e4m3fn or "
            "float8_e5m2 in native byte order, "
     "or a QuantizedTable, got int64"),
    (call(data=np.ones(3)), ValueError, "data must be 2-D (n_rows, dim), got shape (3,)"),
    (call(segment_ids=[0, 1]), ValueError,
     "segment_ids must have shape (3,), one for each row of data, got (2,)"),
    (call(segment_ids=[0, 1.5, 2]), TypeError,
     "segment_ids must be integers, got dtype float64"),
    (call(segment_ids=[0, -1, 2]), ValueError,
     "segment_ids must be at least 0 and less than n_segments = 3, got segment_ids[1] = -1"),
    (call(segment_ids=[0, 1, 2], n_segments=2), ValueError,
     "segment_ids must be at least 0 and less than n_segments = 2, got segment_ids[2] = 2"),
    (call(n_segments=-1), ValueError,
     "n_segments must be 0 to 9223372036854775806, got -1"),
    (call(n_segments=2.0), TypeError, "n_segments must be an integer, got 2.0"),
    (call(mode="median"), ValueError,
     "mode must be 'sum', 'mean', 'sqrtn', 'max' or 'min', got 'median'"),
    (call(per_sample_weights=[1.0]), ValueError,
     "per_sample_weights must have segment_ids' shape (3,), got (1,)"),
    (call(num_threads=0), ValueError, "num_threads must be at least 1, got 0"),
    (call(out=np.ones((3, 3), np.float32)), ValueError, "out must have shape (3, 2), got (3, 3)"),
    (call(out=FEW), ValueError, "out must share no memory with data, got an overlap"),
    (call(out_dtype="f8"), TypeError,
     "out_dtype must be float32, float16 or bfloat16 for a table that is summed in float32, "
     "got float64"),
    (backward(data=FEW.astype(np.float16)), TypeError,
     f"data must be float32 or float64 in native byte order, got {NATIVE}f2"),
    (backward(n_segments=4), ValueError,
     "grad_output must have the output's shape (4, 2), got (3, 2)"),
    (backward(wrt="weight"), ValueError,
     "wrt must be 'data', 'per_sample_weights' or None, got 'weight'"),
    (backward(wrt="per_sample_weights"), ValueError,
     "per_sample_weights must be given where wrt names it, got None"),
    (backward(mode="max", max_indices=[[0, 1], [3, 0], [0, 0]]), IndexError,
     "max_indices[1, 0] = 3 is out of range for a table of 3 rows"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("n_segments", [2**45, 2**62, 2**63 - 2])
def test_too_many_segments(n_segments):
    with pytest.raises(MemoryError):
        call(n_segments=n_segments)()
    with pytest.raises(MemoryError):
        call(segment_ids=[n_segments - 1, 0, 1])()
