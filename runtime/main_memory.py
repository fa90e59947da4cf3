"""What main memory has room for, asked before a model is loaded.

Promises that a context which cannot be held is refused, instead of ending in the kernel killing the
process, and that weights which stay on the disk are announced. Knows nothing of GPUs.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace

from ..errors import AllocationError
from ..system.memory import HostMemory, host_memory, lockable_bytes
from ..units import bytes_text, told_apart
from .bindings.devices import offload_devices
from .bindings.library import CapturedLog
from .bindings.memory import DeviceMemory, measure
from .placement import CPU
from .settings import EngineSettings
from .workers.remote import connect

logger = logging.getLogger(__name__)


def has_gpus(devices: Sequence[str] | None, workers: Sequence[str]) -> bool:
    """Whether there is a GPU, here or at a worker, that layers could go to.

    Args:
        devices: names of the devices to use; None is all, none at all is the CPU alone.
    """
    return (devices is None or len(devices) > 0) and bool(workers or offload_devices())


def host_need(path: str | os.PathLike[str], settings: EngineSettings) -> DeviceMemory:
    """Bytes of main memory that a model takes with these settings, as llama.cpp counts them.

    Raises:
        SettingError: the settings name a device that is not here.
        EngineError: llama.cpp refuses the model.
    """
    with connect(settings.workers) as workers:
        report = workers.run(lambda: measure(path, settings, workers.native_devices))
    return report.on(CPU)


def usual_cache(left: int) -> int:
    """The `cache_ram` of a model for which none was chosen.

    8 GiB, as llama.cpp takes, but no more than a quarter of what is left of main memory.

    Args:
        left: bytes that are free beside the model, all of whose weights have to stay in memory.
    """
    return min(8 << 30, max(0, left) // 4)


def settings_that_fit(
    path: str | os.PathLike[str],
    settings: EngineSettings,
    need: DeviceMemory,
    memory: HostMemory | None = None,
) -> EngineSettings:
    """The settings, where main memory can hold the context; not repacking where weights do not fit.

    Weights that are mapped from the file need not be in memory all at once: a warning says how
    much of them has no place. Repacked ones have to be, and are mapped instead; so have all of them
    where the file is not to be mapped.

    Args:
        need: bytes that the model takes of main memory.
        memory: what this process can have; None asks the kernel and the cgroups.

    Raises:
        AllocationError: the KV cache and the compute buffers alone are more than is free; or the
            weights too, which are not mapped, or locked; or more would be locked than may be.
    """
    memory = memory or host_memory()
    context = need.kv + need.compute + need.adapters
    if context > memory.free:
        found, free = told_apart(context, memory.free)
        what, hint = f"a context of {settings.n_ctx:,} tokens does", "Lower n_ctx"
        if (count := settings.n_parallel) > 1:
            what, hint = (
                f"{count} contexts of {settings.n_ctx:,} tokens do",
                f"{hint} or n_parallel",
            )
        raise AllocationError(
            f"{os.fspath(path)}: {what} not fit into main memory",
            found=f"{found} for the KV cache and the compute buffers",
            expected=f"at most {free} ({memory.source})",
            hint=f'{hint}, or give n_ctx="max" for the longest context that fits.',
        )
    if settings.locked:
        _check_lock(path, settings, need.weights)
    short = need.weights + context - memory.free
    if short <= 0:
        return settings
    if not settings.mapped or settings.locked:
        found, free = told_apart(need.weights + context, memory.free)
        raise AllocationError(
            f"{os.fspath(path)}: the model does not fit into main memory with "
            f"load_mode={settings.load_mode}",
            found=f"{found} for the weights, the KV cache and the compute buffers",
            expected=f"at most {free} ({memory.source})",
            hint="Give load_mode=mmap: of weights that are mapped, only what has room is in "
            "memory.",
        )
    free, whole = told_apart(memory.free, need.weights + context)
    logger.warning(
        "%s: %s of the weights are read from the disk again for every token: main memory has %s "
        "free, and the model takes %s",
        os.fspath(path),
        bytes_text(short),
        free,
        whole,
    )
    return replace(settings, use_extra_bufts=False)


def _check_lock(path: str | os.PathLike[str], settings: EngineSettings, nbytes: int) -> None:
    limit = lockable_bytes()
    if limit is not None and nbytes > limit:
        found, most = told_apart(nbytes, limit)
        raise AllocationError(
            f"{os.fspath(path)}: load_mode={settings.load_mode} locks more memory than this "
            "process may",
            found=f"{found} of weights",
            expected=f"at most {most} (RLIMIT_MEMLOCK)",
            hint=_RAISE_LIMIT,
        )


_RAISE_LIMIT = "Raise the limit (ulimit -l unlimited), or give load_mode=auto."


def check_loaded(path: str | os.PathLike[str], log: CapturedLog) -> None:
    """Whether a file was loaded as its ``load_mode`` says; llama.cpp goes on where it was not.

    Where it was not read past the page cache, a warning says so.

    Args:
        log: what llama.cpp logged while loading.

    Raises:
        AllocationError: weights were to be locked in memory, and are not.
    """
    for line in (one.text for one in log.lines):
        if _NOT_LOCKED.search(line):
            raise AllocationError(
                f"{os.fspath(path)}: the weights are not locked in memory",
                found=line.removeprefix("warning: "),
                hint=_RAISE_LIMIT,
            )
        if _NOT_DIRECT in line:
            logger.warning("%s: direct I/O is not possible there: %s", os.fspath(path), line)


# llama-mmap.cpp
_NOT_LOCKED = re.compile(r"failed to (mlock|VirtualLock)|mlock not supported")
_NOT_DIRECT = "Falling back to buffered I/O"
