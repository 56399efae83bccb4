"""Compile and link embag for Windows and macOS with Zig's compiler: make cross ARGS="macos".

Nothing can be run, so this tells only that the generated C and setup.py's flags are accepted, and
that no symbol is missing: modules are linked with the libraries of the system and with a library
that has the symbols of this Python. Python's headers are those of this Python, with another
pyconfig.h for Windows. NumPy's are those of its wheel for the target. Zig has no OpenMP, so the
builds are serial. Everything is in build/cross.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "cross"
#   name       target of Zig          platform of the wheel   suffix of modules   an exported symbol
TARGETS = {
    "windows": ("x86_64-windows-gnu", "win_amd64", ".pyd", "__declspec(dllexport)"),
    "macos": ("aarch64-macos", "macosx_14_0_arm64", ".so", ""),
    "macos-x86": ("x86_64-macos", "macosx_14_0_x86_64", ".so", ""),
}
# What Python.h needs to know of a compiler for Windows that is not MSVC.
PYCONFIG = """
#include <sys/types.h>
#define MS_WINDOWS
#define MS_WIN64
#define NT_THREADS
#define WITH_THREAD
#define Py_ENABLE_SHARED
#define HAVE_DECLSPEC_DLL
#define HAVE_SSIZE_T 1
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_TIME_T 8
#define SIZEOF_WCHAR_T 2
#define HAVE_STDINT_H 1
#define HAVE_STDDEF_H 1
#define HAVE_SYS_TYPES_H 1
#define HAVE_SYS_STAT_H 1
#define HAVE_ERRNO_H 1
"""


def main() -> None:
    for name in sys.argv[1:] or TARGETS:
        build(name)


def build(name: str) -> None:
    target, platform, suffix, exported = TARGETS[name]
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    headers = folder / "python"
    shutil.copytree(sysconfig.get_path("include"), headers)
    if name == "windows":
        (headers / "pyconfig.h").write_text(PYCONFIG)
    # Zig has names of its own for the levels of x86-64.
    compiler = folder / "cc"
    zig = f"{sys.executable} -m ziglang cc -target {target}"
    compiler.write_text(f'#!/bin/bash\nexec {zig} "${{@/-march=x86-64-/-mcpu=x86_64_}}"\n')
    compiler.chmod(0o755)
    python = make_library(folder, compiler, name == "windows", exported)
    environment = {
        **os.environ,
        "CC": str(compiler),
        "LDSHARED": f"{compiler} -shared",
        "CFLAGS": f"-I{headers} -I{get_numpy(folder, platform)}",
        "LDFLAGS": str(python),
        "EMBAG_NO_OPENMP": "1",
        "SETUPTOOLS_EXT_SUFFIX": suffix,
    }
    command = [sys.executable, "setup.py", "-q", "build", "--force"]
    command += ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "objects")]
    with open(folder / "build.log", "w") as log:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode != 0:
        raise SystemExit(f"{(folder / 'build.log').read_text()}\n{name}: failed")
    modules = sorted(path.name for path in (folder / "lib").rglob(f"*{suffix}"))
    print(f"{name}: {', '.join(modules)}")


def get_numpy(folder: Path, platform: str) -> Path:
    """Return NumPy's headers for a platform."""
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*download, "--platform", platform, "-d", str(folder), "numpy"], check=True)
    (wheel,) = folder.glob("numpy-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "numpy")
    return folder / "numpy" / "numpy" / "_core" / "include"


def make_library(folder: Path, compiler: Path, is_windows: bool, exported: str) -> Path:
    """Return a library with a symbol for each of this Python's."""
    library = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LDLIBRARY"))
    names: set[str] = set()
    for file in (Path(sys.executable).resolve(), library):
        listed = subprocess.run(
            ["nm", "--dynamic", "--defined-only", "--format=posix", str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        found = (line.split("@")[0].split(" ")[0] for line in listed.stdout.splitlines())
        names.update(name for name in found if name.startswith(("Py", "_Py")))
    source = folder / "python.c"
    source.write_text("".join(f"{exported} int {name};\n" for name in sorted(names)))
    output, made = folder / "python.dll", folder / "python.lib"
    options = [f"-Wl,--out-implib,{made}"]
    if not is_windows:
        output = made = folder / "libpython.dylib"
        options = []
    command = [compiler, "-shared", "-fno-builtin", *options, "-o", output, source]
    subprocess.run(command, check=True)
    return made


if __name__ == "__main__":
    main()
