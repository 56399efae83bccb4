# Everything runs in a virtual environment of the project, created on first use. Requirements:
# python3 with headers and venv (Debian: python3-dev python3-venv), a C compiler and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
SOURCES := pyproject.toml setup.py $(wildcard embag/*.pyx embag/*/*.pyx embag/*/*.pxi embag/*/*.h)

.PHONY: demo demo-pipeline demo-towers demo-ray test test-fast test-demos test-slow test-torch test-pipelines test-ray test-aarch64 test-s390x test-freethreaded cross build-wheel wheel test-packaging coverage mutants docs docs-linkcheck bench soak fuzz fuzz-coverage sanitize sanitize-memory lint clean

demo: $(VENV)/.demo
	$(BIN)/python -m embag demo $(if $(QUERY),"$(QUERY)")

# Purchases to recommendations (examples/baskets/README.md); the plot is build/baskets/hits.png.
demo-pipeline: $(VENV)/.demo-pipeline
	$(BIN)/python examples/baskets/run.py $(ARGS)

# Trains two towers on the same purchases, then the same with torch (examples/two_towers/README.md).
demo-towers: $(VENV)/.demo-pipeline $(VENV)/.test-torch
	$(BIN)/python examples/two_towers/run.py $(ARGS)
	$(BIN)/python examples/two_towers/compare.py $(ARGS)

# Sharded tables on three nodes of Ray, all on this machine (examples/serving_ray/README.md).
demo-ray: $(VENV)/.test-ray
	$(BIN)/python examples/serving_ray/demo.py $(ARGS)

test: $(VENV)/.test lint
	$(BIN)/pytest -m "not packaging and not slow and not demos"

# The core, at the best level that the machine runs: under a minute on two cores.
CORE := $(addprefix tests/,lookups gradients tables columns collection stored)
test-fast: $(VENV)/.test
	EMBAG_TEST_LEVELS=best $(BIN)/pytest -m "not slow and not thorough" $(CORE)

# The demos' models and data: some hundred megabytes.
test-demos: $(VENV)/.test $(VENV)/.demo $(VENV)/.demo-pipeline
	$(BIN)/pytest -m demos tests

test-slow: $(VENV)/.test
	$(BIN)/pytest -m slow tests

test-torch: $(VENV)/.test $(VENV)/.test-torch
	$(BIN)/pytest -m torch tests
	$(BIN)/pytest embag/torch

# Spark requires Java 17 or later.
test-pipelines: $(VENV)/.test $(VENV)/.test-pipelines
	$(BIN)/pytest -m pipelines tests

# Three nodes of Ray on this machine; some hundred megabytes.
test-ray: $(VENV)/.test $(VENV)/.test-ray
	$(BIN)/pytest -m ray tests

# Cross-compile for 64-bit Arm, or for s390x, which is big-endian, and test the kernels under
# emulation: about ten minutes each. Debian or Ubuntu.
test-aarch64 test-s390x: test-%: $(VENV)/.test $(VENV)/.cython
	tools/emulate.sh $* $(ARGS)

# Compiles and links for Windows and macOS with Zig: ten minutes. Nothing can be run.
cross: $(VENV)/.test $(VENV)/.cython
	$(BIN)/pip install -qq ziglang
	$(BIN)/python tools/cross.py $(ARGS)

# Builds CPython 3.13 without the GIL and embag for it, and runs tests: minutes. Debian or Ubuntu.
test-freethreaded: $(VENV)/.test
	tools/freethreaded.sh $(ARGS)

# Linux only. Builds the sdist and, from it, the wheel; copies the OpenMP runtime into the wheel;
# tests both in a new environment without a compiler.
# Files in the wheel have the time of the commit, so that a commit always gives the same bytes.
build-wheel: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
build-wheel: $(VENV)/.release $(VENV)/.test
	rm -rf build/wheel dist
	$(BIN)/validate-pyproject pyproject.toml
	$(BIN)/check-sdist
	$(BIN)/python -m build --outdir build/wheel

wheel: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
wheel: build-wheel
	$(BIN)/auditwheel show build/wheel/*.whl
	$(BIN)/auditwheel repair --strip -w dist build/wheel/*.whl
	$(BIN)/python tools/declare_libraries.py dist
	cp build/wheel/*.tar.gz dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/pytest -rP -m packaging tests/repository/test_packaging.py -k "not openmp"

test-packaging: wheel
	$(BIN)/pytest -m packaging tests/repository/test_packaging.py -k openmp

# The site, in build/docs; Python 3.11 or later. Warnings are errors, so links within the
# repository, their anchors and all names in docs/reference.rst are checked.
SPHINX := $(BIN)/sphinx-build -W --keep-going -q -c docs -d build/doctrees
docs: $(VENV)/.test $(VENV)/.docs
	$(SPHINX) . build/docs

# Links to other sites; needs a network.
docs-linkcheck: $(VENV)/.test $(VENV)/.docs
	$(SPHINX) -b linkcheck . build/docs-links

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run --json build/benchmarks.json $(ARGS)

# First, for a minute, tests whether it finds planted faults. Ten minutes without a problem also
# update docs/soak.md; make soak ARGS="--minutes 1".
soak: $(VENV)/.test $(VENV)/.serving
	$(BIN)/pytest -q -m slow tests/repository/test_soak.py
	$(BIN)/python -m tools.soak --json build/soak.json --publish $(ARGS)

# Failures are written to build/fuzz; make fuzz ARGS="--cases 1000000 --seed 7".
fuzz: $(VENV)/.test
	$(BIN)/python -m tests.fuzz --failures build/fuzz $(if $(ARGS),$(ARGS),--cases 100000)

# Starts from tests/fuzz/corpus, and writes crashes and new inputs to build/fuzz: a minute for each
# target. make fuzz-coverage ARGS="tables -max_total_time=600"; ARGS=-merge=1 keeps new inputs.
fuzz-coverage: $(VENV)/.test $(VENV)/.fuzz
	$(BIN)/python -m tests.fuzz.from_bytes.guided $(ARGS)

# A separate build, in build/sanitize; the build in embag/ does not change.
sanitize: $(VENV)/.test build/sanitize/.built
	LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) PYTHONMALLOC=malloc \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  PYTHONPATH=$(CURDIR)/build/sanitize \
	  $(BIN)/pytest -m "not packaging and not torch and not slow" $(if $(ARGS),$(ARGS),tests)

# Compiles one level with clang's MemorySanitizer and makes some thousand calls: minutes. Debian or
# Ubuntu. Leaks need no build: tests/process/test_leaks.py.
sanitize-memory: $(VENV)/.test $(VENV)/.cython
	tools/memory_sanitizer.sh

build/sanitize/.built: $(VENV)/.test $(VENV)/.cython $(SOURCES) $(wildcard embag/*.py embag/*/*.py)
	@echo "building embag with sanitizers: some minutes"
	EMBAG_SANITIZE=address,undefined $(BIN)/python setup.py -q build \
	  --build-lib build/sanitize --build-temp build/sanitize-objects
	@touch $@

# Which branches of the kernels and of the Python files tests take: half an hour. gcc alone. A
# separate build, without optimization. The first run is at all levels, the second at the best one.
# The third has tests that count memory, without coverage.py, which takes some, too. Left out: a
# test that would take too long, one of leaks, which the counters have, and one that ends children.
COVERED_FIRST := $(addprefix tests/,lookups gradients tables columns collection stored)
COVERED := $(addprefix tests/,process text fuzz cli bridges)
MEASURED := $(addprefix tests/,lookups/test_memory_use.py process/test_failing_allocations.py)
LEFT_OUT := $(addprefix tests/process/,test_changing_arrays.py test_leaks.py) \
  tests/cli/test_failures.py::test_a_signal_leaves_no_files
COVERED_TESTS := -p no:cacheprovider -m "not slow and not packaging and not demos and not torch"
coverage: export OMP_WAIT_POLICY := passive
coverage: export PYTHONPATH := $(CURDIR)/build/coverage
coverage: $(VENV)/.test build/coverage/.built
	rm -rf build/coverage-data && mkdir -p build/coverage-data
	find build/coverage-objects -name "*.gcda" -delete
	$(BIN)/coverage run $(BIN)/pytest $(COVERED_TESTS) $(COVERED_FIRST) \
	  $(addprefix --deselect=,$(MEASURED))
	EMBAG_TEST_LEVELS=best $(BIN)/coverage run $(BIN)/pytest $(COVERED_TESTS) $(COVERED) \
	  $(addprefix --deselect=,$(MEASURED) $(LEFT_OUT))
	$(BIN)/pytest $(COVERED_TESTS) $(MEASURED)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --skip-covered
	$(BIN)/python -m tools.kernel_coverage build/coverage-objects --page docs/testing.md

build/coverage/.built: $(VENV)/.test $(VENV)/.cython $(SOURCES) $(wildcard embag/*.py embag/*/*.py)
	rm -rf build/coverage build/coverage-objects
	EMBAG_COVERAGE=1 $(BIN)/python setup.py -q build \
	  --build-lib build/coverage --build-temp build/coverage-objects
	@touch $@

# Plants faults in the kernels, and runs the tests with each: two hours on two cores.
mutants: $(VENV)/.test $(VENV)/.cython
	$(BIN)/python -m tools.mutants $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/cython-lint embag/_core.pyx $(wildcard embag/*/*.pyx embag/*/*.pxi)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info embag/*.so embag/*/*.so

# One environment. The package is installed in place, with its modules built in embag/, again
# whenever a source changes. Each set of extras has a stamp file.
$(BIN)/python:
	@$(PYTHON) -c "import venv, ensurepip" || { echo "no venv: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip

$(VENV)/.built: $(BIN)/python $(SOURCES)
	@$(BIN)/python -c "import os, sys, sysconfig as s; h = s.get_path('include') + '/Python.h'; \
	  os.path.exists(h) or sys.exit('no ' + h + ': apt install python3-dev')"
	@echo "building embag: a minute or two"
	$(BIN)/pip install -qq -e .
	@touch $@

# For builds outside pip.
$(VENV)/.cython: $(VENV)/.built
	$(BIN)/pip install -qq "setuptools>=77" "Cython>=3.3"
	@touch $@

$(VENV)/.%: $(VENV)/.built
	$(BIN)/pip install -qq "embag-cpu[$*]"
	@touch $@
