"""A server on a real socket, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from starlette.applications import Starlette

from llama4_edge import AsyncModel, Model
from llama4_edge.server.app import create_app
from llama4_edge.server.keeper import ModelKeeper
from llama4_edge.server.listening import listening_port
from llama4_edge.server.running import TLS, Running
from llama4_edge.server.settings import ServerSettings
from llama4_edge.server.state import Server


@dataclass(frozen=True)
class RunningServer:
    """Where it is, and what is in it."""

    url: str
    app: Starlette
    running: Running

    @property
    def server(self) -> Server:
        shared: Server = self.app.state.server
        return shared

    @property
    def address(self) -> tuple[str, int]:
        parts = httpx.URL(self.url)
        assert parts.port is not None
        return parts.host, parts.port

    def client(self, **settings: object) -> httpx.Client:
        """A client of it, with a timeout for what would never end."""
        return httpx.Client(base_url=self.url, timeout=600, trust_env=False, **settings)  # type: ignore[arg-type]

    def connect(self) -> socket.socket:
        """A bare connection to it."""
        return socket.create_connection(self.address, timeout=600)


@contextmanager
def running_server(
    model: Model | ModelKeeper,
    settings: ServerSettings | None = None,
    *,
    send_buffer: int | None = None,
    tls: TLS | None = None,
) -> Iterator[RunningServer]:
    """The server, until the end of the block.

    Args:
        send_buffer: bytes that the kernel takes of what was not received yet.
    """
    app = create_app(AsyncModel(model) if isinstance(model, Model) else model, settings)
    running = Running(app, tls)
    loop = asyncio.new_event_loop()
    with listening_port("127.0.0.1", 0) as listener:
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(
            target=lambda: loop.run_until_complete(running.listen([listener])), daemon=True
        )
        thread.start()
        try:
            yield RunningServer(url, app, running)
        finally:
            if thread.is_alive():
                loop.call_soon_threadsafe(running.stop)
            thread.join(600)
            assert not thread.is_alive()
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
