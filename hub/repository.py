"""A repository on the Hugging Face Hub: its list of files, parts of them, and whole ones, verified.

Promises: one commit from the first request to the last; every whole file is compared with the
digest that the hub lists for it; what fails on the way is tried again a bounded number of times,
goes on where it stopped, and then is one clear error. Files travel by plain HTTP range requests,
because only those can be resumed by another process.

Does not know what the files mean.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import quote

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from ..errors import HubError
from ..system.files import disk_hint, is_file, open_partial, sync
from ..system.locks import lock
from ..units import seconds_text
from ..untrusted import Reader
from .listing import COMMIT, LISTING_BYTES, RemoteFile, parse_listing
from .transfer import (
    Answer,
    PassingError,
    RefusedError,
    answered,
    known_token,
    not_a_hub,
    shown,
)

# Seconds before each new try; a file that grew by a megabyte since the last starts them anew.
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
_GROWTH = 1 << 20
# What takes long to fail is tried once more.
_SLOW_TRIES = 2
# However long the hub asks for, nobody waits longer in all.
_LONGEST_WAIT = 300.0
_ANNOUNCED_SECONDS = 3.0
_LISTING_SECONDS = 60.0
_CHUNK = 1 << 20
# One answer of the hub's CDN holds 50 GB at most, and a signed address does not live for ever.
_ANSWER_BYTES = 8 << 30

PARTIAL_SUFFIX = ".incomplete"
_REFERENCE_BYTES = 4096
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/(\*|[0-9]{1,19})")
_LENGTH = re.compile(r"[0-9]{1,19}")
# As git has it: what no branch or tag is called, and what would leave the directory of refs.
_REVISION = re.compile(
    r"(?!.*(?:\.\.|//|@\{|/$))(?!/)[^\x00-\x20\x7f~^:?*\[\\\ud800-\udfff]{1,255}"
)

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
        data = bytearray()

        def attempt() -> None:
            if offset + len(data) < end:
                with self._body(file, offset + len(data), end) as chunks:
                    for chunk in chunks:
                        self._check_stop()
                        data.extend(chunk)
                if offset + len(data) < end:
                    raise PassingError("a truncated response")

        self._patiently(file.name, attempt)
        return bytes(data)

    def download(
        self,
        name: str,
        target: Path,
        *,
        on_bytes: Callable[[int], None] | None = None,
        hint: str = "",
    ) -> None:
        """Bring all of the file to `target`, going on from what an earlier try left beside it.

        Args:
            name: of the file in the repository.
            target: gets its name when the file is whole and its digest is the hub's.
            on_bytes: called with the number of bytes that have just been added.
            hint: where else files can be written, for errors.

        Raises:
            HubError: it could not be had; what came stays for the next try, unless it was damaged.
        """
        file = self.files[name]
        partial = partial_path(target, file)
        try:
            with open_partial(partial) as sink:
                if not lock(sink.fileno(), partial):
                    raise HubError(
                        f"another process is fetching {file.name}",
                        hint="Wait for it, or stop it.",
                    )
                self._fill(file, sink, on_bytes or (lambda _: None))
                sink.flush()
                sync(sink.fileno())
                partial.replace(target)
        except OSError as error:
            raise HubError(
                f"{file.name} cannot be written to {target.parent}",
                found=error.strerror,
                hint=f"{disk_hint(error)} {hint}".strip()
                + " Then run the same command again: it goes on where it stopped.",
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
                    raise PassingError(f"a response that ends at byte {done} instead of {end}")

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
        with answered(
            hf_hub_url(self.id, file.name, revision=self.commit),
            token=self.token,
            headers={"Range": f"bytes={start}-{end - 1}"},
        ) as answer:
            self._check_same(file, answer)
            skip = start - _first_byte(file, answer, start)
            yield _window(answer.chunks(), skip, end - start)

    def _check_same(self, file: RemoteFile, answer: Answer) -> None:
        """The answers, redirects first, must speak of the file that was listed.

        Only the hub's own answers name a commit, and only its last one has the file's own ETag.
        """
        for headers in answer.headers:
            commit = headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
            if commit is None:
                continue
            etag = headers.get(constants.HUGGINGFACE_HEADER_X_LINKED_ETAG)
            if etag is None and headers is answer.headers[-1]:
                etag = headers.get("ETag")
            served = (etag or file.etag).removeprefix("W/").strip('"')
            if commit != self.commit or served != file.etag:
                raise HubError(
                    f"{file.name} of {self.id} changed while it was being read",
                    found=shown(f"{served} at commit {commit}"),
                    expected=f"{file.etag} at commit {self.commit}",
                    hint="Run the command again; with --revision it keeps to one commit.",
                )

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
    check_revision(revision)
    url = f"{constants.ENDPOINT}/api/models/{repository}"
    if revision is not None:
        url += f"/revision/{quote(revision, safe='')}"

    def attempt() -> Repository:
        with answered(f"{url}?blobs=true", token=token) as answer:
            data = answer.data(LISTING_BYTES, _LISTING_SECONDS)
        try:
            commit, files = parse_listing(data, repository)
        except HubError as error:
            raise not_a_hub(str(error)) from error
        return Repository(repository, commit, files, token, stop)

    return patiently(repository, repository, attempt, lambda: 0, stop, token, revision=revision)


def check_revision(revision: str | None) -> None:
    """Refuse what no branch, tag or commit can be called.

    Raises:
        HubError: it is not a revision.
    """
    if revision is not None and not _REVISION.fullmatch(revision):
        raise HubError(
            f"{revision[:80]!r} is not a revision", expected="a branch, a tag or a commit"
        )


def _first_byte(file: RemoteFile, answer: Answer, start: int) -> int:
    """The byte of the file with which the body begins, at most `start`.

    Raises:
        PassingError: the answer is about a file of another size, or another part of it.
    """
    if answer.status == 200:
        length = answer.headers[-1].get("Content-Length", "")
        if _LENGTH.fullmatch(length) and int(length) != file.size:
            raise PassingError(f"a file of {length} bytes instead of {file.size}")
        return 0
    content = answer.headers[-1].get("Content-Range", "")
    match = _RANGE.fullmatch(content.strip())
    if match is None or int(match[1]) != start:
        raise PassingError(f"the range {content!r} instead of the one from byte {start}")
    if match[3] not in ("*", str(file.size)):
        raise PassingError(f"a file of {match[3]} bytes instead of {file.size}")
    return start


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE says that only the cache may be used."""
    return bool(constants.HF_HUB_OFFLINE)


def cache_directory(repository: str) -> Path:
    """Where huggingface_hub keeps the repository's files: ``blobs``, ``refs`` and ``snapshots``."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def cached_commit(repository: str, revision: str | None) -> str | None:
    """The commit that `revision` meant when the cache last heard of it.

    Raises:
        HubError: the revision is not one, or what the cache says of it is not a commit.
    """
    check_revision(revision)
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    reference = cache_directory(repository) / "refs" / (revision or constants.DEFAULT_REVISION)
    if not is_file(reference):
        return None
    hint = "Remove it, and run `hf download` or the same command where there is a network."
    commit = Reader(HubError, _REFERENCE_BYTES, hint).text(reference).strip()
    if not COMMIT.fullmatch(commit):
        raise HubError(
            f"{reference} is damaged", found=repr(commit[:80]), expected="a commit", hint=hint
        )
    return commit


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
    failures, slow, asked, before = 0, 0, 0.0, progress()
    while True:
        try:
            return attempt()
        except OfflineModeIsEnabled as error:
            raise HubError(
                f"{repository} cannot be fetched in offline mode", hint="Unset HF_HUB_OFFLINE."
            ) from error
        except RefusedError as error:
            raise _explained(error, repository, token, revision) from error
        except PassingError as error:
            passing = error
        except HTTPError as error:
            passing = PassingError(str(error) or type(error).__name__)
        if progress() - before >= _GROWTH:
            failures, slow, asked, before = 0, 0, 0.0, progress()
        slow += passing.is_slow
        if failures == len(WAITS) or slow == _SLOW_TRIES or asked >= _LONGEST_WAIT:
            raise HubError(
                f"{constants.ENDPOINT} cannot give {subject}",
                found=f"{passing}, {failures + 1} times",
                hint="Check the network, or wait, then run the same command again: it goes on "
                "where it stopped. With HF_HUB_OFFLINE=1 only what is cached is used.",
            ) from passing
        wait = WAITS[failures]
        if passing.wait is not None:
            wait = min(passing.wait, _LONGEST_WAIT - asked)
            asked += wait
        failures += 1
        if wait > _ANNOUNCED_SECONDS:
            logger.warning("%s: waiting %s for %s", passing, seconds_text(wait), subject)
        if stop.wait(wait):
            raise StoppedError


def _explained(
    error: RefusedError, repository: str, token: str | None, revision: str | None
) -> HubError:
    """What the hub's error means for the person who asked, and what to do."""
    page = f"{constants.ENDPOINT}/{repository}"
    known = known_token(token) is not None
    if error.code == "GatedRepo":
        return _gated(error, repository, page, known=known)
    if error.code == "RevisionNotFound":
        return HubError(
            f"{repository} has no revision {revision}",
            hint=f"Choose a branch, tag or commit from {page}/tree/main.",
        )
    if error.code == "EntryNotFound":
        return HubError(f"{repository} lost a file that it lists", found=error.url)
    if error.status == 401 and known and "nvalid" in error.message:
        return HubError(
            f"{constants.ENDPOINT} does not accept the token",
            found=error.message,
            hint="Run `hf auth login` with a valid token, or correct or unset HF_TOKEN.",
        )
    if error.code == "RepoNotFound" or error.status in (401, 404):
        return HubError(
            f"{repository} does not exist on {constants.ENDPOINT}, or is private",
            hint="Check the name, or the path if a directory was meant."
            + ("" if known else " For a private repository, run `hf auth login` first."),
        )
    return HubError(
        f"{constants.ENDPOINT} refuses to give {repository}",
        found=str(error) + (f": {error.message}" if error.message else ""),
        hint="Check that the token may read this repository." if error.status == 403 else None,
    )


def _gated(error: RefusedError, repository: str, page: str, *, known: bool) -> HubError:
    if not known:
        return HubError(
            f"{repository} is gated, and no token is set",
            hint=f"Accept the licence at {page}, then run `hf auth login` or set HF_TOKEN.",
        )
    return HubError(
        f"{repository} is gated, and the token's account has no access",
        found=error.message or None,
        hint=f"Accept the licence at {page} with that account and wait until access is granted; "
        "a fine-grained token must also allow gated repositories.",
    )
