"""`Pool`: batches of Arrow to batches with vectors. Ray is not needed."""

import pickle
import sys

import numpy as np
import pytest
from shards import cut_plan, local_shards

import embag
from embag.ray import Pool, ShardedCollection

pa = pytest.importorskip("pyarrow")
pytest.importorskip("nanoarrow")

TABLE = np.arange(40, dtype=np.float32).reshape(10, 4)
LISTS = [[1, 2], [], None, [9, 9, 0]]
BATCH = pa.table({"user": range(4), "ids": LISTS, "weights": [[1.0, 2.0], [], None, [0.5] * 3]})


def vectors(batch, name="vector"):
    assert pa.types.is_fixed_size_list(batch[name].type)
    return np.array(batch[name].to_pylist(), np.float32)


def test_a_table_in_memory_and_in_a_file(tmp_path):
    expected = embag.embedding_bag([[1, 2], [], [], [9, 9, 0]], TABLE, mode="sum")
    for table in (TABLE, tmp_path / "t.npy", embag.QuantizedTable.from_int8(TABLE.astype("i1"), 1)):
        if not hasattr(table, "shape"):
            embag.save_table(table, TABLE)
        found = Pool(table, "ids", mode="sum")(BATCH)
        assert found.column_names == ["user", "ids", "weights", "vector"]
        np.testing.assert_array_equal(vectors(found), expected)


def test_of_a_file_only_the_path_is_pickled(tmp_path):
    embag.save_table(tmp_path / "t.npy", np.ones((10_000, 4), np.float32))
    pickled = pickle.dumps(Pool(tmp_path / "t.npy", "ids", mode="sum"))
    assert len(pickled) < 1000
    np.testing.assert_array_equal(vectors(pickle.loads(pickled)(BATCH))[0], [2, 2, 2, 2])
    in_memory = pickle.loads(pickle.dumps(Pool(TABLE, "ids")))
    np.testing.assert_array_equal(vectors(in_memory(BATCH))[0], TABLE[1:3].mean(axis=0))


def test_options():
    options = {"mode": "mean", "padding_idx": 9, "default_idx": 3, "normalize": True}
    found = Pool(TABLE, "ids", weights="weights", output="v", **options)(BATCH)
    expected = embag.embedding_bag(
        BATCH["ids"], TABLE, per_sample_weights=BATCH["weights"], **options
    )
    np.testing.assert_array_equal(vectors(found, "v"), expected)
    batch = pa.table({"ids": [[1, 99]]})
    np.testing.assert_array_equal(vectors(Pool(TABLE, "ids", invalid="skip")(batch)), TABLE[1:2])


def test_an_empty_batch():
    found = Pool(TABLE, "ids")(BATCH.slice(0, 0))
    assert (len(found), found["vector"].type.list_size) == (0, 4)


class TensorType(pa.ExtensionType):
    """Arrays as Ray Data stores them: lists, or lists with their shapes."""

    def __init__(self, storage_type):
        super().__init__(storage_type, "test.tensor")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        return cls(storage_type)


def tensors(storage):
    return pa.ExtensionArray.from_storage(TensorType(storage.type), storage)


SHAPED = pa.struct({"data": pa.large_list(pa.int64()), "shape": pa.list_(pa.int64())})


@pytest.mark.parametrize("n_dims", [1, 2])
def test_a_column_of_tensors(n_dims):
    # The shapes must not be taken for weights, though here as many.
    lists = [[1, 2], [3, 4], None, [9, 0]]
    rows = [None if ids is None else {"data": ids, "shape": [1, 2][-n_dims:]} for ids in lists]
    expected = embag.embedding_bag(lists, TABLE, mode="sum")
    for storage in (pa.array(lists), pa.array(rows, SHAPED), pa.array([None, *rows], SHAPED)[1:]):
        batch = pa.table({"ids": pa.chunked_array([tensors(storage[:1]), tensors(storage[1:])])})
        np.testing.assert_array_equal(vectors(Pool(TABLE, "ids", mode="sum")(batch)), expected)
    weights = tensors(pa.array([[1, 0], [0, 1], None, [0.5, 0.5]]))
    batch = pa.table({"ids": tensors(storage), "w": weights})
    found = vectors(Pool(TABLE, "ids", weights="w", mode="sum")(batch))
    np.testing.assert_array_equal(found, [TABLE[1], TABLE[4], 0 * TABLE[0], TABLE[[9, 0]].mean(0)])


def test_tensors_for_a_sharded_collection(monkeypatch):
    storage = pa.array([{"data": [1, 2], "shape": [1, 2]}], SHAPED)
    with local_shards(monkeypatch):
        tables = {"t": TABLE}
        features = [embag.Feature("ids", "t")]
        sharded = ShardedCollection(tables, features, plan=cut_plan(tables, 2))
        found = Pool(sharded)(pa.table({"ids": tensors(storage)}))
        np.testing.assert_array_equal(vectors(found, "ids_vector"), [TABLE[1] + TABLE[2]])
        with pytest.raises(ValueError, match="batch must have one column 'ids', got 'x'"):
            Pool(sharded)(pa.table({"x": [[1]]}))


def test_a_sharded_collection(monkeypatch):
    with local_shards(monkeypatch):
        tables = {"t": TABLE}
        features = [embag.Feature("ids", "t"), embag.Feature("user", "t", "max")]
        sharded = ShardedCollection(tables, features, plan=cut_plan(tables, 2), exact=True)
        found = Pool(sharded, output="v")(BATCH)
        expected = embag.EmbeddingBagCollection(tables, features)(BATCH)
        np.testing.assert_array_equal(vectors(found, "ids_v"), expected[:, :4])
        np.testing.assert_array_equal(vectors(found, "user_v"), expected[:, 4:])
        with pytest.raises(ValueError, match="column and weights must be None"):
            Pool(sharded, "ids")


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((TABLE,), {}, TypeError, "column must be a str, got None"),
        ((TABLE, 3), {}, TypeError, "column must be a str, got 3"),
        ((TABLE, "ids"), {"output": None}, TypeError, "output must be a str, got None"),
        ((TABLE, "ids"), {"weights": 3}, TypeError, "weights must be a str, got 3"),
        (
            (TABLE, "ids"),
            {"mode": "median"},
            ValueError,
            "mode must be 'sum', 'mean', 'sqrtn', 'max' or 'min', got 'median'",
        ),
        (
            (TABLE, "ids"),
            {"mode": "max", "weights": "weights"},
            ValueError,
            "per_sample_weights must be None where mode is 'max', got 'weights'",
        ),
        (
            (TABLE, "ids"),
            {"output": "ids"},
            ValueError,
            "output must be the name of a new column, got 'ids'",
        ),
        ((TABLE, "ids"), {"padding_idx": 10}, ValueError, None),
        ((TABLE, "ids"), {"invalid": "ignore"}, ValueError, None),
        ((TABLE, "ids"), {"default_idx": 99}, ValueError, None),
        (("missing.npy", "ids"), {}, FileNotFoundError, None),
        ((np.zeros(3), "ids"), {}, ValueError, "table must be 2-D (n_rows, dim), got shape (3,)"),
        ((3, "ids"), {}, TypeError, None),
    ],
)
def test_errors_of_the_constructor(arguments, options, kind, message):
    with pytest.raises(kind) as caught:
        Pool(*arguments, **options)
    assert message is None or str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "batch", "kind", "message"),
    [
        (
            ["x"],
            BATCH,
            ValueError,
            "batch must have one column 'x', got 'user', 'ids', 'weights'",
        ),
        (
            ["ids"],
            pa.Table.from_arrays([pa.array([[1]])] * 2, ["ids"] * 2),
            ValueError,
            "batch must have one column 'ids', got 'ids', 'ids'",
        ),
        (["user"], BATCH, TypeError, "column 'user' must have lists, got int64"),
        (["ids", "user"], BATCH, TypeError, "column 'user' must have lists, got int64"),
        (
            ["ids", None, "user"],
            BATCH,
            ValueError,
            "output must be the name of a new column, got 'user'",
        ),
        (
            ["ids"],
            pa.table({"ids": [[1, 10]]}),
            IndexError,
            "column 'ids': input[0][1] = 10 is out of range for a table of 10 rows",
        ),
        (
            ["ids", "w"],
            pa.table({"ids": [[1, 2]], "w": [["a", "b"]]}),
            TypeError,
            "column 'ids' with weights 'w': per_sample_weights must be lists of numbers, "
            "got lists of strings",
        ),
    ],
)
def test_errors_of_batches(arguments, batch, kind, message):
    column, weights, output = [*arguments, None, None][:3]
    pool = Pool(TABLE, column, weights=weights, output=output or "vector")
    with pytest.raises(kind) as caught:
        pool(batch)
    assert str(caught.value) == message


def test_batches_of_another_format():
    for batch in ({"ids": np.array([[1, 2]])}, BATCH.to_batches()[0]):
        with pytest.raises(TypeError, match=r"batch must be a pyarrow\.Table, got .*: pass "):
            Pool(TABLE, "ids")(batch)


def test_pyarrow_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"Pool needs pyarrow: pip install 'embag-cpu\[ray\]'"):
        Pool(TABLE, "ids")
