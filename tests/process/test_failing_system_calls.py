"""Every call of the system that reads or writes a file may fail, or do half of its work."""

from importlib.util import find_spec

import pytest
from preloading import build_library, run_preloaded

WRITES = ["save .npy", "save .safetensors", "save 8 bits", "save a remapped table"]
READS = [
    *("map", "map and verify", "copy", "copy and verify", "copy in Fortran order"),
    *("copy by threads", "load a remapped table"),
]
CHECKPOINTS = ["save_checkpoint", "load_checkpoint", "load_checkpoint and verify"]
COLLECTIONS = [
    *("save a collection", "save a collection in a new folder"),
    *("load a collection", "load a collection and verify"),
]
COMMANDS = [
    *("pool in.parquet out.parquet", "pool in.arrow out.arrow", "pool in.arrows out.arrows"),
    *("pool in.npy out.npy", "pool in.csv out.npy", "pool in.jsonl out.npy"),
    *("quantize", "convert", "convert a remapped table", "info", "info --verify"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build_library("failing_calls", tmp_path_factory.mktemp("library"))


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
def test_files_of_tables_and_checkpoints(names, library, tmp_path):
    check(library, tmp_path, *names)


@pytest.mark.thorough
def test_folders_of_collections(library, tmp_path):
    check(library, tmp_path, *COLLECTIONS)


@pytest.mark.thorough
@pytest.mark.skipif(
    not all(map(find_spec, ["click", "rich", "pyarrow"])), reason="needs embag-cpu[cli]"
)
def test_commands(library, tmp_path):
    check(library, tmp_path, *COMMANDS)
    if find_spec("tokenizers") and find_spec("safetensors"):
        check(library, tmp_path, "embed")
