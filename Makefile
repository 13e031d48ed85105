# Two commands for a fresh machine with Python 3.11, git and make:
#   make fit     fits the default picture (or DATA=photo.png; more options in ARGS) and says where the result lies
#   make test    runs the tests
# Each makes .venv and installs into it what is missing; a second run installs nothing.

PYTHON ?= $(firstword $(foreach name,python3.11 python3 python,$(shell command -v $(name) 2>/dev/null)))
VENV ?= .venv
DATA ?=
ARGS ?=
INSTALLED := $(VENV)/.installed

.PHONY: fit test check install clean

fit: $(INSTALLED)
	$(VENV)/bin/ns-train loe-image $(if $(DATA),--data "$(DATA)") $(ARGS)

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n 2

check: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, 3.11 is tested: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV)
