# Two commands need nothing but Python >= 3.10, a C++ compiler and make: `make demo` and `make test`.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
ROOMS   := __init__.py errors.py units.py inspection.py cli.py model.py chat commands convert hub measure planner quant runtime system terminal

# llama.cpp comes from llama-cpp-python's source package. RPC makes other machines usable as devices.
# The two compiler flags keep GCC before 13.2.1 from dropping the stores that set up AMX tiles, without
# which the first prompt crashes on AMX Xeons (llama.cpp #20824). For an NVIDIA GPU:
#   make demo LLAMA_CMAKE_ARGS="-DGGML_RPC=ON -DGGML_CUDA=ON"
LLAMA_VERSION    := 0.3.36
LLAMA_CMAKE_ARGS ?= -DGGML_RPC=ON
LLAMA_CXXFLAGS   ?= -fno-dse -fno-tree-dse
# llama.cpp builds its quantizers for the oldest processor there is. For this one they encode Q8_0 2.6
# times as fast and Q4_0 and Q4_K 1.3 times, to the same bytes as long as no multiplication and
# addition are fused into one rounding.
ifeq ($(shell uname -m),x86_64)
LLAMA_CFLAGS     ?= -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math
endif

# The build takes minutes, so its wheel is kept: one folder for each version, set of flags, Python and
# processor (the build is tuned to the machine's own instruction set). pip's own wheel cache looks at
# none of these.
CACHE   := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/llama4-edge/wheels
KEY     := $(shell { echo "$(LLAMA_VERSION) $(LLAMA_CMAKE_ARGS) $(LLAMA_CXXFLAGS) $(LLAMA_CFLAGS)"; $(PYTHON) -VV; uname -sm; \
             grep -m1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null; } | cksum | tr ' ' '-')
WHEELS  := $(CACHE)/llama-cpp-python-$(LLAMA_VERSION)-$(KEY)
# Says that the environment holds that very build, the package, and what the package needs.
RUN     := $(VENV)/.run-$(KEY)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint bench clean

help:
	@echo "make demo      convert the small model that comes along, and talk with it"
	@echo "make test      everything but the heavy tests"
	@echo "make test-all  the heavy tests too"
	@echo "make lint      ruff and mypy --strict"
	@echo "make bench     speed and memory beside llama.cpp's own tools"
	@echo "make clean     remove .venv and what the demo wrote; the built llama.cpp stays in $(CACHE)"

demo: $(RUN)
	$(BIN)/python demo/run.py

test: $(VENV)/.test
	$(BIN)/python -m pytest

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -m "heavy or not heavy"

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(ROOMS)

bench: $(VENV)/.test
	$(BIN)/python benchmarks/conversion.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/encoders.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/placement.py

clean:
	rm -rf $(VENV) build *.egg-info demo/out .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(WHEELS)/.built: | $(VENV)/.venv
	@echo "building llama.cpp from llama-cpp-python $(LLAMA_VERSION) ($(LLAMA_CMAKE_ARGS)): about 5 minutes on 2 cores"
	mkdir -p $(WHEELS)
	CMAKE_ARGS="$(LLAMA_CMAKE_ARGS)" CFLAGS="$(LLAMA_CFLAGS)" CXXFLAGS="$(LLAMA_CXXFLAGS)" \
	  $(BIN)/python -m pip wheel --quiet --no-cache-dir --no-deps --no-binary llama-cpp-python \
	  --wheel-dir $(WHEELS) llama-cpp-python==$(LLAMA_VERSION)
	touch $@

$(RUN): $(WHEELS)/.built pyproject.toml $(wildcard quant/native/*)
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps $(WHEELS)/*.whl
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# Installed by name first, because a machine without a GPU wants PyTorch's CPU build: point
# PIP_EXTRA_INDEX_URL at PyTorch's CPU index to get it from there.
TORCH ?= torch==2.13.0
$(VENV)/.test: $(RUN)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
