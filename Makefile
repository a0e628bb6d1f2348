# The README's two commands are `make quickstart` and `make test`. Each makes or reuses .venv,
# installs what it needs (again only after setup.cfg or pyproject.toml changed), and runs.
#
#   make PYTHON=python3.12 test     use this interpreter for a new .venv

.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Tests run in two processes, each with whole files, so that what a file compiles is compiled once.
# Each takes up to 2.5 GiB of memory. More of them: make IN_PROCESSES="-n 8 --dist loadfile" test
IN_PROCESSES := -n 2 --dist loadfile

# The pinned line of the `test` extra; see the comment there.
TORCH := $(shell sed -n 's/^ *\(torch==.*\)/\1/p' setup.cfg)

# Accelerators are left alone by the tests and by the quickstart.
export JAX_PLATFORMS ?= cpu
export TOKENIZERS_PARALLELISM = false
# transformers runs here without PyTorch by design, and says so at every start.
export TRANSFORMERS_NO_ADVISORY_WARNINGS = 1

.PHONY: help
help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: quickstart
quickstart: $(VENV)/.installed  ## cold start, CRPO, evaluation and export of a tiny model, on CPU
	$(BIN)/python -m mental_r1_jax quickstart configs/quickstart.yaml $(ARGS)

.PHONY: test
test: $(VENV)/.installed-test  ## the test suite, without tests marked slow
	$(BIN)/python -m pytest -q -m "not slow" $(IN_PROCESSES) $(ARGS)

.PHONY: test-slow
test-slow: $(VENV)/.installed-test  ## tests marked slow only
	$(BIN)/python -m pytest -q -m slow $(ARGS)

# llama-cpp-python is compiled on the spot, which takes many minutes.
.PHONY: check-gguf
check-gguf: $(VENV)/.installed-test  ## a GGUF file says in llama.cpp what the model says here
	$(BIN)/python -m pip install -q llama-cpp-python
	$(BIN)/python -m pytest -q tests/release/test_gguf_llama_cpp.py $(ARGS)

# NODE_MODULES names a folder with axe-core and puppeteer-core.
.PHONY: check-pages
check-pages: $(VENV)/.installed-test  ## report, study and board in Chromium: axe, keyboard, light and dark, narrow
	$(BIN)/python -m pytest -q -rs tests/browser $(ARGS)

# Of the quickstart's model, on its made-up posts; by Chromium.
.PHONY: pictures
pictures: $(VENV)/.installed-test  ## the README's pictures, docs/images/*.png
	test -d runs/quickstart/crpo || $(MAKE) quickstart
	$(BIN)/python -m mental_r1_jax evaluate configs/quickstart.yaml evaluate.limit_per_set=60 \
	  evaluate.reading_room=4 evaluate.model=runs/quickstart/crpo \
	  evaluate.output_dir=runs/quickstart/pictures
	$(BIN)/python benchmarks/pictures.py runs/quickstart/pictures/report.html docs/images

# For the whole hour: make chaos, or shorter: make CHAOS_SECONDS=600 chaos
CHAOS_SECONDS := 3600
.PHONY: chaos
chaos: $(VENV)/.installed-test  ## an hour of kills, signals, full disks and damage; runs must end bit-equal
	$(BIN)/python -m tests.chaos --seconds $(CHAOS_SECONDS) $(ARGS)

# For each reader.
FUZZ_SECONDS := 3600
.PHONY: fuzz
fuzz: $(VENV)/.installed-test  ## every reader of files for an hour with mutated and random files
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(ARGS)

.PHONY: faults-table
faults-table: $(VENV)/.installed-test  ## count what becomes of some 600 bad inputs and 40 flipped bits
	$(BIN)/python -m tests.faults.table

.PHONY: notebooks
notebooks: $(VENV)/.installed-test  ## run the notebooks and store what they print and draw
	PATH="$(CURDIR)/$(BIN):$$PATH" JAX_NUM_CPU_DEVICES=2 $(BIN)/python notebooks/store_outputs.py $(ARGS)

.PHONY: lint
lint: $(VENV)/.installed-test  ## formatting and style, nothing is changed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.PHONY: format
format: $(VENV)/.installed-test  ## mend formatting and what style rules can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: typecheck
typecheck: $(VENV)/.installed-test  ## mypy on the package; strict, and no ignores, in rl/
	$(BIN)/mypy
	@! grep -rn "type: ignore" mental_r1_jax/rl

.PHONY: tpu-table
tpu-table: $(VENV)/.installed-test  ## plan every recipe for its TPUs and rewrite the tables of docs/tpu.md
	@$(BIN)/python -c 'import libtpu' || $(PIP) install --quiet libtpu
	$(BIN)/python benchmarks/tpu_table.py docs "$(ONLY)"

.PHONY: ci
ci:  ## what continuous integration runs
	bash .ci/run

.PHONY: clean
clean:  ## remove .venv and caches; runs and built data sets stay
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# -- installation ---------------------------------------------------------------------------------

# The first interpreter that runs and is new enough: $(PYTHON), then well-known names.
$(BIN)/python:
	@for python in "$(PYTHON)" python3.12 python3.11 python3.13 python; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "making $(VENV) with $$python"; \
	    $$python -m venv $(VENV) && $(PIP) install --quiet --upgrade pip && exit 0; exit 1; \
	  fi; \
	done; \
	echo "error: no Python >= 3.11 found; install one, or name it: make PYTHON=/path/to/python"; \
	exit 2

$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --quiet -e .
	@touch $@

$(VENV)/.installed-test: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --quiet '$(TORCH)'
	$(PIP) install --quiet -e '.[test]'
	@touch $(VENV)/.installed $@
