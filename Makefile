# make results   the default run: tables, figures and a report under results/default/
# make test      every test
# make lint      formatting, types and the workflow's own linter
# Each makes the environment in .venv first when it is missing or out of date.
# make gpu       measures a GPU within ten minutes; uses PYTHON as it is, installs nothing

VENV ?= .venv
PYTHON ?= python3
CORES ?= all
DEVICE ?= cuda
SECONDS ?= 600
BIN := $(VENV)/bin

.PHONY: results test lint gpu

results: $(VENV)/.installed
	$(BIN)/snakemake --cores $(CORES)

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

gpu:
	$(PYTHON) workflow/gpu.py --device $(DEVICE) --seconds $(SECONDS)

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	touch $@
