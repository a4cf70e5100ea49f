# `make demo` and `make test` work on a fresh clone with Python 3.11 and make; everything goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := lighthubert_command.py lighthubert_hf conversion training tests benchmarks

.PHONY: demo test test-all test-oldest test-newest test-portable quality style docs clean

# Stamped, so that a change of dependencies reinstalls and nothing else does.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/lighthubert demo --output demo

# Each process begins with its own stretch of the tests, so that what neighbours share is made once; one that is done takes
# half of what another has left.
PYTEST := python -m pytest -n auto --dist worksteal --durations=10
FAST := -m "not slow and not gpu" tests

test: quality
	$(BIN)/$(PYTEST) $(FAST)

test-all: quality
	$(BIN)/$(PYTEST) --hypothesis-profile thorough tests

# The fast tests with the oldest and with the newest releases that pyproject.toml allows, each in an environment of its own.
test-oldest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
test-oldest test-newest: test-%: .venv-%/installed
	.venv-$*/bin/$(PYTEST) $(FAST)

.venv-%/installed: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet uv
	$(@D)/bin/uv pip install --python $(@D)/bin/python --upgrade --resolution $(RESOLUTION) --editable ".[dev]"
	touch $@

# The numerical tests as other processors would run them: narrower vector units, more threads. A table at the end.
test-portable: $(VENV)/installed
	$(BIN)/python -m tests.portable

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
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest site .cache build *.egg-info .pytest_cache .ruff_cache
