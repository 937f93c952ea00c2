# `make demo` and `make test` each work as the first command on a fresh machine.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check gpu docs bench clean

help:
	@echo "make demo    set up, then measure the digits task: demo/results.json, demo/report.html"
	@echo "make test    set up, then the whole test suite and the doctests"
	@echo "make check   format, lint, types, fast tests"
	@echo "make gpu     the tests that need an accelerator"
	@echo "make docs    build the documentation into site/"
	@echo "make bench   list the benchmarks"

# The stamp is newer than both files once everything in them is installed. The two variables hold
# the build's own tools to the same versions; which of them does it depends on the version of pip.
$(READY): export PIP_CONSTRAINT := constraints.txt
$(READY): export PIP_BUILD_CONSTRAINT := constraints.txt
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/rightbatch find digits --output demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not browser and not gpu"

gpu: $(READY)
	$(BIN)/python -m pytest --device cuda -m gpu
	$(BIN)/python -m pytest --device cuda tests/task/test_world.py

docs: $(READY)
	$(BIN)/mkdocs build --strict

bench: $(READY)
	$(BIN)/python -m benchmarks --help

clean:
	rm -rf $(VENV) demo site .pytest_cache .ruff_cache .hypothesis
