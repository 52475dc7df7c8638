# make demo   set up, then simulate, fit, predict, evaluate and write demo/report/report.html
# make test   set up, then run every test
# make check  formatting, types, import order
# make bench  set up, then measure speed beside the plain formulation, and how cost grows (25 minutes)

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check bench clean

demo: $(READY)
	$(BIN)/scdfm demo --out demo --overwrite

# Two workers with one thread each use two cores fully; the tests are many and small.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --cov=scdfm --cov-report=term:skip-covered

check: $(READY)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

# Finished rows are kept: the command goes on where it stopped. A GPU's rows are skipped where there is none.
bench: $(READY)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/speed.py --device cuda

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "scdfm needs Python 3.11, 3.12 or 3.13: none found"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo build .pytest_cache .mypy_cache .ruff_cache
