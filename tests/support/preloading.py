"""Compile a C file of this folder to a library, or find one, and preload it into a child."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import HERE, SCRIPTS, run_python


def build_library(name, folder):
    """Compile NAME.c; skip the test where that is impossible."""
    compiler = _find_compiler("cc")
    library = folder / f"{name}.so"
    command = [compiler, "-shared", "-fPIC", "-O1", str(HERE / f"{name}.c"), "-o", str(library)]
    built = subprocess.run([*command, "-ldl"], capture_output=True, encoding="utf-8")
    assert built.returncode == 0, built.stderr
    return library


def find_leak_sanitizer():
    """Return gcc's library; skip the test if it is not installed."""
    found = subprocess.run(
        [_find_compiler("gcc"), "-print-file-name=liblsan.so"],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    library = Path(found.stdout.strip())
    if not library.is_absolute():  # not found
        pytest.skip("gcc has no liblsan.so")
    return library


def _find_compiler(name):
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        pytest.skip("needs Linux with glibc")
    if "LD_PRELOAD" in os.environ:
        pytest.skip("another library is preloaded")
    compiler = shutil.which(name)
    if compiler is None:
        pytest.skip("there is no C compiler")
    return compiler


def run_preloaded(library, script, *arguments, **variables):
    """Run a script with the library, and return the lines that it prints, cut at commas."""
    ended = run_python(
        *("-W", "ignore", "-X", "faulthandler", SCRIPTS / script, *arguments),
        timeout=240,
        LD_PRELOAD=str(library),
        **variables,
    )
    return [line.split(", ") for line in ended.stdout.splitlines()]
