"""How many processor cores this process may use.

Promises to respect the process's CPU affinity. Knows nothing of quotas that a container may have.
"""

from __future__ import annotations

import os
from pathlib import Path

MAX_THREADS = 512
"""The most threads that ggml is made for (GGML_MAX_N_THREADS in ggml.h)."""


def usable_cores() -> set[int]:
    """The hardware threads that this process may run on, by the kernel's numbers."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def logical_cores() -> int:
    """Hardware threads that this process may run on."""
    return len(usable_cores())


def physical_cores(sysfs: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Cores that this process may run on, siblings counted once; None where it is not known.

    Args:
        sysfs: where the kernel describes the cores.
    """
    try:
        siblings = {
            (sysfs / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
            for cpu in usable_cores()
        }
    except OSError:
        return None
    return len(siblings)
