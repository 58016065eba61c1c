# Every target sets itself up: a bare machine needs Python >= 3.11, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-slow lint bench clean

run: $(VENV)/.installed
	$(BIN)/fedsem run scenarios/quickstart.yaml

test: $(VENV)/.tested
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.tested
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fedsem attacks defenses benchmarks tests

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 14) else "fedsem needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.11")'
	@echo "Setting up $(VENV): PyTorch, Flower and Ray are large, this takes some minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	@echo "Adding the tools of the tests."
	$(BIN)/python -m pip install -e '.[dev,peers]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
