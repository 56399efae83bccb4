"""A plan that was not made by `plan` is refused unless it has every row on shards."""

from dataclasses import replace

import numpy as np
import pytest
from shards import cut_plan

import embag
from embag import Feature
from embag.ray import Plan, ShardedCollection, TableSpec
from embag.ray._plan import Block, Node

pytestmark = pytest.mark.usefixtures("local")

BLOCKS = Block(0, 6, (0,)), Block(6, 12, (1, 0))
GOOD = Plan(
    (Node("a", 100), Node("b", 100)), {"t": TableSpec(12, 2, 96)}, {"t": BLOCKS}, {"t": 1.0}
)


def collect(plan):
    return ShardedCollection({"t": np.ones((12, 2), np.float32)}, [Feature("x", "t")], plan=plan)


def test_a_plan_made_by_hand_is_used():
    assert collect(GOOD)({"x": [[0, 5, 6, 11]]}).tolist() == [[4, 4]]


ROWS = "since each block but the last has {} rows, got {}"
SHARDS = "must be on different shards from 0 to 1, got "


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((), " must be at least one block, got none"),
        ((Block(0, 11, (0,)),), "[0] must have the ids 0:12, " + ROWS.format(12, "0:11")),
        ((Block(0, 13, (0,)),), "[0] must have the ids 0:12, " + ROWS.format(12, "0:13")),
        ((Block(1, 12, (0,)),), "[0] must have the ids 0:12, " + ROWS.format(12, "1:12")),
        (
            (BLOCKS[0], Block(5, 12, (1,))),
            "[1] must have the ids 6:12, " + ROWS.format(6, "5:12"),
        ),
        (
            (BLOCKS[0], Block(7, 12, (1,))),
            "[1] must have the ids 6:12, " + ROWS.format(6, "7:12"),
        ),
        (
            (Block(0, 4, (0,)), Block(4, 12, (1,))),
            "[0] must have the ids 0:6, " + ROWS.format(6, "0:4"),
        ),
        (BLOCKS[::-1], "[0] must have the ids 0:6, " + ROWS.format(6, "6:12")),
        ((Block(0, 12, ()),), f"[0] {SHARDS}()"),
        ((Block(0, 12, (2,)),), f"[0] {SHARDS}(2,)"),
        ((Block(0, 12, (-1,)),), f"[0] {SHARDS}(-1,)"),
        ((Block(0, 12, (0, 0)),), f"[0] {SHARDS}(0, 0)"),
        ((BLOCKS[0], Block(6, 12, ([],))), f"[1] {SHARDS}([],)"),
    ],
)
def test_blocks_that_do_not_have_every_row_once(blocks, message):
    with pytest.raises(ValueError, match="plan") as caught:
        collect(replace(GOOD, blocks={"t": blocks}))
    assert str(caught.value) == f"plan: blocks['t']{message}"


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"nodes": ()}, ValueError, "nodes must be at least one, got none"),
        ({"nodes": ("a",)}, TypeError, "nodes[0] must be a pair (name, bytes), got 'a'"),
        ({"tables": None}, TypeError, "tables must be a mapping, got None"),
        ({"tables": {"t": GOOD.tables["t"]._replace(n_rows=-1)}}, ValueError, None),
        (
            {"tables": {"t": np.ones((12, 2), np.float32)}},
            TypeError,
            "tables['t'] must be a TableSpec, got ndarray",
        ),
        ({"blocks": [BLOCKS]}, TypeError, "blocks must be a mapping, got list"),
        ({"blocks": {}}, ValueError, "blocks must have the keys of tables, 't', got none"),
        (
            {"blocks": {"t": BLOCKS, "u": BLOCKS}},
            ValueError,
            "blocks must have the keys of tables, 't', got 't', 'u'",
        ),
        ({"blocks": {"t": list(BLOCKS)}}, TypeError, "blocks['t'] must be a tuple, got list"),
        ({"blocks": {"t": (1,)}}, TypeError, "blocks['t'][0] must be a Block, got 1"),
        ({"traffic": {}}, ValueError, "traffic must have the keys of tables, 't', got none"),
    ],
)
def test_fields_of_other_kinds(changes, kind, message):
    with pytest.raises(kind) as caught:
        collect(replace(GOOD, **changes))
    assert message is None or str(caught.value) == f"plan: {message}"


def test_a_remapped_table_is_not_cut():
    table = embag.RemappedTable(np.zeros((12, 2), np.float32), first_id=4)
    whole = cut_plan({"t": table}, 1)
    ShardedCollection({"t": table}, [Feature("x", "t")], plan=whole)
    cut = replace(whole, blocks={"t": (Block(4, 10, (0,)), Block(10, 16, (1,)))})
    with pytest.raises(ValueError, match="must be one block, since a RemappedTable is not cut"):
        ShardedCollection({"t": table}, [Feature("x", "t")], plan=cut)
