# mmsup: set up, demonstrate, test, check, measure.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 4

PYTEST := $(BIN)/python -m pytest
SIDE_BY_SIDE := -n $(WORKERS) --dist loadgroup --no-loadscope-reorder
OTHERS := zeromq plain zeromq-plain

.PHONY: demo test test-long test-extra check bench bench-peers clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.test
	$(PYTEST) $(SIDE_BY_SIDE) -m "not long"

test-long: $(VENV)/.test
	$(PYTEST) -m long
	$(PYTEST) tests/faults/test_failpoint_trials.py --points-seconds 300
	$(PYTEST) $(SIDE_BY_SIDE) tests/faults --combination by-commit -m "not long"

test-extra: $(VENV)/.test
	for each in $(OTHERS); do $(PYTEST) $(SIDE_BY_SIDE) tests/faults --combination $$each -m "not long" || exit 1; done
	$(PYTEST) tests/faults/test_chaos.py -m long --chaos-seconds 600
	$(PYTEST) tests/faults/test_failpoint_trials.py --points-seconds 1800

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests
	$(BIN)/pyright
	$(PYTEST) -q -m "not slow"

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/alone.py $(BENCH)

bench-peers: $(VENV)/.bench
	$(BIN)/python benchmarks/peers.py $(BENCH)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
