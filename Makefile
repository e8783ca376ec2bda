# make study   set up and run the quickstart: a whole study on images drawn by code
# make test    set up and run the tests of minutes: two at a time
# make test-rest   the others: kills, several raylets, browser, object stores, pages, fuzzing
# make test-all    both
# make test-long   what takes longer still: CONTRIBUTING.md names it
# make test-gpu    what needs a real GPU; skips without one
# make check   set up and run ruff, mypy and cluster-check
# make docs    build the documentation into site/
# make cluster-check   only look at the launch files in cluster/
# make setup   only make .venv and install; all others do it when it is needed
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

# Tests that need the .npz files of MGDM_DATA_DIR skip without. PYTEST_ARGS adds options.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)
FAST := not slow and not long and not cluster and not network

.PHONY: study test test-rest test-all test-long test-gpu check docs cluster-check setup clean
.DEFAULT_GOAL := study

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, {v.major}.{v.minor} came; name one: make PYTHON=python3.12 ...")'
	@echo "setup: creating $(VENV) and installing the pinned packages (minutes, several GB: torch)"
	$(PYTHON) -m venv $(VENV)
	@# uv takes half of pip's time, but reads none of pip's settings (an index, a certificate).
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt uv \
	  && $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]' \
	  || $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)
	@echo "setup: done"

setup: $(STAMP)

study: $(STAMP)
	@echo "study: running studies/quickstart.yaml; results go to ./runs (again: resumes)"
	$(BIN)/python -m mgdm_ray.study studies/quickstart.yaml

test: $(STAMP)
	$(PYTEST) -m "$(FAST)"

test-rest: $(STAMP)
	$(PYTEST) -m "not ($(FAST)) and not long"

test-all: test test-rest

test-long: $(STAMP)
	$(BIN)/python -m pytest -m long $(PYTEST_ARGS)
	$(BIN)/python -m tests.fuzz --cases 10000

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "docs: open $(CURDIR)/site/index.html"

check: cluster-check docs
	@echo "check: ruff, then mypy --strict on mgdm_ray"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

cluster-check: $(STAMP)
	@echo "cluster-check: launch files: validators, linters, versions, safety; starts nothing"
	$(BIN)/python cluster/check.py

clean:
	rm -rf $(VENV) build *.egg-info
