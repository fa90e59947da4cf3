"""The control groups of Linux around this process: where a container's limits are written.

Knows both versions of the interface. Promises an empty answer on any other system.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class ControlGroup:
    """The directory of one group, and the version (1 or 2) of the files in it."""

    directory: Path
    version: int

    def read(self, name: str) -> str | None:
        """What one of its files says; None where there is no such file."""
        try:
            return (self.directory / name).read_text().strip()
        except OSError:
            return None


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[ControlGroup]:
    """The groups that bound this process, from the innermost to the outermost.

    Args:
        controller: ``memory`` or ``cpu``.
        root: where /proc and /sys are looked for.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        base = root / "sys/fs/cgroup"
        if controllers and controller not in controllers.split(","):
            continue
        if controllers:
            base /= controller
        inside = PurePosixPath(group.lstrip("/"))
        # Each group bounds those inside it; in a container the outermost is seen as the root.
        for directory in dict.fromkeys(base / step for step in (inside, *inside.parents)):
            yield ControlGroup(directory, 1 if controllers else 2)
