# make demo and make test do everything on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format readme clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 12

setup: $(READY) ## make .venv and install depthzoo with all extras

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "depthzoo needs Python 3.11 or later, $(PYTHON) is older; try make PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(READY) ## predict, export to ONNX, compare: out/demo (IMAGE=photo.jpg for a picture of yours)
	$(BIN)/python benchmarks/demo.py $(if $(IMAGE),--image "$(IMAGE)")

test: $(READY) ## the test suite
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY) ## the slow tests
	$(BIN)/python -m pytest -m slow

check: $(READY) ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## rewrite to the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

readme: $(READY) ## regenerate the tables of README.md from the cards
	$(BIN)/python benchmarks/readme.py

clean: ## remove what make made, .venv too
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
