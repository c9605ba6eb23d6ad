# make demo   sets everything up and draws "three blue cars to the left of a striped elephant"
# make test   sets everything up, lints, type-checks and runs every test
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROMPT ?= three blue cars to the left of a striped elephant
SOURCES := graph nodes skills memory models evals src tests

.PHONY: demo test lint format setup clean
.DEFAULT_GOAL := demo

setup: $(READY)

$(READY): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --editable ".[dev,studio]"
	touch $@

demo: $(READY)
	$(BIN)/gems generate "$(PROMPT)" --out gems-out --seed 7 || [ $$? -eq 1 ]

lint: $(READY)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy -p gems

format: $(READY)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache gems-out
