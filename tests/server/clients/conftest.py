"""OpenAI's own client for the servers of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.server.clients.openai_clients import openai_client
from tests.server.running import RunningServer


@pytest.fixture
def openai(demo_server: RunningServer) -> Iterator[OpenAI]:
    """A client of the server over the demo model."""
    with openai_client(demo_server) as client:
        yield client


@pytest.fixture
def openai_tiny(tiny_server: RunningServer) -> Iterator[OpenAI]:
    """A client of the server over the tiny model."""
    with openai_client(tiny_server) as client:
        yield client
