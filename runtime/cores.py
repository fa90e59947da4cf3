"""How many processor cores this process may use.

Promises to respect the process's CPU affinity. Knows nothing of quotas that a container may have.
"""

from __future__ import annotations

import os
from pathlib import Path


def logical_cores() -> int:
    """The logical cores this process may use."""
    return len(_affinity())


def physical_cores() -> int:
    """The physical cores this process may use; the logical ones where that cannot be read."""
    cores = set()
    for cpu in _affinity():
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            return logical_cores()
    return len(cores)


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))
