"""Which shard holds what."""

import numpy as np
import pytest

import embag
import embag.ray
from embag.ray import TableSpec, plan

GB = 10**9


def spec(n_gigabytes, n_rows=10**6, **options):
    return TableSpec(n_rows, 64, n_gigabytes * GB, **options)


def held(found):
    """Return the tables of each shard."""
    return [[name for name, _, _ in found.held(shard)] for shard in range(len(found.nodes))]


def test_the_largest_tables_are_placed_first_and_apart():
    tables = {"small": spec(1), "large": spec(9), "medium": spec(8)}
    found = plan(tables, {"a": 20 * GB, "b": 20 * GB})
    assert sorted(map(sorted, held(found))) == [["large"], ["medium", "small"]]


def test_traffic_counts_as_much_as_bytes():
    tables = {"hot": spec(1), "warm": spec(1), "cold": spec(1), "frozen": spec(1)}
    traffic = {"hot": 60, "warm": 40, "cold": 0, "frozen": 0}
    found = plan(tables, [("a", 10 * GB), ("b", 10 * GB)], traffic)
    hot = next(tables for tables in held(found) if "hot" in tables)
    assert "warm" not in hot
    assert {round(found.load(shard).traffic, 9) for shard in range(2)} == {0.6, 0.4}


def test_a_table_is_cut_only_if_it_fits_no_node():
    tables = {"huge": TableSpec(10, 4, 25 * GB), "small": spec(2)}
    found = plan(tables, {"a": 10 * GB, "b": 10 * GB, "c": 10 * GB})
    assert [block[:2] for block in found.blocks["huge"]] == [(0, 4), (4, 8), (8, 10)]
    assert len({block.shards for block in found.blocks["huge"]}) == 3
    assert len(found.blocks["small"]) == 1
    assert all(found.load(s).n_bytes <= 10 * GB for s in range(3))
    assert sum(found.load(s).traffic for s in range(3)) == pytest.approx(1)


def test_what_is_too_large_for_the_gaps_is_cut():
    tables = {name: spec(6) for name in "xyz"}
    found = plan(tables, {"a": 10 * GB, "b": 10 * GB})
    assert sorted(len(blocks) for blocks in found.blocks.values()) == [1, 1, 2]


def test_copies_are_on_different_shards():
    tables = {"hot": spec(1), "cold": spec(3)}
    found = plan(tables, [(name, 10 * GB) for name in "abc"], {"hot": 1}, copies={"hot": 3})
    assert found.blocks["hot"][0].shards == (0, 1, 2)
    assert sum(found.load(s).traffic for s in range(3)) == pytest.approx(1)
    assert sum(found.load(s).n_bytes for s in range(3)) == 6 * GB


def test_a_node_may_have_several_shards():
    found = plan({"x": spec(1), "y": spec(1)}, [("a", GB), ("a", GB)])
    assert [node.name for node in found.nodes] == ["a", "a"]
    assert sorted(map(len, held(found))) == [1, 1]


def test_sizes_of_tables_in_memory_and_in_files(tmp_path):
    table = np.zeros((100, 8), np.float16)
    tables = {
        "array": table,
        "npy": tmp_path / "table.npy",
        "quantized": embag.quantize(np.zeros((100, 64), np.float32), bits=4),
        "file": str(tmp_path / "small.safetensors"),
        "remapped": embag.RemappedTable(table, index_map=np.arange(70), first_id=30),
        "map": str(tmp_path / "map.safetensors"),
    }
    embag.save_table(tables["npy"], table)
    embag.save_table(tables["file"], tables["quantized"])
    embag.save_table(tables["map"], tables["remapped"])
    found = plan(tables, {"a": GB}).tables
    assert found["array"] == found["npy"] == TableSpec(100, 8, 1600)
    assert found["quantized"] == found["file"] == TableSpec(100, 64, 100 * 36)
    assert found["remapped"] == found["map"] == TableSpec(70, 8, 1600 + 70 * 8, 30, True)


def test_tables_without_rows_or_bytes():
    found = plan({"none": np.zeros((0, 8), np.float32), "thin": TableSpec(5, 0, 0)}, {"a": 0})
    assert held(found) == [["none", "thin"]]
    assert found.load(0) == (0, 1.0)


def test_the_report_shows_who_holds_what():
    sizes = {"items": TableSpec(1000, 64, 256_000), "cities": TableSpec(50, 64, 12_800)}
    assert repr(plan(sizes, {"10.0.0.1": 200_000, "10.0.0.2": 200_000}, copies={"cities": 2})) == (
        "Plan: 2 tables on 2 shards\n"
        "shard 0 on 10.0.0.1: 141 kB of 200 kB (70 %), 50.0 % of the rows read\n"
        "    items: rows 0 to 499, block 1 of 2, 128 kB\n"
        "    cities: 50 rows, one of 2 copies, 12.8 kB\n"
        "shard 1 on 10.0.0.2: 141 kB of 200 kB (70 %), 50.0 % of the rows read\n"
        "    items: rows 500 to 999, block 2 of 2, 128 kB\n"
        "    cities: 50 rows, one of 2 copies, 12.8 kB"
    )


REMAPPED = TableSpec(10, 4, 9 * GB, 0, True)


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        (
            ({"x": spec(30)}, {"a": 10 * GB, "b": 10 * GB}),
            {},
            ValueError,
            "tables must fit: they take 30 GB, got nodes with 20 GB in all",
        ),
        (
            ({"x": spec(9), "y": REMAPPED}, {"a": 8 * GB, "b": 8 * GB, "c": 8 * GB}),
            {},
            ValueError,
            "tables must fit: 'y' takes 9 GB and is not cut, since it is a RemappedTable, "
            "got nodes with 8 GB, 8 GB, 8 GB",
        ),
        (
            ({"x": TableSpec(1, 4, 9 * GB)}, {"a": 8 * GB, "b": 8 * GB}),
            {},
            ValueError,
            "tables must fit: 'x' takes 9 GB and may be cut into at most 1 blocks, "
            "got nodes with 8 GB, 8 GB",
        ),
        (([spec(1)], {"a": GB}), {}, TypeError, "tables must be a mapping, got list"),
        (({1: spec(1)}, {"a": GB}), {}, TypeError, "tables must have keys of type str, got 1"),
        (({"x": spec(1)}, {}), {}, ValueError, "nodes must be at least one, got none"),
        (
            ({"x": spec(1)}, "ab"),
            {},
            TypeError,
            "nodes must be a mapping or a sequence of pairs, got 'ab'",
        ),
        (
            ({"x": spec(1)}, ["a"]),
            {},
            TypeError,
            "nodes[0] must be a pair (name, bytes), got 'a'",
        ),
        (
            ({"x": spec(1)}, {"a": -1}),
            {},
            ValueError,
            "the bytes of node 'a' must be at least 0, got -1",
        ),
        (
            ({"x": spec(1)}, {"a": 1.5}),
            {},
            TypeError,
            "the bytes of node 'a' must be an integer, got 1.5",
        ),
        (
            ({"x": spec(1)}, {"a": GB}, {"y": 1}),
            {},
            ValueError,
            "traffic must have names of tables as keys, got 'y'",
        ),
        (
            ({"x": spec(1)}, {"a": GB}, {"x": -1}),
            {},
            ValueError,
            "traffic['x'] must be at least 0 and finite, got -1",
        ),
        (
            ({"x": spec(1)}, {"a": GB}),
            {"copies": {"x": 2}},
            ValueError,
            "copies['x'] must be at most the number of shards, 1, got 2",
        ),
        (
            ({"x": spec(1)}, {"a": GB}),
            {"copies": {"x": 0}},
            ValueError,
            "copies['x'] must be at least 1, got 0",
        ),
        (
            ({"x": spec(-1)}, {"a": GB}),
            {},
            ValueError,
            f"tables['x'].n_bytes must be at least 0 and less than 2**62, got {-GB}",
        ),
        (
            ({"x": spec(1, first_id=3)}, {"a": GB}),
            {},
            ValueError,
            "tables['x'].first_id must be 0 unless is_remapped, got 3",
        ),
        (
            ({"x": np.zeros(3)}, {"a": GB}),
            {},
            ValueError,
            "tables['x'] must be 2-D (n_rows, dim), got shape (3,)",
        ),
        (
            ({"x": 5}, {"a": GB}),
            {},
            TypeError,
            "tables['x'] must be a numpy.ndarray, a QuantizedTable or a RemappedTable, got 5",
        ),
    ],
)
def test_errors(arguments, options, kind, message):
    with pytest.raises(kind) as caught:
        plan(*arguments, **options)
    assert str(caught.value) == message


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        plan({"x": tmp_path / "missing.npy"}, {"a": GB})
