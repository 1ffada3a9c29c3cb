# Each target makes what it needs in .venv, on a fresh machine too, and again when packaging or native sources change.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
PYTEST_ARGS ?=
MUTANTS_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(wildcard mpgroupcache/shm/*.c mpgroupcache/shm/*.h mpgroupcache/shm/*.pxd mpgroupcache/shm/*.pyx)
GO_PACKAGES := golang-go golang-github-golang-groupcache-dev
PACKAGING := pyproject.toml setup.py $(wildcard build_backend/*.py)

.PHONY: help demo test long mutants lint format proto bench replay clean

help:
	@echo 'make demo     serve the example on http://$(HOST):$(PORT)/ (PORT=..., HOST=...)'
	@echo 'make test     run the tests (PYTEST_ARGS=...)'
	@echo 'make long     run those that take minutes, and have a short variant (PYTEST_ARGS=...)'
	@echo 'make mutants  break the code in one place at a time, and list where no test minds (MUTANTS_ARGS=...)'
	@echo 'make lint     ruff, mypy, and who may import whom'
	@echo 'make format   let ruff format the sources'
	@echo 'make proto    generate the code of the protobuf messages'
	@echo 'make bench    run the benchmarks'
	@echo 'make replay   replay a trace against another LRU'
	@echo 'make clean    remove the environment and whatever was built'

demo: $(VENV)/installed-demo
	@echo 'Serving the example on http://$(HOST):$(PORT)/ until Ctrl-C'
	$(BIN)/gunicorn -c examples/gunicorn_app/gunicorn.conf.py --bind $(HOST):$(PORT) examples.gunicorn_app.app:app

test: $(VENV)/installed-test
	@command -v go >/dev/null || echo 'No Go here: tests against Go groupcache are skipped (apt-get install $(GO_PACKAGES))'
	$(BIN)/pytest -n auto $(PYTEST_ARGS)

long: $(VENV)/installed-test
	$(BIN)/pytest -n auto -m long -o faulthandler_timeout=0 $(PYTEST_ARGS)

mutants: $(VENV)/installed-mutants
	$(BIN)/python tests/mutation/run.py $(MUTANTS_ARGS)

lint: $(VENV)/installed-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-lint
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

proto: $(VENV)/installed-proto
	$(BIN)/protoc --python_out=. --pyi_out=. mpgroupcache/net/groupcachepb.proto
	cd tests/go && ../../$(BIN)/protoc --python_out=. --pyi_out=. testpb.proto

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks

replay: $(VENV)/installed-replay
	$(BIN)/python -m benchmarks.replay

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f mpgroupcache/shm/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What an extra adds to the build. pip is quiet but for errors, so each slow step says first what it does.
$(VENV)/installed-%: $(VENV)/built
	@echo 'Installing what the extra "$*" needs: some seconds'
	$(BIN)/python -m pip install --quiet 'mpgroupcache[$*]'
	@touch $@

# Built once for all extras. The install is editable: Python sources count at once, native ones by way of this stamp.
$(VENV)/built: $(PACKAGING) $(NATIVE) | $(BIN)/python
	@echo 'Building mpgroupcache, its C and Cython too: half a minute to a minute'
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

# Without Debian's python3-venv this fails half way, and the half would pass for an environment the next time.
$(BIN)/python:
	@echo 'Making $(VENV), an environment for Python: some seconds'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
