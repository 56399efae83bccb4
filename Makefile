# Everything runs in the project's own virtual environment, made on first use.
# It needs python3 with its headers and venv (Debian: python3-dev python3-venv), a C compiler, make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard embag/*.pyx embag/*.h)

.PHONY: demo test test-torch test-packaging bench lint clean

demo: $(VENV)/.demo
	$(BIN)/python -m embag demo $(if $(QUERY),"$(QUERY)")

test: $(VENV)/.test $(VENV)/.demo lint
	$(BIN)/pytest -m "not packaging"

test-torch: $(VENV)/.torch
	$(BIN)/pytest -m torch tests

test-packaging: $(VENV)/.test
	$(BIN)/pytest -m packaging tests/test_packaging.py

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run $(ARGS)

lint: $(VENV)/.test $(VENV)/.demo
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/cython-lint embag/_core.pyx
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info embag/*.so

# One environment; a stamp for each set of extras that is installed in it. The package is
# installed in place (its modules are built in embag/), again whenever a source changes.
$(VENV)/bin/python:
	@$(PYTHON) -c "import venv, ensurepip" || { echo "python3 has no venv: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(VENV)/.%: $(VENV)/bin/python $(SOURCES)
	@$(BIN)/python -c "import os, sys, sysconfig; \
	  os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')) \
	  or sys.exit('Python.h is missing: apt install python3-dev')"
	$(BIN)/pip install -q -e ".[$*]"
	@touch $@
