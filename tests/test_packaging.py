"""Distributions: what they hold, and that what they install works.

Minutes, and a package index: `make test-packaging` runs them.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parent.parent


def run(*command, **environment):
    result = subprocess.run(
        [str(part) for part in command],
        cwd=tempfile.gettempdir(),  # not where embag/ would be imported from
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


def new_environment(folder):
    run(sys.executable, "-m", "venv", folder)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    python = new_environment(folder / "env")
    run(python, "-m", "pip", "install", "-q", "build")
    run(python, "-m", "build", "--sdist", "--outdir", folder, ROOT)
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, sdist)
    (path,) = folder.glob("*.whl")
    return path


def test_sdist_has_the_sources_and_no_generated_file(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in (
        "setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile",
        "embag/_core.pyx", "embag/_core_v3.pyx", "embag/_core_v4.pyx", "embag/_platform.h",
        "embag/_bags.pxi", "embag/_forward.pxi", "embag/_backward.pxi", "embag/_grouping.pxi",
        "examples/train_numpy.py",
        "embag/_core.pyi", "embag/py.typed", "tests/cases.py", "docs/design.md",
    ):  # fmt: skip
        assert needed in names
    assert not [n for n in names if n.endswith((".so", ".pyc", ".c")) and "benchmarks" not in n]


def test_wheel_has_all_levels_and_no_sources(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {Path(name).name.partition(".")[0] for name in names if name.endswith(".so")}
    assert modules == {"_core", "_core_v3", "_core_v4"}
    assert {"embag/py.typed", "embag/_core.pyi"} <= set(names)
    assert not [name for name in names if name.endswith((".c", ".h", ".pyx", ".pxi"))]
    assert all(name.startswith(("embag/", "embag_cpu-")) for name in names)


def run_tests(python):
    # Not the tests of what is in the repository only: they run beside embag/, in place.
    run(
        python, "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT,
        "-p", "no:cacheprovider", "-m", "not packaging", ROOT / "tests",
        "--ignore", ROOT / "tests" / "test_benchmarks.py",
        "--ignore", ROOT / "tests" / "test_documents.py",
    )  # fmt: skip


def test_installed_wheel_passes_the_tests(wheel, tmp_path):
    python = new_environment(tmp_path / "env")
    run(python, "-m", "pip", "install", "-q", wheel, "pytest", "hypothesis")
    where = run(python, "-c", "import embag; print(embag.__file__)")
    assert str(tmp_path) in where
    run_tests(python)


def test_without_openmp_it_builds_and_passes_serially(sdist, tmp_path):
    python = new_environment(tmp_path / "env")
    packages = (sdist, "pytest", "hypothesis")
    run(python, "-m", "pip", "install", "-q", "--no-cache-dir", *packages, EMBAG_NO_OPENMP="1")
    config = run(python, "-c", "import embag; print(embag.show_config('dicts'))")
    assert "'OpenMP': None" in config
    assert "'count': 1" in config
    run_tests(python)
