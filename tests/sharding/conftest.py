"""Fixtures: three nodes of Ray, or shards in this process."""

import numpy as np
import pytest
from ray_nodes import running_nodes
from shards import local_shards

import embag


@pytest.fixture(scope="session")
def cluster():
    """Three nodes of Ray, for all tests."""
    pytest.importorskip("ray")
    with running_nodes() as nodes:
        yield nodes


@pytest.fixture
def files(tmp_path):
    """The paths of two tables, whose entries are all 1 and all 2."""
    paths = {}
    for name, value in (("a", 1), ("b", 2)):
        paths[name] = str(tmp_path / f"{name}.npy")
        embag.save_table(paths[name], np.full((1000, 4), value, np.float32))
    return paths


@pytest.fixture
def local(monkeypatch):
    """Collections have their shards in this process."""
    with local_shards(monkeypatch):
        yield
