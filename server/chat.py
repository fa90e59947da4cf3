"""``/v1/chat/completions``: OpenAI's protocol for conversations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from ..async_model import AsyncStream, taken_together
from ..chat.answer import Completion
from ..chat.events import AnswerEnded, AnswerEvent, TextPiece, ToolCallBegun, ToolCallPiece
from ..chat.tools import Tool, as_tools
from ..errors import SettingError
from .chunks import Head, compact, failure_event
from .endpoint import Call, Endpoint
from .errors import ApiError
from .events import merged
from .logprobs import chat_logprobs
from .messages import messages_of
from .pieces import json_answer
from .schema.answers import ChatAnswer
from .schema.openai import ChatRequest
from .stream import DONE, EventStream
from .usage import timings_of, usage_of


async def _chat(call: Call[ChatRequest]) -> Response:
    body, n = call.body, call.body.n or 1
    messages, options = await question_of(call)
    if body.stream:
        streams = await call.model.chat(messages, stream=True, n=n, **options)
        head = Head.new("chatcmpl", "chat.completion.chunk", call.server.model_name)
        return EventStream(
            _Writer(call, streams, head).events(),
            failure_event,
            beat_seconds=call.server.settings.beat_seconds,
        )
    head = Head.new("chatcmpl", "chat.completion", call.server.model_name)
    completions = await call.model.chat(messages, n=n, **options)
    for number, completion in enumerate(completions):
        call.record.note(completion, is_first=number == 0)

    def answer() -> dict[str, Any]:
        return {
            **head.fields,
            "choices": [_choice(call, *one) for one in enumerate(completions)],
            "usage": usage_of(call.record),
            "timings": timings_of(completions),
        }

    # With log probabilities it may be long.
    return await json_answer(answer) if body.logprobs else JSONResponse(answer())


async def question_of(call: Call[ChatRequest]) -> tuple[list[dict[str, Any]], Any]:
    """The messages of a request, and the keywords of ``Model.chat``."""
    body = call.body

    def options() -> dict[str, Any]:
        return {
            "sampling": body.sampling(call.server.settings.sampling),
            "max_tokens": body.most_tokens,
            "tools": tools_of(body.tool_definitions) if body.tools else (),
            **body.options(),
        }

    return await call.prepared(
        lambda: (messages_of(body.messages), options()), is_slow=bool(body.tools)
    )


async def with_checked_tools(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of ``Model.chat`` with ``tools`` as `tools_of` gives them.

    Raises:
        ApiError: one of them is none.
    """
    if "tools" not in options:
        return dict(options)
    return {**options, "tools": await asyncio.to_thread(tools_of, options["tools"])}


def tools_of(definitions: object, field: str = "tools") -> tuple[Tool, ...]:
    """The tools of a request, whose schemas are checked, which may take a while.

    Args:
        field: which of the request they are, for errors.

    Raises:
        ApiError: one of them is none.
    """
    try:
        return as_tools(definitions)
    except SettingError as error:
        raise ApiError(400, str(error), field, "invalid_value") from error


def _choice(call: Call[ChatRequest], index: int, completion: Completion) -> dict[str, Any]:
    """One of the answers."""
    calls = [
        {
            "id": one.id,
            "type": "function",
            "function": {"name": one.name, "arguments": one.arguments_json},
        }
        for one in completion.tool_calls
    ]
    content = completion.text if completion.text or not calls else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    logprobs = None
    if completion.logprobs is not None:
        logprobs = chat_logprobs(completion.logprobs, call.model.model.vocabulary)
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": completion.finish_reason,
    }


class _Writer:
    """Writes the chunks of some answers, as few as there can be."""

    def __init__(self, call: Call[ChatRequest], streams: Sequence[AsyncStream], head: Head) -> None:
        self._call, self._streams, self._head = call, streams, head
        # In every chunk, where the last one counts tokens.
        self._usage = ',"usage":null' if call.body.includes_usage else ""
        self._completions: dict[int, Completion] = {}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The whole stream."""
        numbers = range(len(self._streams))
        first = '{"role":"assistant","content":""}'
        yield b"".join(self._chunk(number, first) for number in numbers)
        async for taken in taken_together(self._streams):
            self._call.record.note_first()
            yield b"".join(
                self._written(number, event) for number, events in taken for event in merged(events)
            )
        if self._call.body.includes_usage:
            timings = timings_of([self._completions[number] for number in numbers])
            usage = compact(usage_of(self._call.record))
            yield self._head.chunk("", f',"usage":{usage},"timings":{compact(timings)}')
        yield DONE

    def _written(self, index: int, event: AnswerEvent) -> bytes:
        if isinstance(event, TextPiece):
            logprobs = "null"
            if event.logprobs is not None:
                vocabulary = self._call.model.model.vocabulary
                logprobs = compact(chat_logprobs(event.logprobs, vocabulary))
            return self._chunk(index, f'{{"content":{compact(event.text)}}}', logprobs)
        if isinstance(event, ToolCallBegun):
            function = {"name": event.name, "arguments": ""}
            begun = {"index": event.index, "id": event.id, "type": "function", "function": function}
            return self._chunk(index, compact({"tool_calls": [begun]}))
        if isinstance(event, ToolCallPiece):
            piece = {"index": event.index, "function": {"arguments": event.arguments}}
            return self._chunk(index, compact({"tool_calls": [piece]}))
        if isinstance(event, AnswerEnded):
            self._completions[index] = event.completion
            self._call.record.note(event.completion, is_first=index == 0)
            return self._chunk(index, "{}", reason=compact(event.completion.finish_reason))
        return b""  # a call has ended, which its pieces say

    def _chunk(self, index: int, delta: str, logprobs: str = "null", reason: str = "null") -> bytes:
        choice = (
            f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}}}'
        )
        return self._head.chunk(choice, self._usage)


routes = [
    Endpoint(
        ChatRequest,
        _chat,
        summary="Answer the last of some messages.",
        answer=ChatAnswer,
        prompt_field="messages",
        n_answers=lambda body: body.n or 1,
    ).route("/v1/chat/completions")
]
