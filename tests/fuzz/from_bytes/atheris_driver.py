"""Run a target under atheris: python -m tests.fuzz.from_bytes.atheris_driver TARGET [OPTION ...].

Options and folders are those of libFuzzer. Coverage counts the branches of embag's Python files.
With a library built by EMBAG_SANITIZE, the sanitizers report errors in compiled code.
"""

import shlex
import sys
import tempfile

import atheris

from . import load, prepare


def fuzz(target, command, options):
    """Fuzz a target, and end the process; libFuzzer starts `command` again for a merge."""
    with atheris.instrument_imports(include=["embag"]):
        run = load(target)

    def run_one(data):
        run(data)  # atheris warns about a function that returns something

    with tempfile.TemporaryDirectory() as folder:
        prepare(target, folder)
        atheris.Setup([command, *options], run_one)
        atheris.Fuzz()


if __name__ == "__main__":
    name = sys.argv[1]
    fuzz(name, shlex.join([sys.executable, "-m", __spec__.name, name]), sys.argv[2:])
