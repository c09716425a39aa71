# Every target makes what it needs, and again only when that changed.
PYTHON ?= python3
BIN := .venv/bin
FILE ?= examples/lines.txt

.PHONY: run test lint demo bench docs clean
.DELETE_ON_ERROR:

.venv: .venv/.made
.venv/.made: setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

test: .venv
	$(BIN)/python -bb -m pytest -q -n 2 --dist loadfile --ignore tests/integration tests
	$(BIN)/python -bb -m pytest -q tests/integration

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

run: .venv
	$(BIN)/twist msgservice

demo: .venv
	$(BIN)/python -m examples.demo $(FILE)

bench: .venv
	$(BIN)/python -m bench

.venv/.docs: .venv/.made
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

docs: .venv/.docs
	$(BIN)/sphinx-build -q -W -n docs docs/_build

clean:
	rm -rf .venv build dist docs/_build *.egg-info .mypy_cache .ruff_cache
