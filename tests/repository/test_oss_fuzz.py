"""tools/oss-fuzz: its build script makes what OSS-Fuzz expects, with stand-ins for its commands."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fuzz.from_bytes import CORPUS, TARGETS, missing_packages

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "tools" / "oss-fuzz" / "build.sh"
# Calls the target with an input, as atheris would.
ATHERIS = """
import contextlib, pathlib, sys

instrument_imports = lambda include: contextlib.nullcontext()

def Setup(arguments, function):
    global run
    run = lambda: [function(pathlib.Path(file).read_bytes()) for file in arguments[1:]]

def Fuzz():
    run()
    print("ran")
"""

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ["bash", "zip"])), reason="needs bash and zip"
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Run the script, and return the folder of what it builds."""
    folder = tmp_path_factory.mktemp("oss-fuzz")
    for name in ("src", "work", "out", "bin"):
        (folder / name).mkdir()
    (folder / "src" / "embag").symlink_to(ROOT)
    commands = {
        "pip3": 'echo "$EMBAG_SANITIZE $*" > "$OUT/installed"',
        "python3": f'exec {sys.executable} "$@"',
        "compile_python_fuzzer": 'cp "$1" "$OUT"; shift; echo "$@" >> "$OUT/options"',
    }
    for name, line in commands.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / "bin" / name).chmod(0o755)
    variables = {"SRC": "src", "WORK": "work", "OUT": "out"}
    environment = {name: str(folder / place) for name, place in variables.items()}
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **environment, "SANITIZER": "address", "PATH": path}
    subprocess.run(["bash", BUILD], env=environment, check=True)
    (folder / "out" / "atheris.py").write_text(ATHERIS)
    return folder / "out"


def test_it_installs_the_extras_of_the_targets(out):
    sanitizer, command, requirement = (out / "installed").read_text().split()
    assert (sanitizer, command) == ("address", "install")
    assert requirement == ".[bfloat16,cli,scipy,text]"


def test_each_target_has_a_program_and_its_corpus(out):
    assert {path.stem for path in out.glob("fuzz_*.py")} == {f"fuzz_{name}" for name in TARGETS}
    hidden = (out / "options").read_text()
    for name in TARGETS:
        with zipfile.ZipFile(out / f"fuzz_{name}_seed_corpus.zip") as archive:
            assert set(archive.namelist()) == {path.name for path in (CORPUS / name).iterdir()}
        assert (out / f"fuzz_{name}.options").read_text().startswith("[libfuzzer]\nmax_len = ")
        assert f"--hidden-import fuzz.from_bytes.{name} " in hidden


def test_the_programs_start(out):
    paths = [str(out), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    names = [name for name in TARGETS if not missing_packages(name)]
    started = [
        subprocess.Popen(
            [sys.executable, out / f"fuzz_{name}.py", next((CORPUS / name).iterdir())],
            env=environment,
            cwd=out,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for name, process in zip(names, started, strict=True):
        output, errors = process.communicate(timeout=120)
        assert (output, process.returncode) == ("ran\n", 0), f"{name}: {errors}"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_the_script_has_no_findings():
    found = subprocess.run(["shellcheck", BUILD], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
