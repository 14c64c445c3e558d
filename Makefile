# `make demo` and `make test` are the whole set-up. Everything that is built, installed or run lies in target/;
# nothing of the user's own Jupyter is read or written.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# One after the other also under -j: the parts share two cores, one cargo lock and one terminal.
.NOTPARALLEL:

PYTHON ?= python3
CARGO ?= cargo
E2E_JOBS ?= 3
# Shared machines stall processes for seconds. In CI a test that fails once and then passes is reported as rerun; at
# a desk it is a failure.
E2E_RERUNS ?= $(if $(filter true,$(CI)),--reruns 1)
# `make e2e PYTEST_ARGS="-k attach -x"`
PYTEST_ARGS ?=

TARGET := $(CURDIR)/target
VENV := $(TARGET)/venv
NODE := $(TARGET)/node

# The venv and the tests must not see the user's Jupyter, IPython or farside; the sandboxes of the tests
# set these once more, each to a folder of its own.
export JUPYTER_CONFIG_DIR := $(TARGET)/jupyter/config
export JUPYTER_DATA_DIR := $(TARGET)/jupyter/data
export JUPYTER_RUNTIME_DIR := $(TARGET)/jupyter/runtime
export IPYTHONDIR := $(TARGET)/jupyter/ipython
export FARSIDE_STATE_DIR := $(TARGET)/farside/state
export FARSIDE_TEST_PYTHON := $(VENV)/bin/python
export FARSIDE_NODE := $(NODE)
export CARGO_TARGET_DIR := $(TARGET)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONDONTWRITEBYTECODE := 1
# The tests of what a terminal shows want their colours.
unexport NO_COLOR
unexport JUPYTER_PATH JUPYTER_CONFIG_PATH JPY_SESSION_NAME JPY_PARENT_PID FARSIDE_SESSION PYTHONPATH PYTHONHOME

.PHONY: help demo test lint unit simulate fuzz e2e faults bounds bench venv node build release scripted clean

help: ## this list
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9]+):.*## (.*)/  make \1\t\2/' | expand -t 16

demo: build venv ## a training run survives kill -9 of its frontend (under five minutes from a fresh clone)
	@FARSIDE_BIN=$(TARGET)/debug/farside $(VENV)/bin/python demo/demo.py

test: lint unit e2e ## everything: formatting, lints, docs, unit tests, end-to-end tests

lint: ## rustfmt, clippy and rustdoc, each without a warning
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

unit: venv ## the Rust tests
	if command -v cargo-nextest >/dev/null; then $(CARGO) nextest run --locked --no-tests=warn; else $(CARGO) test --locked; fi

SEEDS ?= 100000

simulate: ## random sessions of the core: SEEDS of them (`FARSIDE_SEED=17 make simulate` runs one again, and prints it)
	FARSIDE_SEEDS=$(SEEDS) $(CARGO) test --locked --test core simulation -- --nocapture

FUZZ_SECONDS ?= 60
FUZZ_JOBS ?= 1

fuzz: ## the decoders and compaction, each for FUZZ_SECONDS with bytes that a fuzzer makes up (FUZZ_JOBS at a time)
	FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_JOBS=$(FUZZ_JOBS) fuzz/run $(FUZZ_TARGETS)

e2e: build venv node ## the end-to-end tests, with real frontends and engines
	FARSIDE_BIN=$(TARGET)/debug/farside $(VENV)/bin/python -m pytest -c tests/e2e/pytest.ini tests/e2e -n $(E2E_JOBS) $(E2E_RERUNS) $(PYTEST_ARGS)

FAULTS ?= 500

faults: release scripted venv ## real processes killed, stopped and starved: FAULTS of it (`FARSIDE_SEED=17 make faults` throws the same dice again)
	@FAULTS=$(FAULTS) FARSIDE_BIN=$(TARGET)/release/farside FARSIDE_SCRIPTED=$(TARGET)/release/examples/scripted \
	  $(VENV)/bin/python tests/faults/campaign.py --json $(TARGET)/faults.json $(FAULTS_ARGS)

bounds: release venv ## memory, journal and descriptors through 10 GB of output and 1,000 attachments
	@FARSIDE_BIN=$(TARGET)/release/farside $(VENV)/bin/python tests/faults/bounds.py $(BOUNDS_ARGS)

# `make bench BENCH_ARGS="--quick --only latency"`; `BENCH_ARGS=--scaling` measures how cost grows instead.
bench: release scripted venv ## the limits to hold, paired with the bare engine; writes target/bench.json
	@FARSIDE_BIN=$(TARGET)/release/farside FARSIDE_SCRIPTED=$(TARGET)/release/examples/scripted \
	  $(VENV)/bin/python bench/bench.py --json $(TARGET)/bench.json $(BENCH_ARGS)

build:
	$(CARGO) build --locked

release:
	$(CARGO) build --locked --release

scripted:
	$(CARGO) build --locked --release --example scripted

venv: $(VENV)/.stamp ## the private Python environment target/venv

$(VENV)/.stamp: tests/requirements.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 11)' 2>/dev/null || { \
	  echo "farside's tests and demo need python3 >= 3.11 with its venv module (Debian: apt-get install python3-venv)." >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement tests/requirements.txt
	@touch $@

# The browser test's driver. Without npm that one test skips, and says so.
node: $(NODE)/.stamp

$(NODE)/.stamp: tests/e2e/package.json
	@mkdir -p $(NODE)
	@cp tests/e2e/package.json $(NODE)/
	@if command -v npm >/dev/null; then \
	  cd $(NODE) && npm install --no-audit --no-fund --no-package-lock --ignore-scripts --silent && touch $@; \
	else echo "no npm: the browser test will be skipped" >&2; fi

clean: ## take target/ away
	rm -rf $(TARGET)
