"""Which cores this process may use. Knows nothing of quotas of a container."""

from __future__ import annotations

import os


def usable_cores() -> set[int]:
    """The hardware threads that this process may run on, by the kernel's numbers."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def available_cores() -> int:
    """How many they are."""
    return len(usable_cores())
