"""Nothing that a hub answers is a traceback: its list of files, headers, the bodies of files."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from hypothesis import settings
from hypothesis import strategies as st

from llama4_edge.errors import HubError
from llama4_edge.hub import repository as hub_client
from llama4_edge.hub import transfer
from llama4_edge.hub.listing import COMMIT, is_file_name, parse_listing
from llama4_edge.hub.repository import find_repository
from tests.fuzzing import damaged_bytes, damaged_json, efforts, fuzz
from tests.hub_server import Fault, HubServer, running_hub

NAME = "someone/model"
CONTENT = bytes(range(256)) * 8
LISTING = {
    "id": NAME,
    "sha": "a" * 40,
    "gated": False,
    "cardData": {"tags": ["a"]},
    "siblings": [
        {"rfilename": "config.json", "size": 2, "blobId": "0" * 40},
        {
            "rfilename": "folder/model.gguf",
            "size": 10**10,
            "blobId": "1" * 40,
            "lfs": {"sha256": "2" * 64, "size": 10**10, "pointerSize": 135},
        },
    ],
}


def check_listing(data: bytes) -> None:
    with suppress(HubError):
        commit, files = parse_listing(data, NAME)
        assert COMMIT.fullmatch(commit)
        for name, file in files.items():
            assert is_file_name(name) and file.name == name
            assert 0 <= file.size < 2**63
            assert len(file.etag) in (40, 64) and file.etag.isalnum() and file.etag.isascii()
            assert (Path("/hub") / name).resolve().is_relative_to("/hub")


@efforts
def test_no_listing_is_a_traceback(effort: settings) -> None:
    fuzz(lambda value: check_listing(_text(value)), damaged_json(LISTING), effort)


@efforts
def test_no_bytes_of_a_listing_are_a_traceback(effort: settings) -> None:
    fuzz(check_listing, damaged_bytes(json.dumps(LISTING).encode()), effort)


def _text(value: Any) -> bytes:
    """JSON of the value, of integers with any number of digits too."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value).encode()
    finally:
        sys.set_int_max_str_digits(before)


NUMBERS = st.one_of(
    st.sampled_from(
        ["0", "1", "2047", "2048", "2049", "-1", "²", "1e3", "0x10", "*", "", "9" * 5000]
    ),
    st.integers(-10, 3000).map(str),
)
ENCODINGS = st.sampled_from(["gzip", "identity", "br", "deflate", "", "x" * 100])
RANGES = st.one_of(
    st.builds("bytes {}-{}/{}".format, NUMBERS, NUMBERS, NUMBERS),
    st.builds("bytes 0-2047/{}".format, NUMBERS),
    st.text(max_size=20),
)
DIGESTS = st.sampled_from(["a" * 40, '"x"', 'W/"x"', "", "²"])
PLACES = st.sampled_from(
    ["/a", "//x", "http://", "http://[", "file:///etc/passwd", "ftp://x/y", "?", "#", "", "\\\\x"]
)
HEADERS: dict[str, st.SearchStrategy[str]] = {
    "Content-Length": NUMBERS,
    "Content-Range": RANGES,
    "Content-Encoding": ENCODINGS,
    "Transfer-Encoding": st.sampled_from(["chunked", "gzip", "gzip, chunked", "identity", ""]),
    "Location": PLACES,
    "Retry-After": NUMBERS,
    "RateLimit": st.sampled_from(['"api";r=0;t=0', "r=0;t=²", "r=0;t=" + "9" * 50, ";" * 50]),
    "X-Repo-Commit": DIGESTS,
    "X-Linked-Etag": DIGESTS,
    "ETag": DIGESTS,
    "X-Error-Code": st.sampled_from(["GatedRepo", "RepoNotFound", "RevisionNotFound", "x"]),
    "X-Error-Message": st.text(max_size=50),
    "Set-Cookie": st.text(max_size=50),
    "Connection": st.sampled_from(["close", "keep-alive", "upgrade"]),
}
STATUS = st.one_of(
    st.sampled_from([200, 206, 206, 204, 301, 302, 304, 307, 400, 401, 403, 404, 416, 429, 503]),
    st.integers(100, 999),
)
BODIES = st.one_of(
    st.just(CONTENT),
    st.binary(max_size=100),
    st.integers(0, 4000).map(lambda length: (CONTENT * 2)[:length]),
    st.sampled_from([b"800\r\n" + CONTENT + b"\r\n0\r\n\r\n", b"{}", json.dumps(LISTING).encode()]),
)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer of HTTP with a few headers that may contradict each other, or bytes near it."""
    lines = [f"HTTP/1.1 {draw(STATUS)} Some"]
    names = draw(st.lists(st.sampled_from(sorted(HEADERS)), max_size=4))
    lines += [f"{name}: {draw(HEADERS[name])}" for name in names]
    head = "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n"
    answer = head + draw(BODIES)
    return draw(damaged_bytes(answer, 2)) if draw(st.integers(0, 3)) == 0 else answer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with running_hub(monkeypatch, tmp_path) as server:
        monkeypatch.setattr(hub_client, "WAITS", ())
        server.add(NAME, {"model.gguf": CONTENT})
        yield server


@efforts
def test_no_answer_is_a_traceback(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, effort: settings
) -> None:
    remote = find_repository(NAME)
    # From here on: what is whole may take as long as a busy machine takes.
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr(transfer, "HEADERS_SECONDS", 1.0)
    monkeypatch.setattr(transfer, "STALL_SECONDS", 0.5)

    def check(answer: bytes) -> None:
        hub.faults = [Fault("GET", times=99, raw=lambda: [answer])]
        with suppress(HubError):
            assert COMMIT.fullmatch(find_repository(NAME).commit)
        with suppress(HubError):
            assert len(remote.read("model.gguf", 0, 100)) == 100
        with tempfile.TemporaryDirectory() as directory:
            target = Path(directory) / "model.gguf"
            with suppress(HubError):
                remote.download("model.gguf", target)
                assert target.read_bytes() == CONTENT

    few = settings(effort, max_examples=min(10_000, effort.max_examples))
    fuzz(check, answers(), few)
