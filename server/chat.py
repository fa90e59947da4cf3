"""``/v1/chat/completions``: OpenAI's protocol for conversations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse, Response

from ..async_model import AsyncStream
from ..chat.answer import Completion
from ..chat.events import AnswerEnded, AnswerEvent, TextPiece
from .chunks import Head, compact, failure_event
from .endpoint import Call, Endpoint
from .events import events_of
from .messages import messages_of
from .schema.openai import ChatRequest
from .stream import DONE, EventStream
from .usage import timings_of, usage_of


async def _chat(call: Call[ChatRequest]) -> Response:
    body = call.body
    sampling = replace(call.server.settings.sampling, **body.sampling())
    options: Any = {"sampling": sampling, "max_tokens": body.most_tokens, **body.stops()}
    messages, n = messages_of(body.messages), body.n or 1
    if body.stream:
        streams = await call.model.chat(messages, stream=True, n=n, **options)
        head = Head.new("chatcmpl", "chat.completion.chunk", call.server.model_name)
        return EventStream(
            _events(call, streams, head),
            failure_event,
            beat_seconds=call.server.settings.beat_seconds,
        )
    head = Head.new("chatcmpl", "chat.completion", call.server.model_name)
    completions = await call.model.chat(messages, n=n, **options)
    for completion in completions:
        call.record.note(completion)
    return JSONResponse(
        {
            **head.fields,
            "choices": [_choice(*one) for one in enumerate(completions)],
            "usage": usage_of(call.record),
            "timings": timings_of(completions),
        }
    )


def _choice(index: int, completion: Completion) -> dict[str, Any]:
    """One of the answers."""
    return {
        "index": index,
        "message": {"role": "assistant", "content": completion.text, "refusal": None},
        "logprobs": None,
        "finish_reason": completion.finish_reason,
    }


async def _events(
    call: Call[ChatRequest], streams: Sequence[AsyncStream], head: Head
) -> AsyncGenerator[bytes, None]:
    """The stream of some answers."""
    more = ',"usage":null' if call.body.includes_usage else ""
    numbers = range(len(streams))
    yield b"".join(head.chunk(_delta(one, _FIRST), more) for one in numbers)
    completions: dict[int, Completion] = {}
    async for events in events_of(streams):
        call.record.note_first()
        chunks = []
        for index, text in _texts(events):
            chunks.append(head.chunk(_delta(index, f'{{"content":{compact(text)}}}'), more))
        for index, event in events:
            if isinstance(event, AnswerEnded):
                completion = completions[index] = event.completion
                call.record.note(completion)
                chunks.append(head.chunk(_delta(index, "{}", completion.finish_reason), more))
        yield b"".join(chunks)
    timings = f',"timings":{compact(timings_of([completions[one] for one in numbers]))}'
    if call.body.includes_usage:
        yield head.chunk("", f',"usage":{compact(usage_of(call.record))}{timings}')
    yield DONE


_FIRST = '{"role":"assistant","content":""}'


def _texts(events: Sequence[tuple[int, AnswerEvent]]) -> list[tuple[int, str]]:
    """The text that was added to each answer."""
    texts: dict[int, str] = {}
    for index, event in events:
        if isinstance(event, TextPiece):
            texts[index] = texts.get(index, "") + event.text
    return list(texts.items())


def _delta(index: int, delta: str, finish_reason: str | None = None) -> str:
    """One choice of a chunk, as JSON."""
    reason = "null" if finish_reason is None else f'"{finish_reason}"'
    return f'{{"index":{index},"delta":{delta},"logprobs":null,"finish_reason":{reason}}}'


routes = [
    Endpoint(
        ChatRequest,
        _chat,
        summary="Answer the last of some messages.",
        prompt_field="messages",
        n_answers=lambda body: body.n or 1,
    ).route("/v1/chat/completions")
]
