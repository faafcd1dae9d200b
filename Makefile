# What every command needs is Python >= 3.10 with venv, and make. `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv

RUN := $(VENV)/bin/python
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
PIP_INSTALL := $(RUN) -m pip install --disable-pip-version-check $(if $(CI),--quiet) --constraint constraints.txt

.PHONY: help quickstart test lint hooks constraints clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

quickstart: $(VENV)/installed  ## train a small network on digits, compress it, print a table, save a plot
	$(RUN) examples/quickstart.py

# A process for each core, one thread each. Of tests/conftest.py, and ones that a test starts.
test: export OMP_NUM_THREADS := 1
test: $(VENV)/installed-plugins  ## run the tests of the package and of the plugins; ARGS="-n 0 -x" etc. go to pytest
	$(RUN) -m pytest -q -n auto --dist worksteal $(ARGS) tests $(wildcard $(PLUGINS:%=%/tests))

lint: $(VENV)/installed  ## check code and its format with ruff, types with mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

hooks: $(VENV)/installed  ## let git run ruff and mypy before each commit
	$(PIP_INSTALL) pre-commit
	$(RUN) -m pre_commit install

constraints: $(VENV)/installed  ## bring constraints.txt in line with pyproject.toml; UPGRADE=--upgrade moves every pin
	$(RUN) -m pip install --disable-pip-version-check --quiet uv
	cp constraints.txt $(VENV)/pins.txt
	printf 'tensorly\ntorch-pruning\n' | $(RUN) -m uv pip compile --quiet --system-certs --universal --python-version 3.10 --all-extras \
		--no-header --no-annotate $(UPGRADE) --output-file $(VENV)/pins.txt pyproject.toml -
	(sed '/^#/!d' constraints.txt && cat $(VENV)/pins.txt) > $(VENV)/constraints.txt
	cp $(VENV)/constraints.txt constraints.txt

clean:  ## remove the environment, builds and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info plugins/*/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment: made when missing, brought up to date when what it is made from changes.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing skcompress and what it needs into $(VENV), a few minutes at first ..."
	$(PIP_INSTALL) --editable ".[all]"
	@touch $@

$(VENV)/installed-plugins: $(VENV)/installed $(PLUGINS:%=%/pyproject.toml)
	$(if $(PLUGINS),$(PIP_INSTALL) $(PLUGINS:%=--editable "%[test]"))
	@touch $@
