"""What is installed and built here, and the command that adds each thing that is missing.

Promises to answer on any machine: above all where the native library does not load, which is when
people ask. Changes nothing, prints nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from ..errors import EngineError
from ..system.cores import logical_cores, physical_cores
from .bindings.amx import AMXState, cpu_model, extra_buffers_are_safe, rebuild_command
from .bindings.devices import Device, list_devices
from .bindings.library import (
    LLAMA_CPP_PYTHON,
    LibraryInfo,
    build_command,
    library_info,
    pip_command,
    system_info,
)

Level = Literal["ok", "note", "problem"]

# What a run or a conversion imports, by distribution name.
_PACKAGES = ("llama4-edge", "llama-cpp-python", "gguf", "numpy", "tokenizers", "jinja2")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``fix`` is a shell command, or None where there is none."""

    level: Level
    what: str
    fix: str | None = None


@dataclass(frozen=True)
class CPU:
    """The processor; cores that this process may run on, and what ggml was built to use of it."""

    model: str
    physical_cores: int | None
    logical_cores: int
    features: dict[str, str]


@dataclass(frozen=True)
class Diagnosis:
    """All that `doctor` found. ``library``, ``amx`` and ``devices`` are empty where the native
    library does not load."""

    versions: dict[str, str | None]
    library: LibraryInfo | None
    cpu: CPU
    amx: AMXState | None
    devices: tuple[Device, ...]
    disk_free_bytes: int | None
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether no finding is a problem."""
        return all(finding.level != "problem" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The same for ``json.dumps``."""
        return {"healthy": self.healthy, **asdict(self)}


def doctor() -> Diagnosis:
    """Look at packages, library, CPU, AMX, devices and disk. Never raises for what is missing."""
    versions = _versions()
    library: LibraryInfo | None = None
    amx: AMXState | None = None
    devices: tuple[Device, ...] = ()
    features: dict[str, str] = {}
    findings: tuple[Finding, ...]
    try:
        library = library_info()
        features = system_info().get("CPU", {})
        amx = extra_buffers_are_safe()
        devices = list_devices()
    except EngineError as error:
        findings = (Finding("problem", f"{error.problem}: {error.found}", build_command()),)
    else:
        findings = (
            Finding("ok", f"llama.cpp {library.llama_cpp} loads"),
            _version_finding(library),
            _rpc_finding(library),
            _amx_finding(amx),
        )
    backends = library.backends if library else ()
    return Diagnosis(
        versions=versions,
        library=library,
        cpu=CPU(cpu_model(), physical_cores(), logical_cores(), features),
        amx=amx,
        devices=devices,
        disk_free_bytes=_disk_free(),
        findings=(*_package_findings(versions), *findings, *gpu_findings(backends, devices)),
    )


# --- versions


def _versions() -> dict[str, str | None]:
    """Of Python and of each package; None for a package that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _package_findings(versions: dict[str, str | None]) -> tuple[Finding, ...]:
    # a missing llama-cpp-python is told by the library that does not load
    missing = [n for n, v in versions.items() if v is None and n != "llama-cpp-python"]
    return tuple(
        Finding("problem", f"{name} is not installed", f"{pip_command()} install {name}")
        for name in missing
    )


# --- the library


def _version_finding(library: LibraryInfo) -> Finding:
    if library.llama_cpp_python == LLAMA_CPP_PYTHON:
        return Finding("ok", f"llama-cpp-python is {LLAMA_CPP_PYTHON}, as it should be")
    return Finding(
        "problem",
        f"llama-cpp-python is {library.llama_cpp_python}; its C structs are those of another "
        f"llama.cpp than this package was written for ({LLAMA_CPP_PYTHON})",
        build_command(cuda="CUDA" in library.backends),
    )


def _rpc_finding(library: LibraryInfo) -> Finding:
    if library.rpc:
        return Finding("ok", "RPC is built in: `llama4 worker` lends a machine to another one")
    return Finding(
        "note",
        "RPC is not built in: a model cannot be spread over machines",
        build_command(cuda="CUDA" in library.backends),
    )


def _amx_finding(amx: AMXState) -> Finding:
    if not amx.needed:
        return Finding("ok", f"AMX is not used: {amx.reason}")
    if amx.survived:
        return Finding("ok", f"AMX works: {amx.reason}")
    return Finding(
        "problem", f"AMX is broken in this build, and left unused: {amx.reason}", rebuild_command()
    )


# --- GPU


def gpu_findings(
    backends: tuple[str, ...], devices: tuple[Device, ...] = (), root: Path = Path("/")
) -> tuple[Finding, ...]:
    """Whether an NVIDIA GPU is here, whether llama.cpp can use it, and how it could.

    Args:
        backends: names of the backends that the library has.
        devices: what these backends found.
        root: where /proc and the usual home of CUDA are looked for.
    """
    visible = (root / "proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None
    if "CUDA" in backends:
        if any(device.backend == "CUDA" for device in devices):
            return (Finding("ok", "CUDA is built in and finds a GPU"),)
        if not visible:
            return (Finding("note", "CUDA is built in, and no NVIDIA GPU is visible"),)
        problem = (
            "CUDA is built in and finds none of the NVIDIA GPUs here: they are hidden, or the "
            "driver is older than this CUDA"
        )
        return (Finding("problem", problem, "unset CUDA_VISIBLE_DEVICES; nvidia-smi"),)
    if not visible:
        what = "no NVIDIA GPU is visible, and CUDA is not built in; with one, build it with"
        return (Finding("note", what, build_command(cuda=True)),)
    problem = "an NVIDIA GPU is here, and the library is built without CUDA"
    findings = [Finding("problem", problem, build_command(cuda=True))]
    if find_nvcc(root) is None:
        findings.append(
            Finding(
                "problem",
                "the CUDA build needs the CUDA toolkit, and there is no nvcc on PATH",
                "sudo apt-get install nvidia-cuda-toolkit",
            )
        )
    return tuple(findings)


def find_nvcc(root: Path = Path("/")) -> str | None:
    """CUDA's compiler, where CMake looks for it."""
    configured = os.environ.get("CUDACXX")
    if configured:
        return shutil.which(configured)
    usual = root / "usr/local/cuda/bin/nvcc"
    return shutil.which("nvcc") or (str(usual) if usual.exists() else None)


# --- disk


def _disk_free() -> int | None:
    """Bytes free in the current directory, where a conversion would write."""
    try:
        return shutil.disk_usage(Path.cwd()).free
    except OSError:
        return None
