"""Builds the kernels once per instruction-set level; everything else is in pyproject.toml.

Environment variables that this file reads:

EMBAG_NO_OPENMP=1
    Build without OpenMP: correct, serial.
EMBAG_SANITIZE=address,undefined
    Build with these sanitizers of gcc or clang, for tests: see `make sanitize`.
"""

import os
import platform
import subprocess
import sys
import tempfile
import warnings
from glob import glob
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Modules that are compiled once. The latter has no threads.
ONCE = ("_teams", "_arrow")
SERIAL = ("_arrow",)
# One module per x86-64 psABI level (and one for any other processor), all from
# embag/_core.pyx. `embag/_dispatch.py` picks one at import.
#   module       flags of gcc and clang                              flags of MSVC
LEVELS = {
    "_core": ([], []),
    "_core_v3": (["-march=x86-64-v3"], ["/arch:AVX2"]),
    "_core_v4": (["-march=x86-64-v4", "-mprefer-vector-width=512"], ["/arch:AVX512"]),
}

# No -march=native (a wheel runs elsewhere), no -ffast-math, no FMA by contraction (every
# level computes the same bits).
UNIX_FLAGS = [
    "-ffp-contract=off",
    # Floating-point exceptions and errno are not looked at: comparisons and square roots
    # may be vectorised. Neither changes a result.
    "-fno-trapping-math",
    "-fno-math-errno",
    "-g0",  # Python's own flags often ask for debugging information: 4 MB a module
]
GCC_FLAGS = [
    # -O2 and what the kernels need of -O3. All of -O3 unrolls loops over up to 16 columns
    # before the vectoriser sees them, and makes scalar code of narrow rows.
    "-O2",
    "-ftree-vectorize",
    "-fvect-cost-model=dynamic",
    "-fpeel-loops",
    # The kernels are specialised by inlining one body some 200 times with literal widths.
    # gcc's limits on growth are for code that is not meant to be copied.
    "--param=max-inline-insns-single=10000",
    "--param=inline-unit-growth=100000",
    "--param=large-function-growth=100000",
    "--param=large-stack-frame=1000000",
    "--param=large-stack-frame-growth=100000",
    # A function that only prefetches has no effect that gcc knows of: with this analysis
    # it deletes the calls.
    "-fno-ipa-modref",
    # Accumulators are local arrays; without this their registers get "was written" flags.
    # Nothing here stores on a condition to memory that another thread writes.
    "-fallow-store-data-races",
    # A fill or copy of a few vectors is to stay a few vector stores, not become memset.
    "-fno-tree-loop-distribute-patterns",
]
CLANG_FLAGS = ["-O3", "-mllvm -inline-threshold=100000"]
MSVC_FLAGS = ["/O2", "/fp:precise"]
# With EMBAG_SANITIZE, after all others. What is found ends the process, and says where.
SANITIZER_FLAGS = ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1"]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,  # the kernels index plain pointers
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
}

TRIVIAL = "int main(void) { return 0; }\n"
OPENMP_PROBE = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class BuildLevels(build_ext):
    """build_ext that knows the compiler's flags and whether it has OpenMP."""

    def finalize_options(self):
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count()

    def build_extensions(self):
        msvc = self.compiler.compiler_type == "msvc"
        openmp_args = self.openmp_flags(msvc)
        compile_args, link_args = [], []
        if msvc:
            compile_args += MSVC_FLAGS
        else:
            compile_args += UNIX_FLAGS
            # A flag that an older compiler does not know is for speed alone.
            wanted = CLANG_FLAGS if self.is_clang() else GCC_FLAGS
            for flag in map(str.split, wanted):
                if self.builds(TRIVIAL, flag, []):
                    compile_args += flag
        sanitizers = os.environ.get("EMBAG_SANITIZE", "")
        if sanitizers:
            compile_args += [f"-fsanitize={sanitizers}", *SANITIZER_FLAGS]
            link_args += [f"-fsanitize={sanitizers}"]
        for extension in list(self.extensions):
            level = extension.name.rpartition(".")[2]
            level_args = LEVELS.get(level, ([], []))[msvc]
            if level_args and not self.builds(TRIVIAL, level_args, []):
                warnings.warn(f"this compiler cannot build {level}: left out", stacklevel=2)
                self.extensions.remove(extension)
                continue
            with_openmp = ([], []) if level in SERIAL else openmp_args
            extension.extra_compile_args = with_openmp[0] + compile_args + level_args
            extension.extra_link_args = with_openmp[1] + link_args
        super().build_extensions()

    def is_clang(self):
        macros = subprocess.run(
            [*self.compiler.compiler_so, "-dM", "-E", "-x", "c", os.devnull],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return "__clang__" in macros

    def openmp_flags(self, msvc):
        """Flags to compile and to link with; two empty lists where there is no OpenMP."""
        if os.environ.get("EMBAG_NO_OPENMP", "0") not in ("", "0"):
            return [], []
        if msvc:
            compile_args, link_args = ["/openmp"], []
        elif sys.platform == "darwin":
            compile_args, link_args = ["-Xpreprocessor", "-fopenmp"], ["-lomp"]
        else:
            compile_args, link_args = ["-fopenmp"], ["-fopenmp"]
        if self.builds(OPENMP_PROBE, compile_args, link_args):
            return compile_args, link_args
        warnings.warn(
            "this compiler has no OpenMP: embag is built serial (correct, one thread)",
            stacklevel=2,
        )
        return [], []

    def builds(self, source, compile_args, link_args):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "probe.c")
            file.write_text(source)
            try:
                objects = self.compiler.compile(
                    [str(file)], output_dir=folder, extra_postargs=compile_args
                )
                # As modules are linked: LDFLAGS (where libomp is) reach no executable.
                self.compiler.link_shared_object(
                    objects, str(Path(folder, "probe.so")), extra_postargs=link_args
                )
            except Exception:  # each compiler class raises its own
                return False
        return True


def extensions():
    x86_64 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
    return [
        Extension(
            f"embag.{name}",
            [f"embag/{name}.pyx"],
            depends=["embag/_core.pyx", *glob("embag/*.pxi"), *glob("embag/*.h"), "setup.py"],
            include_dirs=[np.get_include(), "embag"],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        )
        for name in (*ONCE, *LEVELS)
        if x86_64 or name in (*ONCE, "_core")
    ]


setup(
    ext_modules=cythonize(extensions(), build_dir="build/cython", compiler_directives=DIRECTIVES),
    cmdclass={"build_ext": BuildLevels},
)
