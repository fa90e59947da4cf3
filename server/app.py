"""The application: the routes of all protocols, and what stands before them.

Promises that whatever comes in, what goes out is an answer or an error object of the protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from ..async_model import AsyncModel
from ..errors import Llama4EdgeError
from . import (
    adapters,
    anthropic,
    chat,
    completions,
    conversations,
    models,
    openapi,
    reference_page,
    responses,
    utilities,
)
from .errors import ApiError, api_error, error_response
from .gate import Gate
from .keeper import ModelKeeper
from .metrics import Metrics
from .page import files as page
from .settings import ServerSettings
from .state import Server, record_of


def create_app(
    model: AsyncModel | ModelKeeper, settings: ServerSettings | None = None
) -> Starlette:
    """The server as an ASGI application.

        >>> app = create_app(await AsyncModel.open("scout-int4.gguf", n_parallel=4))
        >>> uvicorn.run(app)

    Args:
        model: what answers; one that is handed in is not freed when the server stops.
    """
    keeper = ModelKeeper(model) if isinstance(model, AsyncModel) else model
    server = Server(keeper, settings or ServerSettings())
    if server.sessions is not None:
        keeper.add_closing(server.sessions.keep_states)

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        keeper.start()
        if (loaded := keeper.loaded) is not None:
            await asyncio.to_thread(loaded.model.structures.prepare)
        yield
        await conversations.settle(server)

    app = Starlette(
        routes=[
            *models.routes,
            *chat.routes,
            *completions.routes,
            *responses.routes,
            *anthropic.routes,
            *utilities.routes,
            *adapters.routes,
            *openapi.routes,
            *reference_page.routes,
            *conversations.routes,
            *page.routes,
        ],
        middleware=[Middleware(Gate, server=server)],
        exception_handlers={
            HTTPException: _failed,
            ApiError: _failed,
            Llama4EdgeError: _failed,
        },
        lifespan=life,
    )
    app.router.redirect_slashes = False
    app.state.server = server
    app.state.metrics = Metrics(server, [one.path for one in app.routes if isinstance(one, Route)])
    return app


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405:
        error = HTTPException(405, headers={"Allow": _methods_at(request)})
    failure = api_error(error)
    record_of(request).error = failure.message
    return error_response(failure, request.url.path)


def _methods_at(request: Request) -> str:
    """What may be done at a path, by all of its routes."""
    methods: set[str] = {"OPTIONS"}
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return ", ".join(sorted(methods))
