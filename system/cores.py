"""How many processor cores this process may use, and how many threads are worth starting.

Promises to respect the process's CPU affinity and the CPU quota of its control groups.
"""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

from .cgroups import ControlGroup, control_groups

MAX_THREADS = 512
"""The most threads that ggml is made for (GGML_MAX_N_THREADS in ggml.h)."""


def logical_cores() -> int:
    """Hardware threads in the process's CPU affinity."""
    return len(_affinity())


def physical_cores(sysfs: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Cores in the process's CPU affinity, siblings counted once; None where it is not known.

    Args:
        sysfs: where Linux describes the cores.
    """
    try:
        siblings = {
            (sysfs / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
            for cpu in _affinity()
        }
    except OSError:
        import psutil

        # It counts the whole machine, which is right where there is no affinity.
        return None if hasattr(os, "sched_getaffinity") else psutil.cpu_count(logical=False)
    return len(siblings)


def cpu_quota(root: Path = Path("/")) -> tuple[float, str] | None:
    """Cores' worth of time that the control groups leave this process, and the file that says so;
    None where there is no quota.

    Args:
        root: where /proc and /sys are looked for.
    """
    quotas = [
        (cores, source)
        for group in control_groups("cpu", root)
        for cores, source in (_quota(group),)
        if cores is not None
    ]
    return min(quotas, default=None)


def usable_threads(root: Path = Path("/")) -> int:
    """Threads that can compute at the same time: CPU affinity and quota, the quota rounded up.

    More of them would wait for each other while the quota is used up.
    """
    return _within_quota(logical_cores(), root)


def decoding_threads(root: Path = Path("/")) -> int:
    """The same with one thread a core: decoding waits for memory, which siblings share."""
    return _within_quota(physical_cores() or logical_cores(), root)


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name as Linux knows it, elsewhere as Python does."""
    return _linux_cpu_model(cpuinfo) or platform.processor() or platform.machine()


def described_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name for people, which takes a second where Linux does not know it."""
    name = _linux_cpu_model(cpuinfo)
    if not name:
        from cpuinfo import get_cpu_info

        name = str(get_cpu_info().get("brand_raw", ""))
    return name or cpu_model(cpuinfo)


def _linux_cpu_model(cpuinfo: Path) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")


def _within_quota(threads: int, root: Path) -> int:
    quota = cpu_quota(root)
    if quota is not None:
        threads = min(threads, max(1, math.ceil(quota[0])))
    return min(threads, MAX_THREADS)


def _affinity() -> set[int]:
    """The hardware threads that this process may run on, by the kernel's numbers."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _quota(group: ControlGroup) -> tuple[float | None, str]:
    """Cores' worth of time that one group has, and the file that says so."""
    if group.version == 2:
        name = "cpu.max"  # "150000 100000", or "max 100000"
        quota, _, period = (group.read(name) or "").partition(" ")
    else:
        name = "cpu.cfs_quota_us"  # -1 for none
        quota, period = group.read(name) or "", group.read("cpu.cfs_period_us") or ""
    source = str(group.directory / name)
    if not (quota.isdecimal() and period.isdecimal()) or int(period) == 0:
        return None, source
    return int(quota) / int(period), source
