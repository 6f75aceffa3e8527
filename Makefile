# flowmrd: `make demo` and `make test` do all their own set-up.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help env browser demo test lint types imports bench docs validation sample lock licences clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BUILD := build
# What `make validation` passes on, such as VALIDATION="real patients --baselines --reference patients=FILE".
VALIDATION ?=
# One BLAS thread: workers do not fight for cores, and sums are the same everywhere.
export OPENBLAS_NUM_THREADS := 1
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Without kept bytecode every start of the command line compiles its libraries anew.
unexport PYTHONDONTWRITEBYTECODE
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)

help:  ## Say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | sort | column -t -s $$'\t'

env: $(STAMP)  ## Build .venv with everything demo and test need

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "flowmrd needs Python 3.11 or newer; name one with: make PYTHON=python3.12 …"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq python3-venv; }
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

browser:  ## Install a browser for the tests, where there is none
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || { echo "installing chromium"; $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq chromium fonts-dejavu-core >/dev/null; }

demo: env  ## A simulated cohort's page; then the demo subject's visits, the main job on all of them, the report
	$(BIN)/flowmrd simulate --cohort 24 --no-files --out $(BUILD)/demo/cohort
	$(BIN)/flowmrd endpoints $(BUILD)/demo/cohort/true-clinical.csv --out $(BUILD)/demo/cohort/endpoints
	@echo "cohort page: $(BUILD)/demo/cohort/endpoints/cohort.html"
	$(BIN)/flowmrd simulate --demo $(BUILD)/demo
	$(BIN)/flowmrd run $(BUILD)/demo/manifest.csv --clinical $(BUILD)/demo/clinical.csv --out $(BUILD)/demo/run --jobs 2

test: env browser  ## Run all tests, browser included
	$(BIN)/python -m pytest -n 2 --dist loadfile -q

lint: env  ## Style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: env  ## Ratios against FlowKit, measured in one run
	$(BIN)/python tests/benchmarks/bench.py

docs: env  ## Write the generated reference pages
	$(BIN)/python docs/build_reference.py

validation: env  ## Run the shipped templates over the development sets and write docs/validation (hours; goes on where it was)
	$(BIN)/python tests/validation/aieop.py
	$(BIN)/python tests/validation/cart.py
	$(BIN)/python tests/validation/cohort.py
	$(BIN)/python tests/validation/development.py $(VALIDATION)

sample: env  ## Make sample_fcs anew
	$(BIN)/flowmrd simulate --subject sample_fcs/subject.toml --out sample_fcs

lock: env  ## Compile the hashed lock (without registry addresses)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --quiet -o requirements.lock

licences: env  ## Refuse licences that must not come in
	$(BIN)/pip-licenses --partial-match --fail-on="GPL;AGPL" --ignore-packages text-unidecode >/dev/null

clean:  ## Remove what the targets build
	rm -rf $(BUILD) .pytest_cache .mypy_cache .ruff_cache .hypothesis
