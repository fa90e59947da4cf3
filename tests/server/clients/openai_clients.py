"""OpenAI's own clients, pointed at a server of the tests."""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI, OpenAI

from tests.server.running import RunningServer

# What the demo model has learnt.
EXPERTS = "How many experts does Scout have?"
EXPERTS_ANSWER = "Scout has 16 experts."


def openai_client(server: RunningServer, **settings: Any) -> OpenAI:
    """A client that tries once, unless it is told otherwise."""
    given = {"api_key": "none", "max_retries": 0, "timeout": 600.0, **settings}
    return OpenAI(base_url=f"{server.url}/v1", **given)


def async_openai_client(server: RunningServer, **settings: Any) -> AsyncOpenAI:
    """The same, awaited."""
    given = {"api_key": "none", "max_retries": 0, "timeout": 600.0, **settings}
    return AsyncOpenAI(base_url=f"{server.url}/v1", **given)
