# `make demo` and `make test` set up what they need in .venv and do their job.

PYTHON ?= python3
BIN := .venv/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test test-all test-oldest coverage fuzz faults lint docs bench clean

# The stamp is made again when the dependencies change, not when the code does: the
# package is installed in place.
.venv/installed: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/python -m benchmarks.demo --picture demo.png

PYTEST = $(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(COVER)

# Everything on TensorFlow; numerics and layers on JAX, and on PyTorch where it is there.
# `test` leaves out what is marked `rare`: whole notebooks, scripts and experiments, and
# training by several processes.
test: SELECTED := -m 'not rare'
# What XLA compiles runs once or twice here: compiled sooner, it may run slower.
test: export XLA_FLAGS ?= --xla_backend_optimization_level=0
test test-all: .venv/installed
test-oldest: .venv-oldest/installed
test test-all test-oldest:
	$(PYTEST) $(SELECTED)
	KERAS_BACKEND=jax $(PYTEST) $(SELECTED) tests
	if $(BIN)/python -c 'import torch' 2> /dev/null; then KERAS_BACKEND=torch $(PYTEST) $(SELECTED) tests; fi

# With the lower bounds of pyproject.toml. Python 3.13 has no TensorFlow that old.
test-oldest: BIN := .venv-oldest/bin
.venv-oldest/installed: pyproject.toml setup.py tests/oldest.py
	$(PYTHON) -m venv --clear .venv-oldest
	$(PYTHON) tests/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --editable '.[dev]' \
		--constraint .venv-oldest/constraints.txt
	touch $@

# Lines and branches of the package that `test` runs, on all its backends together.
coverage: .venv/installed
	rm -f .coverage .coverage.*
	$(MAKE) test COVER='--cov --cov-append --cov-report='
	$(BIN)/coverage report --fail-under=95

# Kills of whatever writes files, at random times; `test` has some at chosen moments.
faults: .venv/installed
	$(BIN)/python -m tests.faults.kills

# Random input by the hundred thousand; `make test` runs the first few hundred cases.
fuzz: export FUZZ_CASES ?= 100000
fuzz: .venv/installed
	$(PYTEST) tests/fuzz

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

docs: .venv/docs
	$(BIN)/sphinx-build -W --keep-going --fresh-env --quiet docs docs/_build/html

bench: .venv/installed
	$(BIN)/python -m benchmarks.solve_and_warp
	$(BIN)/python -m benchmarks.recoloring_solve
	$(BIN)/python -m benchmarks.step_overhead

clean:
	rm -rf .venv .venv-oldest tests/parity/.venv build dist *.egg-info demo.png
	rm -rf docs/_build docs/notebooks docs/reference/generated .coverage*
