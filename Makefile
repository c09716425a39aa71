# Every target makes what it needs by itself, and again only when that changed.
PYTHON ?= python3
BIN := .venv/bin
FILE ?= examples/lines.txt
CONFIG ?=
FUZZ_SECONDS ?= 60
KILLS ?= 200
WORKERS ?= 3
MACHINE_SEEDS ?= 1-2000
POINTS ?= 2000
DAMAGES ?= 2000
SEEDS ?= 300
FIRST ?= 0

.PHONY: browser database screenshots run test lint demo bench docs news fuzz soak powerloss damage machines mutants simulate clean
.DELETE_ON_ERROR:

.venv: .venv/.made
.venv/.made: setup.py pyproject.toml
	@echo "making .venv: about a minute, and again only when its ingredients change"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# The browser of the tests of the page: installed by root alone, on Debian and its like; else they say
# that they were left out.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -q && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium; } \
		|| echo "no Chromium here: the tests of the page are left out (apt-get install chromium)"

# The server of the tests of outbox tables, which start one of their own: installed likewise.
database:
	@command -v pg_ctl >/dev/null || ls /usr/lib/postgresql/*/bin/pg_ctl >/dev/null 2>&1 || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -q && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends postgresql; } \
		|| echo "no PostgreSQL here: its tests are left out (apt-get install postgresql)"

# The pictures of the page in docs/images, light, dark and on a phone.
screenshots: .venv/.made browser
	$(BIN)/python -m docs.screenshots

# A node in the foreground; make run CONFIG=node.toml for other than the defaults.
run: .venv/.made
	$(BIN)/msgservice node $(if $(CONFIG),--config $(CONFIG))

# WORKERS processes, a file of tests at a time, in order of names: the short ones of tests/unit come
# last. One more than there are cores, for tests of real processes and sockets wait half of the time.
# They start hundreds of programs, and each would compile the product again where that is not kept.
# A worker that dies is not replaced: xdist would hand its files out again, those that it has done with
# as units without a test, on which all others then wait for ever.
test: .venv/.made browser database
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -bb -m pytest -q -n $(WORKERS) --max-worker-restart 0 --dist loadfile --no-loadscope-reorder tests

lint: .venv/.made
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: .venv/.made
	$(BIN)/python -m examples.demo $(FILE)

bench: .venv/.made
	$(BIN)/python -m bench

# SEEDS of the whole system on all cores, beginning with FIRST; names and shrinks what it finds.
simulate: .venv/.made
	$(BIN)/python -bb -m tests.simulation.swarm $(SEEDS) --first $(FIRST)

# Each target for FUZZ_SECONDS, from where the last time ended; stops at the first finding.
fuzz: .venv/.made
	for target in datagrams keys frames config logins http; do \
		$(BIN)/python -m tests.fuzz $$target -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

# Real processes under a mixed load, killed with SIGKILL: the last line says how many, and what was lost.
soak: .venv/.made
	$(BIN)/python -m tests.soak --kills $(KILLS)

# Model machines: each part against a plain model of it; shrunk failures are printed as tests.
machines: .venv/.made
	$(BIN)/python -m tests.machines --seeds $(MACHINE_SEEDS)

# The power fails at POINTS moments of log, outbox and inbox, on a simulated disk.
powerloss: .venv/.made
	$(BIN)/python -m tests.powerloss --points $(POINTS)

# Planted bugs: each must be found by the proof that is named for it, and by its sign.
mutants: .venv/.made
	$(BIN)/python -m tests.mutants

# Files of log, outbox and inbox damaged in DAMAGES places: reported, or harmless.
damage: .venv/.made
	$(BIN)/python -m tests.damage --damages $(DAMAGES)

docs: docs/_build/index.html
docs/_build/index.html: .venv/.made CHANGES.md CONTRIBUTING.md $(filter-out docs/_build/%,$(shell find docs -type f))
	$(BIN)/sphinx-build -q -W -n docs docs/_build
	touch $@

# Does this branch tell users what changed? Compared with the main branch.
news: .venv/.made
	$(BIN)/towncrier check --compare-with main

clean:
	rm -rf .venv .fuzz build dist docs/_build *.egg-info .mypy_cache .ruff_cache
