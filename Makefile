# make demo and make test do everything on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format bench readme clean

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
	$(BIN)/python -m benchmarks.demo $(if $(IMAGE),--image "$(IMAGE)")

# One thread a process: two threads that meet after every operation wait for each other where the cores are busy.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

test: $(READY) ## the test suite, in two processes (JOBS=4: in four)
	$(PYTEST) -m "not slow"

test-slow: $(READY) ## the slow tests
	$(PYTEST) -m slow

check: $(READY) ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## rewrite to the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Short settings; the results of this machine in benchmarks/results are replaced, those of others stay.
bench: $(READY) ## measure what this machine can in under 15 minutes, into benchmarks/results, then plots and tables
	$(BIN)/python -m benchmarks.latency --device cpu --models unet_resnet50 unet_mobilenet_v3 --peers all \
	  --sizes 480x640 192x256 --backends eager onnxruntime predictor --rounds 10 --seconds 60
	$(BIN)/python -m benchmarks.train_speed --device cpu --models unet_mobilenet_v3 unet_resnet50 --batches 4 --seconds 30
	$(BIN)/python -m benchmarks.report

readme: $(READY) ## plots, and the tables of README.md and benchmarks/README.md, from results and cards
	$(BIN)/python -m benchmarks.report

clean: ## remove what make made, .venv too
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
