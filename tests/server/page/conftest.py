"""A browser that shows the page, over a server whose answers the test writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama4_edge import Model
from llama4_edge.server.settings import ServerSettings
from tests.server.page.browser import running_browser
from tests.server.page.script import Script, scripted_server
from tests.server.page.shown import Shown, show
from tests.server.running import RunningServer


# While Playwright runs, no other event loop can in this thread: not beyond a module's tests.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def scripted(tiny_model: Model) -> Iterator[tuple[RunningServer, Script]]:
    with scripted_server(tiny_model) as server:
        yield server


@pytest.fixture
def shown(browser: Any, scripted: tuple[RunningServer, Script]) -> Iterator[Shown]:
    """The page, opened; at the end, nothing was fetched from elsewhere and nothing failed."""
    server, script = scripted
    for one in show(browser, server.url, script):
        one.open()
        yield one


@pytest.fixture
def keeping(browser: Any, tiny_model: Model, tmp_path: Path) -> Iterator[Shown]:
    """The same, over a server that keeps conversations."""
    settings = ServerSettings(sessions=tmp_path / "talks")
    with scripted_server(tiny_model, settings) as (server, script):
        for one in show(browser, server.url, script):
            one.open()
            yield one
