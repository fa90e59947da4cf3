"""Anthropic's protocol: ``/v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse, Response

from ..async_model import AsyncStream
from ..errors import ContextFullError
from .anthropic_answer import PING, MessageWriter
from .anthropic_request import Asked, asked
from .chat import with_checked_tools
from .endpoint import Call, Endpoint, no_answers
from .errors import CONTEXT_FULL, ApiError
from .schema import anthropic as wire
from .writing import encoded, streamed_answer, whole_answer


async def _messages(call: Call[wire.MessagesRequest]) -> Response:
    body = call.body
    try:
        stream = await _begun(call, await call.prepared(lambda: asked(body)))
    except ContextFullError as error:
        raise _too_long(error) from error
    writer = MessageWriter(call.server.model_name, body.max_tokens)
    if body.stream:
        return streamed_answer(call, stream, writer, beat=encoded(PING))
    return await whole_answer(call, stream, writer)


async def _begun(call: Call[wire.MessagesRequest], question: Asked) -> AsyncStream:
    """The answer, while it is made."""
    options: Any = {
        "sampling": call.server.settings.sampling, **await with_checked_tools(question.options),
    }  # fmt: skip
    stream: AsyncStream
    if not question.prefill:
        stream = await call.model.chat(question.messages, stream=True, **options)
        return stream
    prompt = await call.model.chat_prompt(question.messages)
    beginning = await asyncio.to_thread(call.model.model.tokenize, question.prefill)
    prompt = replace(prompt, positions=[*prompt.positions, *beginning])
    stream = await call.model.generate(prompt, stream=True, **options)
    return stream


def _too_long(error: ContextFullError) -> ApiError:
    """What agents know as the sign to shorten the conversation."""
    numbers = ["".join(filter(str.isdigit, str(one))) for one in (error.found, error.expected)]
    message = f"prompt is too long: {numbers[0]} tokens > {numbers[1]} maximum. {error}"
    return ApiError(400, message, code=CONTEXT_FULL)


async def _count(call: Call[wire.CountRequest]) -> Response:
    question = await call.prepared(lambda: asked(call.body))
    options: Any = await with_checked_tools(question.options)
    try:
        prompt = await call.model.chat_prompt(question.messages, **options)
    except ContextFullError as error:
        raise _too_long(error) from error
    beginning = await asyncio.to_thread(call.model.model.tokenize, question.prefill)
    return JSONResponse({"input_tokens": len(prompt) + len(beginning)})


routes = [
    Endpoint(
        wire.MessagesRequest,
        _messages,
        summary="Answer the last of some messages.",
        answer=wire.MessageAnswer,
        prompt_field="messages",
    ).route("/v1/messages"),
    Endpoint(
        wire.CountRequest,
        _count,
        summary="Count the tokens of a prompt.",
        answer=wire.TokenCount,
        prompt_field="messages",
        n_answers=no_answers,
    ).route("/v1/messages/count_tokens"),
]
