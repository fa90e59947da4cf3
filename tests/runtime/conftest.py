"""What every test of an engine that it shares with others finds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llama4_edge.runtime.engine import Engine
from tests.asking import held, until


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test finds the module's engine with nothing read, and leaves it without requests."""
    shared = request.getfixturevalue("engine") if "engine" in request.fixturenames else None
    if isinstance(shared, Engine):
        shared.clear()
        assert not any(n_tokens for n_tokens, _ in shared.sequences)
    yield
    if isinstance(shared, Engine) and not shared.closed:
        until(lambda: not held(shared))
