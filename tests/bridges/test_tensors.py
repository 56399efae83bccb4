"""Tensors of other libraries: read in place wherever arrays are, refused with a remedy."""

import numpy as np
import pytest
from cases import assert_same_bits

import embag
from embag._tensors import as_ndarray

RNG = np.random.default_rng(0)
W = RNG.standard_normal((10, 6)).astype(np.float32)
IDS = np.array([3, 1, 9, 9, 0, 2])
OFFSETS = np.array([0, 2, 2, 5])
WEIGHTS = RNG.standard_normal(6).astype(np.float32)
BAGS = np.array([1, 0, 1, 2, 2, 0])


class Tensor:
    """An array of a library that has DLPack and nothing else."""

    def __init__(self, array, device=1):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device, 0


class Broken(Tensor):
    def __dlpack__(self, **options):
        return None


class Deleted(Tensor):
    def __dlpack_device__(self):
        raise RuntimeError("array has been deleted")


def of_torch(array):
    torch = pytest.importorskip("torch")
    if array.dtype.name not in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        return torch.from_numpy(array)
    bits = torch.from_numpy(array.view(f"i{array.itemsize}"))
    return bits.view(getattr(torch, array.dtype.name))


def of_jax(array):
    jax = pytest.importorskip("jax")
    with jax.enable_x64():
        return jax.numpy.asarray(array)


MAKE = pytest.mark.parametrize(
    "make", [Tensor, pytest.param(of_torch, marks=pytest.mark.torch), of_jax]
)


def address(array):
    return array.__array_interface__["data"][0]


def memory_of(tensor):
    if type(tensor) is Tensor:
        return address(tensor.array)
    return tensor.data_ptr() if hasattr(tensor, "data_ptr") else tensor.unsafe_buffer_pointer()


# --- Equal to arrays, in place -------------------------------------------------------


@MAKE
def test_lookups(make):
    def bags(input, weight, **options):
        return embag.embedding_bag(input, weight, mode="sum", **options)

    table, ids, weights = make(W), make(IDS), make(WEIGHTS)
    assert_same_bits(
        bags(ids, table, offsets=make(OFFSETS), per_sample_weights=weights),
        bags(IDS, W, offsets=OFFSETS, per_sample_weights=WEIGHTS),
    )
    assert_same_bits(bags(make(IDS.reshape(2, 3)), table), bags(IDS.reshape(2, 3), W))
    assert_same_bits(
        bags(ids, table, segment_ids=make(BAGS.astype(np.uint8)), per_sample_weights=weights),
        bags(IDS, W, segment_ids=BAGS, per_sample_weights=WEIGHTS),
    )
    lengths = np.array([4, 2])
    assert_same_bits(bags(ids, table, lengths=make(lengths)), bags(IDS, W, lengths=lengths))
    assert_same_bits(embag.embedding(ids, table), W[IDS])


@MAKE
def test_ragged_inputs(make):
    lists, weights = [IDS[:2], IDS[2:]], [WEIGHTS[:2], WEIGHTS[2:]]
    expected = embag.embedding_bag(lists, W, mode="sum", per_sample_weights=weights)
    tensors, factors = [make(ids) for ids in lists], [make(part) for part in weights]
    given = embag.embedding_bag(tensors, make(W), mode="sum", per_sample_weights=factors)
    assert_same_bits(given, expected)
    # Each row of a 2-D array of weights belongs to a list.
    lists, weights = IDS.reshape(2, 3).tolist(), WEIGHTS.reshape(2, 3)
    expected = embag.embedding_bag(lists, W, mode="sum", per_sample_weights=weights)
    given = embag.embedding_bag(lists, W, mode="sum", per_sample_weights=make(weights))
    assert_same_bits(given, expected)


@MAKE
def test_gradients(make):
    grad = RNG.standard_normal((4, 6)).astype(np.float32)
    arrays = grad, IDS, W, OFFSETS
    expected = embag.embedding_bag_backward(*arrays, mode="sum", per_sample_weights=WEIGHTS)
    given = embag.embedding_bag_backward(
        *map(make, arrays), mode="sum", per_sample_weights=make(WEIGHTS)
    )
    assert_same_bits(given.weight, expected.weight)
    assert_same_bits(given.per_sample_weights, expected.per_sample_weights)
    grad = RNG.standard_normal((6, 6)).astype(np.float32)
    assert_same_bits(
        embag.embedding_backward(make(grad), make(IDS), make(W)),
        embag.embedding_backward(grad, IDS, W),
    )


@MAKE
def test_segments(make):
    assert_same_bits(
        embag.segment_reduce(make(W[:6]), make(BAGS)), embag.segment_reduce(W[:6], BAGS)
    )
    assert_same_bits(
        embag.segment_reduce_backward(make(W[:3]), make(W[:6]), make(BAGS)).data,
        embag.segment_reduce_backward(W[:3], W[:6], BAGS).data,
    )


@MAKE
def test_tables_of_other_kinds(make, tmp_path):
    np.testing.assert_array_equal(embag.quantize(make(W)).packed, embag.quantize(W).packed)
    remapped = embag.RemappedTable(make(W), make(IDS), make(WEIGHTS))
    assert_same_bits(
        embag.embedding(np.arange(6), remapped),
        embag.embedding(np.arange(6), embag.RemappedTable(W, IDS, WEIGHTS)),
    )
    features = [embag.Feature("x", "t")]
    ebc = embag.EmbeddingBagCollection({"t": make(W)}, features)
    expected = embag.EmbeddingBagCollection({"t": W}, features)({"x": (IDS, OFFSETS)})
    assert_same_bits(ebc({"x": (make(IDS), make(OFFSETS))}), expected)
    embag.save_table(tmp_path / "table.npy", make(W))
    assert_same_bits(embag.load_table(tmp_path / "table.npy"), W)


@MAKE
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int64"])
def test_tensors_are_not_copied(make, dtype):
    tensor = make(W.astype(dtype))
    assert address(as_ndarray(tensor, "weight")) == memory_of(tensor)


@MAKE
def test_ids_are_not_copied(make, seen):
    tensor = make(IDS)
    embag.embedding_bag(tensor, W[:, ::2].astype(np.float16), OFFSETS, mode="sum")
    ((ids, _, _),) = seen
    assert address(ids) == memory_of(tensor)


@pytest.mark.parametrize("make", [pytest.param(of_torch, marks=pytest.mark.torch), of_jax])
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_low_precision(make, name):
    """NumPy's own `from_dlpack` refuses these."""
    table = W.astype(getattr(pytest.importorskip("ml_dtypes"), name))
    tensor = make(table)
    array = as_ndarray(tensor, "weight")
    assert array.dtype == table.dtype
    assert address(array) == memory_of(tensor)
    assert_same_bits(embag.embedding(make(IDS), tensor), embag.embedding(IDS, table))
    if make is of_torch:  # any layout
        np.testing.assert_array_equal(as_ndarray(tensor.T, "weight"), table.T)


@MAKE
def test_weights_of_low_precision(make):
    weights = WEIGHTS.astype(np.float16)
    options = {"offsets": OFFSETS, "mode": "sum"}
    assert_same_bits(
        embag.embedding_bag(IDS, W, per_sample_weights=make(weights), **options),
        embag.embedding_bag(IDS, W, per_sample_weights=weights, **options),
    )


@pytest.mark.torch
def test_max_norm_scales_a_tensor_in_place():
    expected = W.copy()
    result = embag.embedding_bag(IDS, expected, OFFSETS, mode="sum", max_norm=0.5)
    tensor = of_torch(W.copy())
    assert_same_bits(
        embag.embedding_bag(of_torch(IDS), tensor, OFFSETS, mode="sum", max_norm=0.5), result
    )
    assert_same_bits(tensor.numpy(), expected)


@pytest.mark.parametrize("array", [W, IDS, np.float32(1), None, [1], "abc"])
def test_anything_else_is_returned_unchanged(array):
    assert as_ndarray(array, "weight") is array


def test_arrow_columns_are_no_tensors():
    pa = pytest.importorskip("pyarrow")
    column = pa.array([1, 2])  # has __dlpack__, but its nulls must be checked
    assert as_ndarray(column, "input") is column


# --- Errors --------------------------------------------------------------------------


def refuse(tensor, message):
    """Assert that lookups raise this for a tensor, as any argument."""
    lookups = {
        "weight": lambda: embag.embedding_bag([[0]], tensor),
        "input": lambda: embag.embedding_bag(tensor, W),
        "input[1]": lambda: embag.embedding_bag([[0], tensor], W),
        "per_sample_weights": lambda: embag.embedding_bag(
            [[0]], W, mode="sum", per_sample_weights=tensor
        ),
    }
    for name, lookup in lookups.items():
        with pytest.raises(ValueError) as caught:  # noqa: PT011  # compared in full
            lookup()
        assert str(caught.value) == message.format(name=name)


def test_other_devices():
    for device in (2, 4, 8):
        refuse(
            Tensor(W, device),
            f"{{name}} must be in host memory, got Tensor on device type {device} of DLPack: "
            "copy it to the host",
        )


@pytest.mark.parametrize("device", [3, 11])
def test_pinned_memory_is_host_memory(device):
    tensor = Tensor(W, device)
    assert np.shares_memory(as_ndarray(tensor, "weight"), W)


def test_exports_that_fail():
    refuse(Deleted(W), "{name} must be readable by NumPy, got Deleted: array has been deleted")
    with pytest.raises(ValueError, match="weight must be readable by NumPy, got Broken: "):
        embag.embedding_bag([[0]], Broken(W))


def test_errors_quote_the_values_of_tensors():
    with pytest.raises(IndexError, match=r"input\[1\] = 10 is out of range for a table of 10"):
        embag.embedding_bag(Tensor(np.array([1, 10])), W, [0])
    with pytest.raises(TypeError, match="input must be integers, got dtype float32"):
        embag.embedding_bag(Tensor(W), W)
    with pytest.raises(TypeError, match="got int64"):
        embag.embedding_bag(IDS, Tensor(W.astype(np.int64)), OFFSETS)
    with pytest.raises(ValueError, match=r"weight must be 2-D \(n_rows, dim\), got shape \(6,\)"):
        embag.embedding_bag(IDS, Tensor(W[0]), OFFSETS)


def test_out_is_an_array():
    with pytest.raises(TypeError, match=r"out must be a numpy\.ndarray, got Tensor"):
        embag.embedding_bag([[0]], W, out=Tensor(np.zeros((1, 6), np.float32)))
    with pytest.raises(ValueError, match="out must share no memory with weight, got an overlap"):
        embag.embedding_bag([[0]], Tensor(W), out=W[:1])


@pytest.mark.torch
def test_tensors_of_torch_that_are_refused():
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(4, 6)
    refuse(
        torch.zeros(4, 6, requires_grad=True),
        "{name} must not require a gradient, got a tensor that does: "
        "pass {name}.detach(), or use embag.torch",
    )
    refuse(tensor.to("meta"), "{name} must be on the CPU, got device meta: pass {name}.cpu()")
    refuse(
        tensor.to_sparse(),
        "{name} must be dense, got layout torch.sparse_coo: pass {name}.to_dense()",
    )
    # DLPack would export the values without the negation.
    negated = torch.complex(tensor, tensor).conj().imag
    assert negated.is_neg()
    with pytest.raises(ValueError, match=r"pass|resolve_neg\(\)"):
        embag.embedding_bag([[0]], negated)
    shrunk = torch.zeros(1000, 6)
    shrunk.untyped_storage().resize_(8)
    refuse(
        shrunk,
        "{name} must be readable by NumPy, got Tensor: "
        "a tensor must have storage of 24000 bytes, got 8",
    )


@pytest.mark.torch
def test_tensors_without_memory():
    torch = pytest.importorskip("torch")
    functional = torch._to_functional_tensor(torch.ones(4, 6))
    refuse(functional, "{name} must be readable by NumPy, got Tensor: the tensor has no memory")
    message = "weight must be readable by NumPy, got Tensor: the tensor has no memory"
    with pytest.raises(ValueError, match=message):
        torch.func.functionalize(lambda x: embag.embedding_bag([[1]], x))(torch.ones(4, 6))
    empty = torch.zeros(4, 0)  # has none, and needs none
    assert embag.embedding_bag([[1]], empty).shape == (1, 0)


@pytest.mark.torch
def test_methods_of_subclasses_are_not_asked():
    torch = pytest.importorskip("torch")

    class Lying(torch.Tensor):
        def numel(self):
            return 0

        def is_contiguous(self):
            return True

    tensor = torch.arange(24.0).reshape(4, 6).as_subclass(Lying)
    np.testing.assert_array_equal(embag.embedding_bag([[1]], tensor), [[6, 7, 8, 9, 10, 11]])
    tensor = torch.zeros(4, 6).as_subclass(Lying)
    tensor.untyped_storage().resize_(8)
    with pytest.raises(ValueError, match="must have storage of 96 bytes, got 8"):
        embag.embedding_bag([[1]], tensor)
    embedding_bag = pytest.importorskip("embag.torch").embedding_bag
    with pytest.raises(RuntimeError, match="must have storage of 96 bytes, got 8"):
        embedding_bag(torch.tensor([[1]]), tensor)


@pytest.mark.torch
def test_memory_that_dlpack_does_not_export():
    torch = pytest.importorskip("torch")
    tensor = torch.ones(4, 6)
    tensor.untyped_storage().resize_(0)

    class Exporter:
        def __dlpack__(self, **options):
            return tensor.__dlpack__()

        def __dlpack_device__(self):
            return 1, 0

    with pytest.raises(ValueError, match="got Exporter: the tensor has no memory"):
        embag.embedding_bag([[1]], Exporter())


@pytest.mark.torch
def test_storage_stays_while_an_array_reads_it():
    tensor = of_torch(W.copy())
    array = as_ndarray(tensor, "weight")
    with pytest.raises(RuntimeError, match="not resizable"):
        tensor.untyped_storage().resize_(0)
    assert_same_bits(array, W)


def test_traced_arrays_of_jax_are_refused():
    jax = pytest.importorskip("jax")
    with pytest.raises(ValueError, match=r"input must be an array of integers, got .*Tracer"):
        jax.jit(lambda ids: embag.embedding_bag(ids, W, OFFSETS))(IDS)
