"""Failures of `embag pool`: the message, the exit status, and no file left behind.

Tests of signals run in processes of their own.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from command_line import TABLE, columns, pa, run

import embag

import pyarrow.csv  # isort: skip
import pyarrow.parquet as pq  # isort: skip


@pytest.fixture
def folder(tmp_path):
    """Make a folder with a table, a file of ids and an old result."""
    np.save(tmp_path / "table.npy", TABLE)
    pq.write_table(columns(), tmp_path / "in.parquet", row_group_size=3)
    (tmp_path / "out.parquet").write_bytes(b"old")
    return tmp_path


def arguments(folder, source="in.parquet", out="out.parquet", column="ids", table="table.npy"):
    return [
        *("pool", folder / source, "--column", column),
        *("--table", folder / table, "--out", folder / out),
    ]


def check_untouched(folder):
    assert (folder / "out.parquet").read_bytes() == b"old"
    assert not list(folder.glob(".embag-*"))


def failure(capsys, folder, *more, **names):
    """Run a command that fails, and return its error message."""
    printed = run(capsys, *arguments(folder, **names), *more, status=1)
    assert printed.out == ""
    assert printed.err.startswith("embag pool: error: ")
    assert printed.err.count("\n") == 1
    check_untouched(folder)
    return printed.err.removeprefix("embag pool: error: ").strip().replace(f"{folder}/", "")


# Contents of the file


def test_an_id_out_of_range(folder, capsys):
    lists = [[1]] * 5000 + [[3, 4], [2, 50, -1], [60]]
    pq.write_table(pa.table({"ids": lists}), folder / "in.parquet", row_group_size=100)
    assert failure(capsys, folder) == (
        "in.parquet: column 'ids', row 5001: id 50 is out of range for a table of 50 rows "
        "(use --invalid skip to skip such ids)"
    )


@pytest.mark.parametrize(
    ("dtype", "found"), [("int8", -1), ("uint8", 50), ("int64", 2**62), ("uint64", 2**63 + 5)]
)
@pytest.mark.parametrize("quantized", [False, True])
def test_an_id_of_any_type_out_of_range(dtype, found, quantized, folder, capsys):
    if quantized:
        embag.save_table(folder / "table.npy", TABLE, bits=8)
    lists = pa.array([[1], None, [2, None, found]], pa.list_(getattr(pa, dtype)()))
    pq.write_table(pa.table({"ids": lists}), folder / "in.parquet")
    assert f"'ids', row 2: id {found} is out of range for a table of 50 rows" in failure(
        capsys, folder
    )


def test_text_that_is_not_a_number(folder, capsys):
    (folder / "in.csv").write_text("ids\n" + "1 2\n" * 3000 + "3 four\n7\n")
    assert failure(capsys, folder, source="in.csv") == (
        "in.csv: column 'ids', row 3000: 'four' is not an integer"
    )


def test_weights_of_another_length(folder, capsys):
    table = pa.table({"ids": [[1, 2], [3]], "w": [[1.0, 2.0], [3.0, 4.0]]})
    pq.write_table(table, folder / "in.parquet")
    message = failure(capsys, folder, "--mode", "sum", "--weights", "w")
    assert message == (
        "in.parquet: column 'w', row 1: there must be as many weights as ids, 1, got 2"
    )


def test_a_weight_that_is_null(folder, capsys):
    lists = [[1]] * 3000 + [[3, None, 4], [2]]
    weights = [[0.5]] * 3000 + [[1.0, None, None], [1.0]]
    pq.write_table(pa.table({"ids": lists, "w": weights}), folder / "in.parquet")
    assert failure(capsys, folder, "--mode", "sum", "--weights", "w") == (
        "in.parquet: column 'w', row 3000: the weight of id 4 is null "
        "(use --null-weights skip to skip such ids)"
    )


@pytest.mark.parametrize(
    "text",
    ["1,,2", "1;;2", "1||2", "1, ,2", "1,;2", ",1", "1,", "[1,2,]", "[,1]", ",", " ; ", "1|"],
)
@pytest.mark.parametrize("name", ["in.csv", "in.parquet", "in.arrow", "in.jsonl"])
def test_text_with_an_empty_entry(text, name, folder, capsys):
    table = pa.table({"ids": ["1,2", "", None] * 1000 + [text, "7"], "x": range(3002)})
    if name == "in.jsonl":
        rows = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
        (folder / name).write_text(rows)
    elif name == "in.csv":
        pyarrow.csv.write_csv(table, folder / name)
    elif name == "in.arrow":
        with pa.ipc.new_file(folder / name, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, folder / name)
    assert failure(capsys, folder, source=name) == (
        f"{name}: column 'ids', row 3000: {text!r} has an empty entry"
    )
    printed = run(capsys, "info", folder / name, "--column", "ids", status=1)
    assert f"column 'ids', row 3000: {text!r} has an empty entry" in printed.err


def test_a_missing_column(folder, capsys):
    assert failure(capsys, folder, column="idz") == (
        "in.parquet: there is no column 'idz'; did you mean 'ids'? (its columns: user, ids)"
    )
    assert failure(capsys, folder, "--keep", "zzz") == (
        "in.parquet: there is no column 'zzz' (its columns: user, ids)"
    )


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl", "in.arrow"])
def test_a_missing_column_in_any_format(name, folder, capsys):
    text = '{"user": 1, "ids": [1]}\n' if name == "in.jsonl" else "user,ids\n1,1\n"
    (folder / name).write_text(text)
    if name == "in.arrow":
        with pa.ipc.new_file(folder / name, columns().schema) as writer:
            writer.write_table(columns())
    message = failure(capsys, folder, source=name, column="idz")
    assert "did you mean 'ids'? (its columns: user, ids)" in message


def test_a_column_of_another_type(folder, capsys):
    assert failure(capsys, folder, column="user") == (
        "in.parquet: column 'user' must have lists of integers, got int64"
    )
    pq.write_table(pa.table({"ids": [[1.5]]}), folder / "in.parquet")
    assert failure(capsys, folder) == (
        "in.parquet: column 'ids' must have lists of integers, got list<element: double>"
    )


# Broken and missing files


@pytest.mark.parametrize("name", ["in.parquet", "in.arrow", "in.arrows", "in.npy"])
@pytest.mark.parametrize("cut", [0, 10, -30])
def test_a_file_that_is_cut_off(name, cut, folder, capsys):
    table = pa.table({"ids": [[1, 2]] * 300})
    if name == "in.npy":
        np.save(folder / name, np.ones((300, 2), np.int64))
    elif name == "in.arrows":
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table)
    elif name == "in.arrow":
        with pa.ipc.new_file(folder / name, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, folder / name)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:cut] if cut else b"")
    command = arguments(folder, source=name)
    if name == "in.npy":
        command[2:4] = []
    printed = run(capsys, *command, status=1)
    assert printed.err.startswith(f"embag pool: error: {folder}/{name}: ")
    assert printed.err.count("\n") == 1
    check_untouched(folder)


@pytest.mark.parametrize("write", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize(
    ("column", "offsets", "wrong"),
    [
        ("ids", [0, 3, 3, 3, 4], [-(2**30), 3, 3, 3, 4]),
        ("ids", [0, 3, 3, 3, 4], [0, 3, 2, 3, 4]),
        ("ids", [0, 3, 3, 3, 4], [0, 3, 3, 3, 2**30]),
        ("text", [0, 5, 11, 11, 11], [0, 5, 11, 11, 60_000]),
        ("text", [0, 5, 11, 11, 11], [-60_000, 5, 11, 11, 11]),
        ("bytes", [0, 7, 7, 7, 15], [0, 7, 7, 7, 60_000]),
        ("texts", [0, 2, 2, 3, 3], [0, 2, 2, 3, 2**20]),
        ("names", [1, 0, 1, 1], [1, 0, 2**20, 1]),
    ],
)
def test_an_arrow_file_that_points_outside_itself(write, column, offsets, wrong, folder, capsys):
    table = pa.table(
        {
            "ids": pa.array([[1, 2, 3], [], [], [4]], pa.list_(pa.int64())),
            "text": ["first", "second", "", ""],
            "bytes": [b"1234567", b"", b"", b"12345678"],
            "texts": [["a", "b"], [], ["c"], []],
            "names": pa.DictionaryArray.from_arrays(
                pa.array([1, 0, 1, 1], pa.int32()), pa.array(["this name", "that name"])
            ),
        }
    )
    with write(folder / "in.arrow", table.schema) as writer:
        writer.write_table(table)
    before, after = (np.array(some, np.int32).tobytes() for some in (offsets, wrong))
    whole = (folder / "in.arrow").read_bytes()
    assert whole.count(before) == 1
    (folder / "in.arrow").write_bytes(whole.replace(before, after))
    if column == "ids":
        printed = run(capsys, "info", folder / "in.arrow", "--column", "ids", status=1)
        assert printed.err.startswith(f"embag info: error: {folder}/in.arrow: ")
    else:  # a column that is not requested is not read
        command = arguments(folder, source="in.arrow", out="other.arrow")
        run(capsys, *command)
    kept = [] if column == "ids" else ["--keep", column]
    assert failure(capsys, folder, *kept, source="in.arrow").startswith("in.arrow: ")


IDS = np.ones((5, 2), np.int32)


def npy_of(array, *replaced):
    written = io.BytesIO()
    np.save(written, array)
    return written.getvalue().replace(*replaced) if replaced else written.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\3\4 and so on", "header must be one that NumPy writes, got the magic string"),
        (npy_of(IDS, b"(5, 2)", b"(((((("), "header must be one that NumPy writes, got "),
        (npy_of(IDS, b"(5, 2)", b"(-5,2)"), "shape must not be negative, got (-5, 2)"),
        (npy_of(IDS, b"(5, 2)", b"(9, 2)"), "file must have 72 bytes of data after its header"),
        (npy_of(IDS) + b"x", "file must have 40 bytes of data after its header, got 41"),
        (npy_of(IDS * 0.5)[:-1], "file must have 80 bytes of data after its header, got 79"),
        (npy_of(IDS[0]), "ids must be 2-D integers, a bag in each row, got shape (2,)"),
        (npy_of(np.array([{}])), "dtype must be of numbers, got Python objects"),
    ],
)
def test_broken_npy_files(content, message, folder, capsys):
    (folder / "in.npy").write_bytes(content)
    printed = run(capsys, "info", folder / "in.npy", status=1)
    assert printed.err.startswith(f"embag info: error: {folder}/in.npy: {message}")
    assert printed.err.count("\n") == 1
    command = arguments(folder, source="in.npy")
    command[2:4] = []
    printed = run(capsys, *command, status=1)
    assert printed.err.startswith(f"embag pool: error: {folder}/in.npy: ")
    assert printed.err.count("\n") == 1
    check_untouched(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize(
    "name",
    ["p.parquet", "p.arrow", "p.csv", "p.csv.gz", "p.jsonl", "p.npy", "p.safetensors"],
)
def test_a_pipe(name, folder, capsys):
    pipe = folder / name
    os.mkfifo(pipe)
    commands = [["info", pipe]]
    if name != "p.safetensors":
        commands.append(arguments(folder, source=name))
        if name == "p.npy":
            commands[-1][2:4] = []
    if name in ("p.npy", "p.safetensors"):
        commands.append(arguments(folder, table=name))
        commands.append(["quantize", pipe, folder / "small.npy"])
        commands.append(["info", folder / "in.parquet", "--column", "ids", "--table", pipe])
    for command in commands:
        printed = run(capsys, *command, status=1)
        assert printed.err == (
            f"embag {command[0]}: error: {pipe}: path must lead to a regular file, got a pipe\n"
        )


def test_wrong_bytes_in_the_middle(folder, capsys):
    pq.write_table(pa.table({"ids": [list(range(50))] * 20_000}), folder / "in.parquet")
    whole = bytearray((folder / "in.parquet").read_bytes())
    whole[len(whole) // 4 : len(whole) // 2] = os.urandom(len(whole) // 2 - len(whole) // 4)
    (folder / "in.parquet").write_bytes(whole)
    assert failure(capsys, folder).startswith("in.parquet: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"ids": [1]}\n{"ids": [1\n', "in.jsonl: JSON parse error"),
        ('{"ids": [1]}\n{"ids": [1.5]}\n', "in.jsonl: Failed to convert JSON to int64"),
        ("", "in.jsonl: Empty JSON"),
    ],
)
def test_broken_json(text, message, folder, capsys):
    (folder / "in.jsonl").write_text(text)
    assert failure(capsys, folder, source="in.jsonl").startswith(message)


def test_csv_with_an_overlong_row(folder, capsys):
    (folder / "in.csv").write_text("user,ids\n1,2\n1,2,3\n")
    assert "Expected 2 columns, got 3" in failure(capsys, folder, source="in.csv")


def test_missing_files(folder, capsys):
    assert "No such file" in failure(capsys, folder, source="no.parquet")
    assert failure(capsys, folder, table="no.npy") == "no.npy: No such file or directory"
    message = failure(capsys, folder, out="no/out.parquet")
    assert message.startswith("no/out.parquet: ")
    assert "No such file" in message


def test_names_without_a_known_format(folder, capsys):
    assert failure(capsys, folder, out="out.xls").startswith("out.xls: name must end in .parquet")
    assert failure(capsys, folder, source="in.xls").startswith("in.xls: name must end in .parquet")
    assert "path must end in .npy or .safetensors" in failure(capsys, folder, table="in.parquet")


def test_a_broken_table(folder, capsys):
    (folder / "table.npy").write_bytes((folder / "table.npy").read_bytes()[:-4])
    assert failure(capsys, folder).startswith("table.npy: file must have 1000 bytes of data")


# Wrong command lines


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mode", "median"], "Invalid value for '--mode'"),
        (
            ["--mode", "max", "--weights", "user"],
            "--weights must come with --mode sum, mean or sqrtn, got max",
        ),
        (["--null-weights", "skip"], "--null-weights must come with --weights"),
        (["--n-invalid", "n"], "--n-invalid must come with --invalid skip or a row"),
        (
            ["--invalid", "skip", "--n-invalid", "ids_vector"],
            "the names of --keep, of --n-invalid and of the vectors must differ",
        ),
        (["--threads", "0"], "0 is not in the range"),
        (["--invalid", "-1"], "Invalid value for '--invalid': must be raise, skip or a row"),
        (["--padding-idx", "-1"], "-1 is not in the range"),
        (
            ["--keep", "ids,ids_vector"],
            "the names of --keep, of --n-invalid and of the vectors must differ",
        ),
        (["--out", "x.npy", "--keep", "user"], "OUT is a .npy file, of vectors alone"),
        (["--colum", "x"], "No such option"),
    ],
)
def test_wrong_command_lines(more, message, folder, capsys):
    printed = run(capsys, *arguments(folder), *more, status=2)
    assert message in " ".join(printed.err.split())
    assert printed.out == ""
    check_untouched(folder)


def test_inputs_are_not_overwritten(folder, capsys):
    printed = run(capsys, *arguments(folder, out="in.parquet"), status=2)
    assert "--out must be another file" in printed.err
    assert pq.read_table(folder / "in.parquet").equals(columns())


# Signals and a full disk


def write_slow_source(folder):
    """Write a file that takes some seconds to pool: a million lists of 200 ids."""
    ids = pa.array(np.arange(200 * 20_000, dtype=np.int32) % 50)
    lists = pa.FixedSizeListArray.from_arrays(ids, 200).cast(pa.list_(pa.int32()))
    table = pa.table({"ids": lists})
    with pq.ParquetWriter(folder / "in.parquet", table.schema) as writer:
        for _ in range(50):
            writer.write_table(table)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "message"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")],
)
def test_a_signal_leaves_no_files(number, message, folder):
    write_slow_source(folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "embag", *map(str, arguments(folder))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=os.path.dirname(__file__),
        encoding="utf-8",
    )
    try:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in folder.glob(".embag-*")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, output) == (128 + number, "")
    assert errors.strip().splitlines() == [f"embag pool: {message}"]
    check_untouched(folder)


@pytest.fixture
def tiny_disk(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if mounted.returncode:
        pytest.skip("mounting is not allowed")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=30)


@pytest.mark.parametrize("name", ["out.parquet", "out.arrow", "out.npy"])
def test_a_full_disk(name, folder, tiny_disk, capsys):
    pq.write_table(pa.table({"ids": [[1, 2]] * 200_000}), folder / "in.parquet")
    (tiny_disk / name).write_bytes(b"old")
    command = arguments(folder)
    command[-1] = tiny_disk / name
    printed = run(capsys, *command, status=1)
    assert printed.err.startswith(f"embag pool: error: {tiny_disk}/{name}: ")
    assert "No space left on device" in printed.err
    assert printed.err.count("\n") == 1
    assert [path.name for path in tiny_disk.iterdir()] == [name]
    assert (tiny_disk / name).read_bytes() == b"old"
