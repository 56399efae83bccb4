"""Any plan has every row on shards, and no shard has more than its bytes."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embag.ray import TableSpec, plan
from embag.ray._plan import block_rows, check_plan


def assert_valid(made, copies):
    check_plan(made)
    for name, spec in made.tables.items():
        blocks = made.blocks[name]
        assert {len(block.shards) for block in blocks} == {copies.get(name, 1)}
        size = block_rows(spec, len(blocks))
        found = [(i, row) for i, block in enumerate(blocks) for row in range(*block[:2])]
        rows = range(spec.first_id, spec.first_id + spec.n_rows)
        assert found == [((row - spec.first_id) // size, row) for row in rows]
    loads = [made.load(shard) for shard in range(len(made.nodes))]
    assert all(load.n_bytes <= node.n_bytes for load, node in zip(loads, made.nodes, strict=True))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_plan(data):
    n_nodes = data.draw(st.integers(1, 5))
    tables, copies, traffic = {}, {}, {}
    for name in "abcde"[: data.draw(st.integers(0, 5))]:
        n_rows, n_bytes = data.draw(st.integers(0, 50)), data.draw(st.integers(0, 1000))
        first_id = data.draw(st.none() | st.integers(0, 9))
        tables[name] = TableSpec(n_rows, 3, n_bytes, first_id or 0, first_id is not None)
        copies[name] = data.draw(st.integers(1, n_nodes))
        traffic[name] = data.draw(st.floats(0, 10))
    nodes = [(f"n{i}", data.draw(st.integers(0, 2000))) for i in range(n_nodes)]
    try:
        made = plan(tables, nodes, traffic, copies=copies)
    except ValueError as error:
        assert str(error).startswith("tables must fit")
        return
    assert_valid(made, copies)
    read = sum(made.load(shard).traffic for shard in range(n_nodes))
    assert read == pytest.approx(sum(made.traffic.values()))
    again = pickle.loads(pickle.dumps(made))
    assert (again.nodes, again.tables, again.blocks) == (made.nodes, made.tables, made.blocks)


@pytest.mark.parametrize("n_rows", [0, 1, 2, 4, 7, 100])
def test_another_table_on_the_same_shards(n_rows):
    old = plan({"t": TableSpec(10, 2, 80)}, dict.fromkeys("abc", 40))
    new = old.replaced("t", TableSpec(n_rows, 2, 1))
    assert [b.shards for b in new.blocks["t"]] == [b.shards for b in old.blocks["t"]]
    assert_valid(new, {})
    assert old.tables["t"].n_rows == 10


@pytest.mark.parametrize(("share", "n_blocks"), [(0.5, 100), (0.9, 898), (0.98, None)])
def test_a_table_on_many_nodes(share, n_blocks):
    """Within milliseconds: the number of blocks is not found by trying them one after the other."""
    nodes = {f"n{i}": 30_000 + 80 * i for i in range(200)}
    spec = TableSpec(10**6, 64, int(share * sum(nodes.values())))
    if n_blocks is None:
        with pytest.raises(ValueError, match=r"'t' takes .* may be cut into at most 1600 blocks"):
            plan({"t": spec}, nodes)
        return
    made = plan({"t": spec}, nodes)
    assert len(made.blocks["t"]) == n_blocks
    check_plan(made)
