"""Threads without work spin briefly, if the OpenMP runtime is embag's own.

tests/repository/test_packaging.py tests it in an installed wheel.
"""

import os

import pytest

from embag._process import waiting


@pytest.fixture
def libraries(tmp_path, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(waiting, "_LIBRARIES", tmp_path)
    return tmp_path


def spin_count():
    with waiting.spinning_briefly():
        return os.environ.get("GOMP_SPINCOUNT")


def test_a_runtime_of_the_system_is_left_alone(libraries):
    assert spin_count() is None


def test_threads_of_the_wheels_runtime_spin_briefly(libraries):
    (libraries / "libgomp-1234.so.1").touch()
    assert spin_count() == "10000"
    assert "GOMP_SPINCOUNT" not in os.environ


def test_the_environment_is_restored_after_an_error(libraries):
    (libraries / "libgomp-1234.so.1").touch()
    with pytest.raises(ImportError), waiting.spinning_briefly():
        raise ImportError("no module")
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "7")]
)
def test_what_the_user_sets_is_kept(libraries, monkeypatch, name, value):
    (libraries / "libgomp-1234.so.1").touch()
    monkeypatch.setenv(name, value)
    assert spin_count() == os.environ.get("GOMP_SPINCOUNT")
    assert os.environ[name] == value
