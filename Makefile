# make demo | test | test-all | lint | docs | bench | serve | cluster | cluster-stop: each sets up .venv on first use and reuses it while the lock is unchanged.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DATASET ?= simulated
BENCH ?= ingest ranker_training serving

.PHONY: demo test test-all lint docs bench serve setup cluster cluster-stop
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

# In two processes, each file whole in one of them.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The slow tests too, minutes each, one after the other; tests marked gpu run where there is one.
test-all: test
	$(BIN)/python -m pytest -m "slow or gpu"

cluster: $(READY)
	$(BIN)/python -m jobs.cluster start

cluster-stop: $(READY)
	$(BIN)/python -m jobs.cluster stop

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Pages and API reference in build/docs; a link that leads nowhere is an error.
docs: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml
	@echo build/docs/index.html

bench: $(READY)
	for name in $(BENCH); do $(BIN)/python -m benchmarks.$$name || exit 1; done
