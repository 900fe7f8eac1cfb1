# make results   the default run: tables, figures and a report under results/default/
# make test      every test but those marked slow
# make test-all  every test
# make lint      formatting, types and the workflow's own linter
# make docs      the site below docs/_build/html; a broken link or reference fails
# make gpu-proof what can be proven of the GPU's kernels on any machine; fetches Triton
# make gpu-proof-changed  the same of kernels that the published proof was not made with
# Each makes the environment in .venv first when it is missing or out of date.
# make gpu       measures a GPU within ten minutes; uses PYTHON as it is, installs nothing

VENV ?= .venv
PYTHON ?= python3
CORES ?= all
DEVICE ?= cuda
SECONDS ?= 600
BIN := $(VENV)/bin
# Beside the environment, which stays as it is: with Triton in it, torch acts otherwise.
TRITON := .cache/triton

# Tools are called as modules: the first line of a script names its interpreter, and what
# it may not name, such as a folder in quotes, differs from system to system.
RUN := $(BIN)/python -m
PIP := $(RUN) pip install --disable-pip-version-check --quiet --constraint constraints.txt

ifneq ($(words $(VENV)),1)
$(error VENV is '$(VENV)': expected a path without blanks, which make cannot quote)
endif

# Snakemake and pip want a home, and a process whose user nobody knows has none.
ifndef HOME
export HOME := $(or $(shell getent passwd "$$(id -u)" | cut -d : -f 6),/tmp)
endif

.PHONY: results test test-all lint docs gpu gpu-proof gpu-proof-changed

results: $(VENV)/.installed
	$(RUN) snakemake --cores $(CORES)

# Workers take whole files, in the order of tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(RUN) pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.installed
	$(PYTEST)

lint: $(VENV)/.installed
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) snakefmt --check Snakefile workflow
	$(RUN) snakemake --lint

docs: $(VENV)/.installed-docs
	$(RUN) sphinx --fail-on-warning --keep-going --nitpicky -q docs docs/_build/html

gpu:
	$(PYTHON) workflow/gpu.py --device $(DEVICE) --seconds $(SECONDS)

gpu-proof gpu-proof-changed: export PYTHONPATH := $(TRITON)
gpu-proof: $(TRITON)/.installed
	$(RUN) tests.gpu_proof.prove
	OMP_NUM_THREADS=1 $(RUN) pytest tests/gpu_proof

gpu-proof-changed: $(TRITON)/.installed
	$(RUN) tests.gpu_proof.prove --changed
	OMP_NUM_THREADS=1 $(RUN) pytest tests/gpu_proof -m "not whole_proof"

# No dependencies: pip would take another torch, and gigabytes.
$(TRITON)/.installed: $(VENV)/.installed
	rm -rf $(TRITON)
	$(PIP) --no-deps --target $(TRITON) triton
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	touch $@
