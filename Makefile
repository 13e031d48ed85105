# Two commands for a fresh machine with Python 3.11, git and make:
#   make fit     fits the default picture (or DATA=photo.png; more options in ARGS) and says where the result lies
#   make test    runs the tests; make test-fast those that take a minute together; make test-lowest these and a few more,
#                with the oldest versions of all packages that will do, in an environment of its own (.venv-lowest)
#   make docs    builds the site into site/
# Each makes .venv and installs into it what is missing; a second run installs nothing.

PYTHON ?= $(firstword $(foreach name,python3.11 python3 python,$(shell command -v $(name) 2>/dev/null)))
VENV ?= .venv
DATA ?=
ARGS ?=
INSTALLED := $(VENV)/.installed

LOWEST := $(VENV)-lowest
CONSTRAINTS := tests/constraints-lowest.txt

.PHONY: fit test test-fast test-lowest check docs install clean

fit: $(INSTALLED)
	$(VENV)/bin/ns-train loe-image $(if $(DATA),--data "$(DATA)") $(ARGS)

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2

test-fast: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2 -m "not slow"

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -n 2 -m "not slow"
	$(LOWEST)/bin/ns-train loe-image --max-num-iterations 20 --output-dir $(LOWEST)/outputs
	$(LOWEST)/bin/python -m pytest -n 2 tests/network/test_kernels.py tests/export/test_traced.py tests/nerf/test_host_smoke.py

check: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, 3.11 is tested: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[dev]"
	touch $@

$(LOWEST)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --no-compile --editable ".[export]" --constraint $(CONSTRAINTS) \
		hypothesis pytest pytest-xdist opencv-python-headless
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST)
