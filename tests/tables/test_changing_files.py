"""Files that are replaced, truncated or changed while they are loaded, or while they are mapped."""

import os
import signal
import sys

import numpy as np
import pytest
from processes import run_python

import embag
from embag import checkpoints, tables

OLD, NEW = (np.full((50_000, 8), value, np.float32) for value in (1, 2))


@pytest.fixture(params=["table.npy", "table.safetensors"])
def path(request, tmp_path):
    path = tmp_path / request.param
    embag.save_table(path, OLD)
    return path


def change_before(monkeypatch, module, name, change):
    """Let something change right before the first call of a function."""
    real = getattr(module, name)

    def changed(*arguments, **options):
        monkeypatch.setattr(module, name, real)
        change()
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, changed)


def damage(path):
    with open(path, "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"damaged")


# --- Replaced files -----------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="mapped files cannot be replaced there")
def test_a_map_outlives_replacements(path):
    ids = [[0, 25_000, 49_999]]
    loaded = embag.load_table(path)
    embag.save_table(path, NEW)
    assert (embag.embedding_bag(ids, loaded, mode="sum") == 3).all()  # read from the disk only now
    embag.save_table(path, NEW[:10])
    assert (loaded == 1).all()
    path.unlink()
    assert (loaded == 1).all()


@pytest.mark.skipif(sys.platform == "win32", reason="mapped files cannot be replaced there")
@pytest.mark.parametrize("memory", ["map", "copy"])
def test_a_file_that_is_replaced_while_it_is_loaded(memory, path, monkeypatch):
    name = "_map" if memory == "map" else "_copy"
    change_before(monkeypatch, tables, name, lambda: embag.save_table(path, NEW[:10]))
    assert np.array_equal(embag.load_table(path, memory), OLD)
    assert np.array_equal(embag.load_table(path, memory), NEW[:10])


# --- Truncated files ----------------------------------------------------------


@pytest.mark.parametrize("memory", ["map", "copy"])
def test_a_file_that_is_truncated_after_its_header_was_read(memory, path, monkeypatch):
    name = "_map" if memory == "map" else "_copy"
    change_before(monkeypatch, tables, name, lambda: os.truncate(path, 1_000_000))
    with pytest.raises(ValueError, match=rf"{path.name}: ") as caught:
        embag.load_table(path, memory, verify=path.suffix == ".safetensors")
    assert str(caught.value).startswith(f"{path}: ")
    assert ("shrink" in str(caught.value)) == (memory == "copy")


@pytest.mark.skipif(sys.platform != "linux", reason="the signal is that of Linux")
def test_a_lookup_in_a_truncated_map_ends_the_process(path):
    code = (
        "import os, sys, embag\n"
        "table = embag.load_table(sys.argv[1])\n"
        "os.truncate(sys.argv[1], 4096)\n"
        "embag.embedding_bag([[0]], table)\n"  # in a page that is left
        "print('the first row', flush=True)\n"
        "embag.embedding_bag([[40_000]], table)\n"
        "print('a row that is not in the file')\n"
    )
    ended = run_python("-c", code, path, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGBUS, "the first row\n")


# --- Changed files ------------------------------------------------------------


def test_a_copy_has_the_bytes_that_were_verified(tmp_path, monkeypatch):
    path = tmp_path / "table.safetensors"
    embag.save_table(path, OLD)
    change_before(monkeypatch, tables, "_copy", lambda: damage(path))
    with pytest.raises(ValueError, match="bytes must have the checksum"):
        embag.load_table(path, "copy", verify=True)


def test_a_checkpoint_has_the_bytes_that_were_verified(tmp_path, monkeypatch):
    path = tmp_path / "training.safetensors"
    embag.save_checkpoint(path, {"item": embag.optim.Adagrad(OLD.copy())})
    change_before(monkeypatch, checkpoints, "_read", lambda: damage(path))
    with pytest.raises(ValueError, match="bytes must have the checksum"):
        embag.load_checkpoint(path, verify=True)
