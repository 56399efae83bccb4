"""Python in a process of its own: for what may crash or hang, or sets up the whole process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SLOWER = 10 if "asan" in os.environ.get("LD_PRELOAD", "") else 1


def run_python(*arguments, before=(), cwd=HERE, check=True, timeout=60, **variables):
    """Run Python to its end, with these variables in the environment too.

    Python looks for modules where it is run, or where its script is. In the root of the
    repository that is embag/ there, not the build that PYTHONPATH names (`make sanitize`).
    """
    process = subprocess.Popen(
        [*before, sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,  # a group, to be killed with what it has started
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
