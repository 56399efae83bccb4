"""JSON lines, read in blocks: types of columns, rows named in errors, unused columns."""

import json

import numpy as np
import pytest
from command_line import TABLE, means, pa, pool, read, run, vectors

from embag.cli import _json_lines


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(_json_lines, "_BLOCK", 100)


def write(tmp_path, *rows):
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    (tmp_path / "in.jsonl").write_text(text)
    return tmp_path / "in.jsonl"


def failure(capsys, source, tmp_path, *options):
    np.save(tmp_path / "table.npy", TABLE)
    arguments = ["--column", "ids", "--table", tmp_path / "table.npy", "--out", tmp_path / "o.npy"]
    if options:
        arguments[-1] = tmp_path / "o.parquet"
    printed = run(capsys, "pool", source, *arguments, *options, status=1)
    assert printed.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("o.")] == []
    return printed.err.strip().removeprefix(f"embag pool: error: {source}: ")


@pytest.mark.parametrize(
    "others",
    [
        [{"x": 1}] * 20 + [{"x": 1, "y": 2}] * 20,
        [{"x": 1}] * 20 + [{"x": "text"}] * 20,
        [{"x": 1}, {"x": "text"}, {"x": [1]}, {"x": {"a": [{}]}}, {"x": None}, {}] * 7,
        [{"x": {"a": 1}}] * 20 + [{"x": {"a": 1, "b": [2]}}] * 20,
    ],
)
def test_unused_columns_may_hold_anything(others, tmp_path, capsys):
    lists = [[i, i + 1] for i in range(len(others))]
    rows = [{"user": i, "ids": lists[i], **other} for i, other in enumerate(others)]
    source = write(tmp_path, *rows)
    out, summary = pool(capsys, source, tmp_path, "--keep", "user", out="o.arrow")
    assert read(out)["user"].to_pylist() == list(range(len(rows)))
    np.testing.assert_array_equal(vectors(read(out)["ids_vector"]), means(lists))
    assert summary["rows"] == len(rows)
    found = json.loads(run(capsys, "info", source, "--column", "ids", "--json").out)
    assert found["column"]["ids"] == 2 * len(rows)


def test_info_of_a_column_without_one_type(tmp_path, capsys):
    source = write(tmp_path, {"a": 1, "ids": [1]}, {"a": "x", "ids": [2]})
    found = json.loads(run(capsys, "info", source, "--json").out)
    assert found["columns"] == {"a": "extension<arrow.json>", "ids": "list<item: int64>"}


@pytest.mark.parametrize(
    ("nothing", "something", "dtype"),
    [
        (None, "text", pa.string()),
        (None, 2.5, pa.float64()),
        (None, {"a": 1}, pa.struct([("a", pa.int64())])),
        ([], [1], pa.list_(pa.int64())),
        ([None], ["x"], pa.list_(pa.string())),
        ({"a": 1, "b": None}, {"b": "x"}, pa.struct([("a", pa.int64()), ("b", pa.string())])),
        (None, None, pa.null()),
    ],
)
def test_a_later_block_decides_the_types_of_kept_columns(
    nothing, something, dtype, tmp_path, capsys
):
    values = [nothing] * 30 + [something] * 2 + [nothing] * 20
    rows = [{"ids": [1], "kept": value} for value in values]
    out, _ = pool(capsys, write(tmp_path, *rows), tmp_path, "--keep", "kept", out="o.arrow")
    kept = read(out)["kept"]
    assert kept.type == dtype
    assert kept.equals(pa.chunked_array([pa.array(values, dtype)]))


def test_columns_that_start_in_a_later_block(tmp_path, capsys):
    rows = [{"x": 1}] * 30 + [{"ids": "1 2", "kept": True}] + [{}] * 30
    out, _ = pool(capsys, write(tmp_path, *rows), tmp_path, "--keep", "kept", out="o.arrow")
    assert read(out)["kept"].to_pylist() == [None] * 30 + [True] + [None] * 30
    expected = means([[]] * 30 + [[1, 2]] + [[]] * 30)
    np.testing.assert_array_equal(vectors(read(out)["ids_vector"]), expected)


def test_lines_of_any_length(tmp_path, capsys):
    lists = [[i % 50 for i in range(n)] for n in (0, 1, 500, 3, 1000, 20)]
    rows = [{"ids": bag, "x": "x" * (7 * len(bag))} for bag in lists]
    source = write(tmp_path, "\n\n", *rows[:3], "\n  \n", *rows[3:5], json.dumps(rows[5]))
    out, _ = pool(capsys, source, tmp_path, out="o.arrow")
    np.testing.assert_array_equal(vectors(read(out)["ids_vector"]), means(lists))


@pytest.mark.parametrize("end", ["", "\n"])
def test_an_overlong_line(end, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_json_lines, "_LONGEST_LINE", 1000)
    source = write(tmp_path, {"ids": [1]}, json.dumps({"ids": [1] * 1000}) + end)
    message = failure(capsys, source, tmp_path)
    assert message == "a line must have at most 1000 bytes, got a longer one"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"ids": [1', "JSON parse error: Missing a comma or ']' after an array element."),
        ("[1]", "JSON parse error: Column() changed from object to array"),
        ('{"ids": 3}', "JSON parse error: Column(/ids) changed from array to number"),
        ('{"ids": [1.5]}', "Failed to convert JSON to int64, couldn't parse:1.5"),
        ('{"ids": ["a"]}', "JSON parse error: Column(/ids/[]) changed from number to string"),
        ('{"ids": [1], "kept": 7}', "JSON parse error: Column(/kept) changed from object to num"),
        ('{"ids": [1], "kept": {"b": 2}}', "JSON parse error: unexpected field"),
    ],
)
@pytest.mark.parametrize("n_before", [4, 40])
def test_errors_name_the_row_of_the_file(line, message, n_before, tmp_path, capsys):
    good = {"ids": [1, 2], "kept": {"a": 1}}
    source = write(tmp_path, *[good] * n_before, "\n", line + "\n", *[good] * 5)
    options = ["--keep", "kept"] if "kept" in line else []
    found = failure(capsys, source, tmp_path, *options)
    assert found.startswith(message)
    assert found.endswith(f" in row {n_before}")


def test_an_id_out_of_range_is_named_by_its_row_in_the_file(tmp_path, capsys):
    source = write(tmp_path, *[{"ids": [1, 2]}] * 40, {"ids": [50]})
    assert failure(capsys, source, tmp_path).startswith(
        "column 'ids', row 40: id 50 is out of range"
    )


@pytest.mark.parametrize("nested", ["[]", "{}"])
@pytest.mark.parametrize("depth", [200, 100_000])
def test_nested_lists_do_not_crash(nested, depth, tmp_path, capsys):
    opening = "[" if nested == "[]" else '{"x":'
    deep = opening * depth + "1" + nested[1] * depth
    source = write(tmp_path, f'{{"ids": [1], "x": {deep}}}\n')
    assert "row 0" in failure(capsys, source, tmp_path, "--keep", "x")
    if depth == 200:
        found = json.loads(run(capsys, "info", source, "--json").out)
        assert found["columns"]["x"] == "extension<arrow.json>"


def test_empty_files(tmp_path, capsys):
    for text in ("", "\n", " \n" * 200):
        assert failure(capsys, write(tmp_path, text), tmp_path) == "Empty JSON file"
