# mmsup: set up, demonstrate, test, check, measure. docs/testing.md says what each test target runs.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 4
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
PARALLEL := $(PYTEST) -n $(WORKERS) --dist loadgroup --no-loadscope-reorder -m "not long"

unexport PYTHONDONTWRITEBYTECODE # tests start hundreds of servers: each source is compiled once

.PHONY: demo test test-long test-extra check bench bench-peers clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.test
	$(PARALLEL)

test-long: $(VENV)/.test
	$(PYTEST) -m long
	$(PYTEST) tests/faults/test_failpoint_trials.py --points-seconds 300
	$(PARALLEL) tests/faults --combination by-commit

test-extra: $(VENV)/.test
	for each in zeromq zygotes exec plain zeromq-plain; do $(PARALLEL) tests/faults --combination $$each || exit 1; done
	$(BIN)/python benchmarks/same_answers.py
	$(BIN)/python tests/conformance/other_clients.py $(VENV)/other_clients
	$(PYTEST) tests/conformance/test_other_clients.py --other-clients $(VENV)/other_clients
	$(PYTEST) -m long tests/faults/test_chaos.py --chaos-seconds 600
	$(PYTEST) tests/faults/test_failpoint_trials.py --points-seconds 1800
	$(PYTEST) tests/faults/test_load_storm.py --storm-operations 1000
	$(PYTEST) tests/faults/test_breaches.py --breaches 20
	$(PYTEST) tests/faults/test_gpu_machine.py -k asked_of_the_driver --breaches 20

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright & one=$$!; ($(BIN)/mypy && $(BIN)/mypy tests) & two=$$!; \
		$(PYTEST) -q -m "not slow"; tests=$$?; wait $$one && wait $$two && exit $$tests

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
