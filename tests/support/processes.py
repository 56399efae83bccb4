"""Run Python in a child, for code that may crash or hang, or that changes process settings."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPTS = HERE.parent / "scripts"
SLOWER = 10 if "asan" in os.environ.get("LD_PRELOAD", "") else 1


def run_python(*arguments, before=(), cwd=HERE, check=True, timeout=60, **variables):
    """Run Python to its end, with these additional environment variables.

    Python first searches the folder of its script, or else the working directory, for
    modules. In the root of the repository it would import embag/ from there, not the build
    that PYTHONPATH names (`make sanitize`).
    """
    process = subprocess.Popen(
        [*before, sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,  # a group, which can be killed with its children
    )
    try:
        output, errors = process.communicate(timeout=timeout * SLOWER)
    except BaseException as error:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        output, errors = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        pytest.fail(f"it hangs; so far:\n{output[-3000:]}{errors[-6000:]}")
    if check and process.returncode:
        pytest.fail(f"exit status {process.returncode}:\n{output[-3000:]}{errors[-6000:]}")
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
