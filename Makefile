.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SLOW ?= slow
# files without a slow test are not even imported: half of the time of collecting
SLOW_FILES = $(or $(TESTS),$(sort $(shell grep -rl 'mark\.slow' tests --include='test_*.py')))

export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help install pretrain test coverage test-slow wheel-test resolve docs nightly check format lint types clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## build .venv with the pinned dependencies

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and \
		f"Python 3.11 or newer is needed, {sys.executable} is {v[0]}.{v[1]}; say make PYTHON=python3.12 …" or 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

pretrain: install  ## make the corpus, pre-train `tiny` on it, evaluate and report; ARGS='tiny --name other …'
	$(BIN)/python -m jobs.local $(ARGS)

test: install  ## the test suite and its ten longest durations
	$(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10 $(TESTS)

coverage: install  ## branch coverage of each package by the test suite
	$(BIN)/python -m pytest -m 'not slow' --numprocesses 2 --dist loadfile --no-loadscope-reorder --cov --cov-report json $(TESTS)
	$(BIN)/python tests/branch_coverage.py

test-slow: install  ## the tests that start whole runs; SLOW='slow and not nightly' for those that CI runs
	$(BIN)/python -m pytest -m '$(SLOW)' --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10 $(SLOW_FILES)

wheel-test:  ## build the wheel, install it in an empty environment outside the checkout, and run it there
	tests/wheel.sh $(PYTHON)

resolve:  ## which machines and Pythons the package index has wheels of the core for
	tests/resolve.sh $(PYTHON)

docs: install  ## build the site from docs/ into site/
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/zensical build

nightly: SLOW = nightly
nightly: test-slow  ## the slow tests that CI leaves out, then twenty runs that lose something at random
	$(BIN)/python jobs/benchmark.py kills --num-runs 20

check: install format lint types test  ## format, lint, types, tests

format: install
	$(BIN)/ruff format --check .

lint: install
	$(BIN)/ruff check .

types: install
	$(BIN)/pyright

clean:  ## remove what was built; runs and corpora stay
	rm -rf $(VENV) build dist *.egg-info
