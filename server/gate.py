"""What every request goes through first: who may ask, from where, and what is told of it.

Promises that keys are compared in constant time and shown nowhere; that a page elsewhere cannot ask
unless its origin is allowed, whatever name it gives this machine; and that no exception gets out.
Knows no protocol but how each carries its key.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
import traceback
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..untrusted import brief, shown
from .errors import ApiError, api_error, error_response
from .settings import host_name, is_address
from .state import Served, Server
from .unread import UnreadBody

logger = logging.getLogger(__name__)

OPEN_PATHS = {"/", "/docs", "/favicon.ico", "/health", "/openapi.json"}
"""What needs no key: nothing there tells of anybody's requests."""

OPEN_FOLDERS = ("/page/",)
"""The files of the page, which asks for the key itself."""

_METHODS = "GET, POST, DELETE, OPTIONS"


class Gate:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app, self._server = app, server
        self._settings = server.settings
        self._keys = [_digest(key.encode()) for key in self._settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Served(scope["method"], scope["path"], time.monotonic())
        scope["llama4.served"] = record
        headers = Headers(scope=scope)
        origin = self._allowed_origin(headers)

        body = UnreadBody(receive, headers)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                written = MutableHeaders(scope=message)
                self._add_headers(written, origin)
                body.will_close(written)
            elif not message.get("more_body", False):
                # Before its last bytes: whoever has them finds it counted.
                self._tell(record)
                if body.is_to_be_discarded:
                    await send({**message, "more_body": True})
                    await body.discard(lambda: self._server.ending)
                    message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            await self._let_through(scope, body.receive, answer, headers, origin)
        except ClientDisconnect:
            record.vanished = True
        except Exception as error:
            _log_failure(error, scope)
            if not record.status:
                await error_response(_noted(api_error(error), record), scope["path"])(
                    scope, body.receive, answer
                )
        finally:
            self._tell(record)

    def _tell(self, record: Served) -> None:
        """Tell of a request, once."""
        if not record.seconds:
            record.seconds = time.monotonic() - record.begun
            self._server.served(record)

    async def _let_through(
        self, scope: Scope, receive: Receive, send: Send, headers: Headers, origin: str | None
    ) -> None:
        refused: ApiError | None = None
        try:
            self._check_host(headers)
            self._check_origin(headers, origin)
        except ApiError as error:
            refused = error
        if refused is None and scope["method"] == "OPTIONS":
            await _preflight(headers, origin)(scope, receive, send)
            return
        if refused is None:
            refused = self._key_fault(scope["path"], headers)
        if refused is not None:
            await error_response(_noted(refused, scope["llama4.served"]), scope["path"])(
                scope, receive, send
            )
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        """Refuse a name that somebody elsewhere may have given this machine (DNS rebinding).

        Raises:
            ApiError: the name is not one of those allowed.
        """
        if self._settings.hosts is None:
            return
        host = headers.get("host", "")
        name = host_name(host)
        if name in self._settings.hosts or is_address(name):
            return
        raise ApiError(
            403,
            f"The request is for another host, found Host {shown(host)}, expected one of "
            f"{', '.join(self._settings.hosts)}, or an address. --allowed-host adds a name.",
            code="host_not_allowed",
        )

    def _check_origin(self, headers: Headers, allowed: str | None) -> None:
        """Refuse a page of another origin, which may send some requests without asking first.

        Raises:
            ApiError: its origin is not allowed.
        """
        origin = headers.get("origin")
        if origin is None or allowed is not None:
            return
        if _netloc(origin) == headers.get("host", "").lower():
            return
        raise ApiError(
            403,
            f"Pages of {brief(origin)} may not ask this server. --cors-origin allows them.",
            code="origin_not_allowed",
        )

    def _allowed_origin(self, headers: Headers) -> str | None:
        """What pages are told about theirs; None where that is nothing."""
        origin = headers.get("origin")
        if origin is None:
            return None
        if "*" in self._settings.cors_origins:
            return "*"
        return origin if origin.lower() in self._settings.cors_origins else None

    def _key_fault(self, path: str, headers: Headers) -> ApiError | None:
        if not self._keys or path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not key:
            return ApiError(
                401,
                "An API key is missing. Send it as Authorization: Bearer KEY.",
                code="missing_api_key",
            )
        given = _digest(key.encode("latin-1"))  # which is how headers are read
        # All are compared, so that time tells nothing.
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        if True not in matches:
            return ApiError(401, "The API key is wrong.", code="invalid_api_key")
        return None

    def _add_headers(self, headers: MutableHeaders, origin: str | None) -> None:
        headers.setdefault("X-Content-Type-Options", "nosniff")
        if origin is not None:
            headers["Access-Control-Allow-Origin"] = origin
            headers.add_vary_header("Origin")
        if self._server.stopping:
            headers["Connection"] = "close"


def _preflight(headers: Headers, origin: str | None) -> Response:
    """What a browser asks before a page of another origin may send a request."""
    answer = Response(status_code=204, headers={"Allow": _METHODS})
    if origin is not None:
        answer.headers["Access-Control-Allow-Methods"] = _METHODS
        wanted = headers.get("access-control-request-headers")
        if wanted is not None:
            answer.headers["Access-Control-Allow-Headers"] = wanted
        answer.headers["Access-Control-Max-Age"] = "600"
    return answer


def _noted(error: ApiError, record: Served) -> ApiError:
    record.error = error.message
    return error


def _log_failure(error: Exception, scope: Scope) -> None:
    """One line on where the server failed."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere"
    logger.error(
        "%s %s failed: %s: %s (%s)",
        scope["method"],
        brief(scope["path"]),
        type(error).__name__,
        brief(error, 400),
        where,
    )
    logger.debug("where it failed", exc_info=error)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _netloc(origin: str) -> str | None:
    """Host and port of an origin; None where it is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
