"""Main memory that this process can have.

What the operating system calls available, or what the control group of this process has left,
whichever is less.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .cgroups import ControlGroup, control_groups

# How version 1 says "no limit": the largest page-aligned number.
_NO_LIMIT = 2**60


@dataclass(frozen=True)
class HostMemory:
    """Main memory that this process can have, in bytes, and who said so."""

    total: int
    free: int
    source: str


def host_memory(root: Path = Path("/")) -> HostMemory:
    """What the operating system and the control groups leave this process.

    Args:
        root: where /proc and /sys are looked for, which name the control groups.
    """
    import psutil  # 10 ms, which `llama4 --help` does without

    machine = psutil.virtual_memory()
    memory = HostMemory(machine.total, machine.available, "operating system")
    for limit, left, source in _cgroup_limits(root):
        if limit < memory.total or left < memory.free:
            least = min(left, memory.free)
            memory = HostMemory(
                min(limit, memory.total), least, source if least == left else memory.source
            )
    return memory


def address_space_left() -> int | None:
    """Bytes that this process may still map (``ulimit -v``); None where nothing limits them."""
    if sys.platform != "linux":
        return None
    import resource

    import psutil

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    return max(0, limit - int(psutil.Process().memory_info().vms))


def machine_memory() -> int:
    """Bytes of main memory that the operating system has, whatever limits this process."""
    import psutil

    return int(psutil.virtual_memory().total)


def carve_out(root: Path = Path("/")) -> tuple[int, int] | None:
    """Bytes that the firmware has set aside for the integrated GPU of an AMD processor, and how
    many of them are in use: they are no part of main memory. None where Linux's driver reports
    none, or has several GPUs.

    Args:
        root: where /sys is looked for.
    """
    files = list(root.glob("sys/class/drm/card*/device/mem_info_vram_total"))
    if len(files) != 1:
        return None
    try:
        total = files[0].read_text(encoding="ascii")
        used = (files[0].parent / "mem_info_vram_used").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    numbers = _number(total.strip()), _number(used.strip())
    return None if None in numbers else (numbers[0] or 0, numbers[1] or 0)


def lockable_bytes() -> int | None:
    """Bytes that this process may lock in memory (``ulimit -l``); None where nothing limits it."""
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if limit == resource.RLIM_INFINITY or _may_lock_all() else limit


_CAP_IPC_LOCK = 14  # capabilities(7)


def _may_lock_all() -> bool:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    effective = next((line for line in status.splitlines() if line.startswith("CapEff:")), "0 0")
    return bool(int(effective.split()[1], 16) >> _CAP_IPC_LOCK & 1)


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int, str]]:
    """Limit, bytes left and file of each control group around this process that has a limit."""
    for group in control_groups("memory", root):
        if group.version == 2:
            limit_file, usage_file, cached = "memory.max", "memory.current", "inactive_file"
        else:
            limit_file, usage_file = "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        limit, used = _number(group.read(limit_file)), _number(group.read(usage_file))
        if limit is None or used is None or limit >= _NO_LIMIT:
            continue
        # The page cache counts as used, and is dropped when memory is wanted.
        used -= _statistic(group, cached)
        yield limit, max(limit - max(used, 0), 0), str(group.directory / limit_file)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _statistic(group: ControlGroup, name: str) -> int:
    try:
        fields = dict(line.split() for line in (group.read("memory.stat") or "").splitlines())
        return int(fields.get(name, 0))
    except ValueError:
        return 0
