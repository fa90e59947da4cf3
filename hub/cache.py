"""A repository's place in huggingface_hub's cache, at one commit.

Promises that what lay in the cache before stays, and that a file which will be dropped again can be
told by the name of its blob, in a later run too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import HubError
from ..system.locks import lock
from .repository import RemoteFile, Repository, cache_directory, cached_commit, partial_path

# Ends the name of a blob that will be dropped. Blobs of huggingface_hub have no ending.
STAGED_SUFFIX = ".llama4-edge"


class RepositoryCache:
    """The repository's place in huggingface_hub's cache, at one commit."""

    def __init__(self, remote: Repository) -> None:
        self._remote = remote
        self.directory = cache_directory(remote.id)
        self.blobs = self.directory / "blobs"
        self.snapshot = self.directory / "snapshots" / remote.commit
        with self._writing():
            self.blobs.mkdir(parents=True, exist_ok=True)
            self.snapshot.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HubError(
                f"{self.directory} cannot be written to",
                found=error.strerror,
                hint="Set HF_HUB_CACHE to a directory with room for two shards; or, where all of "
                "the repository lies there already, set HF_HUB_OFFLINE=1.",
            ) from error

    def fetch(self, name: str, *, staged: bool = False) -> Path:
        """The file in the snapshot, fetched if it is not there yet."""
        place = self.snapshot / name
        file = self._remote.files[name]
        if not place.is_file():
            blob = self.blobs / file.etag
            if not blob.is_file():
                blob = self.staged(file) if staged else blob
                if not blob.is_file():
                    self._remote.download(name, blob)
            with self._writing():
                _link(place, blob)
        return place

    def staged(self, file: RemoteFile) -> Path:
        """Where a file lies that will be dropped."""
        return self.blobs / f"{file.etag}{STAGED_SUFFIX}"

    def keep(self, name: str) -> None:
        """Make a file that was to be dropped, if it is there, one of huggingface_hub's own."""
        file = self._remote.files[name]
        if self.staged(file).is_file():
            with self._writing():
                self.staged(file).replace(self.blobs / file.etag)
                _link(self.snapshot / name, self.blobs / file.etag)

    def drop(self, name: str) -> None:
        """Remove the file if it is one that was to be dropped."""
        blob = self.staged(self._remote.files[name])
        place = self.snapshot / name
        with self._writing():
            if place.is_symlink() and place.readlink().name == blob.name:
                place.unlink()
            blob.unlink(missing_ok=True)

    def sweep(self, wanted: Iterable[str]) -> None:
        """Remove what earlier runs were to drop, and these shards are not."""
        spared = {
            path
            for name in wanted
            for blob in (self.staged(self._remote.files[name]),)
            for path in (blob, partial_path(blob, self._remote.files[name]))
        }
        with self._writing():
            for blob in self.blobs.glob(f"*{STAGED_SUFFIX}*"):
                if blob not in spared:
                    blob.unlink(missing_ok=True)
            for place in self.directory.glob("snapshots/*/*"):
                if not place.exists() and place.readlink().name.endswith(STAGED_SUFFIX):
                    place.unlink()

    def remember(self, revision: str | None) -> None:
        """Note which commit a branch or tag is at, for offline mode."""
        name = revision or "main"
        if cached_commit(self._remote.id, name) != self._remote.commit:
            reference = self.directory / "refs" / name
            with self._writing():
                reference.parent.mkdir(parents=True, exist_ok=True)
                reference.write_text(self._remote.commit, encoding="utf-8")

    def lock(self) -> BinaryIO:
        """Keep other conversions from dropping this one's shards, until the file is closed."""
        place = self.directory.parent / ".locks" / self.directory.name / "llama4-edge.lock"
        with self._writing():
            place.parent.mkdir(parents=True, exist_ok=True)
            file = place.open("ab")
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


def _link(place: Path, blob: Path) -> None:
    """Let `place` be a relative link to `blob`, whatever it was before."""
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(blob, place.parent))
    fresh.replace(place)
