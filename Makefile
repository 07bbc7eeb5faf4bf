# `make serve` and `make test` need Python 3.11 or newer, git and make, and nothing else.
# `make serve EXTRA=gpu` installs ONNX Runtime for CUDA, in an environment of its own: the two overwrite each other.
PYTHON ?= python3
EXTRA ?= cpu
VENV := .venv$(if $(filter-out cpu,$(EXTRA)),-$(EXTRA))
BIN := $(VENV)/bin
CODE := ipc frontend engine tools perf tests

.PHONY: serve test test-containers check format lock clean

serve: $(VENV)/$(EXTRA).stamp
	@$(BIN)/python -m tools.serve

test: $(VENV)/dev.stamp
	@$(BIN)/python -m pytest

# As root on Debian: installs podman and more, and takes minutes. docs/containers.md
test-containers:
	@tests/containers/run

check: $(VENV)/dev.stamp
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/mypy $(CODE)

format: $(VENV)/dev.stamp
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

$(VENV)/created.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Embedlane needs Python 3.11 or newer: set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "Python's venv module is missing: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/$(EXTRA).stamp: requirements/$(EXTRA).lock $(VENV)/created.stamp
	@echo "Installing what the server needs ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(VENV)/dev.stamp: requirements/dev.lock $(VENV)/created.stamp
	@echo "Installing what the tests need ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# The locks hold for every Python from 3.11 on; uv is needed only here.
UV_COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --quiet \
	--custom-compile-command "make lock" pyproject.toml

lock:
	$(UV_COMPILE) --extra cpu -o requirements/cpu.lock
	$(UV_COMPILE) --extra gpu -c requirements/cpu.lock -o requirements/gpu.lock
	$(UV_COMPILE) --extra cpu --extra cl100k --group dev -c requirements/cpu.lock -o requirements/dev.lock

clean:
	rm -rf .venv .venv-gpu data build .mypy_cache .ruff_cache .pytest_cache .hypothesis
