"""Add the licences of bundled libraries to the metadata of repaired wheels.

    python tools/declare_libraries.py FOLDER

auditwheel, delocate and delvewheel copy the OpenMP runtime into a wheel, but leave its
License-Expression unchanged. This script rewrites each wheel in FOLDER, in place. It fails for a
library that is not listed here: the licence and its text (licenses/README.md) would be missing.

Tested in tests/repository/test_packaging.py.
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
    """Return the names of the bundled shared libraries in an unpacked wheel."""
    found = [*folder.glob("*.libs/*"), *folder.glob("**/.dylibs/*")]
    # delvewheel adds a file with the order of loading.
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
        assert text.count(own) == 1, "METADATA must have the project's licence alone"
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
