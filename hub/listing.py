"""What the hub says a repository holds: commit, and each file's name, size and digest.

Promises that every name can be one of a file below a directory, on any system: relative, without
"..", and none of them also a directory of the others. Knows no HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import HubError
from ..untrusted import Reader, Record

LISTING_BYTES = 8 << 20
"""A hundred times what the hub says of a repository with hundreds of files."""

COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# What no name on the hub has: control characters, and what separates directories elsewhere.
_UNUSUAL = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_NAME_BYTES = 255  # of one component, on every common file system
_PATH_BYTES = 1024
_READER = Reader(HubError, LISTING_BYTES)


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it; `etag` is its sha256, or git's sha1 of a file outside LFS."""

    name: str
    size: int
    etag: str


def parse_listing(data: bytes, repository: str) -> tuple[str, dict[str, RemoteFile]]:
    """The commit, and the files by name, in the API's answer about `repository`.

    Raises:
        HubError: it is not such an answer.
    """
    record = _READER.as_record(_READER.parse(data, repository), repository)
    commit = record.text("sha")
    if not COMMIT.fullmatch(commit):
        raise record.fault("sha", "a commit")
    files: dict[str, RemoteFile] = {}
    for number, entry in enumerate(record.elements("siblings", default=[])):
        # One at a time: millions of entries that are none would be as many objects.
        file = _file(_READER.as_record(entry, f"{repository}: siblings[{number}]"))
        if file.name in files:
            raise HubError(f"{repository} has two files {file.name}")
        files[file.name] = file
    for name in files:
        for end in (at for at, character in enumerate(name) if character == "/"):
            if name[:end] in files:
                raise HubError(f"{repository} has {name[:end]}, a file and a directory")
    return commit, files


def _file(entry: Record) -> RemoteFile:
    name = entry.text("rfilename")
    if not is_file_name(name):
        raise entry.fault("rfilename", "a relative path")
    size = entry.integer("size")
    lfs = entry.get("lfs") is not None
    etag = entry.record("lfs").text("sha256") if lfs else entry.text("blobId")
    if not _ETAG.fullmatch(etag):
        raise HubError(f"{name} of {entry.name} has no digest", found=repr(etag[:80]))
    return RemoteFile(name, size, etag)


def is_file_name(name: str) -> bool:
    """Whether `name` can be one of a file in a repository: it stays below any directory."""
    if _UNUSUAL.search(name) or len(name.encode("utf-8", "surrogatepass")) > _PATH_BYTES:
        return False
    components = name.split("/")
    return all(
        component not in ("", ".", "..") and len(component.encode("utf-8", "ignore")) <= _NAME_BYTES
        for component in components
    ) and not re.match(r"[A-Za-z]:", name)


def check_distinct(repository: str, names: Iterable[str]) -> None:
    """Refuse files that are to lie side by side, and would be one where case does not matter.

    Raises:
        HubError: two of the names differ only by case.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise HubError(
                f"{repository} has two files whose names differ only by case",
                found=f"{other} and {name}",
                hint="Report it to the repository: macOS and Windows cannot hold both.",
            )
