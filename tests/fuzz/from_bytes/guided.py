"""Find new inputs by coverage: python -m tests.fuzz.from_bytes.guided [TARGET ...] [OPTION ...].

Each target, by default all, runs for a minute in a process of its own. It starts from the corpus.
New inputs are written to build/fuzz/inputs, crashes to build/fuzz. Then `-merge=1` adds those new
inputs to the corpus that reach more branches. Options are those of libFuzzer, such as
`-max_total_time=600`. It needs atheris: pip install 'embag-cpu[fuzz]'.
"""

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ..__main__ import MEMORY_FILES
from . import CORPUS, TARGETS

OUT = Path("build/fuzz")
MERGE = "-merge=1"


def main():
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    targets = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        sys.exit(f"targets must be {', '.join(TARGETS)}, got {unknown[0]!r}")
    if find_spec("atheris") is None:
        sys.exit("coverage needs atheris: pip install 'embag-cpu[fuzz]'")
    failed = [target for target in targets or TARGETS if run(target, options) != 0]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; {OUT} has the inputs")
    if MERGE not in options:
        print(f"To add new inputs to {CORPUS}, run this again with {MERGE}.")


def run(target, options):
    """Run a target in a process of its own, and return its exit status."""
    kept, new = CORPUS / target, OUT / "inputs" / target
    for folder in (kept, new):
        folder.mkdir(parents=True, exist_ok=True)
    # The first folder gets the inputs that are found.
    folders, limit = [new, kept], "-max_total_time=60"
    if MERGE in options:  # the corpus has an input for each branch, not for each count of it
        folders, limit = [kept, new], "-use_counters=0"
    prefix = f"-artifact_prefix={OUT}/{target}-"
    print(f"--- {target}", flush=True)
    with tempfile.TemporaryDirectory(dir=MEMORY_FILES) as scratch:
        return subprocess.run(
            [
                *(sys.executable, "-m", f"{__package__}.atheris_driver", target, prefix),
                *("-max_len=4000", "-timeout=60", limit, *options, *map(str, folders)),
            ],
            env={"OMP_WAIT_POLICY": "passive", **os.environ, "TMPDIR": scratch},
            check=False,
        ).returncode


if __name__ == "__main__":
    main()
