# Everything runs in the project's own virtual environment, made on first use.
# It needs python3 with its headers and venv (Debian: python3-dev python3-venv), a C compiler, make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
SOURCES := pyproject.toml setup.py $(wildcard embag/*.pyx embag/*.pxi embag/*.h)

.PHONY: demo demo-pipeline test test-slow test-torch test-pipelines wheel test-packaging bench soak fuzz sanitize lint clean

demo: $(VENV)/.demo
	$(BIN)/python -m embag demo $(if $(QUERY),"$(QUERY)")

# Purchases to recommendations (examples/baskets/README.md); the plot is build/baskets/hits.png.
demo-pipeline: $(VENV)/.demo-pipeline
	$(BIN)/python examples/baskets/run.py $(ARGS)

test: $(VENV)/.test $(VENV)/.demo $(VENV)/.demo-pipeline lint
	$(BIN)/pytest -m "not packaging and not slow"

test-slow: $(VENV)/.test
	$(BIN)/pytest -m slow tests

test-torch: $(VENV)/.test $(VENV)/.test-torch
	$(BIN)/pytest -m torch tests
	$(BIN)/pytest embag/torch.py

# Spark asks for Java 17 or later.
test-pipelines: $(VENV)/.test $(VENV)/.test-pipelines
	$(BIN)/pytest -m pipelines tests

# On Linux. The sdist, and the wheel built from it alone; the OpenMP runtime copied into the
# wheel; then the tests of both, on a new environment without a compiler.
# The times in the wheel are the commit's, so that the same commit makes the same bytes.
wheel: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
wheel: $(VENV)/.release $(VENV)/.test
	rm -rf build/wheel dist
	$(BIN)/validate-pyproject pyproject.toml
	$(BIN)/check-sdist
	$(BIN)/python -m build --outdir build/wheel
	$(BIN)/auditwheel show build/wheel/*.whl
	$(BIN)/auditwheel repair --strip -w dist build/wheel/*.whl
	$(BIN)/python tools/declare_libraries.py dist
	cp build/wheel/*.tar.gz dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/pytest -rP -m packaging tests/test_packaging.py -k "not openmp"

test-packaging: wheel
	$(BIN)/pytest -m packaging tests/test_packaging.py -k openmp

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run --json build/benchmarks.json $(ARGS)

# Ten minutes without a problem are written into docs/soak.md too; make soak ARGS="--minutes 1".
soak: $(VENV)/.test $(VENV)/.serving
	$(BIN)/python -m benchmarks.soak --json build/soak.json --publish $(ARGS)

# What fails is written to build/fuzz; make fuzz ARGS="--cases 1000000 --seed 7".
fuzz: $(VENV)/.test
	$(BIN)/python -m tests.fuzz --failures build/fuzz $(if $(ARGS),$(ARGS),--cases 100000)

# A build of its own, in build/sanitize: the one in embag/ stays as it is.
sanitize: $(VENV)/.test build/sanitize/.built
	LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) PYTHONMALLOC=malloc \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  PYTHONPATH=$(CURDIR)/build/sanitize \
	  $(BIN)/pytest -m "not packaging and not torch and not slow" $(if $(ARGS),$(ARGS),tests)

build/sanitize/.built: $(VENV)/.test $(SOURCES) $(wildcard embag/*.py)
	$(BIN)/pip install -qq "setuptools>=77" "Cython>=3.3"
	@echo "building embag with sanitizers: some minutes"
	EMBAG_SANITIZE=address,undefined $(BIN)/python setup.py -q build \
	  --build-lib build/sanitize --build-temp build/sanitize-objects
	@touch $@

lint: $(VENV)/.test $(VENV)/.demo
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/cython-lint embag/_core.pyx embag/_teams.pyx embag/_arrow.pyx $(wildcard embag/*.pxi)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info embag/*.so

# One environment. The package is installed in place (its modules are built in embag/),
# again whenever a source changes; then a stamp for each set of extras.
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

$(VENV)/.%: $(VENV)/.built
	$(BIN)/pip install -qq "embag-cpu[$*]"
	@touch $@
