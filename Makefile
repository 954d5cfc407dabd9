# Two commands do everything on a fresh machine: make demo, make test.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
READY := .venv/.compiled
LABEL := .venv-label/bin
LABEL_READY := .venv-label/.installed

.PHONY: demo test lint bench clean label-env label-test label-demo

demo: $(READY)
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/mambamed demo $(if $(DATA),--data "$(DATA)")

# Files of tests are spread over the cores, each on one.
test: $(READY)
	@OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@for bench in tests/benchmarks/bench_*.py; do OMP_WAIT_POLICY=PASSIVE $(BIN)/python $$bench || exit 1; done

# The annotation server has an environment of its own: MONAI Label pins what others need newer.
label-env: $(LABEL_READY)

label-test: $(LABEL_READY)
	@OMP_WAIT_POLICY=PASSIVE $(LABEL)/python -m pytest -q -n auto --maxprocesses 2 --dist loadfile tests/nnunet_plugins/label

label-demo: $(LABEL_READY)
	@OMP_WAIT_POLICY=PASSIVE $(LABEL)/mambamed label-demo

clean:
	rm -rf .venv .venv-label build dist .mypy_cache .ruff_cache .pytest_cache

# Installing compiles the kernels; this does so again, in place, when their sources change.
$(READY): $(INSTALLED) $(wildcard mamba_kernels/native/src/*)
	-@$(BIN)/python mamba_kernels/native/build.py
	@touch $@

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mambamed needs Python 3.11 to 3.13; name one: make PYTHON=python3.12")'
	@echo "Installing into .venv; this takes a few minutes and about 2 GB (more with CUDA)."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# Its metadata excludes the numpy of constraints.txt, with which it runs and gives the recorded figures.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps pysodmetrics
	@touch $@

$(LABEL_READY): pyproject.toml constraints.txt bundles/monailabel_app/constraints.txt
	@echo "Installing MONAI Label into .venv-label; this takes a few minutes and about 3 GB."
	@test -x $(LABEL)/python || $(PYTHON) -m venv .venv-label
	@$(LABEL)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c bundles/monailabel_app/constraints.txt -e '.[label]' pytest pytest-xdist psutil httpx
	@# Its metadata asks for SAM 2, and pydicom-seg's for numpy 1, without which both run.
	@$(LABEL)/python -m pip install --quiet --disable-pip-version-check -c bundles/monailabel_app/constraints.txt --no-deps monailabel pydicom-seg
	@touch $@
