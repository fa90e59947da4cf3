"""A server while it runs: uvicorn around the application, and how both end.

Promises that the first SIGTERM or SIGINT lets answers go on for the grace period and that the
second ends them at once; and that a client which sends or reads too slowly loses its connection.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import SettingError
from ..untrusted import brief
from .chunks import compact
from .errors import ApiError, openai_body
from .state import Server

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 512
"""Clients that may be connected at a time; more are hung up on."""

_BACKLOG = 100  # taken at once, before it is seen how many there are
_HEAD_SECONDS = 20.0  # until all lines before a body are there
_SILENT_SECONDS = 60.0  # about what was told
_STALL_SECONDS = 60.0  # without reading what was sent
_KEEP_ALIVE_SECONDS = 75
_LAST_SECONDS = 5.0  # for what is left to be sent when a connection is closed


@dataclass(frozen=True)
class TLS:
    """The files of a certificate and its key."""

    certificate: str
    key: str


class Running(uvicorn.Server):
    """A server that can be run once.

    Args:
        stopping: called when no more requests are taken.

    Raises:
        SettingError: the certificate cannot be used.
    """

    def __init__(
        self,
        app: Starlette,
        tls: TLS | None = None,
        *,
        stopping: Callable[[], object] = lambda: None,
    ) -> None:
        self._stopping, self._has_failed = stopping, False
        # What it would say, with tracebacks, is told by `gate`.
        logging.getLogger("uvicorn").addHandler(logging.NullHandler())
        self._shared: Server = app.state.server
        grace = self._shared.settings.grace_seconds
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            loop="asyncio",
            interface="asgi3",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(grace + _LAST_SECONDS) + 1,
            ssl_certfile=None if tls is None else tls.certificate,
            ssl_keyfile=None if tls is None else tls.key,
        )
        try:
            config.load()
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            reason = getattr(error, "strerror", None) or str(error)
            raise SettingError(
                "the certificate and its key cannot be used",
                found=reason,
                expected="files in PEM that belong together",
            ) from None
        super().__init__(config)

    def _failed(self) -> None:
        """The model cannot be loaded; that it was stopped is no failure."""
        self._has_failed = not self.should_exit
        self.should_exit = True

    def stop(self) -> None:
        """Take no more requests, and end when the answers have, or the grace period."""
        if self.should_exit:
            self.force_exit = True
            self._shared.end_answers()
            return
        self.should_exit = True
        self._shared.stopping = True
        self._stopping()
        loop = asyncio.get_running_loop()
        loop.call_later(self._shared.settings.grace_seconds, self._shared.end_answers)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM, SIGINT and SIGHUP, where this is the main thread."""
        loop = asyncio.get_running_loop()
        taken = []
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is None or signal.getsignal(number) is signal.SIG_IGN:
                continue  # as nohup has it
            # In another thread, whoever started it stops it.
            with suppress(RuntimeError, ValueError):
                loop.add_signal_handler(number, self.stop)
                taken.append(number)
        try:
            yield
        finally:
            for number in taken:
                loop.remove_signal_handler(number)

    async def listen(self, listeners: Sequence[socket.socket]) -> None:
        """Serve until it is stopped, and free the model.

        Raises:
            Llama4EdgeError: the model cannot be loaded.
        """
        keeper = self._shared.models
        keeper.failed = self._failed
        keeper.cancelled = lambda: self.should_exit
        asyncio.get_running_loop().set_exception_handler(LoopFailures())
        await self.serve(sockets=list(listeners))
        await keeper.close(quick=self.force_exit)
        if self._has_failed and keeper.failure is not None:
            raise keeper.failure


class LoopFailures:
    """Tells what fails in the loop in a line, and not again within a minute.

    Without files for more connections, the loop fails a thousand times a second.
    """

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Tell of one failure."""
        message, error = str(context.get("message")), context.get("exception")
        now = loop.time()
        if now < self._told.get(message, 0.0):
            return
        if len(self._told) < 100:
            self._told[message] = now + _SILENT_SECONDS
        logger.error("%s%s", brief(message, 200), f": {brief(error, 200)}" if error else "")
        logger.debug("where it failed", exc_info=error)


def _http_fault(fault: BaseException | None) -> ApiError:
    """What is wrong with a request that h11 cannot read."""
    if getattr(fault, "error_status_hint", 400) == 431:
        text = "The lines before the body are too long, expected at most 16 KiB of them together."
        return ApiError(431, text, code="invalid_http")
    text = f"This is not an HTTP request: {brief(fault)}." if fault else "This is not HTTP."
    return ApiError(400, text, code="invalid_http")


class _Protocol(H11Protocol):
    """uvicorn's, with limits on how slow a client may be."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        self._forget_stall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return  # a connection that is closed before all was read loses the answer
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._expect_head()
        else:
            self._forget_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(_STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_stall()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        # What was sent last may never be read.
        self._stalled = self.loop.call_later(_LAST_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets an error object too, and the client time to read it."""
        error = _http_fault(sys.exc_info()[1])
        body = compact(openai_body(error)).encode()
        headers = [("Content-Type", "application/json"), ("Connection", "close")]
        headers.append(("Content-Length", str(len(body))))
        try:
            for event in (
                h11.Response(status_code=error.status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # an answer has begun
            self.transport.close()
            return
        self._is_refused = True
        self._forget_head()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LAST_SECONDS, self.transport.abort)

    def _expect_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _forget_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
