# make train [ARGS="model=vgg11 data=stl10"]   make test   make test-all   make test-hydra14   make check   make bench   make bench-gpu
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# uv, where it is there, installs the same locked files several times as fast.
PIP := $(if $(shell command -v uv),uv pip install --python $(RUN),$(RUN) -m pip install)

.PHONY: train test test-all test-hydra14 check bench bench-gpu lock clean

train: $(VENV)/ready
	$(RUN) -m src.train $(ARGS)

test: $(VENV)/ready
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-all: $(VENV)/ready test-hydra14
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# All that touches Hydra, on the release candidate of its next version, whose warnings the one after makes errors.
test-hydra14: $(VENV)/hydra14
	HYDRA_DEPRECATION_WARNINGS_AS_ERRORS=1 PYTHONPATH=$(CURDIR)/$(VENV)/hydra14 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" tests/test_configs.py tests/test_mistakes.py \
		tests/test_launcher.py tests/test_sweeps_search.py tests/test_resume.py tests/test_readme.py $(ARGS)

check: $(VENV)/ready
	$(VENV)/bin/ruff check src tests hydra_plugins notebooks
	$(VENV)/bin/ruff format --check src tests hydra_plugins notebooks
	$(VENV)/bin/mypy src

bench: $(VENV)/ready
	$(RUN) -m tests.benchmarks $(ARGS)

bench-gpu: $(VENV)/ready
	$(RUN) -m tests.benchmarks --gpu $(ARGS)

# The file marks a finished install: an interrupted one starts over, a changed lock installs again.
$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; (3, 10) <= sys.version_info[:2] < (3, 15) or sys.exit("Python 3.10 to 3.14 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --quiet --require-hashes -r requirements.lock
	$(PIP) --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/hydra14: requirements-hydra14.lock $(VENV)/ready
	$(PIP) --quiet --no-deps --require-hashes --upgrade --target $@ -r requirements-hydra14.lock
	touch $@

lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --generate-hashes \
		--no-emit-index-url --no-header --no-annotate --upgrade -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
