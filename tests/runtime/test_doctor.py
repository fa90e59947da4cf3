from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from llama4_edge.errors import EngineError
from llama4_edge.runtime import doctor as doctor_module
from llama4_edge.runtime.bindings.amx import AMXState
from llama4_edge.runtime.bindings.devices import Device
from llama4_edge.runtime.bindings.library import build_command, library_info
from llama4_edge.runtime.doctor import Diagnosis, Finding, doctor, find_nvcc, gpu_findings

_SAFE = AMXState(False, True, False, "the library was built without AMX")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """A PATH on which only these programs are."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in names:
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.delenv("CUDACXX", raising=False)


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


def test_a_gpu_without_cuda_is_a_problem_with_the_build_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _programs(tmp_path, monkeypatch, "nvcc")
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (finding,) = gpu_findings(("CPU", "RPC"), root=tmp_path)
    assert finding.level == "problem"
    assert finding.fix == build_command(cuda=True)
    assert 'CMAKE_ARGS="-DGGML_RPC=ON -DGGML_CUDA=ON"' in str(finding.fix)


def test_a_gpu_seen_only_by_its_tool_counts_and_a_missing_nvcc_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _programs(tmp_path, monkeypatch, "nvidia-smi")
    cuda, toolkit = gpu_findings(("CPU",), root=tmp_path)
    assert (cuda.level, toolkit.level) == ("problem", "problem")
    assert "there is no nvcc" in toolkit.what
    assert toolkit.fix == "sudo apt-get install nvidia-cuda-toolkit"


def test_without_a_gpu_the_cuda_build_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _programs(tmp_path, monkeypatch)
    (finding,) = gpu_findings(("CPU",), root=tmp_path)
    assert (finding.level, finding.fix) == ("note", build_command(cuda=True))


def test_cuda_is_well_when_it_finds_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _programs(tmp_path, monkeypatch)
    backends = ("CUDA", "CPU")
    gpu = Device("CUDA0", "NVIDIA H100", "gpu", "CUDA", 80 * 2**30, 79 * 2**30, "ggml")
    (found,) = gpu_findings(backends, (gpu,), tmp_path)
    assert (found.level, found.fix) == ("ok", None)
    (absent,) = gpu_findings(backends, (), tmp_path)
    assert (absent.level, absent.fix) == ("note", None)
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (hidden,) = gpu_findings(backends, (), tmp_path)
    assert hidden.level == "problem" and "driver" in hidden.what


def test_nvcc_is_looked_for_where_cmake_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _programs(tmp_path, monkeypatch)
    assert find_nvcc(tmp_path) is None
    usual = tmp_path / "usr/local/cuda/bin/nvcc"
    usual.parent.mkdir(parents=True)
    usual.touch()
    assert find_nvcc(tmp_path) == str(usual)
    (tmp_path / "bin/nvcc-12").write_text("#!/bin/sh\n")
    (tmp_path / "bin/nvcc-12").chmod(0o755)
    monkeypatch.setenv("CUDACXX", "nvcc-12")
    assert find_nvcc(tmp_path) == str(tmp_path / "bin/nvcc-12")


def test_broken_amx_is_a_problem_and_working_amx_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for state, level in (
        (_SAFE, "ok"),
        (AMXState(True, True, True, "a trial prompt came through"), "ok"),
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
    found = {finding.what.split(" ")[0]: finding for finding in doctor().findings}
    assert (found["RPC"].level, found["RPC"].fix) == ("note", build_command(cuda=True))
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
