"""Every error message of `embedding_bag_backward`, in full; no call changes its inputs."""

import numpy as np
import pytest
from cases import CASES, NATIVE, REDUCTIONS, SWAPPED, call_arguments

import embag

W = np.arange(20, dtype=np.float32).reshape(10, 2)
I3 = np.array([1, 2, 3])
O1 = np.array([0])
G = np.ones((1, 2), np.float32)
ARRAYS = (W, I3, O1, G)


def call(**changes):
    arguments = {"grad_output": G, "input": I3, "weight": W, "offsets": O1, "mode": "sum"}
    return lambda: embag.embedding_bag_backward(**(arguments | changes))


def call_max(**changes):
    return call(mode="max", **changes)


ERRORS = [
    # grad_output
    (
        call(grad_output=[[1j, 1j]]),
        TypeError,
        "grad_output must cast to float32 as 'same_kind', got dtype complex128",
    ),
    (
        call(grad_output="abc"),
        TypeError,
        f"grad_output must cast to float32 as 'same_kind', got dtype {NATIVE}U3",
    ),
    (
        call(grad_output=None),
        TypeError,
        "grad_output must be numbers, got None",
    ),
    (
        call(grad_output=[1, 2]),
        ValueError,
        "grad_output must have the output's shape (1, 2), got (2,)",
    ),
    (
        call(grad_output=np.ones((2, 1))),
        ValueError,
        "grad_output must have the output's shape (1, 2), got (2, 1)",
    ),
    (
        call(grad_output=1.0),
        ValueError,
        "grad_output must have the output's shape (1, 2), got ()",
    ),
    # weight
    (call(weight=[[1.0]]), TypeError, "weight must be a numpy.ndarray, got list"),
    (
        call(weight=W.astype(int)),
        TypeError,
        "weight must be float32, float64, float16 or bfloat16 in native byte order, got int64",
    ),
    (
        call(weight=W.astype(f"{SWAPPED}f4")),
        TypeError,
        "weight must be float32, float64, float16 or bfloat16 in native byte order, "
        f"got {SWAPPED}f4",
    ),
    (call(weight=W[0]), ValueError, "weight must be 2-D (n_rows, dim), got shape (2,)"),
    # input and offsets: dtypes and shapes
    (call(input=[1.0]), TypeError, "input must be integers, got dtype float64"),
    (call(input=[True]), TypeError, "input must be integers, got dtype bool"),
    (call(input=None), TypeError, "input must be integers, got None"),
    (call(input=3, offsets=None), ValueError, "input must be 1-D or 2-D, got shape ()"),
    (
        call(input=[[1, 2]]),
        ValueError,
        "input must be 1-D where offsets is given, got shape (1, 2)",
    ),
    (call(offsets=None), ValueError, "offsets must be given where input is 1-D, got None"),
    (call(offsets=[0.0]), TypeError, "offsets must be integers, got dtype float64"),
    (call(offsets=[[0]]), ValueError, "offsets must be 1-D, got shape (1, 1)"),
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
    # mode and flags
    (
        call(mode="avg"),
        ValueError,
        "mode must be 'sum', 'mean', 'sqrtn', 'max' or 'min', got 'avg'",
    ),
    (call(mode=None), ValueError, "mode must be 'sum', 'mean', 'sqrtn', 'max' or 'min', got None"),
    (
        call_max(scale_grad_by_freq=True),
        ValueError,
        "scale_grad_by_freq must be False where mode is 'max', got True",
    ),
    (call(sparse=1), TypeError, "sparse must be a bool, got 1"),
    (call(scale_grad_by_freq=None), TypeError, "scale_grad_by_freq must be a bool, got None"),
    (call(include_last_offset="no"), TypeError, "include_last_offset must be a bool, got 'no'"),
    # per_sample_weights
    (
        call(mode="min", per_sample_weights=[1, 2, 3]),
        ValueError,
        "per_sample_weights must be None where mode is 'min', got list",
    ),
    (
        call_max(per_sample_weights=[1, 2, 3]),
        ValueError,
        "per_sample_weights must be None where mode is 'max', got list",
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
    # max_indices
    (
        call(max_indices=[[1, 2]]),
        ValueError,
        "max_indices must be None where mode is 'sum', got list",
    ),
    (
        call(mode="mean", max_indices=np.array([[1, 2]])),
        ValueError,
        "max_indices must be None where mode is 'mean', got ndarray",
    ),
    (
        call_max(max_indices=[[1.0, 2.0]]),
        TypeError,
        "max_indices must be integers, got dtype float64",
    ),
    (
        call_max(max_indices=[1, 2]),
        ValueError,
        "max_indices must have the output's shape (1, 2), got (2,)",
    ),
    (
        call_max(max_indices=[[1, 10]]),
        IndexError,
        "max_indices[0, 1] = 10 is out of range for a table of 10 rows",
    ),
    (
        call_max(max_indices=[[-2, 10]]),
        IndexError,
        "max_indices[0, 0] = -2 is out of range for a table of 10 rows",
    ),
    (
        call_max(max_indices=np.array([[0, 2**64 - 3]], np.uint64)),
        IndexError,
        "max_indices[0, 1] = 18446744073709551613 is out of range for a table of 10 rows",
    ),
    # wrt
    (
        call(wrt="both"),
        ValueError,
        "wrt must be 'weight', 'per_sample_weights' or None, got 'both'",
    ),
    (
        call(wrt=["weight"]),
        ValueError,
        "wrt must be 'weight', 'per_sample_weights' or None, got list",
    ),
    (
        call(wrt="per_sample_weights"),
        ValueError,
        "per_sample_weights must be given where wrt names it, got None",
    ),
    (
        call_max(wrt="per_sample_weights"),
        ValueError,
        "per_sample_weights must be given where wrt names it, got None",
    ),
    # num_threads
    (call(num_threads=0), ValueError, "num_threads must be at least 1, got 0"),
    (call(num_threads=2.0), TypeError, "num_threads must be an integer, got 2.0"),
    (call(num_threads=True), TypeError, "num_threads must be an integer, got True"),
]

# The paths through the code: each must detect bad values by itself.
WAYS = {
    "sum": {"mode": "sum"},
    "weighted": {"mode": "sum", "per_sample_weights": True},
    "of_the_weights": {"mode": "sum", "per_sample_weights": True, "wrt": "per_sample_weights"},
    "mean": {"mode": "mean"},
    "sparse": {"mode": "sum", "sparse": True},
    "sparse_mean": {"mode": "mean", "sparse": True},
    "scaled": {"mode": "sum", "scale_grad_by_freq": True},
    "max": {"mode": "max"},
    "given_max": {"mode": "max", "max_indices": True},
}


def options_of(way, input, n_bags, dim):
    options = dict(WAYS[way])
    if "per_sample_weights" in options:
        options["per_sample_weights"] = np.ones(np.shape(input), np.float32)
    if "max_indices" in options:
        options["max_indices"] = np.full((n_bags, dim), -1)
    return options


VALUE_ERRORS = [
    (
        {"input": [1, 10]},
        IndexError,
        "input[1] = 10 is out of range for a table of 10 rows (bag 0)",
    ),
    (
        {"input": [1, -1]},
        IndexError,
        "input[1] = -1 is out of range for a table of 10 rows (bag 0)",
    ),
    (
        {"input": [1, 2, 10, -7], "offsets": [0, 2, 2]},
        IndexError,
        "input[2] = 10 is out of range for a table of 10 rows (bag 2)",
    ),
    (
        {"input": [[1, 2], [3, -4]], "offsets": None},
        IndexError,
        "input[1, 1] = -4 is out of range for a table of 10 rows (bag 1)",
    ),
    (
        {"input": np.array([2**64 - 1], np.uint64)},
        IndexError,
        "input[0] = 18446744073709551615 is out of range for a table of 10 rows (bag 0)",
    ),
    (
        {"input": [10], "weight": W[:, :0]},
        IndexError,
        "input[0] = 10 is out of range for a table of 10 rows (bag 0)",
    ),
    (
        {"input": [1, 10, 99], "offsets": [0, 2], "include_last_offset": True},
        IndexError,
        "input[1] = 10 is out of range for a table of 10 rows (bag 0)",
    ),
    (
        {"input": [10], "padding_idx": 3},
        IndexError,
        "input[0] = 10 is out of range for a table of 10 rows (bag 0)",
    ),
    ({"offsets": [1, 2]}, ValueError, "offsets must start at 0, got offsets[0] = 1"),
    ({"offsets": [-1, 2]}, ValueError, "offsets must start at 0, got offsets[0] = -1"),
    (
        {"offsets": [0, 2, 1, 0]},
        ValueError,
        "offsets must not decrease, got offsets[2] = 1 after offsets[1] = 2",
    ),
    (
        {"offsets": [0, 4]},
        ValueError,
        "offsets must not exceed the 3 entries of input, got offsets[1] = 4",
    ),
    (
        {"offsets": np.array([0, 2**63], np.uint64)},
        ValueError,
        "offsets must not exceed the 3 entries of input, got offsets[1] = 9223372036854775808",
    ),
    (
        {"offsets": [0, 4], "include_last_offset": True},
        ValueError,
        "offsets must not exceed the 3 entries of input, got offsets[1] = 4",
    ),
    (  # offsets are checked before ids
        {"input": [10, 10], "offsets": [0, 3]},
        ValueError,
        "offsets must not exceed the 2 entries of input, got offsets[1] = 3",
    ),
]


def check_error(failing, kind, message):
    before = [array.copy() for array in ARRAYS]
    with pytest.raises(kind) as caught:
        failing()
    assert str(caught.value) == message
    assert type(caught.value) is kind
    for array, copy in zip(ARRAYS, before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(("failing", "kind", "message"), ERRORS, ids=[e[2] for e in ERRORS])
def test_error(failing, kind, message, level):
    check_error(failing, kind, message)


@pytest.mark.parametrize(
    ("changes", "kind", "message"), VALUE_ERRORS, ids=[e[2] for e in VALUE_ERRORS]
)
@pytest.mark.parametrize("way", WAYS)
def test_error_of_values(changes, kind, message, way, level, eager_threads):
    arguments = {"input": I3, "weight": W, "offsets": O1} | changes
    n_bags = len(arguments["input"] if arguments["offsets"] is None else arguments["offsets"])
    n_bags -= arguments.get("include_last_offset", False)
    dim = arguments["weight"].shape[1]
    arguments["grad_output"] = np.ones((n_bags, dim))
    arguments |= options_of(way, arguments["input"], n_bags, dim)
    for n_threads in (1, 3):
        check_error(call(num_threads=n_threads, **arguments), kind, message)


def test_ragged_lists_are_refused_beside_arrays():
    for name, given, what in (
        ("grad_output", [[1, 2], [3]], "numbers"),
        ("per_sample_weights", [[1], [1, 2], [3]], "numbers"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} must be an array of {what}, got list: "):
            call(**{name: given})()
    with pytest.raises(ValueError, match=r"^max_indices must be an array of integers, got list: "):
        call_max(max_indices=[[1], [1, 2]])()
    with pytest.raises(ValueError, match=r"^offsets must be None where input is ragged, got "):
        call(input=[[1], [1, 2]])()


def test_options_are_keyword_only():
    # In the order of embedding_bag's options, max_norm would be here.
    with pytest.raises(TypeError, match="positional argument"):
        embag.embedding_bag_backward(G, I3, W, O1, True)


@pytest.mark.parametrize("argument", ["padding_idx", "num_threads"])
def test_huge_integers_are_quoted_by_their_size(argument):
    with pytest.raises(ValueError, match=r"got an integer of 16610 bits$"):
        call(**{argument: -(10**5000)})()


@pytest.mark.parametrize("way", WAYS)
def test_any_number_of_threads_names_the_first_bad_position(way, level, eager_threads):
    input = np.random.default_rng(0).integers(0, 10, 5000)
    offsets = np.arange(0, 5000, 7)
    grad_output = np.ones((len(offsets), 20), np.float32)
    options = options_of(way, input, len(offsets), 20)
    for bad in (0, 1023, 4999):
        broken = input.copy()
        broken[bad] = 10
        broken[bad + 1 :: 100] = -1
        for n_threads in (1, 2, 8):
            for dtype in (np.int32, np.int64):
                with pytest.raises(IndexError, match=rf"^input\[{bad}\] = 10 is out of range"):
                    embag.embedding_bag_backward(
                        grad_output,
                        broken.astype(dtype),
                        np.ones((10, 20), np.float32),
                        offsets,
                        num_threads=n_threads,
                        **options,
                    )


@pytest.mark.parametrize("index", [-(2**63), -(2**31), -1, 10, 2**31 - 1, 2**31, 2**63 - 1])
@pytest.mark.parametrize("way", WAYS)
def test_extreme_indices_are_errors(index, way, level):
    good, bad = [0, 9, 3], [0, 9, index]
    options = options_of(way, good, 1, 2)
    with pytest.raises(IndexError, match=rf"^input\[2\] = {index} is out of range"):
        call(input=bad, **options)()
    call(input=good, **options)()
    if way == "given_max" and index != -1:
        options["max_indices"][0, 1] = index
        with pytest.raises(IndexError, match=rf"^max_indices\[0, 1\] = {index} is out of range"):
            call(input=good, **options)()


@pytest.mark.parametrize("way", WAYS)
def test_inputs_are_unchanged(way, level, eager_threads):
    reduction = "weighted" if "per_sample_weights" in WAYS[way] else WAYS[way]["mode"]
    assert reduction in REDUCTIONS
    for case in CASES:
        arguments, options = call_arguments(case, reduction, np.float32)
        grad_output = embag.embedding_bag(*arguments, **options)
        options |= {
            name: value
            for name, value in options_of(way, case.input, *grad_output.shape).items()
            if name != "per_sample_weights"
        }
        arrays = [grad_output, *(array for array in arguments if array is not None)]
        arrays += [value for value in options.values() if isinstance(value, np.ndarray)]
        copies = [array.copy() for array in arrays]
        for array in arrays:
            array.flags.writeable = False
        grads = embag.embedding_bag_backward(grad_output, *arguments, num_threads=2, **options)
        for array, copy in zip(arrays, copies, strict=True):
            np.testing.assert_array_equal(array, copy, case.name)
        # The caller may write to the results, which share no memory with anything else.
        weight, sample = grads
        values = weight.values if isinstance(weight, embag.SparseRows) else weight
        for result in (values, sample):
            if result is not None:
                assert result.flags.writeable
                assert not any(np.may_share_memory(result, array) for array in arrays)
