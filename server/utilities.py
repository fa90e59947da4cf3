"""What llama.cpp's server has beside others' protocols: ``/tokenize``, ``/props`` and more."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .._version import __version__
from .chat import tools_of
from .endpoint import Call, Endpoint, no_answers
from .errors import ApiError
from .messages import messages_of
from .metrics import CONTENT_TYPE, Metrics
from .schema import utilities as wire
from .schema.openai import ChatRequest
from .state import server_of


async def _tokenize(call: Call[wire.TokenizeRequest]) -> Response:
    body, model = call.body, call.model.model
    tokens = await asyncio.to_thread(
        model.tokenize, body.text, special=body.parse_special, add_bos=body.adds_bos
    )
    if not body.with_pieces:
        return JSONResponse({"tokens": tokens})
    pieces = [model.vocabulary.token_bytes(token, special=True) for token in tokens]
    written = [
        {"id": token, "piece": _piece(data)} for token, data in zip(tokens, pieces, strict=True)
    ]
    return JSONResponse({"tokens": written})


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


async def _detokenize(call: Call[wire.DetokenizeRequest]) -> Response:
    model, tokens = call.model.model, call.body.tokens
    text = await asyncio.to_thread(model.detokenize, tokens, special=True)
    return JSONResponse({"content": text, "prompt": text})


async def _apply_template(call: Call[ChatRequest]) -> Response:
    body, model = call.body, call.model.model
    options: Any = {
        "tools": await asyncio.to_thread(tools_of, body.tool_definitions) if body.tools else (),
        **body.options(),
    }
    prompt = await call.model.chat_prompt(messages_of(body.messages), **options)
    text = await asyncio.to_thread(model.detokenize, prompt.token_ids, special=True)
    return JSONResponse({"prompt": text})


async def _properties(request: Request) -> Response:
    """The model, and how the server was started."""
    server = server_of(request)
    facts = server.known_facts()
    return JSONResponse(
        {
            "default_generation_settings": {
                "n_ctx": facts.n_ctx,
                "params": asdict(server.settings.sampling),
            },
            "total_slots": facts.n_parallel,
            "model_alias": server.model_name,
            "model_path": facts.path,
            "modalities": {"vision": facts.has_pictures, "audio": False, "video": False},
            "chat_template": facts.chat_template or "",
            "bos_token": facts.bos,
            "eos_token": facts.eos,
            "build_info": f"llama4-edge {__version__}",
            "is_sleeping": server.models.loaded is None,
        }
    )


async def _tokenizer(request: Request) -> Response:
    """What vLLM tells of a tokenizer."""
    facts = server_of(request).known_facts()
    return JSONResponse(
        {
            "bos_token": facts.bos,
            "eos_token": facts.eos,
            "chat_template": facts.chat_template or "",
        }
    )


async def _slots(request: Request) -> Response:
    """The sequences of the context."""
    server = server_of(request)
    n_ctx, loaded = server.known_facts().n_ctx, server.models.loaded
    sequences = [] if loaded is None else loaded.model.engine.sequences
    slots = [
        {"id": number, "n_ctx": n_ctx, "n_tokens": n_tokens, "is_processing": is_used}
        for number, (n_tokens, is_used) in enumerate(sequences)
    ]
    return JSONResponse(slots)


async def _metrics(request: Request) -> Response:
    """What the server has done and does, for Prometheus."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.text(), media_type=CONTENT_TYPE)


async def _embeddings(request: Request) -> Response:
    """Refuse, because this model has none."""
    raise ApiError(
        404,
        "This server gives no embeddings: the model was trained to answer, not to compare texts. "
        "Use a model for embeddings beside it.",
        code="not_supported",
    )


routes = [
    Endpoint(
        wire.TokenizeRequest,
        _tokenize,
        summary="The tokens of a text.",
        answer=wire.TokenizeAnswer,
        prompt_field="content",
        n_answers=no_answers,
    ).route("/tokenize"),
    Endpoint(
        wire.DetokenizeRequest,
        _detokenize,
        summary="The text of tokens.",
        answer=wire.DetokenizeAnswer,
        prompt_field="tokens",
        n_answers=no_answers,
    ).route("/detokenize"),
    Endpoint(
        ChatRequest,
        _apply_template,
        summary="What the model would read of some messages.",
        answer=wire.TemplateAnswer,
        prompt_field="messages",
        n_answers=no_answers,
    ).route("/apply-template"),
    Route("/props", _properties),
    Route("/tokenizer_info", _tokenizer),
    Route("/slots", _slots),
    Route("/metrics", _metrics),
    *(
        Route(path, _embeddings, methods=["POST"], include_in_schema=False)
        for path in ("/v1/embeddings", "/embeddings", "/embedding")
    ),
]
