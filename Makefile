# Everything runs from .venv. The first target that needs it creates it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AZURITE := 3.37.0
DATA ?=
# These modules and their imports are compiled to bytecode once, at installation, and not by every process.
unexport PYTHONDONTWRITEBYTECODE
IMPORTED := server.serve, server.api.classify, student.report.report, student.bundle.export, student.training.loop, teacher_cache.labeling.job

.PHONY: install demo data test lint release-check clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "limbeck needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -c 'import $(IMPORTED)'
	@touch $@

demo: install data
	$(BIN)/limbeck demo --out demo $(if $(DATA),--data '$(DATA)')

# Fashion-MNIST from Debian's package. If that fails, limbeck demo downloads it or says what to do.
data:
	@if [ -z '$(DATA)' ] && [ ! -d /usr/share/datasets/fashion-mnist ] && command -v apt-get >/dev/null; then \
	  echo 'installing the Debian package dataset-fashion-mnist'; \
	  SUDO=; [ "$$(id -u)" = 0 ] || SUDO='sudo -n'; \
	  $$SUDO apt-get install -qq -y dataset-fashion-mnist >/dev/null 2>&1 \
	    || { $$SUDO apt-get update -qq && $$SUDO apt-get install -qq -y dataset-fashion-mnist; } >/dev/null 2>&1 \
	    || echo 'apt-get failed; continuing without the package'; \
	fi

# A server that behaves like Azure's object store, for tests. If npm fails, the tests of az:// are skipped.
$(VENV)/azurite-$(AZURITE): | install
	@command -v npm >/dev/null || { echo 'npm is not installed; continuing without Azurite'; exit 0; }; \
	  npm install --prefix $(VENV) --no-save --no-audit --no-fund --loglevel error azurite@$(AZURITE) && touch $@ \
	    || echo 'npm failed; continuing without Azurite'

test: install data $(VENV)/azurite-$(AZURITE)
	$(BIN)/python -m pytest -m 'not alone' --numprocesses 3 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest -m alone

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Test the wheel in a separate environment, without the repository. Takes some minutes and, temporarily, 6 GB.
release-check: install
	$(BIN)/python -m build --outdir dist .
	CHECK=$$(mktemp --directory) && trap 'rm -rf "$$CHECK"' EXIT \
	  && $(PYTHON) -m venv "$$CHECK/venv" \
	  && "$$CHECK/venv/bin/pip" install --quiet --constraint constraints.txt dist/limbeck-*.whl \
	  && "$$CHECK/venv/bin/pip" check \
	  && cd "$$CHECK" && venv/bin/limbeck --version && venv/bin/limbeck demo --out demo $(if $(DATA),--data '$(DATA)')

clean:
	rm -rf $(VENV) demo runs build dist *.egg-info
