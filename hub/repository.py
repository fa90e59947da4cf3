"""A repository on the Hugging Face Hub: its list of files, parts of them, and whole ones, verified.

Promises: one commit from the first request to the last; every whole file is compared with the
digest that the hub lists for it; what fails on the way is tried again a bounded number of times,
goes on where it stopped, and then is one clear error. Token, endpoint, cache directory and offline
mode are huggingface_hub's own settings. Files travel by plain HTTP range requests, because only
those can be resumed by another process.

Does not know what the files mean.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from huggingface_hub import HfApi, constants, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ..errors import HubError
from ..system.locks import lock

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

# Seconds before each new try; a file that grew by a megabyte since the last starts them anew.
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
_GROWTH = 1 << 20
# However long the hub asks for, nobody waits longer for one try.
_LONGEST_WAIT = 300.0
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_CHUNK = 1 << 20
# One answer of the hub's CDN holds 50 GB at most, and a signed address does not live for ever.
_ANSWER_BYTES = 8 << 30

PARTIAL_SUFFIX = ".incomplete"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# How the hub says that nothing is left of a quota, and in how many seconds there will be.
_QUOTA = re.compile(r"\br=0\s*;\s*t=(\d+)")

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it; `etag` is its sha256, or git's sha1 of a file outside LFS."""

    name: str
    size: int
    etag: str


class _PassingError(Exception):
    """A failure that another try may not meet; `wait` is how long the hub asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class StoppedError(Exception):
    """Whoever wanted the file does not want it any more."""


@dataclass(frozen=True)
class Repository:
    """A model repository at one commit.

    `stop`, once set, ends every wait and every transfer with `StoppedError`.
    """

    id: str
    commit: str
    files: Mapping[str, RemoteFile]
    token: str | None = field(default=None, repr=False)
    stop: threading.Event = field(default_factory=threading.Event, repr=False)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` of the file, fewer where it ends.

        Raises:
            HubError: it could not be had.
        """
        file = self.files[name]
        end = min(offset + length, file.size)
        data = b""

        def attempt() -> None:
            nonlocal data
            if offset + len(data) < end:
                with self._body(file, offset + len(data), end) as chunks:
                    for chunk in chunks:
                        data += chunk
                if offset + len(data) < end:
                    raise _PassingError("a truncated response")

        self._patiently(file.name, attempt)
        return data

    def download(
        self, name: str, target: Path, *, on_bytes: Callable[[int], None] | None = None
    ) -> None:
        """Bring all of the file to `target`, going on from what an earlier try left beside it.

        Args:
            name: of the file in the repository.
            target: gets its name when the file is whole and its digest is the hub's.
            on_bytes: called with the number of bytes that have just been added.

        Raises:
            HubError: it could not be had; what came stays for the next try, unless it was damaged.
        """
        file = self.files[name]
        partial = partial_path(target, file)
        try:
            with partial.open("a+b") as sink:
                if not lock(sink.fileno(), partial):
                    raise HubError(
                        f"another process is fetching {target.name}",
                        hint="Wait for it, or stop it.",
                    )
                self._fill(file, sink, on_bytes or (lambda _: None))
                sink.flush()
                os.fsync(sink.fileno())
                partial.replace(target)
        except OSError as error:
            raise HubError(
                f"{target.name} cannot be written to {target.parent}",
                found=error.strerror,
                hint="Make room there, then run the same command again: it goes on where it "
                "stopped.",
            ) from error

    def _fill(self, file: RemoteFile, sink: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        """Append to `sink` until it is the whole file, then compare the digests."""
        if sink.tell() > file.size:
            sink.truncate(0)
        digest, done = new_digest(file), 0
        sink.seek(0)
        while chunk := sink.read(_CHUNK):
            self._check_stop()
            digest.update(chunk)
            done += len(chunk)
            on_bytes(len(chunk))

        def attempt() -> None:
            nonlocal done
            while done < file.size:
                end = min(done + _ANSWER_BYTES, file.size)
                with self._body(file, done, end) as chunks:
                    for chunk in chunks:
                        self._check_stop()
                        sink.write(chunk)
                        digest.update(chunk)
                        done += len(chunk)
                        on_bytes(len(chunk))
                if done < end:
                    raise _PassingError(f"a response that ends at byte {done} instead of {end}")

        self._patiently(file.name, attempt, progress=lambda: done)
        if digest.hexdigest() != file.etag:
            sink.truncate(0)
            raise HubError(
                f"{file.name} of {self.id} failed its checksum",
                found=f"digest {digest.hexdigest()}",
                expected=file.etag,
                hint="Run the same command again; if it stays so, report it to the repository.",
            )

    @contextmanager
    def _body(self, file: RemoteFile, start: int, end: int) -> Iterator[Iterator[bytes]]:
        """The bytes from `start` to `end` as they arrive; fewer when the answer is cut short."""
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with get_session().stream(
            "GET",
            hf_hub_url(self.id, file.name, revision=self.commit),
            headers=build_hf_headers(token=self.token, library_name="llama4-edge", headers=headers),
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            follow_redirects=True,
        ) as response:
            hf_raise_for_status(response)
            answers = [answer.headers for answer in (*response.history, response)]
            self._check_same(file, answers, partial=response.status_code == 206)
            skip = 0 if response.status_code == 206 else start
            yield _window(response.iter_raw(), skip, end - start)

    def _check_same(
        self, file: RemoteFile, answers: Sequence[Mapping[str, str]], *, partial: bool
    ) -> None:
        """The answers, redirects first, must speak of the file that was listed.

        Only the hub's own answers name a commit, and only its last one has the file's own ETag.
        """
        for headers in answers:
            commit = headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
            if commit is None:
                continue
            etag = headers.get(constants.HUGGINGFACE_HEADER_X_LINKED_ETAG)
            if etag is None and headers is answers[-1]:
                etag = headers.get("ETag")
            served = (etag or file.etag).removeprefix("W/").strip('"')
            if commit != self.commit or served != file.etag:
                raise HubError(
                    f"{file.name} of {self.id} changed while it was being read",
                    found=f"{served} at commit {commit}",
                    expected=f"{file.etag} at commit {self.commit}",
                    hint="Run the command again; with --revision it keeps to one commit.",
                )
        last = answers[-1]
        size = last.get("Content-Range", "").rsplit("/")[-1] if partial else None
        size = size if partial else last.get("Content-Length")
        if size is not None and size.isdigit() and int(size) != file.size:
            raise _PassingError(f"a file of {size} bytes instead of {file.size}")

    def _patiently(
        self, name: str, attempt: Callable[[], T], *, progress: Callable[[], int] = lambda: 0
    ) -> T:
        return patiently(self.id, f"{name} of {self.id}", attempt, progress, self.stop, self.token)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise StoppedError


def find_repository(
    repository: str, *, revision: str | None = None, token: str | None = None
) -> Repository:
    """The repository ``org/name`` at the commit that `revision`, a branch or tag, means now.

    Args:
        repository: ``org/name``.
        revision: branch, tag or commit; by default the main branch.
        token: to use instead of the one that ``hf auth login`` or HF_TOKEN has set.

    Raises:
        HubError: there is no such repository or revision, it is not open to this token, or the hub
            cannot be reached.
    """
    stop = threading.Event()

    def attempt() -> Repository:
        try:
            info = HfApi().model_info(
                repository,
                revision=revision,
                files_metadata=True,
                token=token,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            )
        except HfHubHTTPError:
            raise
        except (ValueError, TypeError, LookupError) as error:
            raise _no_hub(f"{type(error).__name__}: {error}") from error
        if info.sha is None or not _COMMIT.fullmatch(info.sha):
            raise _no_hub(f"commit {info.sha}")
        files = {sibling.rfilename: _remote_file(sibling) for sibling in info.siblings or []}
        return Repository(repository, info.sha, files, token, stop)

    return patiently(repository, repository, attempt, lambda: 0, stop, token, revision=revision)


def _remote_file(entry: RepoSibling) -> RemoteFile:
    etag = entry.lfs.sha256 if entry.lfs else entry.blob_id
    if entry.size is None or etag is None or not _ETAG.fullmatch(etag):
        raise _no_hub(f"{entry.rfilename} without size or digest")
    return RemoteFile(entry.rfilename, entry.size, etag)


def _no_hub(found: str) -> HubError:
    return HubError(
        f"{constants.ENDPOINT} does not answer as the Hugging Face Hub does",
        found=found,
        hint="Check HF_ENDPOINT, and whether a proxy answers in its place.",
    )


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE says that only the cache may be used."""
    return bool(constants.HF_HUB_OFFLINE)


def cache_directory(repository: str) -> Path:
    """Where huggingface_hub keeps the repository's files: ``blobs``, ``refs`` and ``snapshots``."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def cached_commit(repository: str, revision: str | None) -> str | None:
    """The commit that `revision` meant when the cache last heard of it."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    reference = cache_directory(repository) / "refs" / (revision or constants.DEFAULT_REVISION)
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def partial_path(target: Path, file: RemoteFile) -> Path:
    """Where a file lies until it is whole; the name says which version of the file it is."""
    return target.with_name(f"{target.name}.{file.etag[:12]}{PARTIAL_SUFFIX}")


def new_digest(file: RemoteFile) -> hashlib._Hash:
    """The digest whose result is the file's `etag`."""
    if len(file.etag) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def _window(chunks: Iterator[bytes], skip: int, length: int) -> Iterator[bytes]:
    """The `length` bytes after the first `skip`."""
    for chunk in chunks:
        part = chunk[skip : skip + length]
        skip = max(0, skip - len(chunk))
        length -= len(part)
        if part:
            yield part
        if length == 0:
            return


def patiently(
    repository: str,
    subject: str,
    attempt: Callable[[], T],
    progress: Callable[[], int],
    stop: threading.Event,
    token: str | None,
    *,
    revision: str | None = None,
) -> T:
    """Try again what may pass, after `WAITS`, and turn everything else into a `HubError`.

    Args:
        repository: whose access is explained when it is refused.
        subject: what is being fetched, for errors.
        attempt: raises what the client raises.
        progress: bytes so far; growth since the last failure starts the waits anew.
        stop: ends a wait.
        token: the token given by the caller, if any.
        revision: the revision asked for, for errors.
    """
    failures, before = 0, progress()
    while True:
        try:
            return attempt()
        except (_PassingError, HTTPError, OfflineModeIsEnabled) as error:
            passing = _as_passing(error)
            if passing is None:
                raise _explained(error, repository, token, revision) from error
        if progress() - before >= _GROWTH:
            failures, before = 0, progress()
        if failures == len(WAITS):
            raise HubError(
                f"{constants.ENDPOINT} cannot give {subject}",
                found=f"{passing}, {failures + 1} times",
                hint="Check the network, or wait, then run the same command again: it goes on "
                "where it stopped. With HF_HUB_OFFLINE=1 only what is cached is used.",
            ) from passing
        wait = WAITS[failures] if passing.wait is None else passing.wait
        failures += 1
        if stop.wait(min(wait, _LONGEST_WAIT)):
            raise StoppedError


def _as_passing(error: Exception) -> _PassingError | None:
    """The error as one that may pass, or None when it will not."""
    if isinstance(error, _PassingError):
        return error
    if isinstance(error, OfflineModeIsEnabled):
        return None
    if not isinstance(error, HfHubHTTPError):
        return _PassingError(str(error) or type(error).__name__)
    status = error.response.status_code
    if status not in _PASSING:
        return None
    headers = error.response.headers
    quota = _QUOTA.search(headers.get("RateLimit", "")) if status == 429 else None
    after = headers.get("Retry-After", quota.group(1) if quota else "")
    return _PassingError(f"HTTP status {status}", float(after) if after.isdecimal() else None)


def _explained(
    error: Exception, repository: str, token: str | None, revision: str | None
) -> HubError:
    """What the client's error means for the person who asked, and what to do."""
    page = f"{constants.ENDPOINT}/{repository}"
    known = (token or get_token()) is not None
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(
            f"{repository} cannot be fetched in offline mode", hint="Unset HF_HUB_OFFLINE."
        )
    if isinstance(error, GatedRepoError):
        return _gated(error, repository, page, known=known)
    if isinstance(error, RevisionNotFoundError):
        return HubError(
            f"{repository} has no revision {revision}",
            hint=f"Choose a branch, tag or commit from {page}/tree/main.",
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return HubError(f"{repository} lost a file that it lists", found=str(error.response.url))
    if not isinstance(error, HfHubHTTPError):
        return HubError(f"{repository} cannot be read", found=str(error))
    status = error.response.status_code
    message = error.response.headers.get("X-Error-Message") or error.server_message or ""
    if status == 401 and known and "nvalid" in message:
        return HubError(
            f"{constants.ENDPOINT} does not accept the token",
            found=message,
            hint="Run `hf auth login` with a valid token, or correct or unset HF_TOKEN.",
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return HubError(
            f"{repository} does not exist on {constants.ENDPOINT}, or is private",
            hint="Check the name, or the path if a directory was meant."
            + ("" if known else " For a private repository, run `hf auth login` first."),
        )
    return HubError(
        f"{constants.ENDPOINT} refuses to give {repository}",
        found=f"HTTP status {status}" + (f": {message}" if message else ""),
        hint="Check that the token may read this repository." if status == 403 else None,
    )


def _gated(error: GatedRepoError, repository: str, page: str, *, known: bool) -> HubError:
    if not known:
        return HubError(
            f"{repository} is gated, and no token is set",
            hint=f"Accept the licence at {page}, then run `hf auth login` or set HF_TOKEN.",
        )
    return HubError(
        f"{repository} is gated, and the token's account has no access",
        found=error.server_message,
        hint=f"Accept the licence at {page} with that account and wait until access is granted; "
        "a fine-grained token must also allow gated repositories.",
    )
