"""A save has every block of every table that was updated, or it is none."""

import json
import os
import pickle

import numpy as np
import pytest
from shards import cut_plan

import embag
from embag import Feature, optim
from embag.ray import ShardedCollection, ShardError

pytestmark = pytest.mark.usefixtures("local")

INDEX = "embag-sharded.json"
IDS = {"x": [[0, 5], [11, 3]], "y": [[1], [2]]}
EVERYWHERE = {"x": [[0], [4], [8]], "y": [[0], [4], [8]]}  # a row of each block


def collect(n_blocks=3, names="ab"):
    tables = {name: np.ones((12, 2), np.float32) for name in names}
    features = [Feature(*pair) for pair in zip("xy", names, strict=False)]
    plan = cut_plan(tables, n_blocks)
    return ShardedCollection(tables, features, plan=plan, memory="copy")


def update(sharded, ids=IDS, tables="ab"):
    grad = np.ones((len(ids["x"]), sharded.dim))
    sharded.update(grad, ids, optimizers=dict.fromkeys(tables, optim.Adam))


def test_a_save_reports_updates_that_were_lost(tmp_path):
    sharded = collect()
    update(sharded)
    sharded.save(tmp_path)
    files, saved = set(os.listdir(tmp_path)), sharded(EVERYWHERE)
    update(sharded)
    sharded._actors.restart(1)
    with pytest.raises(ShardError, match=r"updates were lost.*: 1 of shard 1;"):
        sharded.save(tmp_path)
    update(sharded)
    sharded._actors.restart(2)
    pickle.loads(pickle.dumps(sharded))(EVERYWHERE)  # a copy has the shard load its tables
    with pytest.raises(ShardError, match=r"updates were lost.*: 2 of shard 2;"):
        sharded.save(tmp_path)
    assert files <= set(os.listdir(tmp_path))
    sharded.restore(tmp_path)
    np.testing.assert_array_equal(sharded(EVERYWHERE), saved)


def test_a_save_has_the_blocks_of_a_shard_that_was_restarted_without_a_loss(tmp_path):
    sharded = collect()
    update(sharded)
    sharded.save(tmp_path)
    saved = sharded(EVERYWHERE)
    sharded._actors.restart(1)
    sharded.save(tmp_path)
    assert len(os.listdir(tmp_path)) == 7
    sharded._actors.restart(0)
    np.testing.assert_array_equal(sharded(EVERYWHERE), saved)


def test_a_table_without_updates_in_some_blocks_is_not_saved(tmp_path):
    sharded = collect()
    update(sharded)
    sharded._actors.restart(1)
    with pytest.raises(ShardError, match="updates were lost"):
        sharded(EVERYWHERE)
    with pytest.raises(ShardError) as caught:
        sharded.save(tmp_path)
    assert str(caught.value) == (
        "table 'a' must be updated in all its blocks to be saved, got no update in shards 1: "
        "call update or restore"
    )
    assert caught.value.shards == (1,)
    assert INDEX not in os.listdir(tmp_path)
    update(sharded)
    sharded.save(tmp_path)


def test_a_table_whose_optimizers_were_only_made_is_not_saved(tmp_path):
    sharded = collect()

    def fail(method, shard):
        if (method, shard) == ("prepare", 2):
            raise OSError("gone")

    sharded._actors.before = fail
    with pytest.raises(ShardError, match="gone"):
        update(sharded)
    sharded._actors.before = lambda method, shard: None
    update(sharded, tables="b")
    sharded.save(tmp_path)
    assert json.loads((tmp_path / INDEX).read_text())["blocks"] == {"b": [[0, 4], [4, 8], [8, 12]]}


def test_the_files_of_the_save_before_are_deleted(tmp_path):
    sharded = collect()
    update(sharded)
    sharded.save(tmp_path)
    sharded.replace("a", np.ones((30, 2), np.float32))
    update(sharded)
    sharded.save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        *("a-0-10-save2.safetensors", "a-10-20-save2.safetensors", "a-20-30-save2.safetensors"),
        *("b-0-4-save2.safetensors", "b-4-8-save2.safetensors", "b-8-12-save2.safetensors"),
        INDEX,
    ]


def test_names_of_tables_are_not_names_of_folders(tmp_path):
    sharded = collect(names=["../a b/é\n"])
    ids = {"x": [[1, 11]]}
    update(sharded, ids, sharded.plan.tables)
    expected = sharded(ids)
    folder = tmp_path / "saves"
    folder.mkdir()
    sharded.save(folder)
    assert len(os.listdir(folder)) == 4
    assert os.listdir(tmp_path) == ["saves"]
    update(sharded, ids, sharded.plan.tables)
    sharded.restore(folder)
    np.testing.assert_array_equal(sharded(ids), expected)


@pytest.mark.parametrize("damage", ["truncated", "other rows", "a table"])
def test_damaged_files_change_nothing(damage, tmp_path):
    sharded = collect()
    update(sharded)
    sharded.save(tmp_path)
    update(sharded)
    before = sharded(EVERYWHERE)
    path = tmp_path / "a-4-8-save1.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "other rows":
        whole = collect(1)
        update(whole)
        (tmp_path / "other").mkdir()
        whole.save(tmp_path / "other")
        path.write_bytes((tmp_path / "other" / "a-0-12-save1.safetensors").read_bytes())
    else:
        embag.save_table(path, np.ones((4, 2), np.float32))
    with pytest.raises(ShardError, match="shard 1 failed: "):
        sharded.restore(tmp_path)
    np.testing.assert_array_equal(sharded(EVERYWHERE), before)
    update(sharded)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "3", "null", "{}", '{"format": 1, "number": 1}', "[" * 10**5, "\0"),
        '{"format": 2, "number": 1, "blocks": {}}',
        '{"format": true, "number": 1, "blocks": {}}',
        '{"format": 1, "number": "1", "blocks": {}}',
        '{"format": 1, "number": true, "blocks": {}}',
        '{"format": 1, "number": 1, "blocks": []}',
        '{"format": 1, "number": 1, "blocks": {}, "more": 1}',
        '{"format": 1, "number": 1, "blocks": {"a": 5}}',
        '{"format": 1, "number": 1, "blocks": {"a": [5]}}',
        '{"format": 1, "number": 1, "blocks": {"a": [["../x", 2]]}}',
        '{"format": 1, "number": 1, "blocks": {"a": [[0, 4.0]]}}',
        '{"format": 1, "number": 1, "blocks": {"a": [[0, 4, 8]]}}',
    ],
)
def test_an_invalid_index(text, tmp_path):
    (tmp_path / INDEX).write_text(text)
    sharded = collect()
    update(sharded)
    for call in (sharded.restore, sharded.save):
        with pytest.raises(ValueError, match=f"{INDEX}: (index|format)( of a save)? must "):
            call(tmp_path)
    assert (tmp_path / INDEX).read_text() == text
