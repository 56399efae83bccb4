"""A file of ids for `embag pool` and `embag info`: two bytes choose the suffix and the options."""

import contextlib
import functools
import io

import numpy as np

import embag
import embag.cli.info
import embag.cli.pool
from embag import cli

from ..file_cases import folder
from .files import write

SUFFIXES = [
    *(".csv", ".tsv", ".jsonl", ".arrow", ".arrows", ".parquet", ".npy"),
    *(".csv.gz", ".csv.zst", ".jsonl.gz", ".jsonl.zst"),
]
OPTIONS = [
    [],
    ["--weights", "w", "--mode", "sum"],
    ["--weights", "w", "--mode", "mean", "--null-weights", "skip", "--null-empty"],
    ["--keep", "user", "--invalid", "skip", "--n-invalid", "n"],
    ["--by", "user", "--mode", "max"],
    ["--by", "user", "--weights", "w", "--mode", "sum", "--invalid", "0"],
]


@functools.cache
def table():
    path = folder() / "rows.npy"
    embag.save_table(path, np.ones((50, 3), np.float32))
    return path


def run(data):
    first, second = [*data[:2], 0, 0][:2]
    suffix, options = SUFFIXES[first % len(SUFFIXES)], OPTIONS[second % len(OPTIONS)]
    path = write(f"ids{suffix}", data[2:])
    out = folder() / "vectors.npy"
    out.unlink(missing_ok=True)
    column = [] if suffix == ".npy" else ["--column", "ids"]
    status = call("pool", path, *column, "--table", table(), "--out", out, *options)
    assert out.exists() == (status == 0)
    assert not list(folder().glob(".embag-*"))
    call("info", path)
    return "pooled" if status == 0 else "refused"


def call(command, *arguments):
    """Run a command and return its exit status, after a check of what it prints."""
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        status = cli.main([command, *map(str, arguments)])
    if status == 1:
        assert printed.getvalue() == ""
        assert errors.getvalue().startswith(f"embag {command}: error: "), errors.getvalue()
        assert errors.getvalue().count("\n") == 1, errors.getvalue()
    else:
        assert status in (0, 2), status
    return status
