# `make sweep` and `make test` are all a fresh machine needs: each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SWEEP_ARGS ?=

.PHONY: sweep test lint gate setup clean

sweep: setup  ## verify and time the quick profile (count its work where there is no GPU)
	$(BIN)/python -m bench sweep $(SWEEP_ARGS)

test: setup  ## everything that runs here; GPU tests are skipped without a GPU
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gate: setup  ## counted work against bench/baselines/work.json: no GPU needed
	$(BIN)/python -m bench gate --clock work

setup: $(VENV)/.ready

# SGLang brings torch and triton in the versions it was built for, and is most of the download (9 GB on disk).
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[bench,sglang,dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
