"""Every error message of `embedding_bag`, in full."""

import numpy as np
import pytest
from cases import NATIVE, SWAPPED

import embag
from embag._kernels import dispatch

W = np.arange(20, dtype=np.float32).reshape(10, 2)
I3 = np.array([1, 2, 3])
O1 = np.array([0])


def readonly(array):
    array = array.copy()
    array.flags.writeable = False
    return array


class Tensor:
    """Stands for a tensor of torch or TensorFlow in messages."""

    requires_grad = False

    def numpy(self):
        raise NotImplementedError

    __array__ = numpy


class Parameter(Tensor):
    requires_grad = True


class OtherArray:
    def __array__(self, dtype=None, copy=None):
        raise NotImplementedError


def call(**changes):
    arguments = {"input": I3, "weight": W, "offsets": O1, "mode": "sum"} | changes
    return lambda: embag.embedding_bag(**arguments)


ERRORS = [
    # weight
    (
        call(weight=[[1.0]]),
        TypeError,
        "weight must be a numpy.ndarray, a QuantizedTable or a RemappedTable, got list",
    ),
    (
        call(weight=Tensor()),
        TypeError,
        "weight must be a numpy.ndarray, a QuantizedTable or a RemappedTable, "
        "got Tensor: pass weight.numpy()",
    ),
    (
        call(weight=Parameter()),
        TypeError,
        "weight must be a numpy.ndarray, a QuantizedTable or a RemappedTable, got Parameter: "
        "pass weight.detach().numpy()",
    ),
    (
        call(weight=OtherArray()),
        TypeError,
        "weight must be a numpy.ndarray, a QuantizedTable or a RemappedTable, got OtherArray: "
        "pass np.asarray(weight)",
    ),
    (
        call(weight=W.astype(int)),
        TypeError,
        "weight must be float32, float64, float16, bfloat16, int8, uint8, float8_e4m3fn or "
        "float8_e5m2 in native byte order, "
        "or a QuantizedTable, got int64",
    ),
    (
        call(weight=W.astype(f"{SWAPPED}f4")),
        TypeError,
        "weight must be float32, float64, float16, bfloat16, int8, uint8, float8_e4m3fn or "
        "float8_e5m2 in native byte order, "
        f"or a QuantizedTable, got {SWAPPED}f4",
    ),
    (
        call(weight=W.astype(f"{SWAPPED}f2")),
        TypeError,
        "weight must be float32, float64, float16, bfloat16, int8, uint8, float8_e4m3fn or "
        "float8_e5m2 in native byte order, "
        f"or a QuantizedTable, got {SWAPPED}f2",
    ),
    (
        call(weight=W.astype(np.float16), max_norm=1.0),
        ValueError,
        "max_norm must be None where weight is not float32 or float64, got a float16 table",
    ),
    (
        call(out_dtype=np.float64),
        TypeError,
        "out_dtype must be float32, float16 or bfloat16 for a table that is summed in float32, "
        "got float64",
    ),
    (
        call(weight=W.astype(np.float64), out_dtype=np.float32),
        TypeError,
        "out_dtype must be float64 for a table that is summed in float64, got float32",
    ),
    (
        call(out_dtype="no dtype"),
        TypeError,
        "out_dtype must be float32, float16 or bfloat16 for a table that is summed in float32, "
        "got 'no dtype'",
    ),
    (call(weight=W[0]), ValueError, "weight must be 2-D (n_rows, dim), got shape (2,)"),
    # input
    (call(input=[1.0]), TypeError, "input must be integers, got dtype float64"),
    (call(input=np.array([])), TypeError, "input must be integers, got dtype float64"),
    (call(input=[True]), TypeError, "input must be integers, got dtype bool"),
    (call(input="abc"), TypeError, f"input must be integers, got dtype {NATIVE}U3"),
    (call(input=None), TypeError, "input must be integers, got None"),
    (call(input={1}), TypeError, "input must be integers, got set"),
    (call(input=[1, None]), TypeError, "input must be integers, got input[1] = None"),
    (
        call(input=np.array([1, True], object)),
        TypeError,
        "input must be integers, got input[1] = True",
    ),
    (call(input=3, offsets=None), ValueError, "input must be 1-D or 2-D, got shape ()"),
    (
        call(input=np.zeros((2, 2, 2), int), offsets=None),
        ValueError,
        "input must be 1-D or 2-D, got shape (2, 2, 2)",
    ),
    (
        call(input=[[1, 2]]),
        ValueError,
        "input must be 1-D where offsets is given, got shape (1, 2)",
    ),
    (call(offsets=None), ValueError, "offsets must be given where input is 1-D, got None"),
    # index values
    (
        call(input=[1, 10]),
        IndexError,
        "input[1] = 10 is out of range for a table of 10 rows (bag 0)",
    ),
    (
        call(input=[1, -1]),
        IndexError,
        "input[1] = -1 is out of range for a table of 10 rows (bag 0)",
    ),
    (
        call(input=[1, 2, 10, -7], offsets=[0, 2, 2]),
        IndexError,
        "input[2] = 10 is out of range for a table of 10 rows (bag 2)",
    ),
    (
        call(input=[[1, 2], [3, -4]], offsets=None),
        IndexError,
        "input[1, 1] = -4 is out of range for a table of 10 rows (bag 1)",
    ),
    (
        call(input=np.array([2**64 - 1], np.uint64)),
        IndexError,
        "input[0] = 18446744073709551615 is out of range for a table of 10 rows (bag 0)",
    ),
    (
        call(input=[2**70]),
        IndexError,
        f"input[0] = {2**70} is out of range for a table of 10 rows (bag 0)",
    ),
    (
        # NumPy converts these to floats, and rounds them.
        call(input=[1, 2**63 + 1, -1]),
        IndexError,
        f"input[1] = {2**63 + 1} is out of range for a table of 10 rows (bag 0)",
    ),
    (
        call(input=np.array([1, -(2**70)], object)),
        IndexError,
        f"input[1] = {-(2**70)} is out of range for a table of 10 rows (bag 0)",
    ),
    (
        call(input=np.array([2**32 - 1], np.uint32)),
        IndexError,
        "input[0] = 4294967295 is out of range for a table of 10 rows (bag 0)",
    ),
    (
        call(weight=W[:0]),
        IndexError,
        "input[0] = 1 is out of range for a table of 0 rows (bag 0)",
    ),
    (
        call(weight=W[:, :0], input=[10]),
        IndexError,
        "input[0] = 10 is out of range for a table of 10 rows (bag 0)",
    ),
    # offsets
    (call(offsets=[0.0]), TypeError, "offsets must be integers, got dtype float64"),
    (call(offsets=[[0]]), ValueError, "offsets must be 1-D, got shape (1, 1)"),
    (call(offsets=0), ValueError, "offsets must be 1-D, got shape ()"),
    (call(offsets=[1, 2]), ValueError, "offsets must start at 0, got offsets[0] = 1"),
    (call(offsets=[-1, 2]), ValueError, "offsets must start at 0, got offsets[0] = -1"),
    (
        call(offsets=[0, 2, 1, 0]),
        ValueError,
        "offsets must not decrease, got offsets[2] = 1 after offsets[1] = 2",
    ),
    (
        call(offsets=[0, 4]),
        ValueError,
        "offsets must not exceed the 3 entries of input, got offsets[1] = 4",
    ),
    (
        call(offsets=np.array([0, 2**63], np.uint64)),
        ValueError,
        "offsets must not exceed the 3 entries of input, got offsets[1] = 9223372036854775808",
    ),
    (
        call(offsets=[0, 2**64]),
        ValueError,
        f"offsets must not exceed the 3 entries of input, got offsets[1] = {2**64}",
    ),
    (
        call(offsets=[]),
        ValueError,
        "offsets must have at least 1 entry where input has 3, got 0",
    ),
    (
        call(offsets=[], include_last_offset=True),
        ValueError,
        "offsets must have at least 1 entry where include_last_offset is True, got 0",
    ),
    (
        call(offsets=[0, 4], include_last_offset=True),
        ValueError,
        "offsets must not exceed the 3 entries of input, got offsets[1] = 4",
    ),
    # mode and flags
    (
        call(mode="avg"),
        ValueError,
        "mode must be 'sum', 'mean', 'sqrtn', 'max' or 'min', got 'avg'",
    ),
    (call(mode=None), ValueError, "mode must be 'sum', 'mean', 'sqrtn', 'max' or 'min', got None"),
    (
        call(mode=["sum"]),
        ValueError,
        "mode must be 'sum', 'mean', 'sqrtn', 'max' or 'min', got list",
    ),
    (
        call(mode="max", sparse=True),
        ValueError,
        "sparse must be False where mode is 'max', got True",
    ),
    (
        call(mode="max", scale_grad_by_freq=True),
        ValueError,
        "scale_grad_by_freq must be False where mode is 'max', got True",
    ),
    (
        call(return_max_indices=True),
        ValueError,
        "return_max_indices must be False where mode is 'sum', got True",
    ),
    (call(sparse=1), TypeError, "sparse must be a bool, got 1"),
    (call(scale_grad_by_freq=None), TypeError, "scale_grad_by_freq must be a bool, got None"),
    (call(include_last_offset="no"), TypeError, "include_last_offset must be a bool, got 'no'"),
    (call(return_max_indices=[]), TypeError, "return_max_indices must be a bool, got list"),
    # per_sample_weights
    (
        call(mode="min", per_sample_weights=[1, 2, 3]),
        ValueError,
        "per_sample_weights must be None where mode is 'min', got list",
    ),
    (
        call(per_sample_weights=[1.0]),
        ValueError,
        "per_sample_weights must have input's shape (3,), got (1,)",
    ),
    (
        call(per_sample_weights=[1j, 1j, 1j]),
        TypeError,
        "per_sample_weights must cast to float32 as 'same_kind', got dtype complex128",
    ),
    (
        call(per_sample_weights="abc"),
        TypeError,
        f"per_sample_weights must cast to float32 as 'same_kind', got dtype {NATIVE}U3",
    ),
    (
        call(per_sample_weights=[1.0, None, 2.0]),
        TypeError,
        "per_sample_weights must be numbers, got per_sample_weights[1] = None",
    ),
    # padding_idx
    (
        call(padding_idx=10),
        ValueError,
        "padding_idx must name one of weight's 10 rows, got 10",
    ),
    (
        call(padding_idx=-11),
        ValueError,
        "padding_idx must name one of weight's 10 rows, got -11",
    ),
    (call(padding_idx=1.0), TypeError, "padding_idx must be an integer, got 1.0"),
    (call(padding_idx=True), TypeError, "padding_idx must be an integer, got True"),
    # max_norm, norm_type
    (call(max_norm=-1), ValueError, "max_norm must be at least 0, got -1.0"),
    (call(max_norm=np.nan), ValueError, "max_norm must be at least 0, got nan"),
    (call(max_norm="1"), TypeError, "max_norm must be a number, got '1'"),
    (call(max_norm=10**400), ValueError, "max_norm must fit a float64, got a larger number"),
    (
        call(weight=readonly(W), max_norm=1),
        ValueError,
        "weight must be writeable where max_norm is given, got a read-only array",
    ),
    (call(norm_type=0), ValueError, "norm_type must be greater than 0, got 0.0"),
    (call(norm_type=np.nan), ValueError, "norm_type must be greater than 0, got nan"),
    (call(norm_type=True), TypeError, "norm_type must be a number, got True"),
    # out
    (call(out=[[0, 0]]), TypeError, "out must be a numpy.ndarray, got list"),
    (call(out=Tensor()), TypeError, "out must be a numpy.ndarray, got Tensor: pass out.numpy()"),
    (
        call(out=np.zeros((1, 2))),
        TypeError,
        "out must have the result's dtype float32, got float64",
    ),
    (
        call(out=np.zeros((2, 1), np.float32)),
        ValueError,
        "out must have shape (1, 2), got (2, 1)",
    ),
    (
        call(offsets=[0, 1], out=np.zeros((2, 2), np.float32).T),
        ValueError,
        "out must be C-contiguous and aligned, got strides (4, 8)",
    ),
    (
        call(out=readonly(np.zeros((1, 2), np.float32))),
        ValueError,
        "out must be writeable, got a read-only array",
    ),
    (call(out=W[4:5]), ValueError, "out must share no memory with weight, got an overlap"),
    # num_threads
    (call(num_threads=0), ValueError, "num_threads must be at least 1, got 0"),
    (call(num_threads=2.0), TypeError, "num_threads must be an integer, got 2.0"),
    (call(num_threads=True), TypeError, "num_threads must be an integer, got True"),
]


@pytest.mark.parametrize(("failing_call", "kind", "message"), ERRORS, ids=[e[2] for e in ERRORS])
def test_error(failing_call, kind, message, level):
    table = W.copy()
    with pytest.raises(kind) as caught:
        failing_call()
    assert str(caught.value) == message
    assert type(caught.value) is kind
    np.testing.assert_array_equal(W, table)


def test_ragged_lists_are_refused_where_arrays_are_required():
    with pytest.raises(ValueError, match=r"^offsets must be None where input is ragged, got "):
        call(input=[[1], [1, 2]])()
    with pytest.raises(ValueError, match=r"^per_sample_weights must be an array of numbers"):
        call(per_sample_weights=[[1], [1, 2], [3]])()


def test_every_argument_that_shares_memory_with_out_is_named():
    memory = np.zeros(64, np.uint8)
    out = memory[:8].view(np.float32).reshape(1, 2)
    for name, argument in {
        "input": memory[:24].view(np.int64),
        "offsets": memory[:8].view(np.int64),
        "per_sample_weights": memory[:12].view(np.float32),
    }.items():
        with pytest.raises(ValueError, match=f"^out must share no memory with {name}, got an ov"):
            call(out=out, **{name: argument})()


def test_out_may_be_between_the_rows_of_a_strided_table():
    memory = np.zeros((20, 2), np.float32)
    memory[::2] = W
    out = memory[1:2]
    assert call(weight=memory[::2], out=out)() is out
    assert out.tolist() == [[12, 15]]


def test_any_number_of_threads_names_the_first_bad_position(level, eager_threads):
    rng = np.random.default_rng(0)
    input = rng.integers(0, 10, 5000)
    for bad in (0, 17, 1023, 1024, 4999):
        broken = input.copy()
        broken[bad] = 10
        broken[bad + 1 :: 100] = -1
        for n_threads in (1, 2, 3, 8):
            for dtype in (np.int32, np.int64):
                with pytest.raises(IndexError, match=rf"^input\[{bad}\] = 10 is out of range"):
                    embag.embedding_bag(
                        broken.astype(dtype), W, np.arange(0, 5000, 7), num_threads=n_threads
                    )


@pytest.mark.parametrize("index", [-(2**63), -(2**31), -1, 10, 2**31 - 1, 2**31, 2**63 - 1])
def test_extreme_indices_are_errors(index, level):
    with pytest.raises(IndexError, match=rf"^input\[2\] = {index} is out of range"):
        embag.embedding_bag([0, 9, index], W, [0])
    assert embag.embedding_bag([0, 9], W, [0]).shape == (1, 2)


def test_a_failing_call_leaves_out_unchanged(level):
    out = np.full((2, 2), 7, np.float32)
    with pytest.raises(IndexError):
        embag.embedding_bag([1, 10], W, [0, 1], out=out)
    with pytest.raises(ValueError, match="decrease"):
        embag.embedding_bag([1, 1], W, [0, -1], out=out)
    assert (out == 7).all()


def test_outputs_too_large_for_memory_are_memory_errors():
    for n_bags, table in ((2**44, W), (2**56, np.zeros((1, 1000)))):
        bags = np.broadcast_to(np.int32(0), (n_bags, 0))
        for mode in ("sum", "max"):
            with pytest.raises(MemoryError):
                embag.embedding_bag(bags, table, mode=mode, return_max_indices=mode == "max")


def test_tables_without_columns_cost_no_time(level):
    bags = np.broadcast_to(np.int32(0), (2**50, 0))
    result = embag.embedding_bag(bags, W[:, :0])
    assert result.shape == (2**50, 0)
    assert embag.embedding_bag_backward(result, bags, W[:, :0], mode="sum").weight.size == 0
    winners = np.empty((2**50, 0), np.int64)
    kernels = dispatch.load_level(level)
    assert kernels.scatter_max(1, result, winners, -1, W[:, :0].copy())


@pytest.mark.parametrize("argument", ["padding_idx", "num_threads"])
def test_huge_integers_are_quoted_by_their_size(argument):
    with pytest.raises(ValueError, match=r"got an integer of 16610 bits$"):
        call(**{argument: -(10**5000)})()


def test_converted_inputs_must_not_share_memory_with_out():
    memory = np.zeros(64, np.uint8)
    out = memory[:8].view(np.float32).reshape(1, 2)
    for name, argument in {
        "input": memory[:6].view(np.int16),
        "offsets": memory[:1],
        "per_sample_weights": memory[:3],
    }.items():
        with pytest.raises(ValueError, match=f"^out must share no memory with {name}, got an ov"):
            call(out=out, **{name: argument})()


class WithoutMemory:
    """Stands for a dtype that cannot be made for want of memory."""

    @property
    def dtype(self):
        raise MemoryError


def test_no_memory_for_a_dtype():
    with pytest.raises(MemoryError):
        embag.embedding_bag([[0]], np.ones((2, 3), np.float32), out_dtype=WithoutMemory())
    with pytest.raises(MemoryError):
        embag.EmbeddingBag(2, 3, dtype=WithoutMemory())
    with pytest.raises(MemoryError):
        embag.aligned_empty(3, WithoutMemory())
