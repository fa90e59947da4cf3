"""How llama.cpp is built here: the backends it can have for GPUs, and the command for each.

The options are those of llama.cpp's ``docs/build.md`` and ``docs/backend/SYCL.md``. Loads nothing
and runs nothing.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass

LLAMA_CPP_PYTHON = "0.3.36"
"""The release whose ctypes structs this package was written against."""


@dataclass(frozen=True)
class Backend:
    """What llama.cpp computes on one kind of GPU with.

    Attributes:
        name: as people call it.
        registered: as ggml's registry calls it.
        gpus: what it computes on.
        option: CMake's option for it, empty where it is on by default.
        setup: shell words before the build: scripts to source, and variables.
        compiler: the program that the build must find; None where there is none of its own.
        toolkit: what brings that program, and how to get it.
        visible: a shell command that undoes what hides GPUs, and lists them.
    """

    name: str
    registered: str
    gpus: str
    option: str
    setup: str
    compiler: str | None
    toolkit: str
    visible: str


BACKENDS = (
    Backend(
        "CUDA",
        "CUDA",
        "an NVIDIA GPU",
        "-DGGML_CUDA=ON",
        "",
        "nvcc",
        "the CUDA toolkit (https://developer.nvidia.com/cuda-downloads)",
        "unset CUDA_VISIBLE_DEVICES; nvidia-smi",
    ),
    Backend(
        "ROCm",
        "ROCm",
        "an AMD GPU",
        "-DGGML_HIP=ON",
        'HIPCXX="$(hipconfig -l)/clang" HIP_PATH="$(hipconfig -R)" ',
        "hipconfig",
        "ROCm with hipBLAS (https://rocm.docs.amd.com/projects/install-on-linux)",
        "unset HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES; rocminfo",
    ),
    Backend(
        "SYCL",
        "SYCL",
        "an Intel GPU",
        "-DGGML_SYCL=ON -DCMAKE_C_COMPILER=icx -DCMAKE_CXX_COMPILER=icpx",
        "source /opt/intel/oneapi/setvars.sh; ",
        "icpx",
        "the oneAPI Base Toolkit (https://www.intel.com/oneapi)",
        "unset ONEAPI_DEVICE_SELECTOR; sycl-ls",
    ),
    Backend(
        "Vulkan",
        "Vulkan",
        "a GPU of any vendor",
        "-DGGML_VULKAN=ON",
        "",
        "glslc",
        "Vulkan's SDK (sudo apt-get install libvulkan-dev glslc spirv-headers)",
        "unset GGML_VK_VISIBLE_DEVICES; vulkaninfo --summary",
    ),
)
"""Those for Linux and Windows, the vendors' own before Vulkan, which computes on all of them."""

METAL = Backend("Metal", "MTL", "the GPU of a Mac", "", "", None, "Xcode's command line tools", "")
"""The one of macOS, which llama.cpp builds by default."""


def backends() -> tuple[Backend, ...]:
    """The backends for GPUs that can be built on this system."""
    return (METAL,) if sys.platform == "darwin" else BACKENDS


def pip_command() -> str:
    """The shell's words for the pip of this very Python, which need not be the one on PATH."""
    return f"{shlex.quote(sys.executable or 'python')} -m pip"


def build_command(registered: Iterable[str] = ()) -> str:
    """The shell command that builds the native library here, with RPC and sound AMX code.

    GCC before 13.2.1 drops the stores that set up AMX tiles unless two of its flags are given,
    which other compilers do not know. ``--no-cache-dir`` keeps pip from bringing back a wheel that
    was built without them.

    Args:
        registered: ggml's names of the backends it shall have; others than for GPUs are ignored.
    """
    wanted = [backend for backend in backends() if backend.registered in set(registered)]
    setups = [backend.setup for backend in wanted]
    setup = "".join(sorted(setups, key=lambda text: "source" not in text))
    options = " ".join(["-DGGML_RPC=ON", *(backend.option for backend in wanted if backend.option)])
    is_gcc = sys.platform == "linux" and "icpx" not in options
    flags = 'CXXFLAGS="-fno-dse -fno-tree-dse" ' if is_gcc else ""
    return (
        f'{setup}CMAKE_ARGS="{options}" {flags}'
        f"{pip_command()} install --force-reinstall --no-deps --no-cache-dir "
        f"--no-binary llama-cpp-python llama-cpp-python=={LLAMA_CPP_PYTHON}"
    )
