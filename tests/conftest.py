"""Settings of all tests, and fixtures."""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "support"), str(HERE)]

# Tests run more threads than there are processors. By default a waiting thread spins for a
# millisecond before it sleeps, which makes tests several times slower on a busy machine.
# The OpenMP runtime reads this variable when embag is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# And tests count threads: calls that take long must not use fewer.
os.environ.setdefault("EMBAG_THREADS", "fixed")

from cases import LEVELS  # noqa: E402

import embag  # noqa: E402
from embag import _call, functional  # noqa: E402
from embag._kernels import dispatch  # noqa: E402
from embag._process import threads  # noqa: E402

ROOT = HERE.parent
# Programs that run in other processes: pytest must not import them to find doctests.
collect_ignore = ["scripts"]
collect_ignore_glob = ["fuzz/[!t]*.py"]
if not (ROOT / "embag").is_dir():
    # A copy of tests/ beside an installed wheel has no repository to test.
    collect_ignore += ["repository"]
elif not (ROOT / "embag").samefile(Path(embag.__file__).parent):
    # Their children would import embag/ from the root, not the build under test (make sanitize).
    collect_ignore += ["repository/test_benchmarks.py", "repository/test_soak.py"]


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    """Run the test once per instruction-set level that is built and supported."""
    in_use, kernels = dispatch.kernels, dispatch.load_level(request.param)
    for name, module in list(sys.modules.items()):
        if name.startswith("embag.") and getattr(module, "kernels", None) is in_use:
            monkeypatch.setattr(module, "kernels", kernels)
    assert functional.kernels is _call.kernels is kernels
    return request.param


@pytest.fixture
def eager_threads(monkeypatch):
    """Give a call all the threads that it requests, however small it is."""
    monkeypatch.setattr(threads, "ENTRIES_PER_THREAD", 1)
    monkeypatch.setattr(threads, "_N_MACHINE", 64)


@pytest.fixture
def clean_thread_settings(monkeypatch):
    """Undo changes of the thread settings of the process."""
    monkeypatch.setattr(threads, "_set_by_user", None)
    monkeypatch.setattr(threads, "_outer_limit", None)


@pytest.fixture
def seen(monkeypatch):
    """Record the pieces that reach the kernel: (ids, offsets, weights) of each."""
    pieces = []
    kernel = _call.kernels.reduce_bags

    def watch(n_threads, rows, code, dim, inputs, offsets, kind, samples, *others):
        pieces.extend(zip(inputs, offsets, samples, strict=True))
        return kernel(n_threads, rows, code, dim, inputs, offsets, kind, samples, *others)

    class Watched:
        reduce_bags = staticmethod(watch)

        def __getattr__(self, name):
            return getattr(dispatch.kernels, name)

    monkeypatch.setattr(_call, "kernels", Watched())
    return pieces
