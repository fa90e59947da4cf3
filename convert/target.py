"""Whether the output may be written where it is wanted: names, permissions, room.

Asked before anything is written.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from ..errors import OutputError
from ..system.files import is_directory, is_file
from ..units import told_apart
from .part_layout import Part
from .shards import DiskNeed


def check_target(
    parts: Sequence[Part],
    *,
    source: Path | Collection[Path],
    projector: Sequence[Part] = (),
    beside: Collection[Path] = (),
    force: bool,
    sources: DiskNeed | None,
    encodes: bool,
) -> None:
    """Refuse a target that exists, cannot be written, or does not fit on its disk.

    Args:
        parts: what is to be written; what an interrupted conversion wrote of it needs no new room.
        source: the directory of the checkpoint, or the files of a model; none of its files is
            replaced.
        beside: other files, and directories, that are read; none of their files is replaced.
        projector: those of the parts that can be done without.
        force: existing files may be replaced.
        sources: further room that is needed while writing, for shards that are fetched.
        encodes: a recipe says how large it becomes.

    Raises:
        OutputError: says which.
    """
    for part in parts:
        if part.path.is_dir():
            raise OutputError(f"{part.path} is a directory", expected="a file to write")
        if part.path.exists() and not part.path.is_file():
            raise OutputError(
                f"{part.path} is not a regular file",
                found="a device, a pipe or a socket",
                expected="a file to write",
            )
        if part.path.is_symlink():
            raise OutputError(
                f"{part.path} is a symbolic link that cannot be written through",
                hint="Remove it, or give another name.",
            )
        if part.path.exists() and _is_source(part.path, source):
            what = "checkpoint" if isinstance(source, Path) else "model"
            raise OutputError(
                f"{part.path} is a file of the {what} that is read",
                hint="Give another name.",
            )
        if part.path.exists() and any(_is_source(part.path, _files_in(it)) for it in beside):
            raise OutputError(f"{part.path} is a file that is read", hint="Give another name.")
        if part.path.exists() and not force:
            raise OutputError(
                f"{part.path} exists",
                hint="Give --force to replace it, or another name."
                + (" To leave it as it is: vision=False" if part in projector else ""),
            )
    directory = parts[0].path.parent
    if not directory.is_dir():
        if directory.exists():
            raise OutputError(f"{directory} is not a directory", hint="Give another one.")
        raise OutputError(
            f"the directory {directory} does not exist",
            hint=f"Make it first: mkdir -p {shlex.quote(str(directory))}",
        )
    if not os.access(directory, os.W_OK):
        raise OutputError(f"{directory} cannot be written to", expected="write permission")
    shortage = room_shortage(parts, sources, encodes=encodes)
    if shortage is not None:
        raise shortage


def _is_source(path: Path, source: Path | Collection[Path]) -> bool:
    """Whether a file is one of the source's, under whatever name."""
    files = source.iterdir() if isinstance(source, Path) else source
    return any(file.is_file() and path.samefile(file) for file in files)


def _files_in(read: Path) -> Path | Collection[Path]:
    return read if is_directory(read) else [read] if is_file(read) else []


def room_shortage(
    parts: Sequence[Part], sources: DiskNeed | None, *, encodes: bool
) -> OutputError | None:
    """The error that writing `parts`, and fetching their sources, would end in on a full disk.

    See `check_target`.
    """
    directory = parts[0].path.parent
    if not directory.is_dir():
        return None
    written = sum(part.partial.stat().st_blocks * 512 for part in parts if part.partial.exists())
    needed = sum(part.nbytes for part in parts) - written
    if sources is not None and sources.nbytes:
        if sources.directory.stat().st_dev == directory.stat().st_dev:
            needed += sources.nbytes
        elif shortage := disk_shortage(
            sources.directory, sources.nbytes, "the shards to fetch", encodes=False
        ):
            return shortage
    return disk_shortage(directory, needed, parts[0].path.name, encodes=encodes)


def disk_shortage(directory: Path, needed: int, what: str, *, encodes: bool) -> OutputError | None:
    """The error that writing `needed` bytes into `directory` would end in on a full disk.

    With `encodes`, a recipe of fewer bits needs less.
    """
    free = shutil.disk_usage(directory).free
    if free >= needed:
        return None
    found, expected = told_apart(free, needed)
    return OutputError(
        f"{directory} has too little free space for {what}",
        found=f"{found} free",
        expected=expected,
        hint="Free some space, choose another disk, or a recipe with fewer bits."
        if encodes
        else "Free some space, or choose another disk.",
    )
