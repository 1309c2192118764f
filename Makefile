# make train [ARGS="model=vgg11 data=stl10"]   make test   make test-all   make check   make bench   make bench-gpu
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: train test test-all check bench bench-gpu lock clean

train: $(VENV)/ready
	$(RUN) -m src.train $(ARGS)

test: $(VENV)/ready
	$(RUN) -m pytest -m "not slow" $(ARGS)

test-all: $(VENV)/ready
	$(RUN) -m pytest $(ARGS)

check: $(VENV)/ready
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/ruff format --check src tests
	$(VENV)/bin/mypy src

bench: $(VENV)/ready
	$(RUN) -m tests.benchmarks $(ARGS)

bench-gpu: $(VENV)/ready
	$(RUN) -m tests.benchmarks --gpu $(ARGS)

# The file marks a finished install: an interrupted one starts over, a changed lock installs again.
$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; (3, 10) <= sys.version_info[:2] < (3, 14) or sys.exit("Python 3.10 to 3.13 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --require-hashes -r requirements.lock
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --upgrade -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
