"""Run inputs of a target without atheris: python -m tests.fuzz.from_bytes TARGET [FILE ...].

Without files, it runs the corpus, and fails if an input ends in another way than the file
corpus/TARGET.json says, which --record writes. `cases` and `commands` have no such file: what
their inputs mean changes with calls.py, and with pyarrow. If the process dies, the last line that
it has printed names the input.
"""

import argparse
import collections
import json
import sys
import tempfile
from pathlib import Path

from ..__main__ import MEMORY_FILES
from . import CORPUS, TARGETS, load, prepare

NOT_RECORDED = ("cases", "commands")


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.from_bytes", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--record", action="store_true", help="write how the corpus ends")
    options = parser.parse_args()
    files = options.files or sorted((CORPUS / options.target).iterdir())
    ends = run_files(options.target, files)
    kinds = collections.Counter(end.partition(":")[0] for end in ends.values())
    print(*(f"{n} {kind}" for kind, n in kinds.most_common()), sep=", ")
    if options.files or options.target in NOT_RECORDED:
        return
    expected = CORPUS / f"{options.target}.json"
    if options.record:
        expected.write_text(json.dumps(ends, indent=0) + "\n")
    elif ends != (recorded := json.loads(expected.read_text())):
        for name in ends.keys() | recorded.keys():
            if ends.get(name) != recorded.get(name):
                print(f"{name} must end with {recorded.get(name)!r}, got {ends.get(name)!r}",
                      file=sys.stderr)  # fmt: skip
        sys.exit(f"if this is right: python -m tests.fuzz.from_bytes {options.target} --record")


def run_files(target, files):
    """Return how each input ends, by its name."""
    run = load(target)
    with tempfile.TemporaryDirectory(dir=MEMORY_FILES) as folder:
        prepare(target, folder)
        ends = {}
        for file in files:
            print(file, flush=True)
            ends[file.name] = run(file.read_bytes())
        return ends


if __name__ == "__main__":
    main()
