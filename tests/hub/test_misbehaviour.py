"""A hub that misbehaves: whatever it sends, there is one error, in bounded time and memory."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, constants

from llama4_edge.errors import HubError
from llama4_edge.hub import repository as hub_client
from llama4_edge.hub import transfer
from llama4_edge.hub.listing import LISTING_BYTES, check_distinct, parse_listing
from llama4_edge.hub.repository import find_repository
from tests.hub_server import Fault, HubServer, running_hub

NAME = "someone/model"
CONTENT = bytes(range(256)) * 400
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub that is asked once, by a client as patient as it is by itself."""
    with running_hub(monkeypatch, tmp_path) as server:
        monkeypatch.setattr(hub_client, "WAITS", ())
        server.add(NAME, {"big.gguf": CONTENT, "config.json": b"{}"})
        yield server


PATIENCE = {
    "timed out": (constants, "HF_HUB_DOWNLOAD_TIMEOUT"),
    "no answer": (transfer, "HEADERS_SECONDS"),
    "takes more": (hub_client, "_LISTING_SECONDS"),
    "less than": (transfer, "STALL_SECONDS"),
    "HTTP status 400": (transfer, "_ERROR_SECONDS"),
}


def with_little_patience(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """Tenths of a second for what this error says did not come in time; all else keeps its own.

    So a machine that is busy fails nothing that comes, however late.
    """
    for words, (module, name) in PATIENCE.items():
        if words in found:
            monkeypatch.setattr(module, name, 0.3)


def answer(data: bytes) -> Fault:
    return Fault("GET", times=999, raw=lambda: [data])


def endless(head: bytes, piece: bytes, pause: float = 0.0) -> Fault:
    return Fault("GET", times=999, raw=lambda: chain([head], repeat(piece)), pause=pause)


def redirect(place: bytes) -> Fault:
    return answer(b"HTTP/1.1 302 Found\r\nLocation: " + place + b"\r\nContent-Length: 0\r\n\r\n")


def status(number: int, body: bytes = b"{}", **headers: str) -> Fault:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault("GET", times=999, status=number, body=body, headers=named)


BOMB = gzip.compress(b" " * 10**7)
BAD = b"HTTP/1.1 400 Bad\r\n\r\n"
FOUND = b"HTTP/1.1 302 Found\r\nLocation: /a\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
DRIP = 0.05
SLOW = "no answer|timed out"  # the latter where a busy machine leaves out drops
ANSWERS: dict[str, tuple[Fault, str]] = {
    "nothing, closed at once": (answer(b""), "disconnected"),
    "nothing, for ever": (endless(b"", b"", DRIP), SLOW),
    "a header byte by byte": (endless(OK + b"X: ", b"x", DRIP), SLOW),
    "headers without end": (endless(OK, b"X: y\r\n" * 1000), "[Tt]oo|long"),
    "one header without end": (endless(OK + b"X: ", b"x" * 65536), "[Tt]oo|long"),
    "100 continue for ever": (
        endless(b"", CONTINUE, 0.01),
        SLOW,
    ),
    "HTTP/0.9": (answer(b"<html>hello</html>"), "illegal status line|disconnected"),
    "an early hint for ever": (
        endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", 0.01),
        SLOW,
    ),
    "a body byte by byte": (
        endless(OK + b"Content-Length: 1000000\r\n\r\n", b" ", DRIP),
        "takes more",
    ),
    "a body without length byte by byte": (
        endless(OK + b"\r\n", b" ", DRIP),
        "takes more",
    ),
    "chunks of a byte": (endless(CHUNKED, b"1\r\n \r\n", DRIP), "takes more"),
    "a chunk's size byte by byte": (
        endless(CHUNKED + b"1;", b"x", DRIP),
        "takes more",
    ),
    "trailers byte by byte": (
        endless(CHUNKED + b"0\r\nX: ", b"x", DRIP),
        "takes more",
    ),
    "a body without end": (endless(OK + b"\r\n", b" " * 65536), "more than 8.0 MiB"),
    "chunks without end": (
        endless(CHUNKED, b"10000\r\n" + b" " * 65536 + b"\r\n"),
        "more than 8.0 MiB",
    ),
    "a compressed body": (
        status(200, BOMB, Content_Encoding="gzip"),
        "Content-Encoding gzip",
    ),
    "two compressions": (
        status(200, Content_Encoding="identity, br"),
        "Content-Encoding",
    ),
    "an error without end": (
        endless(BAD, b"x" * 65536),
        "HTTP status 400",
    ),
    "an error byte by byte": (
        endless(BAD, b"x", DRIP),
        "HTTP status 400",
    ),
    "a compressed error": (
        status(400, BOMB, Content_Encoding="gzip"),
        "HTTP status 400",
    ),
    "an error too deep": (status(400, b"[" * 60000), "HTTP status 400"),
    "an error that is a list": (status(400, b"[1]"), "HTTP status 400"),
    "an error of a number": (status(400, b'{"error": 5}'), "HTTP status 400"),
    "an error with a large number": (
        status(400, b'{"error": %s}' % (b"9" * 5000)),
        "HTTP status 400",
    ),
    "an error of errors": (status(400, b'{"errors": [5]}'), "HTTP status 400"),
    "an error that is not UTF-8": (status(400, b'{"error": "\xff"}'), "HTTP status 400"),
    "an explained error": (status(400, b'{"error": "too\\nlate"}'), "400: too late"),
    "a long explanation": (
        status(400, X_Error_Message="x" * 60000),
        r"400: x{300}\.\.\.",
    ),
    "status 204": (answer(b"HTTP/1.1 204 No\r\n\r\n"), "HTTP status 204"),
    "status 299": (status(299), "HTTP status 299"),
    "status 304": (answer(b"HTTP/1.1 304 No\r\n\r\n"), "HTTP status 304"),
    "status 302 to nowhere": (status(302), "HTTP status 302"),
    "status 999": (status(999), "HTTP status 999"),
    "an upgrade": (
        answer(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"),
        "UPGRADE",
    ),
    "a redirect to itself": (redirect(b"/api/models/x/y"), "more than 10 redirects"),
    "a redirect to a file": (redirect(b"file:///etc/passwd"), "not an address of HTTP"),
    "a redirect to FTP": (redirect(b"ftp://localhost/x"), "not an address of HTTP"),
    "a redirect to a port that is none": (redirect(b"http://localhost:99999/"), "."),
    "a redirect to letters": (redirect(b"http://local host/"), "."),
    "a redirect to an odd name": (redirect(b"http://\xff\xfe\xfd/"), "."),
    "a redirect to no host": (redirect(b"http:///x"), "."),
    "a redirect with a body without end": (
        endless(FOUND, b"x" * 65536),
        "10 redirects",
    ),
    "two lengths": (answer(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"), "."),
    "a negative length": (answer(OK + b"Content-Length: -5\r\n\r\n"), "."),
    "a length of 5000 digits": (
        answer(OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}"),
        ".",
    ),
    "a chunk of 5000 digits": (answer(CHUNKED + b"f" * 5000 + b"\r\n{}"), "."),
    "too long a wait": (
        status(429, Retry_After="\u00b2"),
        "HTTP status 429",
    ),
}


@pytest.mark.parametrize(("fault", "found"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_that_is_none_is_one_error(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, fault: Fault, found: str
) -> None:
    hub.faults = [fault]
    if fault.pause:
        with_little_patience(monkeypatch, found)
    tracemalloc.start()
    try:
        with pytest.raises(HubError, match=found) as caught:
            find_repository(NAME, token="hf_secret")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if not fault.pause:
        assert not re.search(SLOW, str(caught.value))
    assert peak < 4 * LISTING_BYTES
    assert len(str(caught.value)) < 1000
    assert "hf_secret" not in str(caught.value)


# What it lists -----------------------------------------------------------------------------------

BLOB = "0" * 40


def listing(*siblings: Any, **more: Any) -> bytes:
    return json.dumps({"sha": "a" * 40, "siblings": list(siblings), **more}).encode()


def named(name: Any, size: Any = 1, **more: Any) -> dict[str, Any]:
    return {"rfilename": name, "size": size, "blobId": BLOB, **more}


NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/../x",
    "a/..",
    "/etc/passwd",
    "//x",
    "a//b",
    "a/",
    "./a",
    "a/./b",
    "..\\x",
    "C:\\x",
    "C:x",
    "a\0b",
    "a\nb",
    "a\x1b[31m",
    "a\x9bm",
    "x" * 256,
    "é" * 128,
    "/".join(["x" * 200] * 6),
    "\ud800",
    None,
    5,
    True,
    ["a"],
    {"a": 1},
]


@pytest.mark.parametrize("name", NAMES, ids=[repr(name)[:20] for name in NAMES])
def test_a_name_that_could_leave_its_directory_is_refused(name: Any) -> None:
    with pytest.raises(HubError):
        parse_listing(listing(named(name)), NAME)


@pytest.mark.parametrize(
    "name", ["a", "a/b/c.gguf", ".gitattributes", "x" * 255, "a b", "模型.gguf", "a..b", "…"]
)
def test_an_ordinary_name_is_taken(name: str) -> None:
    assert list(parse_listing(listing(named(name)), NAME)[1]) == [name]


LISTINGS: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "HTML": b"<html>",
    "not UTF-8": b'{"sha": "\xff"}',
    "no commit": json.dumps({"siblings": []}).encode(),
    "a commit that is a number": listing(sha=5),
    "a commit that leaves the directory": listing(sha="../" * 13 + "x"),
    "a commit in capitals": listing(sha="A" * 40),
    "a commit with a line's end": listing(sha="a" * 40 + "\n"),
    "siblings that are an object": listing(siblings={"a": 1}),
    "siblings that are text": listing(siblings="abc"),
    "a sibling that is null": listing(None),
    "a sibling that is a list": listing(["rfilename"]),
    "a size that is text": listing(named("a", "1")),
    "a size that is superscript": listing(named("a", "²")),
    "a size that is a boolean": listing(named("a", True)),
    "a size that is a fraction": listing(named("a", 1.0)),
    "a size below zero": listing(named("a", -1)),
    "a size of 2**63": listing(named("a", 2**63)),
    "a size that is infinite": listing(named("a", float("inf"))),
    "a size of 5000 digits": listing(named("a", 1)).replace(b": 1,", b": " + b"9" * 5000 + b","),
    "no size": listing(named("a", None)),
    "no digest": listing({"rfilename": "a", "size": 1}),
    "a digest that is a number": listing(named("a", blobId=5)),
    "a digest that leaves the directory": listing(named("a", blobId="../../x")),
    "a digest with NUL": listing(named("a", blobId="0" * 39 + "\0")),
    "a digest of Arabic digits": listing(named("a", blobId="\u0663" * 40)),
    "a digest of another length": listing(named("a", blobId="0" * 41)),
    "LFS that is text": listing(named("a", lfs="x")),
    "LFS without a digest": listing(named("a", lfs={})),
    "LFS with a list for a digest": listing(named("a", lfs={"sha256": ["0" * 64]})),
    "a name twice": listing(named("a"), named("a")),
    "a file that is a directory": listing(named("a/b"), named("a")),
    "a file that is a directory far up": listing(named("a"), named("a/b/c/d")),
    "too deep": b'{"sha":' + b"[" * 100_000,
    "too deep, and sound": b'{"sha":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a lone surrogate anywhere": listing(named("a"), config={"x": "\ud800"}),
}


@pytest.mark.parametrize("data", LISTINGS.values(), ids=LISTINGS.keys())
def test_a_listing_of_other_types_is_one_error(hub: HubServer, data: bytes) -> None:
    hub.faults = [Fault("GET /api", status=200, body=data)]
    with pytest.raises(HubError, match="does not answer as the Hugging Face Hub does") as caught:
        find_repository(NAME)
    assert len(str(caught.value)) < 1000


def test_many_files_are_read_in_moments_and_too_many_are_refused(hub: HubServer) -> None:
    few = listing(*(named(f"directory/number {number}") for number in range(50_000)))
    began = time.thread_time()
    assert len(parse_listing(few, NAME)[1]) == 50_000
    assert time.thread_time() - began < 10  # comparing each with each takes minutes
    many = listing(*(named(f"directory/number {number}") for number in range(300_000)))
    hub.faults = [Fault("GET /api", status=200, body=many)]
    with pytest.raises(HubError, match=r"more than 8\.0 MiB"):
        find_repository(NAME)


def test_names_that_differ_by_case_do_not_lie_side_by_side() -> None:
    check_distinct(NAME, ["a", "A1", "b/a"])
    with pytest.raises(HubError, match=r"only by case, found Model\.gguf and model\.GGUF"):
        check_distinct(NAME, ["Model.gguf", "x", "model.GGUF"])


# What it gives for a file ------------------------------------------------------------------------


def partial(content_range: str, body: bytes = CONTENT, length: int | None = None) -> Fault:
    head = (
        f"HTTP/1.1 206 Partial\r\nContent-Range: {content_range}\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return answer(head.encode("latin-1") + body)


SIZE = len(CONTENT)
BODIES: dict[str, tuple[Fault, str]] = {
    "another part": (partial(f"bytes 5-{SIZE + 4}/{SIZE}"), "the range 'bytes 5-"),
    "no range": (answer(b"HTTP/1.1 206 P\r\n\r\nx"), "the range ''"),
    "a range of letters": (partial("bytes a-b/c"), "the range 'bytes a-b/c'"),
    "a range in superscript": (partial("bytes 0-1/²"), "the range 'bytes 0-1"),
    "a range below zero": (partial(f"bytes -1-5/{SIZE}"), "the range 'bytes -1-5"),
    "a range of 5000 digits": (partial(f"bytes 0-{'9' * 5000}/{SIZE}"), "the range"),
    "a range of another file": (partial("bytes 0-9/10"), "a file of 10 bytes instead of"),
    "several ranges": (partial("multipart/byteranges"), "the range"),
    "too few bytes": (
        partial(f"bytes 0-{SIZE - 1}/{SIZE}", CONTENT[:100], 100),
        "ends at byte|disconnected",
    ),
    "another length": (
        answer(OK + b"Content-Length: 7\r\n\r\n1234567"),
        "a file of 7 bytes",
    ),
    "a length in superscript": (
        answer(OK + b"Content-Length: \xb2\r\n\r\n12"),
        "failed|cannot give",
    ),
    "a compressed file": (
        status(200, gzip.compress(CONTENT), Content_Encoding="gzip"),
        "Content-Encoding gzip",
    ),
    "other bytes without end": (
        endless(OK + b"\r\n", b"x" * 65536),
        "failed its checksum",
    ),
    "chunks without end": (
        endless(CHUNKED, b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        "failed its checksum",
    ),
    "a byte at a time": (
        endless(OK + b"\r\n", b"x", DRIP),
        "less than 1.0 KiB a second",
    ),
    "a chunk's size byte by byte": (
        endless(CHUNKED + b"1;", b"x", DRIP),
        "less than 1.0 KiB a second",
    ),
    "nothing of a body": (
        endless(OK + b"\r\n", b"", DRIP),
        "timed out|less than",
    ),
    "another commit": (
        status(200, CONTENT, X_Repo_Commit="b" * 40),
        "changed while it",
    ),
    "a commit of 60000 letters": (
        status(200, CONTENT, X_Repo_Commit="b" * 60000),
        "changed while",
    ),
    "it does not have it": (
        status(404, X_Error_Code="EntryNotFound"),
        "lost a file that it lists",
    ),
    "not satisfiable": (status(416), "HTTP status 416"),
    "redirects without end": (redirect(b"/x"), "more than 10 redirects"),
    "closed at once": (answer(b""), "disconnected"),
}


@pytest.mark.parametrize(("fault", "found"), BODIES.values(), ids=BODIES.keys())
def test_a_file_that_is_none_is_one_error(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, found: str
) -> None:
    remote = find_repository(NAME)
    hub.faults = [fault]
    target = tmp_path / "big.gguf"
    with monkeypatch.context() as slow:
        if fault.pause:
            with_little_patience(slow, found)
        with pytest.raises(HubError, match=found) as caught:
            remote.download("big.gguf", target)
        if not fault.pause:
            assert not re.search(SLOW, str(caught.value))
        assert len(str(caught.value)) < 1000
        assert not target.exists()
        assert sum(path.stat().st_size for path in tmp_path.glob("big*")) <= SIZE
        if "checksum" not in found:  # the head of a file is not compared with anything
            with pytest.raises(HubError):
                remote.read("big.gguf", 0, SIZE)
    hub.faults = []
    with suppress(HubError):  # what came before was damaged
        remote.download("big.gguf", target)
    remote.download("big.gguf", target)
    assert target.read_bytes() == CONTENT


def test_a_slow_disk_is_no_slow_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STALL_SECONDS", 0.05)
    remote = find_repository(NAME)
    remote.download("big.gguf", tmp_path / "a", on_bytes=lambda _: time.sleep(0.1))
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_token_goes_to_the_hub_alone_and_is_never_shown(hub: HubServer, tmp_path: Path) -> None:
    elsewhere = hub.cdn_url.encode()
    hub.faults = [replace(redirect(elsewhere + b"/api/models/someone/model"), times=1)]
    find_repository(NAME, token="hf_secret")
    assert [one.token for one in hub.requests] == ["hf_secret", None]
    for token in ("hf_secret\nX: y", "hf_secret\x00", "hf_sécret", "hf_secret\U0001f600"):
        with pytest.raises(HubError, match="the token for the hub is not one") as caught:
            find_repository(NAME, token=token)
        assert "hf_s" not in str(caught.value)


@pytest.mark.parametrize(
    "revision",
    ["../x", "a/../b", "/x", "x/", "", "a b", "a\nb", "a\0b", "\ud800", "a~1", "x" * 256, "a\\b"],
)
def test_what_is_no_revision_is_asked_for_nowhere(hub: HubServer, revision: str) -> None:
    with pytest.raises(HubError, match="is not a revision"):
        find_repository(NAME, revision=revision)
    assert hub.requests == []


@pytest.mark.parametrize(
    "endpoint", ["", "ftp://x", "http://", "http://[", "http://x:y", "//x", "http://a b", "\0"]
)
def test_an_endpoint_that_is_none(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(HubError):
        find_repository(NAME)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"hf_secret\xc3\xa9", b"hf_secret\x1b[0m", None])
def test_a_token_file_that_holds_none_is_one_error(hub: HubServer, content: bytes | None) -> None:
    path = Path(constants.HF_TOKEN_PATH)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(HubError, match=r"token for the hub (is not|cannot)") as caught:
        find_repository(NAME)
    assert "hf_secret" not in str(caught.value)
    assert hub.requests == []


def test_millions_of_entries_that_are_none_take_little_more_than_their_text() -> None:
    data = b'{"sha":"' + b"a" * 40 + b'","siblings":[' + b"{}," * 500_000 + b"{}]}"
    tracemalloc.start()
    try:
        with pytest.raises(HubError, match="has no rfilename"):
            parse_listing(data, NAME)
        assert tracemalloc.get_traced_memory()[1] < 60 * len(data)
    finally:
        tracemalloc.stop()


def test_a_hub_without_tls_where_it_should_be(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url.replace("http:", "https:"))
    with pytest.raises(HubError, match=r"cannot give someone/model, found .*SSL"):
        find_repository(NAME)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_certificate_that_is_not_trusted_is_said_at_once(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = "req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -subj /CN=127.0.0.1 -days 1"
    subprocess.run(["openssl", *words.split()], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError), listener.accept()[0] as connection:
                context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", f"https://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(
            HubError, match=r"certificate of 127\.0\.0\.1 is not trusted.*CERT_FILE"
        ):
            find_repository(NAME)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PROXY", "nonsense://x"), ("HTTP_PROXY", "http://["), ("HTTP_PROXY", "http://a b:c"),
        ("ALL_PROXY", "socks5://127.0.0.1:1"), ("HTTP_PROXY", "http://127.0.0.1:1"),
        ("SSL_CERT_FILE", "/nowhere"),
    ],
)  # fmt: skip
def test_a_damaged_environment_is_one_error(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    close_session()
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv(name, value)
    try:
        with pytest.raises(HubError):
            find_repository(NAME)
    finally:
        close_session()
