# The two commands: `make run` (the main job on the bundled digits) and `make test` (lint, build, all tests).
# Each creates .venv if needed. PYTHON names the interpreter to create it with.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find cmake csrc prunefuse -type f \
	-not -name '*.so' -not -path '*/__pycache__/*')
CPP := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: run test lint format check coverage abi clean

run: $(VENV)/.installed
	$(BIN)/prunefuse run $(ARGS)

test: $(VENV)/.installed-for-tests lint check

# torch goes in first: the build then compiles against it and downloads no second one.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.11" torchvision
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --quiet .
	rm -f $(VENV)/.installed-for-tests
	touch $@

$(VENV)/.installed-for-tests: $(VENV)/.torch $(SOURCES)
	PRUNEFUSE_WERROR=1 $(BIN)/python -m pip install --quiet --editable ".[dev]"
	rm -f $(VENV)/.installed
	touch $@

lint: $(VENV)/.installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

format: $(VENV)/.installed-for-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# Two processes of one thread each: many small tests gain nothing from threads inside one.
check: $(VENV)/.installed-for-tests
	OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/python -m pytest --numprocesses 2 $(ARGS)

# Every torchvision classifier, planned, cut, run, trained a step and fused back; goes on where it was stopped.
coverage: $(VENV)/.installed-for-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.coverage $(ARGS)

# The same binaries beside another torch: the operators' tests in an environment of their own.
ABI_TORCH ?= 2.13.0
abi: $(VENV)/.installed-for-tests
	$(PYTHON) -m venv $(VENV)/abi
	$(VENV)/abi/bin/python -m pip install --quiet torch==$(ABI_TORCH) numpy pytest hypothesis
	PYTHONPATH=. $(VENV)/abi/bin/python -m pytest tests/native -p no:cacheprovider

clean:
	rm -rf build dist *.egg-info prunefuse/lib prunefuse/*.so
