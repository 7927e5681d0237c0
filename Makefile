# make demo | test | lint | bench | serve: each sets up .venv on first use and reuses it while the lock is unchanged.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DATASET ?= simulated
BENCH ?= ingest ranker_training serving

.PHONY: demo test lint bench serve setup
export RAY_AUTH_MODE ?= token

setup: $(READY)

# torch first and alone, with its exact pin: a resolver that sees it among the rest may fetch another build of it.
$(READY): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rayrec needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/python -m jobs.demo --dataset $(DATASET)

serve: $(READY)
	$(BIN)/python -m jobs.serve

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	for name in $(BENCH); do $(BIN)/python -m benchmarks.$$name || exit 1; done
