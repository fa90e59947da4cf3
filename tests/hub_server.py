"""A Hugging Face Hub on loopback, for the real client: a few repositories, and faults on demand.

Speaks as much of the hub's protocol as fetching needs: what a repository holds at a commit, files
by commit, branch or tag, large ones by way of a redirect to "the CDN", ranges, ETags, the error
codes. Keeps a list of the requests it got.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

from llama4_edge.hub import repository as hub_client
from llama4_edge.hub import transfer

LFS_SUFFIXES = (".safetensors", ".gguf", ".pth")
_CHUNK = 1 << 16
# Of the client, which on a busy machine may wait long for what comes.
_PATIENCE = 600


@dataclass
class Entry:
    """A file of a repository; `served` and `listed_size` may differ from what it is."""

    name: str
    data: bytes
    etag: str
    served: bytes
    listed_size: int | None = None

    @property
    def is_lfs(self) -> bool:
        return self.name.endswith(LFS_SUFFIXES)


@dataclass
class HubRepository:
    """A repository with one commit, which `main` and `tags` name."""

    name: str
    entries: dict[str, Entry]
    tags: tuple[str, ...] = ()
    token: str | None = None
    gated: bool = False
    private: bool = False

    def is_open_to(self, token: str | None) -> bool:
        return token is not None and token == self.token

    @cached_property
    def commit(self) -> str:
        listed = "".join(f"{entry.name}{entry.etag}" for entry in self.entries.values())
        return hashlib.sha1(listed.encode()).hexdigest()


@dataclass
class Fault:
    """What happens to the next `times` requests whose ``GET /path`` the pattern finds.

    `status` answers with that instead; `cut` closes the connection after so many bytes of the body;
    `short` ends the body so many bytes early, in agreement with its headers; `body` is that of an
    answer with a `status`; `raw` is sent instead of HTTP, a piece every `pause` seconds, until the
    client hangs up.
    """

    pattern: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    short: int = 0
    body: bytes = b"{}"
    raw: Callable[[], Iterable[bytes]] | None = None
    pause: float = 0.0


@dataclass
class Request:
    """A request that came, and how many bytes of a file were sent back."""

    method: str
    path: str
    range: str | None
    token: str | None
    sent: int = 0


class HubServer:
    """Serves `repositories` at `url` while the block runs."""

    def __init__(self) -> None:
        self.repositories: dict[str, HubRepository] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.on_request: Callable[[], None] = lambda: None
        self.lock = threading.Lock()
        self.closing = threading.Event()
        hub = self

        class Handler(_Handler):
            server_of = hub

        self._http = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.cdn_url = f"http://localhost:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def add(
        self, name: str, files: Path | dict[str, bytes], tags: tuple[str, ...] = ()
    ) -> HubRepository:
        """Publish a directory, or files by name, as a repository."""
        if isinstance(files, Path):
            files = {
                path.relative_to(files).as_posix(): path.read_bytes()
                for path in sorted(files.rglob("*"))
                if path.is_file()
            }
        entries = {file: _entry(file, data) for file, data in sorted(files.items())}
        self.repositories[name] = HubRepository(name, entries, tags=tags)
        return self.repositories[name]

    def sent(self, pattern: str) -> int:
        """Bytes of files that went out for paths the pattern finds."""
        return sum(one.sent for one in self.requests if re.search(pattern, one.path))

    def ranges(self, pattern: str) -> list[str | None]:
        """The ranges asked for at paths the pattern finds."""
        return [one.range for one in self.requests if re.search(pattern, one.path)]

    def fault_for(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[HubServer]:
    """A hub that the client of this process talks to, with a cache and no token under `home`."""
    with HubServer() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", _PATIENCE)
        monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", str(_PATIENCE))  # of a process of its own
        monkeypatch.setattr(hub_client, "_LISTING_SECONDS", _PATIENCE)
        for name in ("HEADERS_SECONDS", "STALL_SECONDS", "_ERROR_SECONDS"):
            monkeypatch.setattr(transfer, name, _PATIENCE)
        monkeypatch.setattr(hub_client, "WAITS", (0.0,) * len(hub_client.WAITS))
        yield server
        close_session()


def _entry(name: str, data: bytes) -> Entry:
    if name.endswith(LFS_SUFFIXES):
        return Entry(name, data, hashlib.sha256(data).hexdigest(), data)
    return Entry(name, data, hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # As many as a client begins at once: one more would be dropped, and come a second later.
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    server_of: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        """Tests look at the list of requests instead."""

    def handle(self) -> None:
        # A client that gave up has nothing to be told.
        with suppress(ConnectionError):
            super().handle()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server_of
        hub.on_request()
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.request_seen = Request(self.command, path, self.headers.get("Range"), token)
        # Noted before it is answered, so that whoever has the answer finds it in the list.
        with hub.lock:
            hub.requests.append(self.request_seen)
        try:
            self._answer(path, hub.fault_for(f"{self.command} {path}"))
        except ConnectionError:
            self.close_connection = True

    def _answer(self, path: str, fault: Fault | None) -> None:
        if fault is not None and fault.raw is not None:
            return self._send_raw(fault.raw(), fault.pause)
        if fault is not None and fault.status is not None:
            return self._say(fault.status, fault.body, fault.headers)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            return self._list(match[1], match[2] or "revision", match[3] or "main")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(match[1], match[2], match[3], fault)
        if match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            entry = self.server_of.repositories[match[1]].entries[match[2]]
            checksum = hashlib.md5(entry.served).hexdigest()
            return self._give(entry.served, {"ETag": f'"{checksum}"'}, fault)
        return self._say(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _send_raw(self, pieces: Iterable[bytes], pause: float) -> None:
        self.close_connection = True
        for piece in pieces:
            self.wfile.write(piece)
            self.request_seen.sent += len(piece)
            if pause and self.server_of.closing.wait(pause):
                return

    def _list(self, name: str, what: str, revision: str) -> None:
        """What a repository holds: open to everyone, unless it is private."""
        repository = self._repository(name, files=False)
        if repository is None:
            return None
        if revision not in (repository.commit, "main", *repository.tags):
            return self._say(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        entries = repository.entries.values()
        if what == "tree":
            return self._json([_tree_item(entry) for entry in entries])
        siblings = [_sibling(entry) for entry in entries]
        return self._json({"id": name, "sha": repository.commit, "siblings": siblings})

    def _resolve(self, name: str, revision: str, file: str, fault: Fault | None) -> None:
        repository = self._repository(name, files=True)
        if repository is None:
            return None
        if revision not in (repository.commit, "main", *repository.tags):
            return self._say(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if file not in repository.entries:
            return self._say(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        entry = repository.entries[file]
        headers = {"X-Repo-Commit": repository.commit}
        if not entry.is_lfs:
            return self._give(entry.served, {**headers, "ETag": f'"{entry.etag}"'}, fault)
        headers |= {
            # Another host, to which the client must not send the token.
            "Location": f"{self.server_of.cdn_url}/cdn/{name}/{file}",
            "X-Linked-Etag": f'"{entry.etag}"',
            "X-Linked-Size": str(len(entry.data)),
            # Of the redirect itself, as the hub's web framework adds it.
            "ETag": 'W/"3a-redirect"',
        }
        return self._say(302, b"Found. Redirecting to the CDN", headers)

    def _repository(self, name: str, *, files: bool) -> HubRepository | None:
        """The repository if this token may have it; else the answer is given."""
        repository = self.server_of.repositories.get(name)
        token = self.request_seen.token
        if token == "hf_invalid":
            message = "Invalid credentials in Authorization header"
            self._say(401, b"{}", {"X-Error-Message": message})
        elif repository is None or (repository.private and not repository.is_open_to(token)):
            self._say(404 if token else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif files and repository.gated and not repository.is_open_to(token):
            message = f"Access to model {name} is restricted."
            headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": message}
            self._say(403 if token else 401, b"{}", headers)
        else:
            return repository
        return None

    def _json(self, value: object) -> None:
        return self._say(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """An answer that is no file."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _give(self, data: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        """A file, or the range of it that was asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        begin = int(asked[1]) if asked else 0
        end = min(int(asked[2]) + 1 if asked and asked[2] else len(data), len(data))
        if begin >= len(data) > 0:
            self._say(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        if fault is not None and fault.short:
            end = max(begin + 1, end - fault.short)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        for name, value in {**headers, "Content-Length": str(end - begin)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send(data[begin:end], fault)

    def _send(self, body: bytes, fault: Fault | None) -> None:
        limit = len(body) if fault is None or fault.cut is None else fault.cut
        for at in range(0, min(limit, len(body)), _CHUNK):
            chunk = body[at : min(at + _CHUNK, limit)]
            self.request_seen.sent += len(chunk)
            self.wfile.write(chunk)
        self.close_connection = limit < len(body)


def _sibling(entry: Entry) -> dict[str, object]:
    size = len(entry.data) if entry.listed_size is None else entry.listed_size
    item: dict[str, object] = {"rfilename": entry.name, "size": size, "blobId": "0" * 40}
    if entry.is_lfs:
        item["lfs"] = {"size": len(entry.data), "sha256": entry.etag, "pointerSize": 135}
    else:
        item["blobId"] = entry.etag
    return item


def _tree_item(entry: Entry) -> dict[str, object]:
    item: dict[str, object] = {
        "type": "file", "path": entry.name, "size": len(entry.data), "oid": "0" * 40
    }  # fmt: skip
    if entry.is_lfs:
        item["lfs"] = {"size": len(entry.data), "oid": entry.etag, "pointerSize": 135}
    else:
        item["oid"] = entry.etag
    return item
