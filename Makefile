# `make serve` and `make test` need Python 3.11 or newer, git and make, and nothing else.
# `make serve EXTRA=gpu` installs ONNX Runtime for CUDA, in an environment of its own: the two overwrite each other.
PYTHON ?= python3
EXTRA ?= cpu
VENV := .venv$(if $(filter-out cpu,$(EXTRA)),-$(EXTRA))
BIN := $(VENV)/bin
CODE := ipc frontend engine tools perf monitoring tests examples

# The tests of exported models, in an environment of their own. On a machine without a GPU, a package index may offer a
# build of torch for the CPU alone, which is enough.
TORCH := torch==2.13.0
EXPORT_VENV := .venv-export

.PHONY: serve restart test test-export test-programs test-containers chaos fuzz bench bench-full load-test check audit format protos lock clean

serve: $(VENV)/$(EXTRA).stamp
	@$(BIN)/python -m tools.serve

# All front ends of the server that runs with these settings, one after the other, without a failed request.
restart: $(VENV)/$(EXTRA).stamp
	@$(BIN)/python -m tools.restart

test: $(VENV)/dev.stamp
	@$(BIN)/python -m pytest

# Needs Debian's packages prometheus, chromium, logrotate, systemd, openssl and gcc with libc6-dev; .ci/run installs them.
test-programs: $(VENV)/dev.stamp
	@$(BIN)/python -m pytest tests/monitoring tests/browser tests/deploy tests/audit

test-export: $(EXPORT_VENV)/export.stamp
	@$(EXPORT_VENV)/bin/python -m pytest tests/export

# As root on Debian: installs podman and more, and takes minutes. docs/containers.md
test-containers:
	@tests/containers/run

# 500 random faults in 20 minutes, and 100,000 requests and a million frames that are almost valid: docs/reliability.md.
chaos: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.chaos.faults

fuzz: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.chaos.fuzz

# Figures and how they come about: docs/measuring.md.
bench: $(VENV)/dev.stamp
	@$(BIN)/python -m perf.bench

bench-full: $(VENV)/dev.stamp
	@$(BIN)/python -m perf.bench --full

load-test: $(VENV)/dev.stamp
	@$(BIN)/python -m perf.load_test

check: $(VENV)/dev.stamp
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/mypy $(CODE)

# Whether a package that we pin is known to be vulnerable; asks PyPI, and says so where that cannot be reached.
# One that does not concern us: `--ignore ID` here, and why.
audit: $(VENV)/dev.stamp
	@$(BIN)/python -m tools.audit requirements/*.lock

format: $(VENV)/dev.stamp
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

# What gRPC's messages are made of; a test holds that it is up to date.
PROTOS := frontend/rpc/protos
protos: $(VENV)/dev.stamp
	@$(BIN)/python -m grpc_tools.protoc -I $(PROTOS) --python_out=$(PROTOS) --pyi_out=$(PROTOS) $(wildcard $(PROTOS)/*.proto)

%/created.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Embedlane needs Python 3.11 or newer: set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(@D) || \
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

$(EXPORT_VENV)/export.stamp: requirements/export.lock $(EXPORT_VENV)/created.stamp
	@echo "Installing PyTorch and what the tests of exported models need ..."
	@$(EXPORT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@$(EXPORT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# The locks hold for every Python from 3.11 on; uv is needed only here.
UV_COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --quiet \
	--custom-compile-command "make lock" pyproject.toml

lock:
	$(UV_COMPILE) --extra cpu -o requirements/cpu.lock
	$(UV_COMPILE) --extra gpu -c requirements/cpu.lock -o requirements/gpu.lock
	$(UV_COMPILE) --extra cpu --extra cl100k --extra grpc --extra tracing --group dev -c requirements/cpu.lock -o requirements/dev.lock
	$(UV_COMPILE) --extra cpu --group export -c requirements/dev.lock -o requirements/export.lock

clean:
	rm -rf .venv .venv-gpu $(EXPORT_VENV) data build .mypy_cache .ruff_cache .pytest_cache .hypothesis
