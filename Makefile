# make book      set up, fetch data, run every chapter, build the site
# make test      set up, check the code, run the tests
#
# Needs Python 3.11 or later and make; everything else goes into .venv.

PYTHON  ?= python3
PROFILE ?= laptop
CHAPTER ?=
PYTEST  ?= -n 2 --dist loadgroup
MINUTES ?= 10

BIN   := .venv/bin
STAMP := .venv/.installed

.PHONY: book test contracts check mutation bench front results clean help

book: $(STAMP)
	$(BIN)/python -m book.engine --profile $(PROFILE) $(if $(CHAPTER),--chapter $(CHAPTER))

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py

# Every verb through a full disk, Ctrl-C and kill -9: the cells that `make test` leaves
# out because they repeat a run, and the others.
contracts: $(STAMP)
	OMP_NUM_THREADS=1 SPARSEKIT_CONTRACTS=all \
	  $(BIN)/python -m pytest $(PYTEST) tests/commands

# Keep measurements with the book: what a reader's machine takes too long for.
results: $(STAMP)
	$(BIN)/python -m book.engine.store --profile $(PROFILE) $(if $(REPLACE),--replace)

# Small faults planted in sparsekit/: how many do the tests notice? It takes hours of
# cores for all, so MINUTES try a fair sample, and the next call goes on from there.
mutation: $(STAMP)
	$(BIN)/python -m tests.mutation --seconds $$((60 * $(MINUTES)))

# Every speed claim, one after another; tables come out in build/benchmarks. What takes
# longer has a flag: recsys_peers_training --tune compares the quality too. Threads of
# torch that spin for long after a call take the core from those of our kernels.
bench: $(STAMP)
	@set -e; for script in $$(grep -l '__main__' benchmarks/*.py); do \
	  name=$$(basename $$script .py); echo "== $$name"; \
	  OMP_NUM_THREADS=1 GOMP_SPINCOUNT=1000 $(BIN)/python -m benchmarks.$$name; \
	done

# README and the book's first page from book/front.toml and benchmarks/results.
front: $(STAMP)
	$(BIN)/python -m benchmarks.front.page

clean:
	rm -rf build

help:
	@sed -n 's/^# //p' Makefile | head -3
	@echo "    PROFILE=smoke|laptop|full  CHAPTER=name  PYTHON=python3.12  PYTEST='-k name'"
	@echo "make check     linters and types only"
	@echo "make contracts every verb through a full disk, Ctrl-C and kill -9"
	@echo "make mutation  do the tests notice planted faults? MINUTES=10 of a fair sample"
	@echo "make bench     measure every claim of speed, into build/benchmarks"
	@echo "make front     put kept benchmarks into README and the book's first page"
	@echo "make results   keep build/results/PROFILE in book/results"
	@echo "make clean     remove build/ (cache, measurements, site)"

# The environment is made anew if the pins change. The stamp comes last, so that an
# interrupted installation is not taken for a finished one.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "sparsekit needs Python 3.11 or later, but '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments." \
	    "On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into .venv (once; a few minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
