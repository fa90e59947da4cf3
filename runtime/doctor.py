"""What is installed and built here, and the command that installs what is missing.

Promises to answer on any machine, above all where the native library does not load. Changes
nothing, prints nothing.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from ..errors import AllocationError, EngineError
from ..system.cores import (
    cpu_quota,
    described_cpu,
    logical_cores,
    physical_cores,
    usable_threads,
)
from .bindings.amx import AMXState, extra_buffers_are_safe, rebuild_command
from .bindings.build import (
    LLAMA_CPP_PYTHON,
    Backend,
    backends,
    build_command,
    pip_command,
)
from .bindings.devices import Device, list_devices
from .bindings.library import LibraryInfo, library_info, system_info
from .bindings.vision import has_mtmd
from .hardware import find_compiler, visible_gpus

Level = Literal["ok", "note", "problem"]

# What a run or a conversion imports, by distribution name.
_PACKAGES = ("llama4-edge", "llama-cpp-python", "gguf", "numpy", "tokenizers", "jinja2")


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``fix`` is a shell command, or None where there is none."""

    level: Level
    what: str
    fix: str | None = None


@dataclass(frozen=True)
class CPU:
    """The processor: cores that this process may run on, threads that its CPU quota leaves, and
    what ggml was built to use of it."""

    model: str
    physical_cores: int | None
    logical_cores: int
    usable_threads: int
    features: dict[str, str]


@dataclass(frozen=True)
class Diagnosis:
    """All that `doctor` found. ``library``, ``amx`` and ``devices`` are empty where the native
    library does not load. ``mtmd`` is whether its part for pictures does."""

    versions: dict[str, str | None]
    library: LibraryInfo | None
    mtmd: bool
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
    mtmd = False
    amx: AMXState | None = None
    devices: tuple[Device, ...] = ()
    features: dict[str, str] = {}
    findings: tuple[Finding, ...]
    try:
        library = library_info()
        features = system_info().get("CPU", {})
        amx = extra_buffers_are_safe()
        devices = list_devices()
        mtmd = has_mtmd()
    except EngineError as error:
        fix = None if isinstance(error, AllocationError) else build_command()
        findings = (Finding("problem", f"{error.problem}: {error.found}", fix),)
    else:
        findings = (
            Finding("ok", f"llama.cpp {library.llama_cpp} loads"),
            _version_finding(library),
            _rpc_finding(library),
            _pictures_finding(library, mtmd),
            _amx_finding(amx),
        )
    return Diagnosis(
        versions=versions,
        library=library,
        mtmd=mtmd,
        cpu=CPU(described_cpu(), physical_cores(), logical_cores(), usable_threads(), features),
        amx=amx,
        devices=devices,
        disk_free_bytes=_disk_free(),
        findings=(
            *_package_findings(versions),
            *findings,
            _threads_finding(),
            *gpu_findings(library.backends if library else (), devices),
        ),
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
    # A missing llama-cpp-python is reported as a library that does not load.
    missing = [n for n, v in versions.items() if v is None and n != "llama-cpp-python"]
    return tuple(
        Finding("problem", f"{name} is not installed", f"{pip_command()} install {name}")
        for name in missing
    )


# --- the library


def _version_finding(library: LibraryInfo) -> Finding:
    if library.llama_cpp_python == LLAMA_CPP_PYTHON:
        return Finding("ok", f"llama-cpp-python is {LLAMA_CPP_PYTHON}, as needed")
    return Finding(
        "problem",
        f"llama-cpp-python is {library.llama_cpp_python}, and this package needs "
        f"{LLAMA_CPP_PYTHON}: the C structs of llama.cpp differ",
        build_command(library.backends),
    )


def _rpc_finding(library: LibraryInfo) -> Finding:
    if library.rpc:
        return Finding("ok", "RPC is built in: `llama4 worker` shares this machine with others")
    return Finding(
        "note",
        "RPC is not built in: a model cannot use other machines",
        build_command(library.backends),
    )


def _pictures_finding(library: LibraryInfo, mtmd: bool) -> Finding:
    if mtmd:
        return Finding("ok", "mtmd is built in: models can be shown pictures")
    return Finding(
        "note",
        "mtmd is not built in: models cannot be shown pictures",
        build_command(library.backends),
    )


def _amx_finding(amx: AMXState) -> Finding:
    if not amx.needed:
        return Finding("ok", f"AMX is not used: {amx.reason}")
    if amx.survived:
        return Finding("ok", f"AMX works: {amx.reason}")
    return Finding(
        "problem", f"AMX is broken in this build, and left unused: {amx.reason}", rebuild_command()
    )


# --- CPU and GPUs


def _threads_finding() -> Finding:
    quota = cpu_quota()
    if quota is None:
        return Finding("ok", f"{usable_threads()} threads compute: one for each logical core")
    cores, source = quota
    return Finding(
        "note",
        f"a CPU quota leaves the time of {cores:g} cores ({source}); "
        f"{usable_threads()} threads compute",
    )


def gpu_findings(
    registered: tuple[str, ...], devices: tuple[Device, ...] = (), root: Path = Path("/")
) -> tuple[Finding, ...]:
    """Which GPUs are here, whether llama.cpp can use them, and how it could.

    Args:
        registered: ggml's names of the backends that the library has.
        devices: what these backends found.
        root: where /proc, /dev and the usual home of CUDA are looked for.
    """
    gpus = visible_gpus(root)
    if len(gpus) > 1:
        # Whatever Vulkan sees has a backend of its vendor, which is faster.
        gpus = {name: names for name, names in gpus.items() if name != "Vulkan"}
    findings: list[Finding] = []
    for backend in backends():
        names = gpus.get(backend.name, ())
        if backend.registered in registered:
            findings.append(_built_in(backend, names, devices))
        elif names:
            findings += _missing(backend, names, registered, devices, root)
    if findings:
        return tuple(findings)
    return (
        Finding("note", "no GPU is visible, and llama.cpp is built for the CPU alone"),
        *(
            Finding(
                "note",
                f"build {backend.name}, for {backend.gpus}",
                build_command([backend.registered]),
            )
            for backend in backends()
        ),
    )


def _built_in(backend: Backend, names: tuple[str, ...], devices: tuple[Device, ...]) -> Finding:
    usable = [device.description for device in devices if device.backend == backend.registered]
    if usable:
        return Finding("ok", f"{backend.name} is built in and finds {', '.join(usable)}")
    if not names:
        return Finding("note", f"{backend.name} is built in, and no GPU for it is visible")
    problem = (
        f"{backend.name} is built in and does not find {', '.join(names)}: it is hidden, or its "
        f"driver is older than this {backend.name}"
    )
    return Finding("problem", problem, backend.visible or None)


def _missing(
    backend: Backend,
    names: tuple[str, ...],
    registered: tuple[str, ...],
    devices: tuple[Device, ...],
    root: Path,
) -> Iterator[Finding]:
    """A GPU is here, and not the backend for it: a problem, unless another backend uses a GPU."""
    is_used = any(device.type in ("gpu", "igpu") and device.backend != "RPC" for device in devices)
    level: Level = "note" if is_used else "problem"
    yield Finding(
        level,
        f"{', '.join(names)} is here, and llama.cpp is built without {backend.name}",
        build_command([*registered, backend.registered]),
    )
    if backend.compiler is not None and find_compiler(backend.compiler, root) is None:
        yield Finding(
            level,
            f"there is no {backend.compiler} on PATH: to build with {backend.name}, install "
            f"{backend.toolkit} first",
        )


# --- disk


def _disk_free() -> int | None:
    """Bytes free in the current directory, where a conversion would write."""
    try:
        return shutil.disk_usage(Path.cwd()).free
    except OSError:
        return None
