# Every target creates .venv and installs the project first, when needed.
# Another interpreter: make test PYTHON=python3.13

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-peers soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## kill an agent in the middle of its work and watch it go on
	$(BIN)/understudy demo

test: $(STAMP) ## run the tests, on every core
	$(BIN)/pytest -q --numprocesses=auto --dist=loadscope

check: $(STAMP) ## lint, format, types, import directions
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/pytest -q tests/test_imports.py

bench: $(STAMP) ## measure ours and the floors
	$(BIN)/python -m benchmarks

bench-peers: $(STAMP) ## install the peers and measure them beside ours
	$(BIN)/python -m benchmarks --peers

soak: $(STAMP) ## run the long tests: crashes, faults and load for minutes
	$(BIN)/pytest -q -m soak --soak

clean: ## remove .venv and everything that tools leave behind
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .demo dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
