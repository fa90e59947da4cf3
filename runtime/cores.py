"""How many processor cores this process may use.

Promises to respect the process's CPU affinity. Knows nothing of quotas that a container may have.
"""

from __future__ import annotations

from pathlib import Path

from ..quant.cores import usable_cores

MAX_THREADS = 512
"""The most threads that ggml is made for (GGML_MAX_N_THREADS in ggml.h)."""


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
