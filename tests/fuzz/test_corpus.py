"""Every input that the fuzzer has kept ends as documented, each target in a process of its own."""

import sys
from pathlib import Path

import pytest
from processes import run_python

from fuzz.from_bytes import CORPUS, TARGETS, missing_packages
from fuzz.from_bytes.choices import ByteChoices

TESTS = Path(__file__).parents[1]
# How inputs of each target end; each end is in the corpus.
ENDS = {
    "cases": {"returned", "TypeError", "ValueError", "IndexError"},
    "tables": {"loaded", "refused"},
    "checkpoints": {"loaded", "refused"},
    "collections": {"loaded", "refused"},
    "models": {"loaded", "refused", "loaded; no tokens"},
    "commands": {"pooled", "refused"},
    "packed": {"looked up", "refused", "ValueError", "IndexError"},
}


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
@pytest.mark.parametrize("target", TARGETS)
def test_all_inputs(target):
    missing = missing_packages(target)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    *files, ends = run_python("-m", "fuzz.from_bytes", target, cwd=TESTS).stdout.splitlines()
    assert len(files) == len(list((CORPUS / target).iterdir())) > 0
    assert ENDS[target] <= {end.partition(" ")[2] for end in ends.split(", ")}


def test_the_corpus_is_small():
    sizes = {path: path.stat().st_size for path in CORPUS.glob("*/*")}
    assert {path.parent.name for path in sizes} == set(TARGETS)
    assert max(sizes.values()) <= 4000
    assert sum(sizes.values()) < 300_000


def test_bytes_are_choices_and_then_a_seed_goes_on():
    choices = ByteChoices(bytes([3, 5, 0, 0, 128, 7]))
    assert choices.choice("abcdefgh") == "d"
    assert choices.randrange(256) == 5
    assert choices.random() == 0.5
    assert choices.rest(4) == bytes([7])
    one, other = (ByteChoices(b"") for _ in range(2))
    assert [one.random() for _ in range(3)] == [other.random() for _ in range(3)]
    assert len({one.randrange(10**6) for _ in range(9)}) > 1
