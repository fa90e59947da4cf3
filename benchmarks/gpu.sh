#!/usr/bin/env bash
# Scout on one GPU, from a machine that has nothing but CUDA, a compiler, cmake, make and Python:
#
#   benchmarks/gpu.sh [options of benchmarks.gpu]         62 GiB of disk, minutes on an H100
#   benchmarks/gpu.sh --trial                             anywhere: a loopback worker as the GPU
#
# Builds llama-cpp-python with CUDA into an environment of its own under benchmarks/out, and
# llama-bench beside it, unless LLAMA4_PYTHON names a Python that has the package installed and
# LLAMA_CPP_TOOLS a directory with llama-bench. Writes benchmarks/out/gpu.md, a section of RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/.."
out=benchmarks/out
mkdir -p "$out"

say() { printf '%s\n' "$*" >&2; }

trial=no
for word in "$@"; do [ "$word" = --trial ] && trial=yes; done

# With CUDA, llama.cpp is built for the GPUs that are here; flags as in the Makefile.
[ "$trial" = yes ] && cuda=OFF || cuda=ON
export LLAMA_CMAKE_ARGS="${LLAMA_CMAKE_ARGS:--DGGML_RPC=ON -DGGML_CUDA=$cuda}"

python=${LLAMA4_PYTHON:-$out/gpu-venv/bin/python}
if [ -z "${LLAMA4_PYTHON:-}" ] && [ ! -x "$python" ]; then
  command -v nvcc > /dev/null || [ "$trial" = yes ] || { say "error: no nvcc on the PATH"; exit 1; }
  say "building llama-cpp-python ($LLAMA_CMAKE_ARGS): 10 to 20 minutes"
  make --no-print-directory VENV="$out/gpu-venv" "$(make --no-print-directory VENV="$out/gpu-venv" \
    --eval 'name-run: ; @echo $(RUN)' name-run)"
fi

say "building llama-bench, unless it is there"
"$python" -c 'from benchmarks.peer import peer_tool; peer_tool("llama-bench")'

exec "$python" -m benchmarks.gpu "$@"
