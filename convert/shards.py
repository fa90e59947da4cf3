"""Where the shards of a checkpoint come from: a directory here, or a place to fetch them from.

A checkpoint is opened from the shards' headers alone; their data is asked for later, one shard
after the other, which is when a remote one travels.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import CheckpointError


@dataclass(frozen=True)
class DiskNeed:
    """The most bytes that shards will take in `directory` at one time, beside what lies there."""

    directory: Path
    nbytes: int


class Shards(Protocol):
    """Access to shards by the path at which their data lies, or will lie once acquired."""

    def names(self, directory: Path) -> list[str]:
        """The safetensors files that `directory` holds or will hold, sorted."""

    def size(self, path: Path) -> int | None:
        """Bytes of the shard, or None when there is no such shard."""

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer where the shard ends; for headers."""

    def identity(self, path: Path) -> str:
        """Changes when the shard does; cheap, so no hash of its bytes where that means reading."""

    def expect(self, paths: list[Path]) -> None:
        """The shards that will be acquired, in that order; a remote source may begin to fetch."""

    def acquire(self, path: Path) -> None:
        """Return once all of the shard lies at `path`."""

    def release(self, path: Path) -> None:
        """The shard is not needed any more."""

    def disk_need(self, paths: Iterable[Path]) -> DiskNeed | None:
        """What acquiring these shards in this order takes on a disk, if anything."""

    def close(self) -> None:
        """Nothing is needed any more; an `acquire` that waits ends with an error."""


def file_names(directory: Path) -> list[str]:
    """What lies in a directory, sorted.

    Raises:
        CheckpointError: it cannot be listed.
    """
    try:
        return sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be listed", found=error.strerror) from None


class LocalShards:
    """Shards that lie in a directory already."""

    def names(self, directory: Path) -> list[str]:
        """The safetensors files in the directory, links to nothing included."""
        return [name for name in file_names(directory) if name.endswith(".safetensors")]

    def size(self, path: Path) -> int | None:
        """Bytes of the file, or None when there is none."""
        try:
            status = path.stat()
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """Bytes of the file.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            if stat.S_ISFIFO(path.stat().st_mode):  # opening one waits for somebody who writes
                raise CheckpointError(f"{path} is a pipe", expected="a regular file")
            with path.open("rb") as file:
                file.seek(offset, os.SEEK_SET)
                return file.read(length)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read", found=error.strerror) from None

    def identity(self, path: Path) -> str:
        """The file's size and the times of its last change.

        Copying and unpacking can give a file the first time of another; nothing gives the second.
        """
        try:
            status = path.stat()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read", found=error.strerror) from None
        return f"{status.st_size} bytes, changed at {status.st_mtime_ns}, {status.st_ctime_ns} ns"

    def expect(self, paths: list[Path]) -> None:
        """Nothing to fetch."""

    def acquire(self, path: Path) -> None:
        """Nothing to fetch."""

    def release(self, path: Path) -> None:
        """The file is somebody's, and stays."""

    def disk_need(self, paths: Iterable[Path]) -> DiskNeed | None:
        """None: they lie there."""
        return None

    def close(self) -> None:
        """Nothing was opened."""
