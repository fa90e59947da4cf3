"""What the tests of the server share: running servers over the tiny and the demo model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llama4_edge import Model
from llama4_edge.chat import structure
from llama4_edge.server import running, unread
from tests.fixtures import MakeGGUF, MakeProjector
from tests.server.running import RunningServer, running_server

DEMO = Path(__file__).resolve().parents[2] / "demo" / "Llama-4-Tiny"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give each of schemathesis's tests an id of its own: pytest-xdist runs one of each id."""
    if hasattr(item, "operation_label") and item.parent is not None:
        item._id = item.parent.id.child(item.name)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, no client or thread is too slow by chance."""
    monkeypatch.setattr(structure, "_SECONDS", 600.0)
    for name in ("_HEAD_SECONDS", "_STALL_SECONDS", "_LAST_SECONDS"):
        monkeypatch.setattr(running, name, 600.0)
    monkeypatch.setattr(unread, "_SECONDS", 600.0)
    monkeypatch.setattr(unread, "_SILENT_SECONDS", 600.0)


@pytest.fixture(scope="session")
def tiny_model(tiny_path: Path) -> Iterator[Model]:
    """Random weights, 256 tokens of context, four answers at a time."""
    with Model(tiny_path, n_ctx=256, n_threads=1, n_parallel=4) as model:
        yield model


@pytest.fixture(scope="session")
def tiny_server(tiny_model: Model) -> Iterator[RunningServer]:
    with running_server(tiny_model) as server:
        yield server


@pytest.fixture
def tiny(tiny_server: RunningServer) -> Iterator[httpx.Client]:
    """A client of the server over the tiny model."""
    with tiny_server.client() as client:
        yield client


@pytest.fixture(scope="session")
def demo_path(make_gguf: MakeGGUF) -> Path:
    return make_gguf(DEMO, "int4")


@pytest.fixture(scope="session")
def demo_model(demo_path: Path, make_projector: MakeProjector) -> Iterator[Model]:
    """The trained model of the repository, with its projector."""
    projector = make_projector(DEMO)
    with Model(demo_path, n_ctx=4096, n_threads=1, n_parallel=4, projector=projector) as model:
        yield model


@pytest.fixture(scope="session")
def demo_server(demo_model: Model) -> Iterator[RunningServer]:
    with running_server(demo_model) as server:
        yield server


@pytest.fixture
def demo(demo_server: RunningServer) -> Iterator[httpx.Client]:
    """A client of the server over the demo model."""
    with demo_server.client() as client:
        yield client
