# Needs Python 3.11 or newer with venv, and nothing else: no root, no uv. Everything goes into .venv.

.DEFAULT_GOAL := check
SHELL := /bin/sh

# The first that is new enough; say PYTHON=/path/to/python3 for another one.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# Tests run in so many processes.
JOBS ?= 2
# Nodes of the simulated pool.
N ?= 3
# For how long `fuzz` draws cases, and from which seed (any, if none is named).
MINUTES ?= 5
SEED ?=
# What `sim` runs.
SCENARIOS ?= $(wildcard bench/scenarios/*.yaml)
# Further arguments of `run`, `demo`, `bench`, `sim` and `test`.
ARGS ?=
# Only `make lock` needs it.
UV ?= uv

VENV := .venv
PY := $(VENV)/bin/python
CREATED := $(VENV)/.created
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
PIP := $(PY) -m pip --disable-pip-version-check --quiet install

OLLAMA_HERE := http://127.0.0.1:11434

.PHONY: help run demo observe test e2e e2e-clients e2e-kube chaos chart-files fuzz check fmt lint contracts types bench sim sim-large lock clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*  ## (.*)/\1\t\2/' | expand -t 12

run: $(RUNTIME)  ## the router on :11435, before NODES=url,url; else before the Ollama here; else before simulated nodes
	@model=MODEL; if [ -n "$(NODES)" ]; then \
		echo "==> routing to NODES=$(NODES)"; set -- serve; OLLAMA_ROUTER_NODES="$(NODES)"; export OLLAMA_ROUTER_NODES; \
	elif [ -n "$$OLLAMA_ROUTER_NODES$$OLLAMA_ROUTER_CONFIG" ]; then \
		echo "==> routing to the nodes that the environment names"; set -- serve; \
	elif $(PY) -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=2)' $(OLLAMA_HERE)/api/version 2>/dev/null >&2; then \
		echo "==> routing to the Ollama on this machine, $(OLLAMA_HERE)"; set -- serve --node $(OLLAMA_HERE); \
	else \
		echo "==> no NODES given and no Ollama on this machine: routing to a SIMULATED pool of 3 nodes"; \
		echo "==> real ones: make run NODES=http://gpu-1:11434,http://gpu-2:11434"; set -- demo --nodes 3; model=llama3.2:3b; \
	fi; \
	echo "==> models: curl http://127.0.0.1:11435/v1/models"; \
	echo "==> a call: curl -N http://127.0.0.1:11435/api/generate -d '{\"model\": \"$$model\", \"prompt\": \"Why is the sky blue?\"}'"; \
	exec $(PY) -m router "$$@" --log-format text $(ARGS)

demo: $(RUNTIME)  ## the router before N=3 simulated nodes on this machine
	@exec $(PY) -m router demo --nodes $(N) --log-format text $(ARGS)

test: $(DEV)  ## all tests, on JOBS=2 processes
	$(PY) -m pytest -n $(JOBS) $(ARGS)

e2e: $(DEV) e2e-clients  ## the official JavaScript clients against the router; needs Node 20 or newer, with npm
	$(PY) -m pytest -m js -n $(JOBS) $(ARGS)

e2e-clients:  ## only fetches these clients
	@command -v node >/dev/null && command -v npm >/dev/null || { echo "No node or no npm on PATH: install Node 20 or newer" >&2; exit 1; }
	npm ci --prefix tests/e2e/js --omit=optional --no-audit --no-fund

e2e-kube: $(DEV)  ## the chart on a real Kubernetes, built from Go modules into .cache/kube; needs root, Go and some of Debian's packages
	@for tool in go gcc runc debootstrap iptables conntrack ip nsenter; do command -v $$tool >/dev/null || \
		{ echo "No $$tool on PATH: see tests/kube/cluster/README.md" >&2; exit 1; }; done
	$(PY) -m pytest -m kube $(ARGS)

chaos: $(DEV)  ## routers, nodes and a Valkey under load, and faults of 20 s: killed, paused, frozen, dropped, cut off; CHAOS_SEED= repeats
	$(PY) -m pytest -m chaos -rP $(ARGS)

chart-files: $(DEV)  ## what is made for Kubernetes: the chart's README, schema, dashboards and alerts, and k8s/
	@mkdir -p helm/ollama-router/dashboards helm/ollama-router/alerts
	@for file in dashboards/*.json; do [ ! -e "$$file" ] || cp "$$file" helm/ollama-router/dashboards/; done
	@for file in dashboards/rules/*.yaml; do [ ! -e "$$file" ] || cp "$$file" helm/ollama-router/alerts/; done
	$(PY) -m tests.deploy.chart_docs
	$(PY) -m tests.deploy.kustomize

fuzz: $(DEV)  ## broken requests over raw sockets for MINUTES=5, from SEED= if one is named
	$(PY) -m tests.fuzz $(MINUTES) $(SEED)

check: lint contracts types test  ## everything that CI gates on (the default)

fmt: $(DEV)  ## format, and fix what can be fixed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

lint: $(DEV)  ## ruff: rules and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

contracts: $(DEV)  ## which layer may import which
	$(VENV)/bin/lint-imports

types: $(DEV)  ## mypy, strict
	$(VENV)/bin/mypy

bench: $(DEV)  ## CPU and latency beside nginx and others in the same run; ARGS=--quick for a look
	$(PY) -m bench $(ARGS)

observe: $(DEV)  ## a simulated pool under load with a real Prometheus, rules loaded; needs prometheus on PATH
	@exec $(PY) -m bench.observe $(ARGS)

sim: $(RUNTIME)  ## ours, rivals and the floor on every scenario of bench/scenarios, in virtual time
	@for scenario in $(SCENARIOS); do $(PY) -m router simulate $$scenario $(ARGS) && echo || exit 1; done

sim-large: $(DEV)  ## 1,000 nodes and 100 models, and what one decision costs there
	$(PY) -m bench.large $(ARGS)

lock:  ## resolve the locked requirements anew, after a change in pyproject.toml
	$(UV) pip compile pyproject.toml --extra tracing --upgrade --universal --generate-hashes --python-version 3.11 \
		--no-header --no-annotate --quiet -o requirements.lock
	printf 'hatchling>=1.27\neditables>=0.5\n' | $(UV) pip compile pyproject.toml - --extra tracing --group dev --constraint requirements.lock --upgrade \
		--universal --generate-hashes --python-version 3.11 --no-header --no-annotate --quiet -o requirements-dev.lock

clean:  ## remove .venv and every cache
	rm -rf $(VENV) tests/e2e/js/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@if [ -z "$(PYTHON)" ]; then echo "No Python 3.11 or newer found: install one, or say make PYTHON=/path/to/python3" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is no Python 3.11 or newer: say make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv or ensurepip: install them (Debian, Ubuntu: the package python3-venv), or say make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(RUNTIME): requirements.lock | $(CREATED)
	$(PIP) --require-hashes -r requirements.lock
	@touch $@

$(DEV): requirements-dev.lock pyproject.toml | $(CREATED)
	$(PIP) --require-hashes -r requirements-dev.lock
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@ $(RUNTIME)
