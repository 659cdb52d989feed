# Needs Python 3.11 or newer with pip and venv. All else is installed into $(VENV), once.
PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3))
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
PINS ?=
DEV := .[bench,chinese,dev,gguf,notebook,optuna,quantization,sentencepiece,torchao,translation,trl]

# The lowest versions that pyproject.toml allows, but for torch, whose lowest (TORCH=torch==2.10.0) is 5 GB with CUDA.
OLDEST := transformers==5.16.0 accelerate==1.13.0 peft==0.19.1 datasets==4.8.0

.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest lint format

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.installed  ## Fine-tune the bundled tiny model on reviews and let it write
	$(BIN)/baichuan-hf demo

test: $(VENV)/.installed-dev  ## Run the unit tests on every core (make test ARGS="-k alibi")
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

test-oldest:  ## The same on the oldest supported versions of the dependencies
	$(MAKE) test VENV=.venv-oldest PINS="$(OLDEST)"

lint: $(VENV)/.installed-dev  ## Check style, types, spelling and files
	PATH="$(CURDIR)/$(BIN):$$PATH" pre-commit run --all-files

format: $(VENV)/.installed-dev  ## Format the code and mend what ruff can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The environment is made anew after an interrupted installation.
define install
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Needs Python 3.11 or newer: make PYTHON=...")'
	@echo "Installing into $(VENV) (once; some minutes)"
	@test ! -e $(VENV)/.installing || rm -r $(VENV)
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@touch $(VENV)/.installing
	@$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) "$(TORCH)"
	@$(PIP) --editable "$(1)" $(PINS)
	@touch $@
	@rm $(VENV)/.installing
endef

$(VENV)/.installed: pyproject.toml
	$(call install,.)

$(VENV)/.installed-dev: pyproject.toml
	$(call install,$(DEV))
