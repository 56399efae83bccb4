"""Commands that end early: signals, a stdout that fails, files that vanish, invalid names.

The report must be true: unless the line says that OUT has been written, OUT is unchanged.
Tests of signals and closed files run in processes of their own.
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from command_line import TABLE, columns, run
from processes import SCRIPTS, run_python

import pyarrow.parquet as pq  # isort: skip

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and modes of POSIX")

COMMANDS = {
    "pool": ["in.parquet", "--column", "ids", "--table", "table.npy", "--out", "out.parquet"],
    "quantize": ["table.npy", "out.npy"],
    "convert": ["table.npy", "out.npy"],
}
SIGNALS = {
    "SIGINT": "interrupted",
    "SIGTERM": "ended by SIGTERM",
    "SIGHUP": "ended by SIGHUP",
}


@pytest.fixture(autouse=True)
def _default_sighup():
    """Let SIGHUP end child processes even if the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "table.npy", TABLE)
    pq.write_table(columns(), tmp_path / "in.parquet", row_group_size=3)
    for name in ("out.parquet", "out.npy"):
        (tmp_path / name).write_bytes(b"old")
    return tmp_path


def out_of(command):
    return next(word for word in COMMANDS[command] if word.startswith("out"))


# Signals


def run_signalled(folder, command, moment, *names):
    """Run a command in a process that sends itself signals at a moment."""
    script = SCRIPTS / "signal_command.py"
    words = [moment, *names, "--", command, *COMMANDS[command]]
    return run_python(script, *words, cwd=folder, check=False)


@pytest.mark.parametrize(
    ("command", "name"),
    [*(("pool", name) for name in SIGNALS), ("quantize", "SIGINT"), ("convert", "SIGTERM")],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_near_the_replacement(when, name, command, folder):
    ended = run_signalled(folder, command, f"{when}_the_replacement", name)
    out = out_of(command)
    note = "" if when == "before" else f"; {out} has been written"
    assert ended.stderr == f"embag {command}: {SIGNALS[name]}{note}\n"
    assert (ended.returncode, ended.stdout) == (128 + getattr(signal, name), "")
    assert ((folder / out).read_bytes() == b"old") == (when == "before")
    assert not list(folder.glob(".embag-*"))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_signal_decides(command, folder):
    ended = run_signalled(folder, command, "during_the_last_write_and_the_removal")
    assert (ended.returncode, ended.stderr) == (143, f"embag {command}: ended by SIGTERM\n")
    assert (folder / out_of(command)).read_bytes() == b"old"
    assert not list(folder.glob(".embag-*"))


def test_a_signal_during_the_computation_of_the_error(folder):
    ended = run_signalled(folder, "quantize", "during_the_computation_of_the_error", "SIGTERM")
    assert (ended.returncode, ended.stderr) == (143, "embag quantize: ended by SIGTERM\n")
    assert (folder / "out.npy").read_bytes() == b"old"
    assert not list(folder.glob(".embag-*"))


def test_a_signal_that_the_process_ignores(folder):
    ended = run_signalled(folder, "convert", "during_the_last_write_but_ignored", "SIGHUP")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (folder / "out.npy").read_bytes() != b"old"


def write_slow_source(path):
    """Write a file that takes some seconds to pool: many lists of 200 ids."""
    import pyarrow as pa  # noqa: PLC0415

    ids = pa.array(np.arange(200 * 20_000, dtype=np.int32) % 50)
    table = pa.table({"ids": pa.FixedSizeListArray.from_arrays(ids, 200)})
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(30):
            writer.write_table(table)


@pytest.mark.parametrize("name", SIGNALS)
def test_two_signals_while_threads_work(name, folder):
    write_slow_source(folder / "in.parquet")
    number = getattr(signal, name)
    for pause in (0, 0.001, 0.003):
        process = subprocess.Popen(
            [sys.executable, "-m", "embag", "pool", *COMMANDS["pool"]],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        try:
            deadline = time.monotonic() + 60
            while not any(path.stat().st_size for path in folder.glob(".embag-*")):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.005)
            process.send_signal(number)
            time.sleep(pause)
            process.send_signal(number)
            printed = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 128 + number
        assert printed == ("", f"embag pool: {SIGNALS[name]}\n")
        assert (folder / "out.parquet").read_bytes() == b"old"
        assert not list(folder.glob(".embag-*"))


# Standard output


def run_into(stdout, folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "embag", *arguments],
        cwd=folder,
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        timeout=60,
    )


@pytest.fixture
def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_stdout(command, folder):
    with open("/dev/full", "w") as full:
        ended = run_into(full, folder, command, *COMMANDS[command])
    out = out_of(command)
    assert (ended.returncode, ended.stderr) == (
        1,
        f"embag {command}: error: stdout: No space left on device; {out} has been written\n",
    )
    assert (folder / out).read_bytes() != b"old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["info", "table.npy"], ["info", "--help"]])
def test_a_full_stdout_of_commands_without_output_files(arguments, folder):
    with open("/dev/full", "w") as full:
        ended = run_into(full, folder, *arguments)
    who = "embag info" if arguments[0] == "info" else "embag"
    assert (ended.returncode, ended.stderr) == (
        1,
        f"{who}: error: stdout: No space left on device\n",
    )


@pytest.mark.parametrize("arguments", [["--help"], ["info", "table.npy"], ["info", "--help"]])
def test_a_closed_pipe_needs_no_message(arguments, folder, closed_pipe):
    ended = run_into(closed_pipe, folder, *arguments)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_a_closed_pipe_after_out_is_written(folder, closed_pipe):
    ended = run_into(closed_pipe, folder, "convert", *COMMANDS["convert"])
    assert (ended.returncode, ended.stderr) == (
        1,
        "embag convert: error: stdout: Broken pipe; out.npy has been written\n",
    )
    np.testing.assert_array_equal(np.load(folder / "out.npy"), TABLE)


# Files that vanish


@pytest.mark.parametrize("command", COMMANDS)
def test_files_that_vanish_during_the_run(command, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    real, sizes = os.replace, {}

    def replace(*paths):
        real(*paths)
        for name in ("in.parquet", "table.npy", out_of(command)):
            sizes[name] = (folder / name).stat().st_size
            (folder / name).unlink()

    monkeypatch.setattr(os, "replace", replace)
    printed = run(capsys, command, *COMMANDS[command], "--json")
    summary = json.loads(printed.out)
    expected = {
        "pool": {"bytes_in": sizes["in.parquet"], "bytes_out": sizes[out_of(command)]},
        "quantize": {"bytes_in": 1000, "bytes_out": 50 * (5 + 8)},
        "convert": {"bytes": 1000},
    }[command]
    assert {key: summary[key] for key in expected} == expected


# Names that are not UTF-8


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("pool", ["--column"]),
        ("pool", ["--column", "ids", "--keep"]),
        ("pool", ["--column", "ids", "--name"]),
        ("pool", ["--column", "ids", "--mode", "sum", "--weights"]),
        ("pool", ["--column", "ids", "--tensor"]),
        ("info", ["--column"]),
        ("info", ["--tensor"]),
        ("quantize", ["--tensor"]),
        ("convert", ["--tensor"]),
    ],
)
def test_names_that_are_not_utf_8(command, options, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    inputs = ["in.parquet"] if command == "info" else COMMANDS[command]
    printed = run(capsys, command, *inputs, *options, os.fsdecode(b"\xff"), status=2)
    assert f"Invalid value for '{options[-1]}': is not valid text in this locale" in printed.err
    assert printed.out == ""


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
@pytest.mark.parametrize("command", [*COMMANDS, "info"])
def test_file_names_that_are_not_utf_8(command, folder):
    name = os.fsdecode(b"\xff.npy")
    inputs = [name, *COMMANDS[command][1:]] if command != "info" else [name]
    missing = run_into(subprocess.PIPE, folder, command, *inputs)
    if command == "pool":  # a .npy file has no columns
        assert missing.returncode == 2
        return
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith(f"embag {command}: error: \\udcff.npy: No such file")
    (folder / "table.npy").rename(folder / name)
    ended = run_into(subprocess.PIPE, folder, command, *inputs)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_pool_with_file_names_that_are_not_utf_8(folder):
    out = os.fsdecode(b"\xfe.npy")
    options = ["--column", "ids", "--table", "table.npy", "--out", out]
    ended = run_into(subprocess.PIPE, folder, "pool", "in.parquet", *options)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert np.load(folder / out).shape == (8, 5)
    # pyarrow opens only names in UTF-8.
    source = os.fsdecode(b"\xff.parquet")
    (folder / "in.parquet").rename(folder / source)
    ended = run_into(subprocess.PIPE, folder, "pool", source, *options)
    assert ended.returncode == 1
    assert ended.stderr.startswith("embag pool: error: \\udcff.parquet: ")
    assert ended.stderr.count("\n") == 1
