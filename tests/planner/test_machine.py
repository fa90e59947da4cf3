"""Machines: this one, and those that are described."""

from __future__ import annotations

import pytest

from llama4_edge.errors import SettingError
from llama4_edge.planner import machine
from llama4_edge.planner.gpus import GPUS, gpus_named, known_gpu
from llama4_edge.planner.machine import (
    ASSUMED_RAM_BANDWIDTH,
    KEPT_FREE,
    described_machine,
    ram_bandwidth,
    this_machine,
)
from llama4_edge.runtime.workers.remote import connect
from llama4_edge.system.memory import host_memory

GIB = 2**30


def test_every_gpu_is_found_by_its_own_name_and_without_spaces() -> None:
    for gpu in GPUS:
        assert known_gpu(gpu.name) == gpu
        assert known_gpu(gpu.name.replace(" ", "").lower()) == gpu
        assert gpus_named(gpu.name) == (gpu,)
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("rtx-3090", "RTX 3090"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("a6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("Tesla T4", "T4"),
        ("NVIDIA A10G", "A10"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("AMD Instinct MI300X", "MI300X"),
        ("m3 ultra", "M3 Ultra 512GB"),
    ],
)
def test_gpus_are_known_by_what_drivers_and_people_call_them(text: str, meant: str) -> None:
    result = known_gpu(text)
    assert result is not None
    assert result.name == meant


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("h100 x8", ["H100"] * 8),
        ("2x rtx 4090", ["RTX 4090"] * 2),
        ("h100*2, 4090", ["H100", "H100", "RTX 4090"]),
        ("A100 80GB", ["A100 80GB"]),
        ("l40sx4", ["L40S"] * 4),
        ("H100 NVL X2", ["H100 NVL"] * 2),
        ("rx 7900 xtx*2", ["RX 7900 XTX"] * 2),
    ],
)
def test_several_gpus_are_counted(text: str, names: list[str]) -> None:
    assert [gpu.name for gpu in gpus_named(text)] == names


@pytest.mark.parametrize("name", ["", "gtx 9000", "h100 x", "x8", "h100,,4090"])
def test_a_gpu_that_is_not_in_the_table_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match=r"Give vram=BYTES for any other GPU\.$"):
        gpus_named(name)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("rtx4900", "RTX 4090"),
        ("2x mi300", "MI300X"),
        ("rtx 507", "RTX 5070 Ti"),
        ("h100, m4 max 128", "M4 Max 128GB"),
    ],
)
def test_the_gpu_that_was_meant_is_suggested(typed: str, meant: str) -> None:
    with pytest.raises(SettingError) as caught:
        gpus_named(typed)
    hint = caught.value.hint or ""
    assert meant in hint.partition("?")[0]
    assert hint.startswith("Did you mean ") and hint.endswith(
        "? Give vram=BYTES for any other GPU."
    )


def test_no_gpus_at_all_are_refused() -> None:
    with pytest.raises(SettingError, match="number of GPUs is outside its range, found 'h100 x0'"):
        gpus_named("h100 x0")


def test_a_described_machine_has_what_was_described() -> None:
    machine = described_machine(gpus_named("h100, 4090"), [8 * GIB], 64 * GIB)
    assert [gpu.name for gpu in machine.gpus] == ["H100 #0", "RTX 4090 #1", "GPU #2"]
    assert [gpu.usable_bytes for gpu in machine.gpus] == [
        81_559 * 2**20 - KEPT_FREE,
        24_564 * 2**20 - KEPT_FREE,
        8 * GIB - KEPT_FREE,
    ]
    assert [gpu.bandwidth for gpu in machine.gpus] == [3_352 * 10**9, 1_008 * 10**9, None]
    assert (machine.host.usable_bytes, machine.host.bandwidth) == (64 * GIB, ASSUMED_RAM_BANDWIDTH)
    assert machine.described


def test_main_memory_that_is_not_described_is_this_machines() -> None:
    memory = host_memory()
    assert memory is not None
    assert described_machine(gpus_named("h100")).host.total_bytes == memory.total


def test_this_machine_has_its_workers_as_gpus(two_workers: tuple[str, ...]) -> None:
    with connect(two_workers) as workers:
        machine = this_machine(workers)
        chosen = this_machine(workers, ["RPC1"])
    assert [(gpu.name, gpu.endpoint) for gpu in machine.gpus[:2]] == [
        ("RPC0", two_workers[0]),
        ("RPC1", two_workers[1]),
    ]
    # Their speed is nobody's guess, and what they say is free, is.
    assert [(gpu.bandwidth, gpu.kept_free_bytes) for gpu in machine.gpus[:2]] == [(None, 0)] * 2
    assert [gpu.name for gpu in chosen.gpus] == ["RPC1"]
    assert not machine.described


def test_the_bandwidth_of_main_memory_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # The best of all passes, however long one of them takes on a busy machine.
    monkeypatch.setattr(machine, "_LONG_ENOUGH", 600.0)
    ram_bandwidth.cache_clear()
    measured = ram_bandwidth()
    # Slower than a disk or faster than any socket would be a fault in measuring.
    assert 10**8 < measured < 2 * 10**12
    assert ram_bandwidth() == measured
