"""Distributions: their contents, and the tests of an installed one.

`make wheel` builds them into dist/ and runs all tests here except the last one, which `make
test-packaging` adds. They take minutes and need a package index.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[2]
LICENSE_FILES = sorted(["LICENSE", *(f"licenses/{path.name}" for path in ROOT.glob("licenses/*"))])


def run(*command, cwd, **environment):
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


def new_environment(folder, *arguments, **environment):
    """Create a virtual environment, run `pip install` there, and return its python."""
    python = folder / "env" / "bin" / "python"
    run(sys.executable, "-m", "venv", folder / "env", cwd=folder)
    run(python, "-m", "pip", "install", "-q", *arguments, cwd=folder, **environment)
    return python


def run_tests(python, folder, *names, **environment):
    """Run a copy of tests/, or some of its files, without embag/ beside it."""
    shutil.copytree(ROOT / "tests", folder / "tests", dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    where = run(python, "-c", "import embag; print(embag.__file__)", cwd=folder, **environment)
    assert where.startswith(str(folder / "env"))
    files = [f"tests/{name}" for name in names] or ["tests"]
    print(run(python, "-m", "pytest", "-q", "-m", "not slow", *files, cwd=folder, **environment))


def in_dist(pattern):
    paths = list((ROOT / "dist").glob(pattern))
    assert len(paths) == 1, f"one {pattern} in dist/, from `make wheel`: {paths}"
    return paths[0]


@pytest.fixture(scope="module")
def sdist():
    """Return the files in the sdist: bytes by name."""
    with tarfile.open(in_dist("*.tar.gz")) as archive:
        return {
            member.name.partition("/")[2]: archive.extractfile(member).read()
            for member in archive
            if member.isfile()
        }


@pytest.fixture(scope="module")
def wheel():
    """Return the files in the wheel: bytes by name."""
    with zipfile.ZipFile(in_dist("*.whl")) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata_folder(wheel):
    (name,) = (name for name in wheel if name.endswith(".dist-info/METADATA"))
    return name.removesuffix("METADATA")


def test_sdist_has_the_sources_and_no_generated_file(sdist):
    for needed in (
        "setup.py", "pyproject.toml", "conftest.py", "Makefile", "LICENSE",
        "README.md", "CHANGELOG.md", "docs/design.md", "embag/py.typed",
        "examples/train_numpy.py", "tools/declare_libraries.py",
        "tests/support/cases.py", "tests/scripts/threaded_calls.py",
        "tests/stored/0.1.0/expected.json", "tests/stored/0.1.0/tables/8-bits.npy",
    ):  # fmt: skip
        assert needed in sdist
    for suffix in ("py", "pyi", "pyx", "pxi", "h"):
        sources = {str(path.relative_to(ROOT)) for path in ROOT.glob(f"embag/**/*.{suffix}")}
        assert sources
        assert not sources - set(sdist)
    assert not [name for name in sdist if name.endswith((".so", ".pyc"))]
    generated = [
        name for name in sdist if name.endswith(".c") and name.startswith(("embag", "build"))
    ]
    assert not generated


def test_wheel_has_all_levels_and_no_sources(wheel):
    modules = {Path(name).name.partition(".")[0] for name in wheel if name.endswith(".so")}
    assert modules == {"_core", "_core_v3", "_core_v4", "_teams", "_cdata"}
    assert {"embag/py.typed", "embag/_core.pyi"} <= set(wheel)
    assert not [name for name in wheel if name.endswith((".c", ".h", ".pyx", ".pxi"))]
    own = ("embag/", "embag_cpu.libs/", metadata_folder(wheel))
    assert all(name.startswith(own) for name in wheel)
    for name in wheel:
        if ".so" in name:
            print(f"{len(wheel[name]):>9,} bytes  {name}")
    print(f"{in_dist('*.whl').stat().st_size:>9,} bytes  the wheel")


def test_wheel_has_libgomp_and_its_modules_load_it(wheel):
    (library,) = (name for name in wheel if name.startswith("embag_cpu.libs/"))
    assert re.fullmatch(r"libgomp-[0-9a-f]+\.so\.1\.\d+\.\d+", Path(library).name)
    for name in wheel:
        if name.endswith(".so"):
            has_threads = "_cdata" not in name
            assert (Path(library).name.encode() in wheel[name]) == has_threads
    materials = json.loads(wheel[metadata_folder(wheel) + "sboms/auditwheel.cdx.json"])
    (package,) = (p["purl"] for p in materials["components"] if "gomp" in p["purl"])
    print(Path(library).name, "is from", package)


def test_both_have_license_texts_and_an_expression_that_matches(sdist, wheel):
    folder = metadata_folder(wheel)
    metadata = {
        "Apache-2.0": BytesParser().parsebytes(sdist["PKG-INFO"]),
        "Apache-2.0 AND GPL-3.0-or-later WITH GCC-exception-3.1": BytesParser().parsebytes(
            wheel[folder + "METADATA"]
        ),
    }
    for expression, fields in metadata.items():
        assert fields["License-Expression"] == expression
        assert sorted(fields.get_all("License-File")) == LICENSE_FILES
    for name in LICENSE_FILES:
        text = (ROOT / name).read_bytes()
        assert sdist[name] == wheel[f"{folder}licenses/{name}"] == text
    assert b"GNU GENERAL PUBLIC LICENSE" in sdist["licenses/GPL-3.0.txt"]
    assert b"GCC RUNTIME LIBRARY EXCEPTION" in sdist["licenses/GCC-exception-3.1.txt"]


def test_wheel_requires_only_numpy(wheel):
    fields = BytesParser().parsebytes(wheel[metadata_folder(wheel) + "METADATA"])
    needs = [need for need in fields.get_all("Requires-Dist") if "extra ==" not in need]
    assert needs == ["numpy>=1.25"]


def test_a_library_without_a_known_license_is_refused(tmp_path):
    folder, metadata = tmp_path / "x-1", tmp_path / "x-1" / "x-1.dist-info"
    for path, text in (
        (metadata / "METADATA", "Name: x\nLicense-Expression: Apache-2.0\n"),
        (metadata / "WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"),
        (folder / "x.libs" / "libother-12.so.1", ""),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    run(sys.executable, "-m", "wheel", "pack", folder, cwd=tmp_path)
    script = ROOT / "tools" / "declare_libraries.py"
    result = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert result.returncode != 0
    assert "KeyError: 'libother'" in result.stderr


def test_installed_wheel_passes_the_tests_without_a_compiler(tmp_path):
    # Without these, whole files of tests are skipped.
    packages = ("pytest", "hypothesis", "ml_dtypes", "safetensors", "scipy", "pyarrow")
    python = new_environment(tmp_path, in_dist("*.whl"), *packages)
    nothing = {"PATH": str(python.parent), "CC": "/bin/false", "LD_LIBRARY_PATH": ""}
    which = "import shutil; print([c for c in ('cc', 'gcc', 'clang', 'ld') if shutil.which(c)])"
    assert run(python, "-c", which, cwd=tmp_path, **nothing) == "[]\n"
    print(run(python, "-c", "import embag; embag.show_config()", cwd=tmp_path, **nothing))
    loaded = "import embag; print({l.split()[-1] for l in open('/proc/self/maps') if 'gomp' in l})"
    (library,) = eval(run(python, "-c", loaded, cwd=tmp_path, **nothing))
    assert Path(library).parent.name == "embag_cpu.libs"
    print(library)
    display = {"OMP_DISPLAY_ENV": "verbose", **nothing}
    load = "import os; os.dup2(1, 2); import embag"
    free = ("/usr/bin/env", "-u", "OMP_WAIT_POLICY")  # conftest.py sets it
    seen = run(*free, python, "-c", load, cwd=tmp_path, **display)
    assert "GOMP_SPINCOUNT = '10000'" in seen
    seen = run(python, "-c", load, cwd=tmp_path, OMP_WAIT_POLICY="passive", **display)
    assert "GOMP_SPINCOUNT = '0'" in seen
    # All levels of the same sources have passed all tests: here the best one does, and the others
    # compute results.
    run_tests(python, tmp_path, **nothing, EMBAG_TEST_LEVELS="best")
    run_tests(python, tmp_path, "lookups/test_results.py", "tables/test_quantizing.py", **nothing)


def test_a_build_without_openmp_passes_the_tests(tmp_path):
    # By a compiler that knows no levels, as old ones do, and optimizes less: that takes a minute.
    compiler = tmp_path / "cc"
    known = sysconfig.get_config_var("CC")
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *-march=x86-64-v*) echo "unknown level" >&2; exit 1;; esac\n'
        f'exec {known} "$@" -O1\n'
    )
    compiler.chmod(0o755)
    arguments = ("--no-cache-dir", in_dist("*.tar.gz"), "pytest", "hypothesis")
    python = new_environment(tmp_path, *arguments, EMBAG_NO_OPENMP="1", CC=str(compiler))
    config = run(python, "-c", "import embag; print(embag.show_config('dicts'))", cwd=tmp_path)
    assert "'OpenMP': None" in config
    assert "'built': ['baseline']" in config
    assert "'count': 1" in config
    # The other tests have passed with OpenMP; all of them would take two minutes more.
    run_tests(
        python,
        tmp_path,
        *("lookups/test_results.py", "lookups/test_errors.py", "lookups/test_skipped_ids.py"),
        *("gradients/test_gradients.py", "gradients/test_grouping.py"),
        *("tables/test_quantizing.py", "process/test_thread_counts.py", "process/test_fork.py"),
        EMBAG_TEST_LEVELS="best",
    )
