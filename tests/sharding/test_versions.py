"""Replaced, saved and restored tables, restarted shards, and copies of a collection."""

import json
import os
import pickle
from functools import partial

import numpy as np
import pytest
from shards import cut_plan, local_shards, make_both

import embag
from embag import Feature, optim
from embag.ray import ShardedCollection, ShardError, plan

FEATURES = [Feature("x", "a"), Feature("y", "b")]
VALUES = {"x": [[1, 30]], "y": [[2]]}


@pytest.fixture(autouse=True)
def _local(monkeypatch):
    with local_shards(monkeypatch):
        yield


def filled(value, n_rows=40):
    return np.full((n_rows, 4), value, np.float32)


def make(n_blocks=3, **options):
    tables = {"a": filled(1), "b": filled(2)}
    found = cut_plan(tables, n_blocks)
    return ShardedCollection(tables, FEATURES, plan=found, **options)


def answer(steps, sharded, asked):
    """Take one step of a lookup by hand; return what it asks next, or its result."""
    method, arguments = asked
    try:
        return steps.send(sharded._actors.ask(method, arguments)), None
    except StopIteration as stop:
        return None, stop.value


def begin(sharded):
    """Begin a lookup; return its steps, and what it asks."""
    steps = sharded._look_up((VALUES, None, None, False), None, None, False)
    return steps, next(steps)


def run_to_the_end(steps, asked, sharded):
    result = None
    while result is None:
        asked, result = answer(steps, sharded, asked)
    return result


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_replace(n_blocks, tmp_path):
    sharded = make(n_blocks)
    assert sharded(VALUES).tolist() == [[2] * 4 + [2] * 4]
    sharded.replace("a", filled(10, 50))
    assert sharded(VALUES).tolist() == [[20] * 4 + [2] * 4]
    assert sharded({"x": [[49]], "y": [[0]]})[0, 0] == 10  # it has more rows
    path = tmp_path / "b.npy"
    embag.save_table(path, filled(7))
    sharded.replace("b", path)
    assert sharded(VALUES).tolist() == [[20] * 4 + [7] * 4]
    assert all(len(shard._loaded) == 1 for shard in sharded._actors.shards)


def test_a_lookup_that_began_before_a_replacement_reads_one_version():
    sharded = make()
    steps, asked = begin(sharded)
    method, arguments = asked
    # One shard answers before the replacement, the others after it.
    first = min(arguments)
    early = sharded._actors.ask(method, {first: arguments.pop(first)})
    sharded.replace("a", filled(10))
    late = sharded._actors.ask(method, arguments)
    asked = steps.send(early | late)
    assert run_to_the_end(steps, asked, sharded).tolist() == [[20] * 4 + [2] * 4]


def test_a_replacement_that_fails_on_one_shard_changes_nothing():
    sharded = make()

    def fail(method, shard):
        if (method, shard) == ("load", 2):
            raise OSError("no such file")

    sharded._actors.before = fail
    with pytest.raises(ShardError, match="shard 2 failed: OSError: no such file") as caught:
        sharded.replace("a", filled(10))
    assert caught.value.shards == (2,)
    assert sharded(VALUES).tolist() == [[2] * 4 + [2] * 4]
    assert all(list(shard._loaded) == [0] for shard in sharded._actors.shards)
    sharded._actors.before = lambda method, shard: None
    sharded.replace("a", filled(10))
    assert sharded(VALUES).tolist() == [[20] * 4 + [2] * 4]


def test_a_table_of_a_replacement_that_failed_is_never_read(monkeypatch):
    sharded = make()

    def fail(method, shard):
        if (method, shard) == ("load", 2):
            raise OSError("no such file")

    sharded._actors.before = fail
    # The other shards have loaded it, and do not learn that they are to release it.
    with monkeypatch.context() as patched:
        patched.setattr(sharded._actors, "tell", lambda method, arguments: None)
        with pytest.raises(ShardError, match="no such file"):
            sharded.replace("a", filled(10))
    sharded._actors.before = lambda method, shard: None
    sharded.replace("a", filled(20))
    assert sharded(VALUES).tolist() == [[40] * 4 + [2] * 4]
    assert all(len(shard._loaded) == 1 for shard in sharded._actors.shards)


@pytest.mark.parametrize(
    ("name", "table", "kind", "message"),
    [
        (1, filled(1), TypeError, "name must be a str, got 1"),
        ("c", filled(1), ValueError, "name must be a key of tables, got 'c'"),
        (
            "a",
            np.ones((3, 5), np.float32),
            ValueError,
            "table must have 4 columns, like the table it replaces, got 5",
        ),
        (
            "a",
            embag.RemappedTable(filled(1)),
            ValueError,
            "table must not be a RemappedTable, since 'a' is cut",
        ),
        ("a", 3, TypeError, None),
    ],
)
def test_errors_of_replace(name, table, kind, message):
    sharded = make()
    with pytest.raises(kind) as caught:
        sharded.replace(name, table)
    assert message is None or str(caught.value) == message
    assert sharded(VALUES).tolist() == [[2] * 4 + [2] * 4]


def test_two_generations_must_fit():
    tables = {"a": filled(1), "b": filled(2)}
    nodes = [("one", 1000), ("two", 1000)]
    sharded = ShardedCollection(tables, FEATURES, plan=plan(tables, nodes), memory="copy")
    with pytest.raises(ValueError, match=r"must fit beside the one that it replaces: shard \d on"):
        sharded.replace("a", filled(3))
    sharded.replace("a", filled(3, 20))
    assert sharded({"x": [[1]], "y": [[1]]})[0, 0] == 3


def test_a_restarted_shard_is_brought_up_to_date():
    sharded = make()
    sharded.replace("a", filled(10))
    for shard in range(3):
        sharded._actors.restart(shard)
        assert sharded(VALUES).tolist() == [[20] * 4 + [2] * 4]
    sharded._actors.asked.clear()
    sharded(VALUES)
    assert [method for method, _ in sharded._actors.asked] == ["lookup"]


def test_a_shard_that_cannot_load_again_raises_until_it_can(tmp_path):
    paths = {name: str(tmp_path / f"{name}.npy") for name in "ab"}
    for name, path in paths.items():
        embag.save_table(path, filled(3 if name == "a" else 4))
    sharded = ShardedCollection(paths, FEATURES, plan=cut_plan(paths, 2))
    os.rename(paths["a"], tmp_path / "away.npy")
    sharded._actors.restart(0)
    for _ in range(2):
        with pytest.raises(ShardError, match=r"shard 0 failed: FileNotFoundError: .*a\.npy"):
            sharded(VALUES)
    os.rename(tmp_path / "away.npy", paths["a"])
    assert sharded(VALUES).tolist() == [[6] * 4 + [4] * 4]


def test_a_file_that_is_not_as_planned(tmp_path):
    path = str(tmp_path / "a.npy")
    embag.save_table(path, filled(1))
    tables = {"a": path, "b": filled(2)}
    found = cut_plan(tables, 2)
    other = cut_plan({"a": filled(1, 41), "b": filled(2)}, 2)
    with pytest.raises(ValueError, match=r"plan must be for tables\['a'\], TableSpec\(n_rows=40"):
        ShardedCollection(tables, FEATURES, plan=other)
    embag.save_table(path, filled(1, 39))
    with pytest.raises(ValueError, match="plan must be for tables"):
        ShardedCollection(tables, FEATURES, plan=found)
    # The shards look for themselves, too: this process may not see the file of their node.
    sharded = ShardedCollection({"a": filled(1), "b": filled(2)}, FEATURES, plan=found)
    version = sharded._layout.version
    version = version._replace(sources={**version.sources, "a": path})
    with pytest.raises(ShardError, match="table 'a' must be as planned"):
        sharded._change(version, ["a"])


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        (([],), {}, TypeError, "tables must be a mapping, got list"),
        (({},), {"memory": "disk"}, ValueError, "memory must be 'map' or 'copy', got 'disk'"),
        (({},), {"timeout": 0}, ValueError, "timeout must be more than 0 and finite, got 0.0"),
        (({},), {"plan": {}}, TypeError, "plan must be a Plan, got dict"),
        (({},), {"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
        (({"a": 5},), {}, TypeError, None),
    ],
)
def test_errors_of_the_constructor(arguments, options, kind, message):
    with pytest.raises(kind) as caught:
        ShardedCollection(*arguments, [], **options)
    assert message is None or str(caught.value) == message


def test_a_plan_for_other_tables():
    tables = {"a": filled(1)}
    with pytest.raises(ValueError, match="plan must be for the tables 'a', 'b', got 'a'"):
        ShardedCollection({**tables, "b": filled(2)}, FEATURES, plan=cut_plan(tables, 1))
    with pytest.raises(ValueError, match="n_shards must be None with a plan, got 2"):
        ShardedCollection(tables, [], plan=cut_plan(tables, 1), n_shards=2)


def test_copies_of_a_collection_look_up_and_follow():
    sharded = make()
    copy = pickle.loads(pickle.dumps(sharded))
    assert copy(VALUES).tolist() == [[2] * 4 + [2] * 4]
    sharded.replace("a", filled(10, 50))
    assert copy(VALUES).tolist() == [[20] * 4 + [2] * 4]
    assert copy({"x": [[49]], "y": [[0]]})[0, 0] == 10
    sharded._actors.restart(1)
    assert copy(VALUES).tolist() == [[20] * 4 + [2] * 4]
    for change in (
        lambda: copy.replace("a", filled(1)),
        lambda: copy.update(np.ones((1, 8)), VALUES, optimizers={}),
        lambda: copy.save("."),
        lambda: copy.restore("."),
        copy.close,
    ):
        with pytest.raises(RuntimeError, match="by the process that made the collection"):
            change()


def test_a_pickled_collection_has_no_rows():
    tables = {"a": filled(1, 100_000), "b": filled(2)}
    sharded = ShardedCollection(tables, FEATURES, plan=cut_plan(tables, 1))
    assert len(pickle.dumps(sharded)) < 10_000


def test_close():
    with make() as sharded:
        actors = sharded._actors
    assert actors.is_stopped
    sharded.close()
    with pytest.raises(RuntimeError, match="the collection is closed"):
        sharded(VALUES)
    with pytest.raises(RuntimeError, match="the collection is closed"):
        sharded.replace("a", filled(1))


RULES = {"a": partial(optim.Adagrad, lr=0.1), "b": optim.Adam}


def train(sharded, n_steps=1):
    for _ in range(n_steps):
        sharded.update(np.ones((1, 8)), VALUES, optimizers=RULES)


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_training_goes_on_from_a_save(n_blocks, tmp_path):
    expected = make(n_blocks, memory="copy")
    train(expected, 5)
    sharded = make(n_blocks, memory="copy")
    train(sharded, 3)
    sharded.save(tmp_path)
    train(sharded, 4)
    sharded.restore(tmp_path)
    train(sharded, 2)
    np.testing.assert_array_equal(sharded(VALUES), expected(VALUES))
    other = make(n_blocks, memory="copy")
    other.restore(tmp_path)
    train(other, 2)
    np.testing.assert_array_equal(other(VALUES), expected(VALUES))


def test_a_folder_holds_one_whole_save(tmp_path):
    sharded = make(memory="copy")
    train(sharded)
    sharded.save(tmp_path)
    first = set(os.listdir(tmp_path))
    assert len(first) == 1 + 6
    before = sharded(VALUES)
    train(sharded)

    def fail(method, shard):
        if (method, shard) == ("save", 2):
            raise OSError("disk full")

    sharded._actors.before = fail
    with pytest.raises(ShardError, match="disk full"):
        sharded.save(tmp_path)
    sharded._actors.before = lambda method, shard: None
    assert first <= set(os.listdir(tmp_path))
    sharded.restore(tmp_path)
    np.testing.assert_array_equal(sharded(VALUES), before)
    train(sharded)
    sharded.save(tmp_path)
    names = set(os.listdir(tmp_path))
    assert len(names) == 1 + 6
    assert not names & first - {"embag-sharded.json"}


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_updates_after_a_save_stay_when_another_table_is_replaced(n_blocks, tmp_path):
    expected = make(n_blocks, memory="copy")
    sharded = make(n_blocks, memory="copy")
    train(expected, 3)
    train(sharded)
    sharded.save(tmp_path)
    train(sharded, 2)
    for each in (expected, sharded):
        each.replace("b", filled(5))
        train(each)  # the optimizer of "a" has kept its state
    np.testing.assert_array_equal(sharded(VALUES), expected(VALUES))


def test_restore_takes_back_updates_of_tables_that_were_not_saved(tmp_path):
    sharded = make(memory="copy")
    for name, rule in RULES.items():
        sharded.update(np.ones((1, 8)), VALUES, optimizers={name: rule})
        if name == "a":
            sharded.save(tmp_path)
            saved = sharded(VALUES)
    assert (sharded(VALUES) != saved).any()
    sharded.restore(tmp_path)
    np.testing.assert_array_equal(sharded(VALUES), saved)


def test_an_older_copy_has_a_restarted_shard_load_the_last_save(tmp_path):
    sharded = make(memory="copy")
    copy = pickle.loads(pickle.dumps(sharded))
    for _ in range(2):  # the second save deletes the files of the first
        train(sharded)
        sharded.save(tmp_path)
    sharded._actors.restart(0)
    np.testing.assert_array_equal(copy(VALUES), sharded(VALUES))


def test_lookups_in_flight_raise_once_for_lost_updates():
    sharded = make(memory="copy")
    train(sharded)
    lookups = [begin(sharded) for _ in range(3)]
    sharded._actors.restart(0)
    with pytest.raises(ShardError, match=r"updates were lost.*: 1 of shard 0;"):
        sharded(VALUES)
    for steps, asked in lookups:  # they ask for the update that is lost
        result = run_to_the_end(steps, asked, sharded)
        np.testing.assert_array_equal(result, sharded(VALUES))


def test_lost_updates_are_reported_once(tmp_path):
    sharded = make(memory="copy")
    train(sharded)
    sharded.save(tmp_path)
    saved = sharded(VALUES)
    train(sharded, 2)
    sharded._actors.restart(0)
    with pytest.raises(ShardError) as caught:
        sharded(VALUES)
    assert str(caught.value) == (
        "updates were lost, since an actor was restarted: 2 of shard 0; its tables are those of "
        "the last save, or as they were loaded"
    )
    assert caught.value.shards == (0,)
    sharded(VALUES)
    sharded.restore(tmp_path)
    np.testing.assert_array_equal(sharded(VALUES), saved)
    # What was saved is not lost.
    sharded._actors.restart(1)
    np.testing.assert_array_equal(sharded(VALUES), saved)


def test_a_copy_may_be_the_first_to_meet_a_restarted_shard(tmp_path):
    sharded = make(memory="copy")
    train(sharded)
    copy = pickle.loads(pickle.dumps(sharded))
    sharded._actors.restart(0)
    copy(VALUES)
    with pytest.raises(ShardError, match="updates were lost"):
        sharded(VALUES)


def test_a_replaced_table_is_trained_anew(tmp_path):
    sharded = make(memory="copy")
    train(sharded)
    sharded.replace("a", filled(5))
    train(sharded)
    expected = make(memory="copy")
    expected.replace("a", filled(5))
    train(expected)
    slices = sharded.slices["x"]
    np.testing.assert_array_equal(sharded(VALUES)[:, slices], expected(VALUES)[:, slices])


def test_a_save_of_other_blocks(tmp_path):
    sharded = make(memory="copy")
    with pytest.raises(ValueError, match="folder must hold a save, got no "):
        sharded.restore(tmp_path)
    train(sharded)
    sharded.save(tmp_path)
    with pytest.raises(ValueError, match="table 'a' must be cut as in"):
        make(2, memory="copy").restore(tmp_path)
    with pytest.raises(ValueError, match="memory must be 'copy' for a save, got 'map'"):
        make().restore(tmp_path)
    index = tmp_path / "embag-sharded.json"
    found = json.loads(index.read_text())
    index.write_text(json.dumps(found | {"number": 99}))
    before = sharded(VALUES)
    with pytest.raises(ShardError, match="FileNotFoundError"):
        sharded.restore(tmp_path)
    np.testing.assert_array_equal(sharded(VALUES), before)


def test_padding_counts_from_the_end_of_the_new_table():
    features = [Feature("x", "t", padding_idx=-1), Feature("y", "t", invalid=5)]
    local, sharded = make_both({"t": filled(1)}, features, n_blocks=3)
    for table in (filled(2, 7), filled(3, 30)):
        local.replace("t", table)
        sharded.replace("t", table)
        ids = {"x": [[6, 5], [len(table) - 1, 0]], "y": [[40], [-3]]}
        np.testing.assert_array_equal(sharded(ids), local(ids))
        assert sharded.n_invalid == local.n_invalid
    with pytest.raises(ValueError, match="feature 'y': invalid"):
        sharded.replace("t", filled(4, 5))
    np.testing.assert_array_equal(sharded(ids), local(ids))


def test_an_update_reports_updates_that_were_lost():
    sharded = make(memory="copy")
    train(sharded)
    sharded._actors.restart(0)
    with pytest.raises(ShardError, match=r"updates were lost.*: 1 of shard 0;"):
        train(sharded)
    train(sharded)


def test_restarts_before_the_first_update_lose_nothing():
    expected, sharded = make(memory="copy"), make(memory="copy")
    for shard in range(3):
        sharded._actors.restart(shard)
    for each in (expected, sharded):
        train(each, 2)
    np.testing.assert_array_equal(sharded(VALUES), expected(VALUES))
