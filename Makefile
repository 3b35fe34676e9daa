# make demo and make test do everything on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
JOBS ?= 2
# What .venv has: all that the tests need, or only what the demo needs.
READY := $(VENV)/.ready
DEMO := $(VENV)/.demo

HAS_GPU := $(shell command -v nvidia-smi)
# The extra that runs ONNX files: export (onnxruntime) or gpu (onnxruntime-gpu). Both use one folder of .venv.
ONNX ?= $(if $(HAS_GPU),gpu,export)
# PyTorch's builds without CUDA, a tenth of the size of PyPI's. Empty: those of PyPI.
OTHER_SYSTEM := $(filter-out Linux,$(shell uname))
TORCH_INDEX ?= $(if $(HAS_GPU)$(OTHER_SYSTEM),,https://download.pytorch.org/whl/cpu)
SIZE := $(if $(TORCH_INDEX)$(OTHER_SYSTEM),some hundred MB (without CUDA),several GB (with CUDA))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check format bench readme clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 12

setup: $(READY) ## make .venv and install what the tests need (ONNX=gpu: with CUDA; default: where nvidia-smi is)

# $(call install,EXTRAS,OTHER): OTHER is the onnxruntime that EXTRAS exclude.
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "depthzoo needs Python 3.11 or later, $(PYTHON) is older; try make PYTHON=python3.12" >&2; exit 2; }
@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
@if $(PIP) show --quiet $(2) 2>/dev/null; then \
  echo "$(VENV) has $(2), which excludes [$(1)]: removing it"; \
  $(PIP) uninstall --quiet --yes onnxruntime onnxruntime-gpu; fi
@$(PIP) show --quiet torch 2>/dev/null || { \
  echo "downloading PyTorch and [$(1)] into $(VENV): $(SIZE)"; \
  test -z "$(TORCH_INDEX)" || \
  $(PIP) --isolated install --retries 1 --timeout 15 --index-url $(TORCH_INDEX) torch torchvision 2>/dev/null || \
  echo "$(TORCH_INDEX) cannot be used: PyTorch comes from PyPI, with CUDA: several GB"; }
$(PIP) install --editable '.[$(1)]'
endef

$(READY): setup.cfg pyproject.toml
	$(call install,dev$(comma)$(ONNX),$(if $(filter gpu,$(ONNX)),onnxruntime,onnxruntime-gpu))
	@touch $@

$(DEMO): setup.cfg pyproject.toml
	$(call install,export,onnxruntime-gpu)
	@touch $@

comma := ,

# A complete .venv stays complete.
demo: $(if $(wildcard $(READY)),$(READY),$(DEMO)) ## predict, export to ONNX, compare: out/demo (IMAGE=photo.jpg for a picture of yours)
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
