# make demo   set up, then simulate, fit, predict, evaluate and write demo/report/report.html
# make test   set up, then run every test
# make test COVERAGE=90   the same, and fail where less of the source was run: as CI does; half as long again
# make check  formatting, types, import order, dangerous calls
# make audit  known vulnerabilities of the pinned packages (needs the internet; says so where it cannot ask)
# make test-lowest   the quick tests with the lowest versions that scdfm allows (constraints-lowest.txt)
# make docs   this project's site in build/site; warnings are errors, notebooks are executed (5 minutes)
# make pictures   the picture of README and site, from the demo
# make wheel  build the wheel, install it in an environment of its own, run it there
# make release   wheel and source archive of the tag that is checked out, in dist/, checked likewise
# make bench  set up, then measure speed beside the plain formulation, and how cost grows (25 minutes)

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready

QUICK := tests/data tests/model tests/flow tests/run tests/official tests/evaluation tests/training/test_fit.py \
  tests/test_cli.py tests/test_config.py tests/test_files.py
# Old releases warn of newer ones of packages that they need.
LOWEST_NOISE := -W ignore::DeprecationWarning -W ignore::FutureWarning -W ignore::PendingDeprecationWarning -W 'ignore:The codec:UserWarning'

.PHONY: demo test test-quick test-lowest check audit docs pictures wheel release bench clean

demo: $(READY)
	$(BIN)/scdfm demo --out demo --overwrite

# Two workers with one thread each use two cores fully. A file stays with one worker, so that what its tests share is made
# once; in their own order, since files of few tests are the long ones, and should not come last.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(PYTEST) $(if $(COVERAGE),--cov=scdfm --cov-report=term:skip-covered --cov-fail-under=$(COVERAGE))

test-quick: $(READY)
	$(PYTEST) $(NOISE) $(QUICK)

test-lowest:
	$(MAKE) test-quick VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt NOISE="$(LOWEST_NOISE)"

check: $(READY)
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive src --configfile pyproject.toml

audit: $(READY)
	$(BIN)/python .ci/audit.py

# Sphinx reads the repository, so that links hold in a clone and on the site alike. One thread: notebooks are small.
docs: $(VENV)/.docs-ready
	rm -rf build/site
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q -c docs -d build/doctrees . build/site
	@echo "open build/site/index.html"

pictures: demo
	$(BIN)/python docs/pictures.py demo

wheel: $(READY)
	.ci/wheel $(VENV)

release: $(READY)
	.ci/release $(VENV)

# Finished rows are kept: the command goes on where it stopped. A GPU's rows are skipped where there is none.
bench: $(READY)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/speed.py --device cuda

$(READY): pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "scdfm needs Python 3.11, 3.12 or 3.13: none found"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

$(VENV)/.docs-ready: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest demo build .pytest_cache .mypy_cache .ruff_cache
