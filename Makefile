# `make demo` and `make test` are all a new user needs; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help demo test repro lint coverage mutants charts setup postgres chromium screenshots docs schema constraints clean

# Install a package of Debian's, if a command is missing: $(call debian,test of the command,package)
define debian
	@$(1) > /dev/null 2>&1 || { \
	  if [ "$$(id -u)" = 0 ]; then root=env; else root="sudo -n"; fi; \
	  { $$root apt-get -q update && $$root DEBIAN_FRONTEND=noninteractive apt-get -q -y install $(2); } \
	    < /dev/null > /dev/null 2>&1 \
	  || { echo "$(2) is missing and could not be installed: ask for Debian's package $(2), then try again"; exit 1; }; }
endef

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

setup: $(VENV)/.installed  ## .venv from constraints.txt (about 2 GB)

$(VENV)/.installed: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "onward wants Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,pipeline,signing,serve,fleet,dev,docs]'
	@touch $@

demo: setup  ## dvc repro on the shipped models, then promote one, and roll it back
	@$(BIN)/python docs/demo.py

repro: setup  ## the pipeline alone
	@$(BIN)/dvc repro

postgres:  ## Postgres from Debian's packages, where it is missing
	$(call debian,{ command -v initdb || ls /usr/lib/postgresql/*/bin/initdb; },postgresql)

chromium:  ## Chromium from Debian's packages, where it is missing
	$(call debian,{ command -v chromium || command -v chromium-browser; },chromium)

screenshots: setup chromium  ## docs/images/mlflow-*.png, from the runs in mlflow.db (make demo)
	@$(BIN)/python -m tests.browser sqlite:///mlflow.db docs/images

test: setup postgres chromium  ## the whole test suite, on two cores
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

coverage: setup postgres chromium  ## the tests with branch coverage; fails below the floor of pyproject.toml
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

lint: setup  ## ruff, mypy, import-linter
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

docs: setup  ## the documentation site, in site/; fails on a broken link or anchor
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

schema: setup  ## docs/params.schema.json, from the classes that check params.yaml
	@$(BIN)/onward schema > docs/params.schema.new && mv docs/params.schema.new docs/params.schema.json

mutants: setup  ## do the tests notice faults? writes benchmarks/mutants.md (ONLY=registry/trust/chain.py for one module)
	@nice -n 10 $(BIN)/python -m benchmarks.mutants $(ONLY)

charts: setup  ## make the plotting library of the reports again (registry/report/vega.js)
	@$(BIN)/python -c 'import vl_convert; open("registry/report/vega.js", "w").write(vl_convert.javascript_bundle())'

constraints: setup  ## write constraints.txt anew from what .venv holds
	@{ echo '# Exact versions of everything in .venv: `make setup` installs these. Regenerate with `make constraints`.'; \
	   $(BIN)/python -m pip freeze --exclude-editable | sed -E 's/^(torch==[0-9.]+).*/\1/'; } > constraints.new && mv constraints.new constraints.txt

clean:  ## forget what was built (MLflow's store stays)
	rm -rf build
