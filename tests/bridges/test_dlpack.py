"""Tables and ids of other libraries, read in place."""

import ml_dtypes
import numpy as np
import pytest

import embag

ROWS = np.arange(24, dtype=np.float32).reshape(6, 4)


class Exported:
    """An array that only DLPack exports, as another library's."""

    def __init__(self, array, device=1):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return (self.device, 0)


class Broken(Exported):
    def __dlpack__(self, **options):
        raise BufferError("no export today\nwith details")


def test_tables_and_ids():
    ids, offsets = np.array([0, 5, 2]), np.array([0, 2])
    expected = embag.embedding_bag(ids, ROWS, offsets, mode="sum")
    found = embag.embedding_bag(Exported(ids), Exported(ROWS), Exported(offsets), mode="sum")
    np.testing.assert_array_equal(found, expected)
    weights = np.array([1, 2, 3], np.float32)
    np.testing.assert_array_equal(
        embag.embedding_bag(
            ids, Exported(ROWS), offsets, mode="sum", per_sample_weights=Exported(weights)
        ),
        embag.embedding_bag(ids, ROWS, offsets, mode="sum", per_sample_weights=weights),
    )
    np.testing.assert_array_equal(embag.embedding(ids, Exported(ROWS, 3)), ROWS[ids])
    table = embag.RemappedTable(Exported(ROWS), first_id=10)
    np.testing.assert_array_equal(embag.embedding([10], table), ROWS[:1])


def test_nothing_is_copied():
    rows = ROWS.copy()
    ebc = embag.EmbeddingBagCollection({"t": Exported(rows)}, [embag.Feature("x", "t")])
    rows[1] = 7
    np.testing.assert_array_equal(ebc({"x": [[1]]}), [[7, 7, 7, 7]])


@pytest.mark.parametrize(
    ("weight", "kind", "message"),
    [
        (
            Exported(ROWS, 2),
            ValueError,
            "weight must be in the memory of the CPU, got Exported on DLPack's device 2: "
            "pass a copy on the CPU",
        ),
        (
            Broken(ROWS),
            TypeError,
            "weight must be an array that NumPy can read, got Broken: no export today",
        ),
        (Exported(ROWS[0]), ValueError, "weight must be 2-D (n_rows, dim), got shape (4,)"),
    ],
)
def test_errors(weight, kind, message):
    with pytest.raises(kind) as caught:
        embag.embedding_bag([[1]], weight)
    assert str(caught.value) == message


@pytest.mark.torch
class TestTorch:
    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int8"])
    def test_tables(self, torch, dtype):
        tensor = torch.arange(24).reshape(6, 4).to(getattr(torch, dtype))
        found = embag.embedding_bag(torch.tensor([[1, 2]]), tensor, mode="sum")
        np.testing.assert_array_equal(found, [[12, 14, 16, 18]])
        ebc = embag.EmbeddingBagCollection({"t": tensor}, [embag.Feature("x", "t")])
        tensor[1] = 0
        np.testing.assert_array_equal(ebc({"x": [[1, 2]]}), [[8, 9, 10, 11]])  # not copied

    def test_tensors_that_are_refused(self, torch):
        tensor = torch.zeros(6, 4)
        with pytest.raises(TypeError, match=r"gradient.*: pass weight\.detach\(\)"):
            embag.embedding_bag([[1]], tensor.requires_grad_())
        with pytest.raises((TypeError, ValueError), match="weight must be"):
            embag.embedding_bag([[1]], torch.zeros(6, 4, device="meta"))
        with pytest.raises((TypeError, ValueError), match="weight must be"):
            embag.embedding_bag([[1]], torch.zeros(6, 4).to_sparse())


class TestJax:
    @pytest.fixture
    def jnp(self):
        return pytest.importorskip("jax.numpy")

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
    def test_tables_and_ids(self, jnp, dtype):
        array = jnp.arange(24).reshape(6, 4).astype(dtype)
        found = embag.embedding_bag(jnp.array([[1, 2]]), array, mode="sum")
        np.testing.assert_array_equal(found, [[12, 14, 16, 18]])
        assert np.asarray(array).dtype == np.dtype(getattr(ml_dtypes, dtype, dtype))
