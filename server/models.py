"""Which model is here, and whether it answers: ``/v1/models`` and ``/health``."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from .errors import ApiError
from .state import Server, server_of


async def health(request: Request) -> JSONResponse:
    """Whether the server answers: 200, or 503 while the model is loaded first."""
    server = server_of(request)
    if server.stopping:
        raise ApiError(503, "The server is stopping.", code="stopping")
    server.known_facts()
    return JSONResponse({"status": "ok", "model": server.models.phase})


async def models(request: Request) -> JSONResponse:
    """The list of models, which is one."""
    server = server_of(request)
    known = [] if server.facts is None else [_entry(server)]
    name = known[0]["id"] if known else None
    ends = {"first_id": name, "last_id": name, "has_more": False}  # Anthropic's
    return JSONResponse({"object": "list", "data": known, **ends})


async def model(request: Request) -> JSONResponse:
    """The model of that name."""
    server = server_of(request)
    name = request.path_params["name"]
    if server.facts is None or name != server.model_name:
        raise ApiError(
            404,
            f"There is no model of this name here, expected {server.model_name}.",
            "model",
            "model_not_found",
        )
    return JSONResponse(_entry(server))


def _entry(server: Server) -> dict[str, Any]:
    """What clients are told of the model: OpenAI's fields, Anthropic's, vLLM's and llama.cpp's."""
    facts = server.facts
    assert facts is not None
    return {
        "id": server.model_name,
        "object": "model",
        "created": facts.created,
        "owned_by": "llama4-edge",
        "type": "model",
        "display_name": facts.name,
        "created_at": datetime.fromtimestamp(facts.created, timezone.utc).isoformat(),
        "max_model_len": facts.n_ctx,
        "meta": {
            "name": facts.name,
            "n_ctx": facts.n_ctx,
            "n_ctx_train": facts.n_ctx_train,
            "n_vocab": facts.n_vocab,
            "n_embd": facts.n_embd,
            "n_params": facts.parameters,
            "size": facts.bytes,
            "n_parallel": facts.n_parallel,
            "vision": facts.has_pictures,
        },
    }


routes = [
    Route("/health", health),
    Route("/v1/models", models),
    Route("/v1/models/{name:path}", model),
]
