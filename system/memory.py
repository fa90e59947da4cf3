"""Main memory that this process can have.

What the kernel calls available, or what the control group of this process has left, whichever is
less. Promises that no number is made up: None where nobody says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class HostMemory:
    """Main memory that this process can have, in bytes, and who said so."""

    total: int
    free: int
    source: str


def host_memory(root: Path = Path("/")) -> HostMemory | None:
    """What the kernel and the control groups leave this process; None where there is no /proc.

    Args:
        root: where /proc and /sys are looked for.
    """
    try:
        meminfo = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    fields = {
        key: value.split()
        for key, _, value in (line.partition(":") for line in meminfo.splitlines())
    }
    total, free = (int(fields[key][0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    memory = HostMemory(total, free, "/proc/meminfo")
    for limit, left, source in _cgroup_limits(root):
        if limit < memory.total or left < memory.free:
            least = min(left, memory.free)
            memory = HostMemory(
                min(limit, memory.total), least, source if least == left else memory.source
            )
    return memory


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int, str]]:
    """Limit, bytes left and file of each control group around this process that has a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, files = root / "sys/fs/cgroup", ("memory.max", "memory.current")
            reclaimable = "inactive_file"
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            reclaimable = "total_inactive_file"
        else:
            continue
        inside = PurePosixPath(group.lstrip("/"))
        # each group bounds those inside it; in a container the outermost is seen as the root
        for directory in dict.fromkeys(base / step for step in (inside, *inside.parents)):
            limit = _bytes_in(directory / files[0])
            used = _bytes_in(directory / files[1])
            if limit is None or used is None or limit >= 2**60:  # v1 says "none" with a huge one
                continue
            # the page cache counts as used, and goes when memory is wanted
            used -= _stat(directory / "memory.stat", reclaimable)
            yield limit, max(limit - max(used, 0), 0), str(directory / files[0])


def _bytes_in(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _stat(path: Path, name: str) -> int:
    try:
        fields = dict(line.split() for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(fields.get(name, 0))
