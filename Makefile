# make demo   sets everything up and draws "three blue cars to the left of a striped elephant"
# make test   sets everything up, lints, type-checks and runs every test
VENV ?= .venv
PYTHON ?= python3
PROMPT ?= three blue cars to the left of a striped elephant

BIN := $(VENV)/bin
READY := $(VENV)/.ready
FOLDERS := graph nodes skills memory src
SOURCES := $(FOLDERS) benchmarks training examples tests
# A strict editable install links file by file (type checkers need that), so a new file asks for a new install.
FILES := $(shell find $(FOLDERS) -name '*.py' -o -name 'SKILL.md' -o -name '*.safetensors' -o -name '*.j2' -o -path '*/page/*' | sort)
LISTING := $(VENV)/.files

.PHONY: demo test lint format setup clean FORCE
.DEFAULT_GOAL := demo

setup: $(READY)

$(READY): pyproject.toml constraints.txt $(LISTING)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
		--config-settings editable_mode=strict --editable ".[dev,serve,studio]"
	touch $@

# Changes only when a file comes or goes.
$(LISTING): FORCE
	@mkdir -p $(VENV)
	@echo "$(FILES)" | cmp -s - $@ || echo "$(FILES)" > $@

demo: $(READY)
	$(BIN)/gems generate "$(PROMPT)" --seed 4 --out gems-out || [ $$? -eq 1 ]

lint: $(READY)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy -p gems

format: $(READY)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

test: lint
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache gems-out
