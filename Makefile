# Everything a checkout needs, from nothing: `make train`, `make test`. See `make help`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check
TORCH  := $(shell grep -E '^torch==' constraints.txt)

# Set it to take torch from another index, such as the small CPU-only builds:
#     make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

# Extra arguments of `make train` and `make test`: make train ARGS='seed=1', make test ARGS='-k credit'
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install train test check docs wheel vllm clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(STAMP) ## create .venv and install everything, pinned by constraints.txt

train: $(STAMP) ## run the quickstart end to end; its run is in runs/quickstart
	$(BIN)/parl train configs/quickstart.yaml $(ARGS)
	@if [ -f runs/quickstart/summary.json ]; then \
		$(BIN)/parl figures runs/quickstart --only result -o runs/quickstart; fi

test: $(STAMP) ## run the whole test suite
	@scripts/install_chromium.sh
	$(BIN)/python -m pytest -q $(ARGS)

check: $(STAMP) ## style, types, layers and all quick tests, in under a minute
	BIN=$(BIN) scripts/check.sh

docs: $(STAMP) ## build the documentation as a site in build/site, strictly
	$(BIN)/mkdocs build --strict

wheel: $(STAMP) ## build dist/ and use the wheel in empty environments, in two minutes
	rm -rf dist
	$(BIN)/python -m hatchling build
	$(BIN)/python scripts/check_wheel.py

vllm: ## an environment with vLLM for CPUs in .venv-vllm (4 GB), and its tests; see docs/how-to/use-vllm.md
	PYTHON=$(PYTHON) scripts/vllm_env.sh .venv-vllm
	.venv-vllm/bin/python -m pytest -q tests/integration/test_vllm.py $(ARGS)

clean: ## remove .venv, caches and build output; runs/ is kept
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find parl envs rewards tests scripts -type d -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
ifneq ($(strip $(TORCH_INDEX)),)
	$(PIP) install --no-deps --index-url $(TORCH_INDEX) $(TORCH)
endif
	$(PIP) install -c constraints.txt -e '.[all,dev]'
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "No '$(PYTHON)' here. PARL needs Python 3.11 or 3.12: make install PYTHON=/path/to/python3.12" >&2; \
		exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { \
		echo "$(PYTHON) is $$($(PYTHON) --version 2>&1). PARL needs Python 3.11 or 3.12: make install PYTHON=python3.12" >&2; \
		exit 2; }
	$(PYTHON) -m venv $(VENV)
