"""Name the licences of the libraries that repaired wheels hold in their metadata.

    python tools/declare_libraries.py FOLDER

auditwheel, delocate and delvewheel copy the OpenMP runtime into a wheel and leave its
License-Expression as the project's own. This rewrites each wheel in FOLDER, in place. A
wheel with a library that has no line here is an error: its licence would be missing, and
its text (licenses/README.md).

Tested in tests/test_packaging.py.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

WHEEL = (sys.executable, "-m", "wheel")
LICENSES = {
    "libgomp": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libomp": "Apache-2.0 WITH LLVM-exception",
    "vcomp140": "LicenseRef-Microsoft-Visual-Cpp-Redistributable",
}


def libraries(folder: Path) -> list[str]:
    """Return the names of the shared libraries in an unpacked wheel that are no Python modules."""
    found = [*folder.glob("*.libs/*"), *folder.glob("**/.dylibs/*")]
    # delvewheel keeps a list of load order beside them.
    return sorted(path.name for path in found if not path.name.startswith(".load-order"))


def declare(wheel: Path) -> None:
    """Rewrite one wheel."""
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run([*WHEEL, "unpack", "--dest", temporary, wheel], check=True)
        (folder,) = Path(temporary).iterdir()
        names = libraries(folder)
        (metadata,) = folder.glob("*.dist-info/METADATA")
        text = metadata.read_text(encoding="utf-8")
        own = "License-Expression: Apache-2.0\n"
        assert text.count(own) == 1, "is this the project's wheel, and not yet declared?"
        licenses = {LICENSES[name.replace(".", "-").partition("-")[0]] for name in names}
        declared = " AND ".join(["Apache-2.0", *sorted(licenses)])
        text = text.replace(own, f"License-Expression: {declared}\n")
        metadata.write_text(text, encoding="utf-8", newline="\n")
        wheel.unlink()
        subprocess.run([*WHEEL, "pack", "--dest-dir", wheel.parent, folder], check=True)
    print(f"{wheel.name}: {', '.join(names) or 'no library'}; {declared}")


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.whl")):
        declare(path)
