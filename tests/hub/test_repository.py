"""What talking to the hub comes down to; the rest is tested by what uses it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from llama4_edge.errors import HubError
from llama4_edge.hub import repository as hub_client
from llama4_edge.hub.names import parse_repository

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
        raise hub_client._PassingError("busy", 7.0 if len(stop.waits) == 1 else None)

    with pytest.raises(HubError, match="cannot give it, found busy, 6 times"):
        hub_client.patiently("org/name", "it", attempt, lambda: 0, stop, None)
    assert stop.waits == [1.0, 7.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize(
    ("text", "repository"),
    [
        (NAME, NAME),
        (f"hf://{NAME}", NAME),
        (str(Path(f"hf://{NAME}")), NAME),
        ("Llama-4-Small", None),
        ("./meta-llama/Llama-4-Small", None),
        ("/meta-llama/Llama-4-Small", None),
        ("../Llama-4-Small", None),
        ("a/b/c", None),
        ("https://huggingface.co/a/b", None),
    ],
)
def test_what_names_a_repository(text: str, repository: str | None) -> None:
    assert parse_repository(text) == repository
