"""What talking to the hub comes down to; the rest is tested by what uses it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import ClassVar

import pytest

from llama4_edge.errors import HubError
from llama4_edge.hub import repository as hub_client
from llama4_edge.hub.transfer import PassingError
from tests.hub_server import Fault, running_hub

NAME = "meta-llama/Llama-4-Small"


def test_waits_grow_and_yield_to_what_the_hub_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(threading.Event):
        def __init__(self) -> None:
            super().__init__()
            self.waits: list[float | None] = []

        def wait(self, timeout: float | None = None) -> bool:
            self.waits.append(timeout)
            return False

    stop = Clock()

    def attempt() -> None:
        raise PassingError("busy", 7.0 if len(stop.waits) == 1 else None)

    with pytest.raises(HubError, match="cannot give it, found busy, 6 times"):
        hub_client.patiently("org/name", "it", attempt, lambda: 0, stop, None)
    assert stop.waits == [1.0, 7.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "0"}, {"RateLimit": '"api";r=0;t=0'}], ids=["after", "quota"]
)
def test_a_rate_limit_says_how_long_to_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, headers: dict[str, str]
) -> None:
    with running_hub(monkeypatch, tmp_path) as server:
        monkeypatch.setattr(hub_client, "WAITS", (999.0,))
        server.add(NAME, {"README.md": b"hello"})
        server.faults = [Fault("GET /api", status=429, headers=headers)]
        assert list(hub_client.find_repository(NAME).files) == ["README.md"]
    assert len(server.requests) == 2


def test_a_large_file_comes_in_several_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = bytes(range(250)) * 10
    with running_hub(monkeypatch, tmp_path) as server:
        monkeypatch.setattr(hub_client, "_ANSWER_BYTES", 1000)
        server.add(NAME, {"big.gguf": content})
        hub_client.find_repository(NAME).download("big.gguf", tmp_path / "big.gguf")
    assert server.ranges("/cdn/") == ["bytes=0-999", "bytes=1000-1999", "bytes=2000-2499"]
    assert (tmp_path / "big.gguf").read_bytes() == content


def test_a_place_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running_hub(monkeypatch, tmp_path) as server:
        server.add(NAME, {"big.gguf": b"GGUF"})
        found = hub_client.find_repository(NAME)
        with pytest.raises(
            HubError, match=r"big\.gguf cannot be written to .*nowhere, found No such"
        ):
            found.download("big.gguf", tmp_path / "nowhere" / "big.gguf")


def test_a_token_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with running_hub(monkeypatch, tmp_path) as server:
        server.add(NAME, {"README.md": b"hello"})
        assert "hf_secret" not in repr(hub_client.find_repository(NAME, token="hf_secret"))


def test_a_digest_that_is_none_is_no_hubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with running_hub(monkeypatch, tmp_path) as server:
        server.add(NAME, {"big.gguf": b"GGUF"}).entries["big.gguf"].etag = "../../escape"
        with pytest.raises(HubError, match=r"found big\.gguf of .* has no digest"):
            hub_client.find_repository(NAME)


def test_nobody_waits_for_ever_for_a_hub_that_asks_for_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Clock(threading.Event):
        waits: ClassVar[list[float | None]] = []

        def wait(self, timeout: float | None = None) -> bool:
            self.waits.append(timeout)
            return False

    def attempt() -> None:
        raise PassingError("HTTP status 429", 1e9)

    with pytest.raises(HubError, match="HTTP status 429, 2 times"):
        hub_client.patiently("org/name", "it", attempt, lambda: 0, Clock(), None)
    assert Clock.waits == [300.0]
    assert caplog.messages == ["HTTP status 429: waiting 5 min 00 s for it"]


def test_waits_of_seconds_are_announced(caplog: pytest.LogCaptureFixture) -> None:
    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return False

    def attempt() -> None:
        raise PassingError("HTTP status 500")

    with pytest.raises(HubError, match="HTTP status 500, 6 times"):
        hub_client.patiently("org/name", "it", attempt, lambda: 0, Clock(), None)
    assert caplog.messages == [
        f"HTTP status 500: waiting {wait} s for it" for wait in ("4.0", "8.0", "16.0")
    ]


def test_what_takes_long_to_fail_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "WAITS", (0.0,) * 5)
    tries = []

    def attempt() -> None:
        tries.append(1)
        raise PassingError("no answer", is_slow=True)

    with pytest.raises(HubError, match="no answer, 2 times"):
        hub_client.patiently("org/name", "it", attempt, lambda: 0, threading.Event(), None)
    assert len(tries) == 2
