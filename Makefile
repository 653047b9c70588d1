# make book    execute the chapters and build the site into _build/html
# make test    run the package's tests, then every chapter against its recorded outputs
# make help    the rest
# Each target first makes .venv and installs the pinned environment into it; a second run installs nothing.

.DEFAULT_GOAL := help
.PHONY: help book test coverage test-site test-colab test-kills fuzz serve notebooks lock lint clean
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 8000
# Processes that test, of one thread each. A file's tests stay in one.
WORKERS ?= 2
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
# The uv on the path, or the one that is bootstrapped into .venv.
UV = $(shell command -v uv || echo $(BIN)/uv)
export PYTHONHASHSEED := 0

help:
	@echo "make book       execute the chapters and build the site into _build/html"
	@echo "make test       package tests, then every chapter against its recorded outputs"
	@echo "make test-site  build the book, then read every page of it in Chromium"
	@echo "make test-colab execute each chapter as Colab does: alone in a folder, with the package from a wheel"
	@echo "make test-kills kill processes at random moments, fifty each of what takes long, and start them again"
	@echo "make coverage   the package tests, and the lines of the package that none of them runs"
	@echo "make serve      build the book and serve it on http://localhost:$(PORT)"
	@echo "make notebooks  execute the chapters and keep text outputs only, ready for git"
	@echo "make fuzz       ten minutes of changed files for everything that reads files (FUZZ_SECONDS=600)"
	@echo "make lint       style checks"
	@echo "make lock       resolve pyproject.toml into requirements.lock and environment.yml"
	@echo "make clean      delete what the targets above made, but not data/cache"

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"This book needs Python 3.11 or newer, and $(PYTHON) is {sys.version.split()[0]}. Name another: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	command -v uv > /dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=.venv $(UV) pip install --quiet --no-config --no-deps --require-hashes -r requirements.lock
	VIRTUAL_ENV=.venv $(UV) pip install --quiet --no-config --no-deps --editable .
	touch $@

# Fetched here, where its progress can be seen, and not by the first chapter that is executed.
data/cache/cifar10/about.json: | .venv/.installed
	$(BIN)/gradcam-lib data get cifar10

# Executed chapters are cached by their text alone. What they import or read has to count as well.
_build/.executed-with: .venv/.installed $(wildcard gradcam_lib/*.py data/records/*/*)
	rm -rf _build/.jupyter_cache
	mkdir -p _build && touch $@

book: _build/.executed-with data/cache/cifar10/about.json
	$(BIN)/jupyter-book build . -W -n --keep-going
	@echo "The book is built. Open file://$(CURDIR)/_build/html/index.html, or serve it with: make serve"

serve: book
	$(BIN)/python -m http.server $(PORT) --directory _build/html

test: .venv/.installed data/cache/cifar10/about.json
	$(TEST) tests --ignore tests/site --ignore tests/colab --ignore tests/kills
	$(TEST) --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg -p no:randomly chapters

coverage: .venv/.installed data/cache/cifar10/about.json
	$(TEST) tests --ignore tests/site --ignore tests/colab --ignore tests/kills --cov

test-site: book
	$(BIN)/python -m pytest tests/site

test-colab: .venv/.installed data/cache/cifar10/about.json
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations 0 tests/colab

test-kills: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations 0 tests/kills

notebooks: .venv/.installed data/cache/cifar10/about.json
	$(BIN)/python chapters/normalise.py --execute

# The fuzzer is for Linux alone, so it is no part of the pinned environment.
fuzz: .venv/.installed
	VIRTUAL_ENV=.venv $(UV) pip install --quiet 'atheris>=3'
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(or $(FUZZ_SECONDS),600)

lint: .venv/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

lock: .venv/.installed
	$(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-package opencv-python-headless --upgrade --quiet -o requirements.lock
	$(BIN)/python tests/test_environment.py

clean:
	rm -rf _build .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage*
