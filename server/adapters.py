"""``/lora-adapters``: which adapters requests can have, as llama.cpp's server has it."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .body import Schema, read_body
from .errors import request_error
from .schema.openai import AdapterScale
from .state import server_of


class ChangedScales(Schema):
    """The body of a change: how much of each adapter later requests have that do not say."""

    list_field: ClassVar[str | None] = "lora"

    lora: Annotated[list[AdapterScale], Field(max_length=64)]


async def _adapters(request: Request) -> Response:
    """The adapters, and how much of each holds now."""
    server = server_of(request)
    facts = server.known_facts().adapters
    async with server.asking(0):  # the scales are those of the loaded model
        scales = server.models.scales
    return JSONResponse(
        [
            {
                "id": number,
                "path": one.path,
                "scale": scale,
                "task_name": one.task_name,
                "prompt_prefix": one.prompt_prefix,
            }
            for number, (one, scale) in enumerate(zip(facts, scales, strict=True))
        ]
    )


async def _change(request: Request) -> Response:
    """Change how much of each adapter a request has that does not say; those left out have none."""
    server = server_of(request)
    body = await read_body(request, ChangedScales)
    async with server.asking(0):
        try:
            server.models.set_scales([(one.id, one.scale) for one in body.lora])
        except Exception as error:
            raise request_error(error, None, ChangedScales.model_fields) from error
    return JSONResponse({"success": True})


routes = [
    Route("/lora-adapters", _adapters),
    Route("/lora-adapters", _change, methods=["POST"]),
]
