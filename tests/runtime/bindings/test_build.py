from __future__ import annotations

import re
import sys

import pytest

from llama4_edge.runtime.bindings.build import BACKENDS, build_command

PIP = (
    "python3 -m pip install --force-reinstall --no-deps --no-cache-dir "
    "--no-binary llama-cpp-python llama-cpp-python==0.3.36"
)
GCC = 'CXXFLAGS="-fno-dse -fno-tree-dse" '


@pytest.fixture(autouse=True)
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "executable", "python3")


@pytest.mark.parametrize(
    ("backends", "command"),
    [
        ((), f'CMAKE_ARGS="-DGGML_RPC=ON" {GCC}{PIP}'),
        (("CUDA",), f'CMAKE_ARGS="-DGGML_RPC=ON -DGGML_CUDA=ON" {GCC}{PIP}'),
        (("Vulkan",), f'CMAKE_ARGS="-DGGML_RPC=ON -DGGML_VULKAN=ON" {GCC}{PIP}'),
        (
            ("ROCm",),
            'HIPCXX="$(hipconfig -l)/clang" HIP_PATH="$(hipconfig -R)" '
            f'CMAKE_ARGS="-DGGML_RPC=ON -DGGML_HIP=ON" {GCC}{PIP}',
        ),
        # Intel's compilers are built on Clang, which does not know GCC's flags.
        (
            ("SYCL",),
            'source /opt/intel/oneapi/setvars.sh; CMAKE_ARGS="-DGGML_RPC=ON -DGGML_SYCL=ON '
            f'-DCMAKE_C_COMPILER=icx -DCMAKE_CXX_COMPILER=icpx" {PIP}',
        ),
        (
            ("RPC", "CUDA", "CPU", "Vulkan"),
            f'CMAKE_ARGS="-DGGML_RPC=ON -DGGML_CUDA=ON -DGGML_VULKAN=ON" {GCC}{PIP}',
        ),
    ],
)
def test_each_backend_is_built_as_llama_cpps_documentation_says(
    backends: tuple[str, ...], command: str
) -> None:
    assert build_command(backends) == command


def test_scripts_are_sourced_before_variables_are_set() -> None:
    command = build_command(("ROCm", "SYCL"))
    assert command.startswith("source /opt/intel/oneapi/setvars.sh; HIPCXX=")


def test_a_mac_needs_no_option_for_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert build_command(["MTL"]) == build_command() == f'CMAKE_ARGS="-DGGML_RPC=ON" {PIP}'


def test_the_command_names_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/my home/bin/python3")
    assert " '/my home/bin/python3' -m pip install " in build_command()


def test_every_backend_has_an_option_a_compiler_and_a_way_to_look() -> None:
    for backend in BACKENDS:
        assert re.match(r"-DGGML_[A-Z]+=ON", backend.option)
        assert backend.compiler and backend.toolkit and backend.visible
