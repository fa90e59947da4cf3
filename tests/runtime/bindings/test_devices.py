from __future__ import annotations

import os

import pytest

from llama4_edge.errors import EngineError
from llama4_edge.runtime.bindings import devices
from llama4_edge.runtime.bindings.devices import (
    NativeDevice,
    believable,
    list_devices,
)
from llama4_edge.system.memory import host_memory

_GIB = 2**30


def test_nonsense_of_a_backend_is_not_believed() -> None:
    assert believable(80 * _GIB, 70 * _GIB) == (80 * _GIB, 70 * _GIB)
    assert believable(80 * _GIB, 0) == (80 * _GIB, 0)
    assert believable(0, 0) == (None, None)
    assert believable(80 * _GIB, 2**64 - 4096) == (80 * _GIB, None)
    assert believable(2**64 - 4096, 2**64 - 4096) == (None, None)


def test_the_cpu_is_listed_with_the_memory_of_this_process() -> None:
    (cpu,) = [device for device in list_devices() if device.type == "cpu"]
    host = host_memory()
    assert host is not None
    assert (cpu.name, cpu.backend) == ("CPU", "CPU")
    assert cpu.description
    assert (cpu.total_bytes, cpu.memory_source) == (host.total, host.source)
    assert cpu.free_bytes is not None and 0 < cpu.free_bytes <= host.total


def test_a_fork_is_refused_the_cuda_that_its_parent_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_process", os.getpid() + 1)
    assert [device.name for device in list_devices()] == ["CPU"]
    monkeypatch.setattr(devices, "_backend_of", lambda _handle: "CUDA")
    with pytest.raises(EngineError, match=r"in a fork of a process .* method \"spawn\""):
        list_devices()


@pytest.mark.parametrize(
    ("types", "chosen"),
    [
        (("cpu",), []),
        (("cpu", "accel"), []),
        (("gpu", "cpu", "gpu"), ["D0", "D2"]),
        (("igpu", "cpu"), ["D0"]),
        (("igpu", "gpu"), ["D1"]),
    ],
)
def test_layers_are_shared_among_gpus_or_else_integrated_ones(
    monkeypatch: pytest.MonkeyPatch, types: tuple[str, ...], chosen: list[str]
) -> None:
    monkeypatch.setattr(devices, "_handles", lambda: range(len(types)))
    monkeypatch.setattr(devices, "_type_of", lambda handle: types[handle])
    monkeypatch.setattr(devices, "_name_of", lambda handle: f"D{handle}")
    monkeypatch.setattr(
        devices, "native_device", lambda name, handle: NativeDevice(name, handle, 0, name)
    )
    assert [one.name for one in devices.offload_devices()] == chosen
