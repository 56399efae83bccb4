"""Build the kernels once per instruction-set level; everything else is in pyproject.toml.

This file reads the environment variables

EMBAG_NO_OPENMP=1
    Build without OpenMP: serial, with the same results.
EMBAG_SANITIZE=address,undefined
    Build with these sanitizers of gcc or clang, for tests: see `make sanitize`.
EMBAG_COVERAGE=1
    Build without optimization, to count which branches run: see `make coverage`.
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

# Modules that are compiled once, and those of them without threads.
ONCE = ("_process._teams", "_columns._cdata")
SERIAL = ("_cdata",)
# One module per x86-64 psABI level, all from embag/_core.pyx; other processors have only the
# first. `embag/_kernels/dispatch.py` chooses one at import.
#   module       flags of gcc and clang                              flags of MSVC
LEVELS = {
    "_core": ([], []),
    "_core_v3": (["-march=x86-64-v3"], ["/arch:AVX2"]),
    "_core_v4": (["-march=x86-64-v4", "-mprefer-vector-width=512"], ["/arch:AVX512"]),
}

# No -march=native, as a wheel runs on other machines. No -ffast-math and no contraction to FMA,
# as every level computes the same bits.
UNIX_FLAGS = [
    "-ffp-contract=off",
    # Floating-point exceptions and errno are not read, so comparisons and square roots may be
    # vectorized. Neither flag changes a result.
    "-fno-trapping-math",
    "-fno-math-errno",
    "-g0",  # Python's flags often include debugging information: 4 MB per module
]
GCC_FLAGS = [
    # -O2 and the parts of -O3 that the kernels need. All of -O3 unrolls loops over up to 16
    # columns before they can be vectorized, and narrow rows become scalar code.
    "-O2",
    "-ftree-vectorize",
    "-fvect-cost-model=dynamic",
    "-fpeel-loops",
    # The kernels are specialized by inlining one body about 200 times with literal widths,
    # which exceeds gcc's default limits on growth.
    "--param=max-inline-insns-single=10000",
    "--param=inline-unit-growth=100000",
    "--param=large-function-growth=100000",
    "--param=large-stack-frame=1000000",
    "--param=large-stack-frame-growth=100000",
    # Else a call far down a chain of conditions counts as cold, and is not inlined.
    "--param=hot-bb-frequency-fraction=1000000",
    # With this analysis gcc deletes calls of functions that only prefetch, since these have no
    # effect that it models.
    "-fno-ipa-modref",
    # Accumulators are local arrays; without this flag gcc keeps a "was written" flag for each
    # of their registers. No kernel stores conditionally to memory that another thread writes.
    "-fallow-store-data-races",
    # A fill or copy of a few vectors stays a few vector stores instead of a call of memset.
    "-fno-tree-loop-distribute-patterns",
]
CLANG_FLAGS = ["-O3", "-mllvm -inline-threshold=100000"]
MSVC_FLAGS = ["/O2", "/fp:precise"]
# With EMBAG_SANITIZE, after UNIX_FLAGS: all that inlining takes many minutes with checks in it. The
# first finding ends the process with a report.
SANITIZER_FLAGS = ["-O1", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1"]
# With EMBAG_COVERAGE, instead of the flags that optimize.
COVERAGE_FLAGS = ["--coverage", "-fprofile-update=atomic", "-O0"]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,  # the kernels index plain pointers
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
    # No GIL is needed: docs/serving.md, "Free-threaded Python".
    "freethreading_compatible": True,
}

TRIVIAL = "int main(void) { return 0; }\n"
OPENMP_PROBE = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class BuildLevels(build_ext):
    """build_ext with the flags of each compiler and level, and OpenMP where it is available."""

    def finalize_options(self):
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count()

    def build_extensions(self):
        msvc = self.compiler.compiler_type == "msvc"
        openmp_args = self.openmp_flags(msvc)
        compile_args, link_args = [], []
        sanitizers = os.environ.get("EMBAG_SANITIZE", "")
        if msvc:
            compile_args += MSVC_FLAGS
        elif sanitizers:
            compile_args += [*UNIX_FLAGS, f"-fsanitize={sanitizers}", *SANITIZER_FLAGS]
            link_args += [f"-fsanitize={sanitizers}"]
        elif os.environ.get("EMBAG_COVERAGE", "0") not in ("", "0"):
            compile_args += [*UNIX_FLAGS, *COVERAGE_FLAGS]
            link_args += ["--coverage"]
        else:
            compile_args += UNIX_FLAGS
            # Flags that an older compiler does not know are left out: they only affect speed.
            wanted = CLANG_FLAGS if self.is_clang() else GCC_FLAGS
            for flag in map(str.split, wanted):
                if self.builds(TRIVIAL, flag, []):
                    compile_args += flag
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
        """Return the flags to compile and to link with; two empty lists without OpenMP."""
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
                # Linked as a module: setuptools does not pass LDFLAGS, which may name the
                # folder of libomp, to an executable.
                self.compiler.link_shared_object(
                    objects, str(Path(folder, "probe.so")), extra_postargs=link_args
                )
            except Exception:  # each compiler class has exceptions of its own
                return False
        return True


def extensions():
    x86_64 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
    return [
        Extension(
            f"embag.{name}",
            [f"embag/{name.replace('.', '/')}.pyx"],
            depends=[
                *("embag/_core.pyx", "setup.py"),
                *glob("embag/*/*.pxi"),
                *glob("embag/*/*.h"),
            ],
            include_dirs=[np.get_include(), "embag", "embag/_process", "embag/_columns"],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        )
        # Several are compiled at a time, and the last level takes longest: it starts first.
        for name in (*reversed(LEVELS), *ONCE)
        if x86_64 or name in (*ONCE, "_core")
    ]


setup(
    ext_modules=cythonize(extensions(), build_dir="build/cython", compiler_directives=DIRECTIVES),
    cmdclass={"build_ext": BuildLevels},
)
