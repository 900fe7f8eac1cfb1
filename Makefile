# make results   the default run: tables, figures and a report under results/default/
# make test      every test
# make lint      formatting, types and the workflow's own linter
# make gpu-proof what can be proven of the GPU's kernels on any machine; fetches Triton
# Each makes the environment in .venv first when it is missing or out of date.

VENV ?= .venv
PYTHON ?= python3
CORES ?= all
BIN := $(VENV)/bin
# Beside the environment, which stays as it is: with Triton in it, torch acts otherwise.
TRITON := .cache/triton

.PHONY: results test lint gpu-proof

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

gpu-proof: export PYTHONPATH := $(TRITON)
gpu-proof: $(TRITON)/.installed
	$(BIN)/python -m tests.gpu_proof.prove
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/gpu_proof

# No dependencies: pip would take another torch, and gigabytes.
$(TRITON)/.installed: $(VENV)/.installed
	rm -rf $(TRITON)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps \
		--target $(TRITON) "$$($(BIN)/python -c 'import tomllib; \
		project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*project["optional-dependencies"]["gpu-proof"])')"
	touch $@

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	touch $@
