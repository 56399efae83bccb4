"""Every call of the system that reads or writes a file may fail, or do half of its work."""

import os
import tempfile
from importlib.util import find_spec

import pytest
from preloading import build_library, run_preloaded

WRITES = ["save .npy", "save .safetensors", "save 8 bits", "save a remapped table"]
READS = [
    *("map", "map and verify", "copy", "copy and verify", "copy in Fortran order"),
    *("copy by threads", "load a remapped table"),
]
CHECKPOINTS = ["save_checkpoint", "load_checkpoint", "load_checkpoint and verify"]
COLLECTIONS = ["save a collection", "load a collection", "load a collection and verify"]
COMMANDS = ["pool in.parquet out.parquet", "pool in.csv out.npy", "quantize"]
OTHERS = [
    *("pool in.arrow out.arrow", "pool in.arrows out.arrows"),
    *("pool in.npy out.npy", "pool in.jsonl out.npy", "convert", "convert a remapped table"),
    *("info", "info --verify"),
]
needs_cli = pytest.mark.skipif(
    not all(map(find_spec, ["click", "rich", "pyarrow"])), reason="needs embag-cpu[cli]"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_library("failing_calls", tmp_path_factory.mktemp("library"))


@pytest.fixture
def folder():
    """Make a folder in memory, if possible: a disk takes longer to delete files than to write."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else None) as made:
        yield made


def check(library, folder, *names):
    lines = run_preloaded(library, "fail_system_calls.py", folder, *names)
    assert list(dict.fromkeys(name for name, *_ in lines)) == list(names)
    for name, kind, n_faults, n_errors in lines:
        if kind == "a short transfer":
            # The rest is read or written by another call.
            assert (int(n_faults) > 0, int(n_errors)) == (True, 0), name
        elif kind == "the end of a file" and int(n_faults) == 0:
            assert name == "save .npy"  # nothing is read
        else:
            assert int(n_errors) > 0, (name, kind)


@pytest.mark.parametrize("names", [WRITES, READS, CHECKPOINTS], ids=lambda names: names[0])
def test_files_of_tables_and_checkpoints(names, library, folder):
    check(library, folder, *names)


@pytest.mark.thorough
def test_folders_of_collections(library, folder):
    check(library, folder, *COLLECTIONS)


@pytest.mark.thorough
@needs_cli
def test_commands(library, folder):
    check(library, folder, *COMMANDS)


@pytest.mark.slow
@needs_cli
def test_other_commands(library, folder):
    check(library, folder, "save a collection in a new folder", *OTHERS)


@pytest.mark.thorough
@needs_cli
@pytest.mark.skipif(not find_spec("tokenizers"), reason="needs embag-cpu[text]")
def test_texts_to_vectors(library, folder):
    check(library, folder, "embed")
