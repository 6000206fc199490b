# Everything runs from .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=

.PHONY: install demo data test lint clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "limbeck needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install data
	$(BIN)/limbeck demo --out demo $(if $(DATA),--data '$(DATA)')

# Fashion-MNIST, as Debian packages it; where that cannot be had, limbeck demo downloads it or says what to do.
data:
	@if [ -z '$(DATA)' ] && [ ! -d /usr/share/datasets/fashion-mnist ] && command -v apt-get >/dev/null; then \
	  echo 'fetching the Debian package dataset-fashion-mnist'; \
	  SUDO=; [ "$$(id -u)" = 0 ] || SUDO='sudo -n'; \
	  $$SUDO apt-get install -qq -y dataset-fashion-mnist >/dev/null 2>&1 \
	    || { $$SUDO apt-get update -qq && $$SUDO apt-get install -qq -y dataset-fashion-mnist; } >/dev/null 2>&1 \
	    || echo 'apt-get could not; going on without it'; \
	fi

test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo runs build dist *.egg-info
