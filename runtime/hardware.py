"""Which GPUs this machine has, by the word of their drivers' own tools.

Promises never to raise, and an answer within seconds: a tool that is missing, fails or hangs has
seen nothing. Knows nothing of llama.cpp.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

_TIMEOUT = 10.0  # seconds


def visible_gpus(root: Path = Path("/")) -> dict[str, tuple[str, ...]]:
    """Names of GPUs by the backend that computes on them; a GPU may stand under several.

    Args:
        root: where /proc and /dev are looked for.
    """
    gpus = {
        "CUDA": _nvidia(root),
        "ROCm": _amd(root),
        "SYCL": _intel(),
        "Vulkan": _vulkan(),
        "Metal": ("the GPU of this Mac",) if sys.platform == "darwin" else (),
    }
    return {backend: names for backend, names in gpus.items() if names}


def find_compiler(name: str, root: Path = Path("/")) -> str | None:
    """The path of a backend's compiler: on PATH, or for nvcc where CMake looks too."""
    if name != "nvcc":
        return shutil.which(name)
    configured = os.environ.get("CUDACXX")
    if configured:
        return shutil.which(configured)
    usual = root / "usr/local/cuda/bin/nvcc"
    return shutil.which("nvcc") or (str(usual) if usual.exists() else None)


def _nvidia(root: Path) -> tuple[str, ...]:
    names = re.findall(r"^GPU \d+: (.+?)(?: \(UUID: .*)?$", _output("nvidia-smi", "-L"), re.M)
    driver = (root / "proc/driver/nvidia").exists()
    return tuple(names) or (("an NVIDIA GPU",) if driver else ())


def _amd(root: Path) -> tuple[str, ...]:
    """The agents of ``rocminfo`` that are GPUs: processors are agents too."""
    agents = re.split(r"^Agent \d+", _output("rocminfo"), flags=re.M)
    fields = [dict(re.findall(r"^ *([\w ]+?): +(.+?) *$", agent, re.M)) for agent in agents]
    names = [
        agent.get("Marketing Name") or agent.get("Name", "an AMD GPU")
        for agent in fields
        if agent.get("Device Type") == "GPU"
    ]
    driver = (root / "dev/kfd").exists()
    return tuple(names) or (("an AMD GPU",) if driver else ())


def _intel() -> tuple[str, ...]:
    """GPUs of ``sycl-ls`` over Level Zero, llama.cpp's way to them."""
    lines = re.findall(r"^\[level_zero:gpu\].*?, (.+?)(?: [\d.]+ \[.*)?$", _output("sycl-ls"), re.M)
    return tuple(lines)


def _vulkan() -> tuple[str, ...]:
    """GPUs of ``vulkaninfo``; not the drivers that compute on the CPU."""
    devices = re.split(r"^GPU\d+:", _output("vulkaninfo", "--summary"), flags=re.M)[1:]
    fields = [dict(re.findall(r"^\s*(\w+)\s*= (.+?)\s*$", device, re.M)) for device in devices]
    return tuple(
        gpu.get("deviceName", "a GPU")
        for gpu in fields
        if gpu.get("deviceType", "").endswith(("DISCRETE_GPU", "INTEGRATED_GPU"))
    )


def _output(program: str, *arguments: str) -> str:
    """What a program prints; nothing where it is not there or fails."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")
