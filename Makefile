# The two commands: `make run` (the main job on the bundled digits) and `make test` (lint, build, all tests).
# Each creates .venv if needed. PYTHON names the interpreter to create it with.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find cmake csrc prunefuse -type f \
	-not -name '*.so' -not -path '*/__pycache__/*')
CPP := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: run test lint format headers fuzz emulate check slow slow-tests asan coverage peer abi pythons sass gpu-bundle clean

run: $(VENV)/.installed
	$(BIN)/prunefuse run $(ARGS)

test: $(VENV)/.installed-for-tests lint headers fuzz check

# torch goes in first: the build then compiles against it and downloads no second one.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.11" torchvision
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(BIN)/python -m pip install --quiet ".[cli]"
	rm -f $(VENV)/.installed-for-tests
	touch $@

# scikit-activeml's checks of query strategies, which later releases leave out: unpacked, not installed.
$(VENV)/scikit-activeml-0.5.0: | $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --no-deps --target $@ scikit-activeml==0.5.0

$(VENV)/.installed-for-tests: $(VENV)/.torch $(SOURCES) | $(VENV)/scikit-activeml-0.5.0
	PRUNEFUSE_WERROR=1 $(BIN)/python -m pip install --quiet --editable ".[dev,adapters,onnx,gnn,faiss,tensorboard]"
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

# The sources against the headers of the oldest torch that is supported, in $(HEADERS)/include; the package itself was
# compiled against those of the torch in $(VENV). They are the same in every wheel; that for macOS is the smallest (81 MB).
OLDEST_TORCH := 2.11.0
HEADERS := build/torch-$(OLDEST_TORCH)
$(HEADERS)/.unpacked: | $(VENV)/.torch
	rm -rf $(HEADERS)
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --platform macosx_11_0_arm64 \
		--python-version 3.12 --dest $(HEADERS) torch==$(OLDEST_TORCH) \
		|| { echo "make headers: the wheel of torch $(OLDEST_TORCH), whose headers to compile against, could not be had" >&2; exit 1; }
	$(BIN)/python -c "import glob, zipfile; z = zipfile.ZipFile(*glob.glob('$(HEADERS)/*.whl')); \
		z.extractall('$(HEADERS)', [n for n in z.namelist() if n.startswith('torch/include/') or n == 'torch/version.py'])"
	mv $(HEADERS)/torch/* $(HEADERS)
	rm -r $(HEADERS)/torch $(HEADERS)/*.whl
	touch $@

headers: $(HEADERS)/.unpacked $(VENV)/.installed-for-tests
	$(BIN)/cmake --log-level=WARNING -S csrc/headers -B build/headers -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DPRUNEFUSE_TORCH_DIR=$(abspath $(HEADERS))
	$(BIN)/cmake --build build/headers -- --quiet

# Random cases of the native code under AddressSanitizer and UBSan, the same in every run: FUZZ_SEED=7 FUZZ_CASES=100000
# for others, and for more of them.
FUZZ_SEED ?= 1
FUZZ_CASES ?= 1000
fuzz: $(VENV)/.installed-for-tests
	$(BIN)/cmake --log-level=WARNING -S csrc/fuzz -B build/fuzz -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
	$(BIN)/cmake --build build/fuzz -- --quiet
	build/fuzz/fuzz $(FUZZ_SEED) $(FUZZ_CASES)

# The CUDA kernels as a library for the CPU, which tests/native/test_emulated_cuda.py runs.
EMULATE = $(abspath $(BIN))/cmake --log-level=WARNING -S csrc/emulation -B build/emulation -G Ninja \
	-DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	-DPRUNEFUSE_TORCH_DIR=$$($(abspath $(BIN))/python -c "import torch; print(torch.__path__[0])") && \
	$(abspath $(BIN))/cmake --build build/emulation -- --quiet
emulate: $(VENV)/.installed-for-tests
	$(EMULATE)

# Two processes of one thread each: many small tests gain nothing from threads inside one.
check: $(VENV)/.installed-for-tests emulate
	PRUNEFUSE_REQUIRE_PACKAGES=1 OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/python -m pytest --numprocesses 2 $(ARGS)

# All that CI has no time for: run it before an issue is closed. `make slow-tests` are the tests of it that are marked so.
slow: slow-tests abi pythons coverage
slow-tests: $(VENV)/.installed-for-tests emulate
	PRUNEFUSE_REQUIRE_PACKAGES=1 $(BIN)/python -m pytest --slow -m slow $(ARGS)

# The operators' tests from Python, on a copy of the tree whose libraries are built with both sanitizers.
SANITIZE := -fsanitize=address,undefined
asan: $(VENV)/.installed-for-tests
	mkdir -p build/asan
	tar -cf - --exclude='*.so' --exclude=__pycache__ setup.py pyproject.toml CMakeLists.txt cmake csrc prunefuse tests \
		| tar -xf - -C build/asan
	cd build/asan && PRUNEFUSE_CUDA=0 PATH="$(abspath $(BIN)):$$PATH" LDFLAGS="$(SANITIZE)" \
		CXXFLAGS="$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer -g1" \
		python setup.py --quiet build_ext --inplace
	cd build/asan && CXXFLAGS=-fsanitize=address LDFLAGS=-fsanitize=address $(EMULATE)
	cd build/asan && PYTHONPATH=. OMP_NUM_THREADS=2 ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		$(abspath $(BIN))/python -m pytest tests/native --capture=sys -p no:cacheprovider $(ARGS)

# Every architecture of benchmarks/zoo.py, planned, cut, run, compared with masking, trained a step, fused back, saved and
# reloaded, in an environment of its own: the packages that they are from are many. Goes on where it was stopped.
$(VENV)-coverage/.installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)-coverage
	$(VENV)-coverage/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-coverage/bin/python -m pip install --quiet "torch>=2.11" torchvision
	$(VENV)-coverage/bin/python -m pip install --quiet --editable ".[zoo]"
	touch $@

coverage: $(VENV)-coverage/.installed
	OMP_NUM_THREADS=1 $(VENV)-coverage/bin/python -m benchmarks.coverage $(ARGS)

# Pruning beside torch-pruning, all of torchvision and timm in that list; goes on where it was stopped.
peer: $(VENV)/.installed-for-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.peer

# The same binaries beside other torches, the oldest and one between: the operators' tests, each in an environment of its own.
ABI_TORCHES ?= $(OLDEST_TORCH) 2.13.0
abi: $(ABI_TORCHES:%=abi-%)
abi-%: $(VENV)/.installed-for-tests
	$(PYTHON) -m venv --clear $(VENV)/abi-$*
	$(VENV)/abi-$*/bin/python -m pip install --quiet torch==$* numpy scikit-learn pytest hypothesis
	PYTHONPATH=. $(VENV)/abi-$*/bin/python -m pytest tests/native -p no:cacheprovider
	rm -r $(VENV)/abi-$*

# Build and tests on other Pythons, each in a copy of the tree with an environment of its own; ARGS go to pytest.
PYTHONS ?= 3.10 3.13
pythons: $(PYTHONS:%=python-%)
python-%:
	@for python in $(HOME)/.pyenv/versions/$*.*/bin/python "$$(command -v python$*)"; do \
		"$$python" -c "" 2>/dev/null && break; python=; done; \
	if [ -z "$$python" ]; then echo "make pythons: Python $* was not found, and is not tested"; exit 0; fi; \
	rm -rf build/python-$* && mkdir -p build/python-$* && git ls-files -z --cached --others --exclude-standard \
		| tar -cf - --null --files-from=- | tar -xf - -C build/python-$* \
		&& $(MAKE) -C build/python-$* check PYTHON="$$python" VENV=.venv

# What the machine code of every CUDA kernel takes and allows, counted in the built library. tests/bench/test_sass.py fails
# where the table is not that of the code.
sass: $(VENV)/.installed-for-tests
	$(BIN)/python -m benchmarks.sass > build/sass.txt
	mv build/sass.txt benchmarks/results/sass.txt

# What benchmarks/gpu/check.sh takes to a machine with a GPU and no network, at most 60 MB: the libraries, for torch from
# 2.11 on and the Python there, and wheels of packages that an environment for PyTorch may lack.
GPU_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python3.12) python3.12)
GPU_ARCHITECTURES ?= 9.0+PTX
gpu-bundle: $(VENV)/.installed-for-tests
	PRUNEFUSE_TARGET_PYTHON=$(GPU_PYTHON) PATH="$(abspath $(BIN)):$$PATH" \
		$(BIN)/python -m benchmarks.gpu.bundle make build/gpu-bundle --architectures "$(GPU_ARCHITECTURES)"

clean:
	rm -rf build dist *.egg-info prunefuse/lib prunefuse/*.so
