"""`Pool`: batches of Arrow to batches with vectors. Ray is not needed."""

import pickle

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


def test_errors_of_batches():
    with pytest.raises(ValueError, match="batch must have the column 'x', got 'user', 'ids', "):
        Pool(TABLE, "x")(BATCH)
    with pytest.raises(ValueError, match="output must be the name of a new column, got 'user'"):
        Pool(TABLE, "ids", output="user")(BATCH)
    with pytest.raises(IndexError, match=r"input\[0\]\[1\] = 10 is out of range"):
        Pool(TABLE, "ids")(pa.table({"ids": [[1, 10]]}))
