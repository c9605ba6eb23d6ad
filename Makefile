# make demo            sets everything up and draws "three blue cars behind a striped elephant"
# make test            sets everything up, lints, type-checks and runs every test
# make check           lints, type-checks and runs the quick tests: feedback in less than two minutes
# make docs            builds the documentation into docs/_build/html, with warnings as errors
# make golden          repeats sixty recorded runs and compares images, records, exit codes and schemas
# make coverage        runs every test with coverage of lines and branches, and prints the figures
# make release-check   installs a wheel of HEAD into an empty environment and draws an image there
VENV ?= .venv
PYTHON ?= python3
RELEASE_PYTHON ?= $(PYTHON)
PROMPT ?= three blue cars behind a striped elephant

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGE := graph nodes skills memory src
SOURCES := $(PACKAGE) benchmarks training docs examples tests
# A strict editable install links file by file (type checkers need that), so a new file needs a new install.
FILES := $(shell find $(PACKAGE) -name '*.py' -o -name 'SKILL.md' -o -name '*.safetensors' -o -name '*.j2' -o -path '*/page/*' -o -path '*/drawings/*' | sort)
LISTING := $(VENV)/.files

PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder
QUICK := -m "not slow and not ray and not postgres and not browser" tests/unit tests/conformance tests/integration/test_graph.py

.PHONY: demo test check tests quick-tests style types lint format docs golden coverage release-check setup clean FORCE
.DEFAULT_GOAL := demo

setup: $(READY)

$(READY): pyproject.toml constraints.txt $(LISTING)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
		--config-settings editable_mode=strict --editable ".[dev,docs,serve,studio]"
	touch $@

# Changes only when a file comes or goes.
$(LISTING): FORCE
	@mkdir -p $(VENV)
	@echo "$(FILES)" | cmp -s - $@ || echo "$(FILES)" > $@

demo: $(READY)
	$(BIN)/gems generate "$(PROMPT)" --seed 9 --out gems-out || [ $$? -eq 1 ]

style: $(READY)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/python tests/house.py
	$(BIN)/lint-imports --no-logo

types: $(READY)
	$(BIN)/mypy -p gems

lint: style types

format: $(READY)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

tests: $(READY)
	$(PYTEST)

quick-tests: $(READY)
	$(PYTEST) $(QUICK)

# The type checker runs beside the tests.
test: style
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target types tests

check: style
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target types quick-tests

docs: $(READY)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build/html

golden: $(READY)
	$(BIN)/python benchmarks/golden_runs.py compare

coverage: $(READY)
	rm -f .coverage .coverage.*
	$(BIN)/coverage run $(wordlist 2,99,$(PYTEST))
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report --skip-covered --sort=cover

release-check:
	$(PYTHON) tests/release_check.py --python $(RELEASE_PYTHON)

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache gems-out
