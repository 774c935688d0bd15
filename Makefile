PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
PROMPT ?= The function returns

# On Linux the usual index may bring a torch with gigabytes of CUDA. `make install TORCH_INDEX=URL` takes it from another
# index first: PyTorch's "get started" page names the one with CPU builds.
TORCH_INDEX ?=

SHIPPED := gpt-tiny bert-tiny t5-dates-tiny

.DEFAULT_GOAL := help
.PHONY: help install quickstart shipped-models test lint format benchmark clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv with everything: TensorFlow, JAX, PyTorch, test and development tools.

# Debian ships Python without ensurepip: there the pip outside seeds the environment.
# torch goes first and alone, so that only this one package is looked up on the extra index; when that index cannot be
# reached pip falls back, at once, to the usual ones.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 \
	  || $(PYTHON) -m venv $(VENV) \
	  || { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@echo "Installing into $(VENV) (some minutes the first time)"
	$(if $(TORCH_INDEX),@$(PIP) --no-deps --retries 0 --constraint constraints.txt --extra-index-url $(TORCH_INDEX) torch)
	@$(PIP) --constraint constraints.txt --editable ".[all]"
	@touch $@

quickstart: install ## Train a small GPT on Python's own documentation and let it write.
	$(BIN)/kerasllm train quickstart --output saved_models/quickstart
	$(BIN)/kerasllm generate saved_models/quickstart "$(PROMPT)" --max-new-tokens 60 --sampler top_p --temperature 0.7 --seed 1

shipped-models: install ## Train the three tiny models in saved_models/ anew.
	@set -e; for name in $(SHIPPED); do rm -rf saved_models/$$name; $(BIN)/kerasllm train $$name; done

test: install ## Run the tests on TensorFlow, JAX and PyTorch.
	$(BIN)/python tests/run_all.py

lint: install ## Check style without changing anything.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install ## Fix style.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: install ## Measure training speed and loss memory side by side with the peers (about 10 minutes).
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/loss_memory.py

clean: ## Remove .venv, caches and build outputs (saved_models/ stays).
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
