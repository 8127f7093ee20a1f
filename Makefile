# Two of these do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
RUN     = $(VENV)/bin/python
READY   = $(VENV)/.ready

.DEFAULT_GOAL := list
.PHONY: list install demo test lint soak fuzz sbom clean clean-all

list: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

install: $(READY) ## make the virtual environment with pinned dependencies

# torch goes first and alone: its CPU build is one exact file, and no other dependency may choose another.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; name one with PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "$$(grep -o '^torch==[^ ]*' requirements.lock)"
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## table → search → version → answer over HTTP, serving until Ctrl-C (ONCE=1 stops after the answer)
	$(RUN) -m training sample --out ads.csv --rows 600 --seed 7
	$(RUN) -m training tune
	$(RUN) -m training publish --promote
	$(RUN) -m serving run --ask "Night nurse (m/f/d): you look after patients on our ward. You have completed your vocational training." $(if $(ONCE),--once)

# In two processes, the longest first, but for those on several hosts, which want the machine for themselves.
TOGETHER = tests/integration tests/e2e tests/faults tests/unit tests/project
ALONE    = tests/cluster

test: $(READY) ## pass all tests, the slow ones too (FAST=1 leaves those out)
	$(RUN) -m pytest --durations=40 --numprocesses 2 --dist loadfile --no-loadscope-reorder $(if $(FAST),-m "not slow") $(TOGETHER)
	$(if $(FAST),,$(RUN) -m pytest --durations=10 $(ALONE))

lint: $(READY) ## ruff, its formatter and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

soak: $(READY) ## an hour of traffic, faults and changes against one deployment (MINUTES=10 is shorter)
	$(RUN) -m benchmarks.drills.soak --minutes $(or $(MINUTES),60)

fuzz: $(READY) ## feed damaged bytes to what reads manifests and settings (SECONDS=60 for each)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .tools/fuzz atheris==3.0.0
	PYTHONPATH=.tools/fuzz $(RUN) -m tests.fuzz manifest --seconds $(or $(SECONDS),60)
	PYTHONPATH=.tools/fuzz $(RUN) -m tests.fuzz settings --seconds $(or $(SECONDS),60)

# Its tool stays out of what it lists.
sbom: $(READY) ## write what is installed, and its licences, to sbom.json (CycloneDX)
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	.tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o sbom.json $(RUN)

# Searches, versions, tables and what the fuzzers found are somebody's work, and stay.
LEFT = .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis twohead.egg-info sbom.json
OWN  = benchmarks cluster serving tests training

clean: ## remove what builds and tests left here
	rm -rf $(LEFT)
	find $(OWN) -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean ## the same, and the virtual environment
	rm -rf $(VENV)
