"""Fixtures: the levels of this machine, and threads however little there is to do."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# Tests run more threads than there are processors. By default each spins for a millisecond
# before it sleeps, which keeps the others waiting: on a busy machine tests take several times
# as long. The OpenMP runtime reads this when embag is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from cases import LEVELS

import embag
from embag import (
    _arguments,
    _dispatch,
    _encodings,
    _grouping,
    _ragged,
    _threads,
    backward,
    collection,
    functional,
    quantized,
    ragged,
    sparse_rows,
)

ROOT = Path(__file__).parent.parent
# Other processes import these, with settings of their own: they hold no doctests.
collect_ignore = ["fork_child.py", "fuzz"]
if not (ROOT / "embag").is_dir():
    # In a copy of tests/ alone, as beside an installed wheel, there is no repository to test.
    collect_ignore += [
        *("test_baskets.py", "test_benchmarks.py", "test_documents.py", "test_examples.py"),
        *("test_packaging.py", "test_pipelines.py", "test_serving.py", "test_soak.py"),
    ]
elif not (ROOT / "embag").samefile(Path(embag.__file__).parent):
    # Their processes run in the root, with the build there, and not this one (make sanitize).
    collect_ignore += ["test_benchmarks.py", "test_soak.py"]


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    """Run the test once per instruction-set level that is built and supported."""
    kernels = _dispatch.load_level(request.param)
    patched = (
        *(functional, backward, sparse_rows, quantized, collection),
        *(_arguments, _encodings, _grouping, _ragged, ragged),
    )
    for module in patched:
        monkeypatch.setattr(module, "kernels", kernels)
    return request.param


@pytest.fixture
def eager_threads(monkeypatch):
    """Give a call all the threads that it asks for, however small it is."""
    monkeypatch.setattr(_threads, "ENTRIES_PER_THREAD", 1)
    monkeypatch.setattr(_threads, "_N_MACHINE", 64)


@pytest.fixture
def clean_thread_settings(monkeypatch):
    """Undo what a test sets for the whole process."""
    monkeypatch.setattr(_threads, "_set_by_user", None)
    monkeypatch.setattr(_threads, "_least_around", None)


@pytest.fixture
def seen(monkeypatch):
    """The pieces that the kernel gets: (indices, offsets, weights) of each."""
    pieces = []
    kernel = functional.kernels.embedding_bags

    def watch(n_threads, table, inputs, offsets, part, samples, *others):
        pieces.extend(zip(inputs, offsets, samples, strict=True))
        return kernel(n_threads, table, inputs, offsets, part, samples, *others)

    class Watched:
        embedding_bags = staticmethod(watch)

        def __getattr__(self, name):
            return getattr(_dispatch.kernels, name)

    monkeypatch.setattr(functional, "kernels", Watched())
    return pieces
