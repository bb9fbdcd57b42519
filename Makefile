# `make` alone explains the targets. Everything is installed into .venv; nothing else is touched.
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CASES ?= 2000
PORT ?= 3000
FAULTS ?= 200
SEED ?= 729

# Each export has a home of its own, so that trying one never touches the data of another.
ifdef EXPORT
export QBENCH_EXPORT := $(EXPORT)
export QBENCH_HOME ?= $(CURDIR)/.qbench/$(basename $(notdir $(EXPORT)))
else
export QBENCH_HOME ?= $(CURDIR)/.qbench/demo
export QBENCH_EXPORT ?= $(QBENCH_HOME)/demo.db
endif

.DEFAULT_GOAL := help
.PHONY: help install demo ui test lint format bench bench-embed bench-search bench-sync crash chaos lock audit wheel stop clean

help: ## Show this list
	@printf 'qbench_dagster: TestRail cases and their embeddings into PostgreSQL with pgvector\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\n  EXPORT=path takes your own export (demo, ui); DATABASE_URL takes your own PostgreSQL.\n'

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install ## Bring an export (2,000 sample cases, or EXPORT=path) into PostgreSQL, and search it
	@mkdir -p "$(QBENCH_HOME)"
	@test -e "$(QBENCH_EXPORT)" || $(BIN)/qbench sample "$(QBENCH_EXPORT)" --cases $(CASES)
	$(BIN)/qbench run
	$(BIN)/qbench search "user cannot log in with wrong password" -k 5

ui: install ## Open the Dagster UI on the same data (PORT=3000)
	$(BIN)/qbench ui --port $(PORT)

test: install ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install ## Check format, style, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict qbench_dagster/core qbench_dagster/adapters
	$(BIN)/mypy qbench_dagster

format: install ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## Load 104,121 sample cases and measure (a few minutes, 3 GB of disk)
	$(BIN)/python -m benchmarks.load

bench-embed: install ## Measure the embedding stage beside the plain OpenAI client, against a local server
	$(BIN)/python -m benchmarks.embed

bench-search: install ## Search 1,000,000 vectors, and fewer beside faiss, Qdrant and plain pgvector (25 minutes, 20 GB)
	$(BIN)/python -m benchmarks.search

bench-sync: install ## Follow an export: a sync of 100 changed cases beside a cold run of 104,121, and what it leads to
	$(BIN)/python -m benchmarks.sync

crash: install ## Kill a run with SIGKILL at twenty random moments and compare with a clean run
	@mkdir -p "$(QBENCH_HOME)"
	@test -e "$(QBENCH_EXPORT)" || $(BIN)/qbench sample "$(QBENCH_EXPORT)" --cases $(CASES)
	$(BIN)/python -m qbench_dagster_tests.crash --kills 20 --export "$(QBENCH_EXPORT)"

chaos: install ## Break syncs in every way we know, 200 times, and compare with clean loads (FAULTS=200 SEED=729)
	$(BIN)/python -m qbench_dagster_tests.chaos --faults $(FAULTS) --seed $(SEED)

lock: install ## Write requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
	  --no-header --no-annotate --no-emit-index-url -o requirements.lock

audit: install ## Look for known vulnerabilities in requirements.lock (asks osv.dev; passes where there is no network)
	@test -x $(VENV)-audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)-audit && \
	  $(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check \
	  --retries 1 --timeout 15 pip-audit==2.10.1; } >/dev/null 2>&1 || \
	  rm -rf $(VENV)-audit
	@$(PYTHON) .ci/audit.py $(VENV)-audit/bin/pip-audit requirements.lock

wheel: install ## Build a wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

stop: install ## Stop the embedded PostgreSQL (of EXPORT=path, or of the demo)
	$(BIN)/qbench stop

clean: ## Stop every embedded PostgreSQL under .qbench; remove it, the caches and .venv
	@for home in .qbench .qbench/*; do \
	  if test -e "$$home/pg/postmaster.pid" && test -x $(BIN)/qbench; then QBENCH_HOME="$$home" $(BIN)/qbench stop; fi; \
	done
	rm -rf .qbench $(VENV) $(VENV)-audit dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
