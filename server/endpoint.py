"""A route that asks the model: what all of them do around their own work.

Promises that the model is there for the whole answer, that a client which hangs up ends it at
once, and that what is refused has one form. Knows no protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..async_model import AsyncModel
from ..errors import EngineError
from ..vision.finding import no_projector
from .body import IN_LOOP, Schema, read_body
from .errors import ApiError, request_error
from .state import Served, Server, record_of, server_of

T = TypeVar("T", bound=Schema)
_R = TypeVar("_R")


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request that may ask the model now."""

    request: Request
    body: T
    model: AsyncModel
    server: Server
    record: Served

    async def prepared(self, work: Callable[[], _R], *, is_slow: bool = False) -> _R:
        """What is made of the body; in another thread where that may hold up others.

        Args:
            is_slow: whether it may even for a small body.
        """
        if self.record.body_bytes <= IN_LOOP and not is_slow:
            return work()
        return await asyncio.to_thread(work)


def _one(_: object) -> int:
    return 1


def no_answers(_: object) -> int:
    """For routes that take no place in the queue."""
    return 0


class Endpoint(Generic[T]):
    """An ASGI application for one route.

    Args:
        schema: what is read from the body.
        handle: makes the answer, which may be a stream.
        summary: what the route does, for the document of all routes.
        answer: what is written, for that document.
        prompt_field: the field that a prompt is made of, for errors about it.
        n_answers: how many a request asks for.
    """

    def __init__(
        self,
        schema: type[T],
        handle: Callable[[Call[T]], Awaitable[Response]],
        *,
        summary: str,
        answer: type[BaseModel] | None = None,
        prompt_field: str | None = None,
        n_answers: Callable[[T], int] = _one,
    ) -> None:
        self.schema, self.summary, self.answer = schema, summary, answer
        self._handle, self._prompt_field, self._n_answers = handle, prompt_field, n_answers

    def route(self, path: str) -> Route:
        """The route to it, of POST alone."""
        return Route(path, self, methods=["POST"], name=path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or end when its client hangs up."""
        request = Request(scope, receive)
        body = await read_body(request, self.schema, self._prompt_field)
        work = asyncio.ensure_future(self._answer(request, body, send))
        gone = asyncio.ensure_future(_hung_up(receive))
        server = server_of(request)
        with server.counted(work):
            await _until_gone(work, gone)
        if not work.cancelled():
            work.result()
        elif server.ending:
            raise ApiError(503, "The server is stopping.", code="stopping")
        else:
            raise ClientDisconnect

    async def _answer(self, request: Request, body: T, send: Send) -> None:
        server = server_of(request)
        async with server.asking(self._n_answers(body)) as model:
            call = Call(request, body, model, server, record_of(request))
            try:
                response = await self._handle(call)
            except Exception as error:
                raise self._failure(error, model) from error
            await response(request.scope, request.receive, send)

    def _failure(self, error: Exception, model: AsyncModel) -> ApiError:
        if isinstance(error, EngineError):
            if model.model.engine.closed:
                return ApiError(503, "The model was closed.", code="stopping")
            if str(error) == str(no_projector(model.model.info.path)):
                return ApiError(400, str(error), self._prompt_field, "invalid_value")
        return request_error(error, self._prompt_field, self.schema.model_fields)


async def _until_gone(work: asyncio.Future[None], gone: asyncio.Future[None]) -> None:
    """Wait for the end of an answer, which comes at once when its client is gone."""
    try:
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
        await asyncio.wait([work])


async def _hung_up(receive: Receive) -> None:
    """Return when the client has."""
    while (await receive())["type"] != "http.disconnect":
        pass
