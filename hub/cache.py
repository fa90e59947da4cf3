"""A repository's place in huggingface_hub's cache, at one commit.

Promises that what lay in the cache before stays, and that a file which will be dropped again can be
told by the name of its blob, in a later run too. Without symbolic links a file lies in the snapshot
itself, as huggingface_hub has it; the blob of one that will be dropped then says where. Nothing is
written before something must be.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..errors import HubError
from ..system.files import disk_hint, is_file, open_partial, write_atomically
from ..system.locks import lock
from ..units import told_apart
from .listing import COMMIT, RemoteFile, is_file_name
from .repository import Repository, cache_directory, cached_commit, partial_path

logger = logging.getLogger(__name__)

# Ends the name of a blob that will be dropped. Blobs of huggingface_hub have no ending.
STAGED_SUFFIX = ".llama4-edge"
# Such a blob on a file system without links: this, and where in the repository's directory it lies.
_MOVED = b"moved to "
_MOVED_BYTES = 4096
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_ELSEWHERE = (
    "HF_HOME (or HF_HUB_CACHE) can name another directory for the cache; where all of the "
    "repository lies there already, HF_HUB_OFFLINE=1 uses it as it is."
)


class RepositoryCache:
    """The repository's place in huggingface_hub's cache, at one commit."""

    def __init__(self, remote: Repository) -> None:
        self._remote = remote
        self.directory = cache_directory(remote.id)
        self.blobs = self.directory / "blobs"
        self.snapshot = self.directory / "snapshots" / remote.commit

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HubError(
                f"{self.directory} cannot be written to",
                found=error.strerror,
                hint=f"{disk_hint(error)} {_ELSEWHERE}",
            ) from error

    def fetch(self, name: str, *, staged: bool = False, limit: int | None = None) -> Path:
        """The file in the snapshot, fetched if it is not there yet.

        Args:
            name: in the repository.
            staged: it will be dropped again.
            limit: bytes that it may have.

        Raises:
            HubError: it is larger, cannot be had, or cannot be written.
        """
        place = self.snapshot / name
        file = self._remote.files[name]
        if limit is not None and file.size > limit:
            found, most = told_apart(file.size, limit)
            raise HubError(
                f"{name} of {self._remote.id} is too large",
                found=found,
                expected=f"at most {most}",
            )
        if self.is_there(name):
            return place
        blob, is_new = self.blobs / file.etag, False
        if not _is_whole(blob, file):
            blob, is_new = self.staged(file) if staged else blob, True
            if not (staged and self.is_staged(name)) and not _is_whole(blob, file):
                with self._writing():
                    self._remove(blob)
                    self.blobs.mkdir(parents=True, exist_ok=True)
                self._remote.download(name, blob, hint=_ELSEWHERE)
        with self._writing():
            self._land(place, blob, is_new=is_new)
        return place

    def is_there(self, name: str) -> bool:
        """Whether all of the file lies in the snapshot."""
        return _is_whole(self.snapshot / name, self._remote.files[name])

    def is_staged(self, name: str) -> bool:
        """Whether the file is here, and one that will be dropped."""
        file = self._remote.files[name]
        blob = self.staged(file)
        return _is_whole(self._moved(blob) or blob, file)

    def staged(self, file: RemoteFile) -> Path:
        """Where a file lies that will be dropped."""
        return self.blobs / f"{file.etag}{STAGED_SUFFIX}"

    def keep(self, name: str) -> None:
        """Make a file that was to be dropped, if it is there, one of huggingface_hub's own."""
        if not self.is_staged(name):
            return
        file = self._remote.files[name]
        staged, place = self.staged(file), self.snapshot / name
        with self._writing():
            moved = self._moved(staged)
            if moved is None:
                staged.replace(self.blobs / file.etag)
                self._land(place, self.blobs / file.etag, is_new=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                _move(moved, place)
                staged.unlink()

    def drop(self, name: str) -> None:
        """Remove the file if it is one that was to be dropped."""
        blob = self.staged(self._remote.files[name])
        place = self.snapshot / name
        with self._writing():
            if place.is_symlink() and place.readlink().name == blob.name:
                place.unlink()
            self._remove(blob)

    def sweep(self, wanted: Iterable[str]) -> None:
        """Remove what earlier runs were to drop, and these shards are not."""
        spared = {
            path
            for name in wanted
            for blob in (self.staged(self._remote.files[name]),)
            for path in (blob, partial_path(blob, self._remote.files[name]))
        }
        for blob in self.blobs.glob(f"*{STAGED_SUFFIX}*"):
            if blob not in spared:
                with suppress(OSError):
                    self._remove(blob)
        for place in self.directory.glob("snapshots/*/*"):
            with suppress(OSError):
                if not place.exists() and place.readlink().name.endswith(STAGED_SUFFIX):
                    place.unlink()

    def remember(self, revision: str | None) -> None:
        """Note which commit a branch or tag is at, for offline mode."""
        name = revision or "main"
        with suppress(HubError):  # damaged, and written anew
            if cached_commit(self._remote.id, name) == self._remote.commit:
                return
        reference = self.directory / "refs" / name
        with self._writing():
            try:
                reference.parent.mkdir(parents=True, exist_ok=True)
                fresh = _fresh(reference)
                fresh.write_text(self._remote.commit, encoding="utf-8")
                fresh.replace(reference)
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise
                reason = error.strerror
                logger.warning("%s is not noted for offline mode: %s", reference, reason)

    def lock(self) -> BinaryIO:
        """Keep other conversions from dropping this one's shards, until the file is closed.

        Raises:
            HubError: another conversion has the lock, or the cache cannot be written to.
        """
        place = self.directory.parent / ".locks" / self.directory.name / "llama4-edge.lock"
        with self._writing():
            place.parent.mkdir(parents=True, exist_ok=True)
            file = open_partial(place)
            try:
                locked = lock(file.fileno(), place)
            except OSError:
                file.close()
                raise
        if not locked:
            file.close()
            raise HubError(
                f"another conversion is fetching {self._remote.id}",
                hint="Wait for it, or convert with --keep-source first.",
            )
        return file

    def _land(self, place: Path, blob: Path, *, is_new: bool) -> None:
        """Let `place` be a link to `blob`, or where there are none the file itself.

        Args:
            place: whatever it was before.
            blob: the file, or a note of where it lies already.
            is_new: nothing else links to the blob, so that it may be moved.
        """
        place.parent.mkdir(parents=True, exist_ok=True)
        moved = self._moved(blob)
        if moved is None and _is_linked(place, blob):
            return
        if not is_new:
            _copy(blob, place)
            return
        if not blob.name.endswith(STAGED_SUFFIX):
            _move(blob, place)
            return
        # Whoever finds the file in its place finds the note too, and `sweep` what lies in between.
        moving = blob.with_name(f"{blob.name}.moving")
        _move(moved or blob, moving)
        write_atomically(blob, _MOVED + place.relative_to(self.directory).as_posix().encode())
        _move(moving, place)

    def _moved(self, blob: Path) -> Path | None:
        """Where the file lies whose staged blob is such a note."""
        try:
            with blob.open("rb") as file:
                note = file.read(_MOVED_BYTES)
        except OSError:
            return None
        if not blob.name.endswith(STAGED_SUFFIX) or not note.startswith(_MOVED):
            return None
        name = note.removeprefix(_MOVED).decode("utf-8", "replace")
        parts = PurePosixPath(name).parts
        is_ours = len(parts) == 3 and parts[0] == "snapshots" and COMMIT.fullmatch(parts[1])
        place = self.directory / name
        return place if is_ours and is_file_name(name) and is_file(place) else None

    def _remove(self, blob: Path) -> None:
        """Remove a staged blob, wherever it lies."""
        moved = self._moved(blob)
        if moved is not None:
            moved.unlink(missing_ok=True)
        if blob.exists():  # a read-only file system refuses to remove even what is not there
            blob.unlink(missing_ok=True)


def _is_whole(path: Path, file: RemoteFile) -> bool:
    try:
        return path.is_file() and path.stat().st_size == file.size
    except OSError:
        return False


def _is_linked(place: Path, blob: Path) -> bool:
    """Make `place` a relative link to `blob`, if its file system has links."""
    fresh = _fresh(place)
    try:
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(blob, place.parent))
        fresh.replace(place)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        return False
    return True


def _move(source: Path, place: Path) -> None:
    try:
        source.replace(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, place)
        source.unlink()


def _copy(source: Path, place: Path) -> None:
    fresh = _fresh(place)
    try:
        shutil.copyfile(source, fresh)
        fresh.replace(place)
    finally:
        fresh.unlink(missing_ok=True)


def _fresh(place: Path) -> Path:
    return place.with_name(f".{place.name[:40]}.{os.getpid()}")
