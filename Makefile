# `make demo` and `make test` work on a fresh clone with Python 3.11 and make; everything goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := lighthubert_hf conversion training tests benchmarks

.PHONY: demo test test-all quality style docs clean

# Stamped, so that a change of dependencies reinstalls and nothing else does.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/lighthubert demo --output demo

# A file's tests run in one process, so that what they share is made once. Files come in the order of their names: by their
# number of tests, the longest would be last.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: quality
	$(PYTEST) -m "not slow and not gpu" tests

test-all: quality
	$(PYTEST) tests

quality: $(VENV)/installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/pyrefly check --summary=none

style: $(VENV)/installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# Into site/. A warning, a link or an anchor that leads nowhere is an error.
docs: $(VENV)/installed
	$(BIN)/zensical build --clean --strict

clean:
	rm -rf $(VENV) site .cache build *.egg-info .pytest_cache .ruff_cache
