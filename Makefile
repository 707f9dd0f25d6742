# Two commands set up all they need: `make run` and `make test`. Only Python 3.11+ and a package index must be there.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help run test test-lowest lint format protos check-protos bench bench-full bench-parts lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

run: .venv/runtime ## Start a server on 127.0.0.1:50051 with a demo organization; state in .run/
	@exec env PATH="$(CURDIR)/$(BIN):$$PATH" sh scripts/run.sh

test: .venv/dev ## Run the whole suite; PostgreSQL too where its server is installed
	@exec env PATH="$(CURDIR)/$(BIN):$$PATH" sh scripts/test.sh

test-lowest: .venv/dev ## Run the tests of how calls come in on the lowest grpcio that is promised
	@exec env PATH="$(CURDIR)/$(BIN):$$PATH" sh scripts/test-lowest.sh

lint: .venv/dev ## Check style, docstrings, types, imports and protos
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python scripts/check_docstrings.py
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint protos

format: .venv/dev ## Bring the code into the house style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: .venv/dev ## Generate src/rolecall/v1 from protos/
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh scripts/protos.sh src

check-protos: .venv/dev ## Fail where the generated code is not what protos/ says
	@rm -rf build/protos && mkdir -p build/protos
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh scripts/protos.sh build/protos
	@diff -r -x __pycache__ build/protos/rolecall/v1 src/rolecall/v1 || \
	  { echo 'The generated code has drifted: run `make protos` and commit it.'; exit 1; }

bench: .venv/bench ## Measure Checks beside the references, into docs/benchmarks; needs h2load; about three minutes
	$(BIN)/python benchmarks/checks.py

bench-full: .venv/bench ## Measure Checks at scale too, beside floods, over workers; about eleven minutes
	$(BIN)/python benchmarks/full.py

bench-parts: .venv/dev ## Measure decisions, changes, lists and the start; about two minutes
	$(BIN)/python benchmarks/policy.py
	$(BIN)/python benchmarks/management.py
	$(BIN)/python benchmarks/members.py
	$(BIN)/python benchmarks/start.py

lock: ## Resolve the dependencies anew; needs `uv`
	uv pip compile -q --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --upgrade \
	  pyproject.toml --extra server --group build -o requirements.lock
	uv pip compile -q --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --upgrade \
	  pyproject.toml --extra server --group dev -c requirements.lock -o requirements-dev.lock
	uv pip compile -q --universal --generate-hashes --no-header --no-annotate --python-version 3.11 --upgrade \
	  pyproject.toml --extra server --group bench -c requirements-dev.lock -o requirements-bench.lock

clean: ## Remove the environment, the state of `make run`, and what tools left behind
	rm -rf .venv .run build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* dist

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Rolecall needs Python 3.11 or later: set PYTHON, as in `make run PYTHON=python3.12`.' >&2; exit 1; }
	$(PYTHON) -m venv .venv

# requirements*.lock pin every package by version and hash, so that next month's clone gets the same. They are whole, and
# pip resolves nothing: it would ask for the newest of a package that another one wants with an extra, and find no hash.
.venv/runtime: .venv/bin/python requirements.lock pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev: .venv/runtime requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.lock
	@touch $@

.venv/bench: .venv/dev requirements-bench.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-bench.lock
	@touch $@
