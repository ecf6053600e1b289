# make all    everything: .venv, source, patch, build, measurements, tables, figures, paper
# make test   every test that needs no GPU (builds the binaries first)
# make lint   formatter, linter and type checker
# make lock   rewrite requirements.lock after editing pyproject.toml (needs uv)
#
# PYTHON=python3.12     the interpreter that makes .venv
# CORES=8               cores for building (all of them by default)
# STUDY=NAME            a file of configs/studies
# REQUIREMENTS=FILE     hashed packages for .venv, in place of requirements.lock
# CONFIG="rows=NAME"    passed to snakemake --config; also arms=NAME,NAME capacities=SLOTS,SLOTS rounds=N

PYTHON ?= python3
CORES  ?= all
STUDY  ?= demo
CONFIG ?=
REQUIREMENTS := requirements.lock

VENV      := .venv
BIN       := $(VENV)/bin
INSTALLED := $(VENV)/installed
PIP       := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile
SNAKEMAKE := $(BIN)/python -m snakemake --cores $(CORES)
OPTIONS   := --config study=$(STUDY) $(CONFIG)

# The stamp says for which folder and interpreter .venv was made; it works for no other.
INTERPRETER := $(if $(filter file,$(origin PYTHON)),$(BIN)/python,$(PYTHON))
IDENTITY    := $(CURDIR) $(shell $(INTERPRETER) --version 2>/dev/null)
ifneq ($(shell cat $(INSTALLED) 2>/dev/null),$(IDENTITY))
.PHONY: $(INSTALLED)
endif

.PHONY: all test lint lock
.DELETE_ON_ERROR:

all: $(INSTALLED)
	$(SNAKEMAKE) all $(OPTIONS)
	PYTHONWARNINGS=ignore::RuntimeWarning $(SNAKEMAKE) --report results/$(STUDY)/report.html all $(OPTIONS)

# Two processes: the unit tests, and the others, which run programs.
test: lint
	$(SNAKEMAKE) binaries
	printf '%s\n' tests/unit --ignore=tests/unit | xargs -P 2 -n 1 $(BIN)/python -m pytest -q

lint: $(INSTALLED)
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

# Every package is pinned and hashed; two pips install half of them each. Python compiles what is
# imported when it is first imported, and has to keep it then, whatever the variable says.
# An interrupted installation leaves no stamp: the next run repeats it.
unexport PYTHONDONTWRITEBYTECODE
$(INSTALLED): $(REQUIREMENTS) pyproject.toml
	@$(PYTHON) -c 'import sys, tarfile; sys.exit(sys.version_info < (3, 11) or not hasattr(tarfile, "data_filter"))' \
	    2>/dev/null || { \
	    echo "error: $(PYTHON) is missing or older than Python 3.11.4" >&2; \
	    echo "  next: install Python 3.11.4 or newer, then: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "error: $(PYTHON) cannot make virtual environments" >&2; \
	    echo "  next: install its venv package (Debian: apt-get install python3-venv)" >&2; exit 2; }
	@echo "installing the Python environment into $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv --clear $(VENV)
	awk '/^[^ ]/ { n++ } { print > ("$(VENV)/requirements." n % 2) }' $(REQUIREMENTS)
	ls $(VENV)/requirements.* | xargs -P 2 -n 1 $(PIP) --require-hashes -r
	$(PIP) --no-build-isolation --editable .
	@echo "$(CURDIR) $$($(BIN)/python --version)" > $@

lock:
	@command -v uv >/dev/null || { echo "error: uv is missing" >&2; \
	    echo "  next: install the Python package uv, then: make lock" >&2; exit 2; }
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	    --generate-hashes --no-annotate --no-header --no-emit-index-url --quiet --output-file requirements.lock
