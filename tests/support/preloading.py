"""Compile a C file of this folder to a library, and preload it into a child."""

import os
import platform
import shutil
import subprocess
import sys

import pytest
from processes import HERE, SCRIPTS, run_python


def build_library(name, folder):
    """Compile NAME.c; skip the test where that is impossible."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        pytest.skip("needs Linux with glibc")
    if "LD_PRELOAD" in os.environ:
        pytest.skip("another library is preloaded")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = folder / f"{name}.so"
    command = [compiler, "-shared", "-fPIC", "-O1", str(HERE / f"{name}.c"), "-o", str(library)]
    built = subprocess.run([*command, "-ldl"], capture_output=True, encoding="utf-8")
    assert built.returncode == 0, built.stderr
    return library


def run_preloaded(library, script, *arguments, **variables):
    """Run a script with the library, and return the lines that it prints, cut at commas."""
    ended = run_python(
        *("-W", "ignore", "-X", "faulthandler", SCRIPTS / script, *arguments),
        timeout=240,
        LD_PRELOAD=str(library),
        **variables,
    )
    return [line.split(", ") for line in ended.stdout.splitlines()]
