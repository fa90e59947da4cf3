"""llama.cpp's own tools, built from the source package of the llama-cpp-python that is installed.

They are built with the flags of the Makefile and run with the libraries that llama-cpp-python
loads, so that a tool of llama.cpp and ours differ only in the code around these. A tool uses the
GPU that the libraries were built for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "out"
LLAMA_CPP_PYTHON = "llama-cpp-python==0.3.36"

_LEFT_OUT = ("BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_APP", "BUILD_UI", "USE_PREBUILT_UI", "OPENSSL")


def peer_sources(directory: Path = OUT) -> Path:
    """llama.cpp's source tree out of llama-cpp-python's source package, fetched once."""
    trees = list(directory.glob("llama_cpp_python-*/vendor/llama.cpp"))
    if not trees:
        directory.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        # The metadata of a source package takes its build tools, which pip fetches for itself.
        pip += ["--no-binary", ":all:", "--dest", str(directory), LLAMA_CPP_PYTHON]
        subprocess.run(pip, check=True)
        with tarfile.open(next(directory.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(directory, filter="data")
        trees = list(directory.glob("llama_cpp_python-*/vendor/llama.cpp"))
    return trees[0]


def peer_tool(name: str, directory: Path = OUT) -> Path:
    """The tool called `name` (``llama-bench``, ``llama-server``), built once; minutes.

    ``LLAMA_CPP_TOOLS`` names a directory of tools that were built before.
    """
    ready = os.environ.get("LLAMA_CPP_TOOLS")
    build = directory / "peer-build"
    tool = Path(ready) / name if ready else build / "bin" / name
    if tool.is_file() or ready:
        return tool
    arguments, environment = _flags()
    # The libraries are built along and not used: backends other than the CPU's can be left out.
    arguments = [argument for argument in arguments if "CUDA" not in argument]
    options = ["-DLLAMA_BUILD_SERVER=ON"]
    options += [f"-DLLAMA_{part}=OFF" for part in _LEFT_OUT]
    options += ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", *arguments]
    print(f"building {name} …", flush=True)
    configure = ["cmake", "-S", str(peer_sources(directory)), "-B", str(build), *options]
    for command in (
        configure,
        ["cmake", "--build", str(build), "--target", name, "--parallel", str(os.cpu_count())],
    ):
        subprocess.run(
            command, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL
        )
    return tool


def _flags() -> tuple[list[str], dict[str, str]]:
    """CMake's arguments and the compilers' flags, as the Makefile has them."""
    names = ("LLAMA_CMAKE_ARGS", "LLAMA_CXXFLAGS", "LLAMA_CFLAGS")
    rule = "show: ; @" + "; ".join(f"echo '$({name})'" for name in names)
    shown = subprocess.run(
        ["make", "--no-print-directory", "--eval", rule, "show"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    arguments, cxxflags, cflags = (line.strip() for line in shown)
    return shlex.split(arguments), {"CXXFLAGS": cxxflags, "CFLAGS": cflags}


def peer_environment() -> dict[str, str]:
    """In which a tool of llama.cpp loads the libraries that llama-cpp-python does."""
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None, "llama-cpp-python is not installed"
    libraries = override or str(Path(spec.origin).parent / "lib")
    before = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{before}" if before else libraries}


def llama_bench(
    model: Path, *arguments: str, directory: Path = OUT, timeout: float | None = None
) -> list[dict[str, Any]]:
    """What llama-bench measures on `model`, a record a test; TimeoutExpired after `timeout`."""
    command = [str(peer_tool("llama-bench", directory)), "-m", str(model), "-o", "json", *arguments]
    return _records(command, peer_environment(), timeout)


def our_bench(model: Path, *arguments: str, timeout: float | None = None) -> list[dict[str, Any]]:
    """What `llama4 bench` measures, with the same arguments."""
    command = [str(Path(sys.executable).with_name("llama4")), "bench", str(model), "--json"]
    return _records([*command, *arguments], dict(os.environ), timeout)


def _records(
    command: list[str], environment: dict[str, str], timeout: float | None
) -> list[dict[str, Any]]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    records: list[dict[str, Any]] = json.loads(done.stdout)
    return records
