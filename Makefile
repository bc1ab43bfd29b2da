# `make test` and `make bench` do everything on a fresh machine: environment, build, run.
SHELL := bash
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready-for-fastdl
NATIVE := build/native
ARGS ?=
ARCHITECTURES ?=
STEPS ?=

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help build test native-test emulator-test python-test bench readme check format cuda-compile \
  gpu-check clean
.DEFAULT_GOAL := help

help:  ## print this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

# The pinned torch and tools; nothing is downloaded when they are there already.
$(READY): requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "fastdl needs Python 3.10 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make a virtual environment: install its venv package"; exit 1; }
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

build: $(READY)  ## compile what changed into fastdl/
	@command -v c++ > /dev/null || { echo "fastdl needs a C++20 compiler (g++ 11 or newer)"; exit 1; }
	$(RUN) setup.py --quiet build_ext --inplace

test: native-test emulator-test python-test  ## all tests, pytest last (ARGS="-k softmax")

native-test: $(READY)  ## the CPU kernels under the address and undefined-behaviour sanitizers
	FASTDL_CUDA=0 cmake -S . -B $(NATIVE) -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(RUN) \
	  -DFASTDL_NATIVE_TESTS=ON -DFASTDL_SANITIZE=address,undefined
	cmake --build $(NATIVE) --target fastdl_native_tests
	$(NATIVE)/fastdl_native_tests

emulator-test: build  ## the CUDA kernels on the CPU, in an emulator that watches them (no GPU)
	@bash tools/emulator_test.sh $(CURDIR)/$(RUN)

python-test: build  ## pytest alone, in as many processes as there are cores
	$(RUN) -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

bench: build  ## fastdl against native torch (ARGS="--op softmax --full")
	$(RUN) -m benchmarks $(ARGS)

readme: build  ## write the recorded results of the benchmark into README.md
	$(RUN) tools/update_readme.py

# All checks run, so that one run shows everything there is to mend.
check: build  ## linters, types, formats, file sizes, layers, stubs, symbols
	@bash tools/check.sh

format: $(READY)  ## let ruff and clang-format write the files
	ruff check --fix .
	ruff format .
	clang-format -i $$(bash tools/native_sources.sh)

cuda-compile: build  ## compile all CUDA code, fail on register spills (needs nvcc, no GPU)
	@$(RUN) tools/cuda_compile.py $(ARCHITECTURES)

# Another environment, which has a torch with CUDA already: make gpu-check RUN=/usr/bin/python3 READY=
gpu-check: $(READY)  ## build, tests, sanitizers and benchmark on a GPU (STEPS="tests bench")
	@$(RUN) tools/gpu_check.py $(STEPS)

clean:  ## remove what the build made, keep .venv
	rm -rf build dist *.egg-info fastdl/*.so fastdl/_build_info.py
