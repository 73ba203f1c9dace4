# make quickstart: everything from a bare machine to a trained, scored network. make test: the test suite without its slow
# tests. make smoke: all thirty experiments of the paper, each small, from a phantom in the archive's own layout to the
# reports of Tables 3 and 4.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed

.PHONY: quickstart smoke test test-slow test-nightly test-all lint types docs clean

quickstart: $(INSTALLED)
	$(BIN)/python train.py experiment=quickstart

smoke: $(INSTALLED)
	$(BIN)/python train.py -m 'experiment=glob([flare_*,amos*,endovis_*,cell_*])' smoke=true
	$(BIN)/python report.py study=table3_organs_3d "overrides=['smoke=true']"
	$(BIN)/python report.py study=table4_2d "overrides=['smoke=true']"

test: $(DEVELOPED)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-slow: $(DEVELOPED)
	$(BIN)/python -m pytest -m "slow and not nightly" -n 2 --dist worksteal

test-nightly: $(DEVELOPED)
	$(BIN)/python -m pytest -m "nightly" -n 2 --dist worksteal

test-all: test test-slow test-nightly

lint: $(DEVELOPED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEVELOPED)
	$(BIN)/mypy

docs: $(DEVELOPED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What training and prediction need.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is older. Name another: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0 --editable .
	@touch $@

# ... and the tools of development.
$(DEVELOPED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build/site
