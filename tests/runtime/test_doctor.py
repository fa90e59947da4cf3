from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from llama4_edge.errors import EngineError
from llama4_edge.runtime import doctor as doctor_module
from llama4_edge.runtime.bindings.amx import AMXState
from llama4_edge.runtime.bindings.build import build_command
from llama4_edge.runtime.bindings.devices import Device
from llama4_edge.runtime.bindings.library import library_info
from llama4_edge.runtime.doctor import Diagnosis, Finding, doctor, gpu_findings
from llama4_edge.runtime.hardware import find_compiler, visible_gpus

_SAFE = AMXState(False, True, False, "the library was built without AMX")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **output: str) -> Path:
    """A PATH on which only these programs are, each of which prints its text."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name, text in output.items():
        (directory / name).write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{text}END\n")
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr("llama4_edge.runtime.hardware._TIMEOUT", 600.0)
    monkeypatch.delenv("CUDACXX", raising=False)
    return directory


def _levels(found: Diagnosis) -> set[str]:
    return {finding.level for finding in found.findings}


def test_a_working_machine_is_described() -> None:
    found = doctor()
    assert found.library == library_info()
    assert found.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    for name in ("llama4-edge", "llama-cpp-python", "gguf", "numpy"):
        assert found.versions[name] == version(name)
    assert found.cpu.logical_cores == len(os.sched_getaffinity(0))
    assert found.cpu.physical_cores is None or (
        1 <= found.cpu.physical_cores <= found.cpu.logical_cores
    )
    assert 1 <= found.cpu.usable_threads <= found.cpu.logical_cores
    assert found.cpu.model and found.cpu.features
    assert [device.type for device in found.devices].count("cpu") == 1
    assert found.disk_free_bytes is not None and found.disk_free_bytes > 0
    assert found.amx is not None and found.amx.reason


def test_a_diagnosis_is_ready_for_json() -> None:
    found = doctor()
    fields = json.loads(json.dumps(found.as_dict()))
    assert fields["healthy"] is found.healthy
    assert fields["library"]["rpc"] is library_info().rpc
    assert [finding["what"] for finding in fields["findings"]] == [f.what for f in found.findings]
    assert fields["devices"][0]["name"] == found.devices[0].name


def test_a_library_that_does_not_load_is_a_problem_with_its_cure(tmp_path: Path) -> None:
    script = (
        "import json\n"
        "from llama4_edge.runtime.doctor import doctor\n"
        "print(json.dumps(doctor().as_dict()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": "/usr/bin:/bin", "LLAMA_CPP_LIB_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    fields = json.loads(done.stdout)
    assert fields["healthy"] is False
    assert (fields["library"], fields["amx"], fields["devices"]) == (None, None, [])
    assert fields["cpu"]["logical_cores"] >= 1
    (problem,) = [one for one in fields["findings"] if "cannot be loaded" in one["what"]]
    assert problem["level"] == "problem" and problem["fix"] == build_command()


def test_an_error_of_the_library_never_leaves_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise EngineError("the library is odd", found="nothing")

    monkeypatch.setattr(doctor_module, "system_info", broken)
    found = doctor()
    assert Finding("problem", "the library is odd: nothing", build_command()) in found.findings


NVIDIA_SMI = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5a1b)
GPU 1: NVIDIA GeForce RTX 4090 (UUID: GPU-6c2d)
"""
ROCMINFO = """\
ROCk module is loaded
*******
Agent 1
*******
  Name:                    AMD EPYC 9175F 16-Core Processor
  Marketing Name:          AMD EPYC 9175F 16-Core Processor
  Device Type:             CPU
*******
Agent 2
*******
  Name:                    gfx1100
  Marketing Name:          AMD Radeon RX 7900 XTX
  Device Type:             GPU
"""
SYCL_LS = """\
[level_zero:gpu][level_zero:0] Intel(R) oneAPI Unified Runtime over Level-Zero, Intel(R) Arc(TM) A770 Graphics 12.55.8 [1.3.29735+27]
[opencl:cpu][opencl:0] Intel(R) OpenCL, 13th Gen Intel(R) Core(TM) i5-13400 OpenCL 3.0 (Build 0) [2025.20.8.0.06_160000]
[opencl:gpu][opencl:1] Intel(R) OpenCL Graphics, Intel(R) Arc(TM) A770 Graphics OpenCL 3.0 NEO  [24.39.31294]
"""  # noqa: E501
VULKANINFO = """\
VULKANINFO
Devices:
========
GPU0:
\tapiVersion         = 1.3.274
\tdeviceType         = PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU
\tdeviceName         = AMD Radeon 8060S (RADV GFX1151)
GPU1:
\tdeviceType         = PHYSICAL_DEVICE_TYPE_CPU
\tdeviceName         = llvmpipe (LLVM 15.0.7, 256 bits)
"""
TOOLS = {
    "CUDA": ("nvidia-smi", NVIDIA_SMI, ("NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090")),
    "ROCm": ("rocminfo", ROCMINFO, ("AMD Radeon RX 7900 XTX",)),
    "SYCL": ("sycl-ls", SYCL_LS, ("Intel(R) Arc(TM) A770 Graphics",)),
    "Vulkan": ("vulkaninfo", VULKANINFO, ("AMD Radeon 8060S (RADV GFX1151)",)),
}
COMPILERS = {"CUDA": "nvcc", "ROCm": "hipconfig", "SYCL": "icpx", "Vulkan": "glslc"}


@pytest.mark.parametrize("backend", TOOLS)
def test_the_drivers_own_tool_names_its_gpus(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, output, names = TOOLS[backend]
    _programs(tmp_path, monkeypatch, **{tool: output})
    assert visible_gpus(tmp_path) == {backend: names}


def test_a_tool_that_fails_or_hangs_has_seen_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = _programs(tmp_path, monkeypatch, **{"nvidia-smi": NVIDIA_SMI, "rocminfo": ""})
    monkeypatch.setattr("llama4_edge.runtime.hardware._TIMEOUT", 0.2)
    with (directory / "nvidia-smi").open("a") as script:
        script.write("exit 9\n")
    (directory / "rocminfo").write_text("#!/bin/sh\nread _ < /dev/zero\n")
    assert visible_gpus(tmp_path) == {}


@pytest.mark.parametrize("backend", TOOLS)
def test_a_gpu_without_its_backend_is_a_problem_with_the_build_command(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, output, names = TOOLS[backend]
    _programs(tmp_path, monkeypatch, **{tool: output, COMPILERS[backend]: ""})
    (finding,) = gpu_findings(("CPU", "RPC"), root=tmp_path)
    what = f"{', '.join(names)} is here, and llama.cpp is built without {backend}"
    assert finding == Finding("problem", what, build_command([backend]))


@pytest.mark.parametrize("backend", TOOLS)
def test_a_missing_toolkit_is_said_after_the_build_command(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, output, _ = TOOLS[backend]
    _programs(tmp_path, monkeypatch, **{tool: output})
    _, toolkit = gpu_findings(("CPU",), root=tmp_path)
    assert toolkit.level == "problem"
    assert toolkit.what.startswith(f"there is no {COMPILERS[backend]} on PATH: to build with")


@pytest.mark.parametrize(("path", "backend"), [("proc/driver/nvidia", "CUDA"), ("dev/kfd", "ROCm")])
def test_a_driver_without_its_tool_is_a_gpu_too(
    path: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _programs(tmp_path, monkeypatch)
    (tmp_path / path).mkdir(parents=True)
    finding, _ = gpu_findings(("CPU",), root=tmp_path)
    assert finding.fix == build_command([backend])


def test_a_gpu_that_two_tools_see_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _programs(
        tmp_path, monkeypatch, rocminfo=ROCMINFO, vulkaninfo=VULKANINFO, glslc="", hipconfig=""
    )
    (finding,) = gpu_findings(("CPU",), root=tmp_path)
    assert "without ROCm" in finding.what


def test_a_gpu_that_another_backend_uses_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _programs(tmp_path, monkeypatch, rocminfo=ROCMINFO, vulkaninfo=VULKANINFO, hipconfig="")
    gpu = Device("Vulkan0", "AMD Radeon RX 7900 XTX", "gpu", "Vulkan", 24 * 2**30, 23 * 2**30, "")
    rocm, vulkan = gpu_findings(("Vulkan", "CPU"), (gpu,), tmp_path)
    assert (vulkan.level, rocm.level) == ("ok", "note")
    assert rocm.fix == build_command(["Vulkan", "ROCm"])


def test_without_a_gpu_every_build_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _programs(tmp_path, monkeypatch)
    first, *builds = gpu_findings(("CPU",), root=tmp_path)
    assert first == Finding("note", "no GPU is visible, and llama.cpp is built for the CPU alone")
    assert [one.level for one in builds] == ["note"] * 4
    assert [one.fix for one in builds] == [
        build_command([name]) for name in ("CUDA", "ROCm", "SYCL", "Vulkan")
    ]


def test_on_a_mac_metal_is_built_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _programs(tmp_path, monkeypatch)
    monkeypatch.setattr(sys, "platform", "darwin")
    gpu = Device("MTL0", "Apple M4 Max", "gpu", "MTL", 96 * 2**30, 90 * 2**30, "ggml")
    assert gpu_findings(("MTL", "CPU"), (gpu,), tmp_path) == (
        Finding("ok", "Metal is built in and finds Apple M4 Max"),
    )
    (missing,) = gpu_findings(("CPU",), (), tmp_path)
    assert missing.level == "problem" and missing.fix == build_command(["MTL"])
    assert "CXXFLAGS" not in build_command()


@pytest.mark.parametrize(
    ("backend", "tool"), [("CUDA", "nvidia-smi"), ("SYCL", "sycl-ls"), ("Vulkan", "vulkaninfo")]
)
def test_a_backend_is_well_when_it_finds_a_gpu(
    backend: str, tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _programs(tmp_path, monkeypatch)
    backends = (backend, "CPU")
    gpu = Device(f"{backend}0", "A GPU", "gpu", backend, 80 * 2**30, 79 * 2**30, "ggml")
    assert gpu_findings(backends, (gpu,), tmp_path) == (
        Finding("ok", f"{backend} is built in and finds A GPU"),
    )
    assert gpu_findings(backends, (), tmp_path) == (
        Finding("note", f"{backend} is built in, and no GPU for it is visible"),
    )
    shutil.rmtree(tmp_path / "bin")
    _programs(tmp_path, monkeypatch, **{tool: TOOLS[backend][1]})
    (hidden,) = gpu_findings(backends, (), tmp_path)
    assert hidden.level == "problem" and "it is hidden, or its driver" in hidden.what
    assert str(hidden.fix).startswith("unset ") and tool in str(hidden.fix)


def test_nvcc_is_looked_for_where_cmake_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _programs(tmp_path, monkeypatch, **{"nvcc-12": ""})
    assert find_compiler("nvcc", tmp_path) is None
    usual = tmp_path / "usr/local/cuda/bin/nvcc"
    usual.parent.mkdir(parents=True)
    usual.touch()
    assert find_compiler("nvcc", tmp_path) == str(usual)
    monkeypatch.setenv("CUDACXX", "nvcc-12")
    assert find_compiler("nvcc", tmp_path) == str(tmp_path / "bin/nvcc-12")


def test_a_cpu_quota_is_said_with_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "cpu_quota", lambda: (1.5, "/sys/fs/cgroup/cpu.max"))
    what = "a CPU quota leaves the time of 1.5 cores (/sys/fs/cgroup/cpu.max); "
    (finding,) = [one for one in doctor().findings if one.what.startswith(what)]
    assert finding.level == "note"


def test_broken_amx_is_a_problem_and_working_amx_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for state, level in (
        (_SAFE, "ok"),
        (AMXState(True, True, True, "a trial prompt succeeded"), "ok"),
        (AMXState(True, False, False, "a trial prompt ended with SIGSEGV"), "problem"),
    ):
        monkeypatch.setattr(doctor_module, "extra_buffers_are_safe", lambda state=state: state)
        (finding,) = [one for one in doctor().findings if "AMX" in one.what]
        assert finding.level == level
        assert state.reason in finding.what
        assert (finding.fix is not None) is (level == "problem")


def test_a_library_without_rpc_or_of_another_version_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = replace(library_info(), rpc=False, llama_cpp_python="0.3.2", backends=("CUDA", "CPU"))
    monkeypatch.setattr(doctor_module, "library_info", lambda: other)
    monkeypatch.setattr(doctor_module, "has_mtmd", lambda: False)
    found = {finding.what.split(" ")[0]: finding for finding in doctor().findings}
    assert (found["RPC"].level, found["RPC"].fix) == ("note", build_command(["CUDA"]))
    assert (found["mtmd"].level, found["mtmd"].fix) == ("note", build_command(["CUDA"]))
    assert found["llama-cpp-python"].level == "problem"
    assert "is 0.3.2" in found["llama-cpp-python"].what


def test_a_missing_package_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_PACKAGES", ("no-such-package",))
    found = doctor()
    assert found.versions["no-such-package"] is None
    expected = Finding(
        "problem",
        "no-such-package is not installed",
        f"{sys.executable} -m pip install no-such-package",
    )
    assert expected in found.findings
    assert not found.healthy and "problem" in _levels(found)
