# Comity. `make help` lists the targets; each installs what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(CURDIR)/.tools
OPA_VERSION := v1.20.2
export PATH := $(CURDIR)/$(BIN):$(TOOLS)/bin:$(PATH)
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
ARGS ?=
# Processes that `make test` spreads the tests over; many of them wait for others to start.
JOBS ?= 3
SHARED = -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-slow lint protos bench-rounds bench-negotiation bench-secagg bench-ledger bench-nodes faults sandbox opa postgres prometheus clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing Comity and its dependencies into $(VENV) (once, two to four minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $@

sandbox: # bubblewrap isolates the apps; without it a node declares the weaker level it has
	@command -v bwrap >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && { apt-get install -y -qq bubblewrap >/dev/null 2>&1 \
	       || { apt-get update -qq && apt-get install -y -qq bubblewrap >/dev/null 2>&1; }; } \
	  || echo "note: bubblewrap is missing and cannot be installed here; nodes will declare a weaker isolation"; } || true

opa: # the real OPA, for the contract tests; they say so when it is missing
	@command -v opa >/dev/null || { command -v go >/dev/null \
	  && { echo "installing OPA $(OPA_VERSION) with go install"; GOBIN=$(TOOLS)/bin go install github.com/open-policy-agent/opa@$(OPA_VERSION) >/dev/null 2>&1; } \
	  || echo "note: no OPA and no Go; the tests against an OPA server will be skipped"; } || true

postgres: # a real PostgreSQL, for the contract tests and the ledger's benchmark; the package's own server is not started
	@{ command -v postgres || ls /usr/lib/postgresql/*/bin/postgres; } >/dev/null 2>&1 || { \
	  as=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); \
	  command -v apt-get >/dev/null && { [ -z "$$as" ] || $$as true 2>/dev/null; } \
	  && echo "installing PostgreSQL (apt package postgresql)" \
	  && { test -e /etc/postgresql-common/createcluster.conf || { $$as mkdir -p /etc/postgresql-common \
	       && echo "create_main_cluster = false" | $$as tee /etc/postgresql-common/createcluster.conf >/dev/null; }; } \
	  && { $$as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold postgresql >/dev/null 2>&1 \
	       || { $$as apt-get update -qq && $$as env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold postgresql >/dev/null 2>&1; }; } \
	  || echo "note: no PostgreSQL and it cannot be installed here; the tests against it will be skipped"; } || true

prometheus: # Prometheus and promtool, for the tests of the alerts: taken out of the package, nothing is installed or started
	@command -v promtool >/dev/null || { command -v apt-get >/dev/null && command -v dpkg >/dev/null \
	  && echo "unpacking Prometheus (apt package prometheus) into .tools" \
	  && mkdir -p $(TOOLS)/bin $(TOOLS)/prometheus && cd $(TOOLS)/prometheus \
	  && { apt-get download -qq prometheus >/dev/null 2>&1 || { apt-get update -qq && apt-get download -qq prometheus; } >/dev/null 2>&1; } \
	  && dpkg -x prometheus_*.deb . && rm prometheus_*.deb && ln -sf ../prometheus/usr/bin/prom* $(TOOLS)/bin/; } \
	  || echo "note: no Prometheus and its package cannot be had here; the tests with it will be skipped"

demo: $(VENV)/.ready sandbox ## Run three hospitals on this machine: negotiate, train encrypted, verify (ARGS="--json")
	@comity demo $(ARGS)

test: $(VENV)/.ready sandbox opa postgres prometheus ## Run the tests (unit, property, contract, faults, replay, e2e; ARGS="tests/unit -n 0")
	@python -m pytest -q $(SHARED) $(ARGS)

test-slow: $(VENV)/.ready sandbox opa postgres prometheus ## Run what `test` leaves out: long proofs, and 500 examples a property
	@python -m pytest -q $(SHARED) -m slow $(ARGS)
	@COMITY_TEST_THOROUGH=1 python -m pytest -q $(SHARED) --timeout 600 tests/property $(ARGS)

lint: $(VENV)/.ready ## Check style, types, import contracts, protos and house rules
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	buf lint protos
	buf breaking protos --against protos/baseline.binpb
	python protos/generate.py --check
	python -m pytest -q tests/unit/house

protos: $(VENV)/.ready ## Regenerate the code beside the .proto files
	python protos/generate.py

bench-rounds: $(VENV)/.ready sandbox ## Measure rounds: 3 nodes as processes, everything on; writes benchmarks/out/rounds.json
	python benchmarks/bench_rounds.py $(ARGS)

bench-negotiation: $(VENV)/.ready ## Measure agreements and dispatch; writes benchmarks/out/negotiation.json
	python benchmarks/bench_negotiation.py $(ARGS)

bench-secagg: $(VENV)/.ready ## Measure the encrypted sums
	python benchmarks/bench_secagg.py $(ARGS)

bench-ledger: $(VENV)/.ready postgres ## Measure appends against a raw insert, and verifying; writes benchmarks/out/ledger.json
	python benchmarks/bench_ledger.py $(ARGS)

bench-nodes: $(VENV)/.ready ## Measure a thousand connected nodes; writes benchmarks/out/nodes.json
	python benchmarks/bench_nodes.py $(ARGS)

faults: $(VENV)/.ready sandbox postgres ## Kill random processes of the demo's cast 30 times; with ARGS="--replicas 2 --runs 100" cut networks too (root)
	python tests/faults/kill_runs.py $(ARGS)

clean: ## Remove what the targets made
	rm -rf $(VENV) .tools .mypy_cache .pytest_cache .ruff_cache .hypothesis benchmarks/out
