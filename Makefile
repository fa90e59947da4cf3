# Two commands need nothing but Python >= 3.10, a C++ compiler and make: `make demo` and `make test`.

PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin

# Everything is installed in the versions of requirements/lock.txt, build tools included.
LOCK    := requirements/lock.txt
INSTALL := $(BIN)/python -m tools.install
# Other people's programs, which the heavy tests point at the server, have an environment of their own.
CLIENTS      := .venv-clients
CLIENTS_LOCK := requirements/clients.txt

# llama.cpp comes from llama-cpp-python's source package. RPC makes other machines usable as devices.
# For an NVIDIA GPU:
#   make demo LLAMA_CMAKE_ARGS="-DGGML_RPC=ON -DGGML_CUDA=ON"
# or -DGGML_HIP=ON (AMD), -DGGML_SYCL=ON (Intel) or -DGGML_VULKAN=ON, after the setup that `llama4 doctor`
# shows for each. On a Mac, Metal is built without asking.
# A wheel that was built elsewhere, from a directory or an index:
#   make demo LLAMA_WHEELS=<directory or URL>
LLAMA_VERSION    := $(shell sed -n 's/^llama-cpp-python==//p' $(LOCK))
LLAMA_CMAKE_ARGS ?= -DGGML_RPC=ON
ifeq ($(shell uname -m),x86_64)
# GCC before 13.2.1 drops the stores that set up AMX tiles, without which the first prompt crashes on
# AMX Xeons (llama.cpp #20824). Clang has neither the fault nor these flags.
ifeq ($(findstring clang,$(shell $(CXX) --version 2>/dev/null)),)
LLAMA_CXXFLAGS   ?= -fno-dse -fno-tree-dse
endif
# llama.cpp builds its quantizers for the oldest processor there is. For this one they encode Q8_0 2.6
# times as fast and Q4_0 and Q4_K 1.3 times, to the same bytes as long as no multiplication and
# addition are fused into one rounding.
LLAMA_CFLAGS     ?= -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math
endif

# The build takes minutes, so its wheel is kept: one folder for each version, set of flags, Python and
# processor (the build is tuned to the machine's own instruction set). pip's own wheel cache looks at
# none of these.
CACHE   := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/llama4-edge/wheels
KEY     := $(shell { echo "$(LLAMA_VERSION) $(LLAMA_CMAKE_ARGS) $(LLAMA_CXXFLAGS) $(LLAMA_CFLAGS) $(LLAMA_WHEELS)"; \
             cat tools/llama_cpp.cmake; $(PYTHON) -VV; uname -sm; \
             grep -m1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null; } | cksum | tr ' ' '-')
WHEELS  := $(if $(LLAMA_WHEELS),$(VENV)/wheels,$(CACHE))/llama-cpp-python-$(LLAMA_VERSION)-$(KEY)
# Says that the environment holds that very build, the package, and what the package needs.
RUN     := $(VENV)/.run-$(KEY)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-latest lint docs bench lock clean

help:
	@echo "make demo         convert the small model that comes along, and talk with it"
	@echo "make test         everything but the heavy tests, on all cores"
	@echo "make test-all     the heavy tests too: $(ALL_MINUTES) minutes of processor time"
	@echo "make test-latest  the tests with the newest version of everything, and what broke"
	@echo "make lint         ruff and mypy --strict"
	@echo "make docs         the documentation, into site/"
	@echo "make bench        speed and memory beside llama.cpp's own tools"
	@echo "make lock         renew requirements/*.txt, for every Python and platform"
	@echo "make clean        remove .venv, .venv-clients and what the demo wrote; the built llama.cpp stays in $(CACHE)"

demo: $(RUN)
	$(BIN)/python -m demo.run

# All cores; tests that share a resource of the machine are of one group, which one process runs.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadgroup

# Tests of threads, signals and processes share the machine with their neighbours: one that fails is
# named and run once more, alone. If it fails then too, the run has failed.
test: $(VENV)/.test
	@$(PYTEST) || { status=$$?; [ $$status -eq 1 ] || exit $$status; \
	  echo "once more, alone: what failed beside others. What passes now is unsteady: mend it"; \
	  $(BIN)/python -m pytest --verbose --last-failed --last-failed-no-failures none; }

# Of processor time: 10 for the ordinary tests, measured; an hour for the heavy ones, most of it for
# fuzzers, is an estimate from runs of each on a busy machine.
ALL_MINUTES := 70
test-all: $(VENV)/.test $(CLIENTS)/.installed
	@echo "the heavy tests too: about $(ALL_MINUTES) minutes of processor time, shared by all cores"
	$(PYTEST) -m "heavy or not heavy"

# TORCH replaces PyTorch's newest release, a download of gigabytes.
test-latest: $(VENV)/.test
	$(BIN)/python -m tools.latest $(WHEELS) $(TORCH)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tools.house --check
	$(BIN)/python -m tools.command_help --check

docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict

# benchmarks/peer.py builds llama.cpp's own tools.
BENCH_MODEL := benchmarks/out/llama-4-tiny-int4.gguf
bench: export PATH := $(CURDIR)/$(BIN):$(PATH)
bench: $(VENV)/.test $(VENV)/.native $(BENCH_MODEL)
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.conversion
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.encoders
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.calibration
	$(BIN)/python -m benchmarks.decode
	$(BIN)/python -m benchmarks.placement
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.token_cost $(BENCH_MODEL)
	$(BIN)/python -m benchmarks.parallel $(BENCH_MODEL)
	$(BIN)/python -m benchmarks.parallel --synthetic scout --prompt 64 --generate 32 --rounds 3
	$(BIN)/python -m benchmarks.parallel --synthetic scout --prompt 64 --generate 32 --rounds 3 --worker
	$(BIN)/python -m benchmarks.session --model $(BENCH_MODEL)
	$(BIN)/python -m benchmarks.cancel $(BENCH_MODEL)
	$(BIN)/python -m benchmarks.traffic --minutes 10

$(BENCH_MODEL): $(RUN)
	@mkdir -p $(@D)
	$(BIN)/llama4 convert demo/Llama-4-Tiny -o $@ --recipe int4 --force

lock: $(VENV)/.venv
	@$(INSTALL) "uv" uv
	$(BIN)/python -m tools.lock

clean:
	rm -rf $(VENV) $(CLIENTS) .venv-latest build site *.egg-info demo/out .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.venv:
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) "setuptools" setuptools
	@touch $@

$(VENV)/.native: $(LOCK) | $(VENV)/.venv
	@$(INSTALL) "what builds llama.cpp" cmake ninja scikit-build-core
	@touch $@

ifdef LLAMA_WHEELS
$(WHEELS)/.built: | $(VENV)/.venv
	$(BIN)/python -m pip download --no-deps --only-binary :all: --dest $(WHEELS) \
	  $(if $(findstring ://,$(LLAMA_WHEELS)),--index-url,--no-index --find-links) $(LLAMA_WHEELS) \
	  llama-cpp-python==$(LLAMA_VERSION)
	@touch $@
else
$(WHEELS)/.built: | $(VENV)/.native
	@echo "building llama.cpp ($(LLAMA_CMAKE_ARGS)): about 4 minutes of one core, more for a GPU"
	@CMAKE_ARGS="$(LLAMA_CMAKE_ARGS)" CFLAGS="$(LLAMA_CFLAGS)" CXXFLAGS="$(LLAMA_CXXFLAGS)" \
	  $(BIN)/python -m tools.build_llama $(LLAMA_VERSION) $(WHEELS)
	@touch $@
endif

$(RUN): $(WHEELS)/.built pyproject.toml $(LOCK) $(wildcard quant/native/* runtime/native/*)
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps $(WHEELS)/*.whl
	@$(INSTALL) "llama4-edge" setuptools --editable .
	@touch $@

# A machine without a GPU wants PyTorch's CPU build: point PIP_EXTRA_INDEX_URL at PyTorch's CPU index
# to get it from there.
$(VENV)/.test: $(RUN)
	@$(INSTALL) "what the tests compare with" --editable '.[test]'
	@touch $@

# 1.1 GB, a minute of processor time; PyTorch is not among them.
$(CLIENTS)/.installed: $(CLIENTS_LOCK)
	@echo "creating $(CLIENTS)"
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m tools.install --lock $(CLIENTS_LOCK) "setuptools" setuptools
	@$(CLIENTS)/bin/python -m tools.install --lock $(CLIENTS_LOCK) "other people's clients" \
	  --requirement requirements/clients.in
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	@$(INSTALL) "ruff, mypy and pre-commit" --editable '.[dev]'
	@touch $@

$(VENV)/.docs: $(RUN)
	@$(INSTALL) "the documentation's tools" --editable '.[docs]'
	@touch $@
