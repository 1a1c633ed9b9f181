# Two commands from a fresh clone: `make run` and `make test`. Both install what they need into .venv.
PYTHON ?= python3
BIN := .venv/bin
GPU ?= a100
MODEL ?= starcoder

.DEFAULT_GOAL := help
.PHONY: help run test lint unit slow ui wheel lowest clean

help:  ## Show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /\1|/' | awk -F'|' '{printf "  make %-8s %s\n", $$1, $$2}'

run: .venv/run  ## Install, then characterize starcoder on an A100 (GPU=h100 MODEL=llama_3_1_8b for others)
	$(BIN)/python -m llmpilot +gpu=$(GPU) +model=$(MODEL)

test: lint unit  ## Install, then lint, type-check and run the tests

lint: .venv/dev  ## Lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: .venv/dev  ## Run the tests
	$(BIN)/python -m pytest

slow: .venv/dev  ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

ui: .venv/run  ## Look at the runs of this directory
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db

wheel: .venv/dev  ## Build the wheel into dist/
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

lowest:  ## Run the tests with the oldest dependencies that pyproject.toml admits
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct -e '.[dev]'
	.venv-lowest/bin/python -m pytest

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "LLM-Pilot needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/run: pyproject.toml | .venv/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/dev: pyproject.toml | .venv/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ .venv/run

clean:  ## Remove what the other targets made, except runs (mlflow.db, mlruns)
	rm -rf .venv .venv-lowest dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
