from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from llama4_edge.system.memory import HostMemory, carve_out, host_memory, machine_memory

_GIB = 2**30


@pytest.fixture(autouse=True)
def _sixty_four_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 64 GiB of memory, 48 of them available."""
    memory = SimpleNamespace(total=64 * _GIB, available=48 * _GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def _machine(root: Path, *, cgroup: str = "", files: dict[str, object] | None = None) -> Path:
    """A root directory with these control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, content in (files or {}).items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def test_without_a_limit_the_operating_system_is_believed(tmp_path: Path) -> None:
    root = _machine(tmp_path, cgroup="0::/\n")
    assert host_memory(root) == HostMemory(64 * _GIB, 48 * _GIB, "operating system")


def test_a_machine_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert host_memory(tmp_path) == HostMemory(64 * _GIB, 48 * _GIB, "operating system")


def test_a_limit_of_version_2_counts_and_page_cache_does_not(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        cgroup="0::/\n",
        files={
            "memory.max": 16 * _GIB,
            "memory.current": 10 * _GIB,
            "memory.stat": f"anon 5\ninactive_file {4 * _GIB}",
        },
    )
    source = str(root / "sys/fs/cgroup/memory.max")
    assert host_memory(root) == HostMemory(16 * _GIB, 10 * _GIB, source)


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        cgroup="0::/user/app\n",
        files={
            "user/app/memory.max": "max",
            "user/app/memory.current": _GIB,
            "user/memory.max": 20 * _GIB,
            "user/memory.current": 18 * _GIB,
        },
    )
    found = host_memory(root)
    assert found == HostMemory(20 * _GIB, 2 * _GIB, str(root / "sys/fs/cgroup/user/memory.max"))


def test_a_limit_of_version_1_counts_and_its_word_for_none_does_not(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "memory/box/memory.limit_in_bytes": 8 * _GIB,
        "memory/box/memory.usage_in_bytes": 3 * _GIB,
        "memory/box/memory.stat": f"total_inactive_file {_GIB}",
        "memory/memory.limit_in_bytes": 2**63 - 4096,
        "memory/memory.usage_in_bytes": 30 * _GIB,
    }
    root = _machine(tmp_path, cgroup="5:cpu,cpuacct:/box\n4:memory:/box\n", files=files)
    source = str(root / "sys/fs/cgroup/memory/box/memory.limit_in_bytes")
    assert host_memory(root) == HostMemory(8 * _GIB, 6 * _GIB, source)


def test_a_limit_above_what_is_available_leaves_the_kernels_number(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        cgroup="0::/\n",
        files={"memory.max": 60 * _GIB, "memory.current": _GIB},
    )
    assert host_memory(root) == HostMemory(60 * _GIB, 48 * _GIB, "operating system")


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    root = _machine(
        tmp_path, cgroup="0::/\n", files={"memory.max": _GIB, "memory.current": 2 * _GIB}
    )
    assert host_memory(root).free == 0


def test_this_machine_has_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    memory = host_memory()
    assert 0 < memory.free <= memory.total <= psutil.virtual_memory().total


def _amd(root: Path, number: int, total: object, used: object) -> None:
    card = root / f"sys/class/drm/card{number}/device"
    card.mkdir(parents=True)
    (card / "mem_info_vram_total").write_text(f"{total}\n")
    (card / "mem_info_vram_used").write_text(f"{used}\n")


def test_what_the_firmware_sets_aside_is_read_from_amds_driver(tmp_path: Path) -> None:
    assert carve_out(tmp_path) is None
    _amd(tmp_path, 1, 96 * _GIB, _GIB)
    assert carve_out(tmp_path) == (96 * _GIB, _GIB)
    # With several, one of them has a memory of its own.
    _amd(tmp_path, 2, 24 * _GIB, 0)
    assert carve_out(tmp_path) is None


def test_a_driver_that_says_no_number_sets_nothing_aside(tmp_path: Path) -> None:
    _amd(tmp_path, 0, "n/a", 0)
    assert carve_out(tmp_path) is None


def test_the_machines_memory_is_the_operating_systems() -> None:
    assert machine_memory() == 64 * _GIB
