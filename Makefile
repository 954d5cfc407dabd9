# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
READY := .venv/.compiled

.PHONY: demo test lint bench clean

demo: $(READY)
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/mambamed demo $(if $(DATA),--data "$(DATA)")

test: $(READY)
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@for bench in tests/benchmarks/bench_*.py; do OMP_WAIT_POLICY=PASSIVE $(BIN)/python $$bench || exit 1; done

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache

# Installing compiles the kernels; this does so again, in place, when their sources change.
$(READY): $(INSTALLED) $(wildcard mamba_kernels/native/src/*)
	-@$(BIN)/python mamba_kernels/native/build.py
	@touch $@

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mambamed needs Python 3.10 to 3.13; name one: make PYTHON=python3.12")'
	@echo "Installing into .venv; this takes a few minutes and about 2 GB (more with CUDA)."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# Its metadata excludes the numpy of constraints.txt, with which it runs and gives the recorded figures.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps pysodmetrics
	@touch $@
