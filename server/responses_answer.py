"""An answer as OpenAI's Responses API writes it, piece by piece and whole.

Promises that a stream's events come in the order of that protocol and are numbered, and that
together they are what the whole response is. Knows nothing of HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..chat.answer import Completion
from ..chat.events import AnswerEvent, TextPiece, ToolCallBegun, ToolCallEnded, ToolCallPiece
from ..runtime.logprobs import TokenLogprobs
from ..runtime.sampling import Sampling
from .errors import ApiError
from .responses_request import new_id
from .responses_tools import CallableTool, input_of, written_tools
from .schema.responses import ResponsesRequest
from .writing import Event

WriteLogprobs = Callable[[Sequence[TokenLogprobs]], dict[str, Any]]
"""How tokens and their probabilities are written, as "content"."""


class ResponseWriter:
    """Writes one response.

    Args:
        request: what was asked for, which a response repeats.
        tools: those that the model may call.
        model: what the model is called.
        sampling: how tokens are chosen, which a response says.
        write_logprobs: writes log probabilities.
        keep: called with the whole response.
    """

    def __init__(
        self,
        request: ResponsesRequest,
        tools: Iterable[CallableTool],
        model: str,
        sampling: Sampling,
        write_logprobs: WriteLogprobs,
        keep: Callable[[dict[str, Any]], None],
    ) -> None:
        self._id = new_id("resp")
        self._output: list[dict[str, Any]] = []
        self._keep = keep
        self._tools = {tool.shown_name: tool for tool in tools}
        self._head = _head(request, model, sampling)
        self._created_at = int(time.time())
        self._write_logprobs = write_logprobs
        self._number = 0
        self._whole: dict[str, Any] = {}
        self._is_open = False
        self._pieces: list[str] = []  # of the item that is open
        self._logprobs: list[dict[str, Any]] = []
        # Whitespace that is only text if something follows it.
        self._held: list[TextPiece] = []

    def opened(self) -> Iterator[Event]:
        """The event that comes before the prompt is read."""
        yield self._event("response.created", response=self._response("in_progress"))

    def begun(self, prompt_tokens: int, reused_tokens: int) -> Iterator[Event]:
        """The event that comes when it was read."""
        yield self._event("response.in_progress", response=self._response("in_progress"))

    def events(self, event: AnswerEvent) -> Iterator[Event]:
        """The events of a stream that one of ours is."""
        if isinstance(event, TextPiece):
            yield from self._text(event)
        elif isinstance(event, ToolCallBegun):
            yield from self._open_call(event)
        elif isinstance(event, ToolCallPiece):
            # The text of a custom tool is known at the end: its pieces are JSON.
            if self._output[-1]["type"] == "function_call":
                self._pieces.append(event.arguments)
                kind = "response.function_call_arguments.delta"
                yield self._event(kind, **self._place, delta=event.arguments)
        elif isinstance(event, ToolCallEnded):
            if self._output[-1]["type"] == "custom_tool_call":
                self._pieces.append(input_of(event.call))
                kind = "response.custom_tool_call_input.delta"
                yield self._event(kind, **self._place, delta=self._pieces[-1])
            yield from self._close("completed")

    def ended(self, completion: Completion) -> Iterator[Event]:
        """The events with which a stream ends."""
        is_cut = completion.finish_reason == "length"
        if not self._output:
            yield from self._open_text()  # an answer that says nothing is a text too
        yield from self._close("incomplete" if is_cut else "completed")
        response = self._response("incomplete" if is_cut else "completed")
        response |= {
            "output": self._output,
            "completed_at": int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "usage": _usage_of(completion),
        }
        self._whole = response
        self._keep(response)
        yield self._event(f"response.{response['status']}", response=response)

    def whole(self) -> dict[str, Any]:
        """The response of which all events were taken."""
        return self._whole

    def failed(self, error: ApiError) -> Event:
        """The event that tells an error."""
        response = self._response("failed")
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        response["error"] = {"code": code, "message": error.message}
        return self._event("response.failed", response=response)

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **self._head,
        }

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    @property
    def _place(self) -> dict[str, Any]:
        """Of the item that is open."""
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _text(self, piece: TextPiece) -> Iterator[Event]:
        if not (self._is_open and self._output[-1]["type"] == "message"):
            self._held.append(piece)
            if piece.text.isspace():
                return
            piece = _joined(self._held)
            yield from self._open_text()
        self._pieces.append(piece.text)
        logprobs = self._write_logprobs(piece.logprobs or ())["content"]
        self._logprobs += logprobs
        yield self._event(
            "response.output_text.delta",
            **self._place,
            content_index=0,
            delta=piece.text,
            logprobs=_without_bytes(logprobs),
        )

    def _open_text(self) -> Iterator[Event]:
        yield from self._open("msg", {"type": "message", "role": "assistant", "content": []})
        place = {**self._place, "content_index": 0}
        yield self._event("response.content_part.added", **place, part=_part("", []))

    def _open_call(self, event: ToolCallBegun) -> Iterator[Event]:
        tool = self._tools.get(event.name)
        item: dict[str, Any] = {"call_id": event.id, "name": event.name}
        if tool is not None:
            item |= tool.called
        if tool is not None and tool.is_custom:
            yield from self._open("ctc", {"type": "custom_tool_call", **item, "input": ""})
        else:
            yield from self._open("fc", {"type": "function_call", **item, "arguments": ""})

    def _open(self, kind: str, item: dict[str, Any]) -> Iterator[Event]:
        yield from self._close("completed")
        item = {"id": new_id(kind), **item, "status": "in_progress"}
        self._output.append(item)
        self._is_open = True
        number = len(self._output) - 1
        yield self._event("response.output_item.added", output_index=number, item=dict(item))

    def _close(self, status: str) -> Iterator[Event]:
        """The events that end the item that is open."""
        self._held = []
        if not self._is_open:
            return
        self._is_open = False
        place, item = self._place, self._output[-1]
        text = "".join(self._pieces)
        if item["type"] == "message":
            part = _part(text, self._logprobs)
            item |= {"content": [part]}
            yield self._event(
                "response.output_text.done",
                **place,
                content_index=0,
                text=text,
                logprobs=_without_bytes(self._logprobs),
            )
            yield self._event("response.content_part.done", **place, content_index=0, part=part)
        elif item["type"] == "custom_tool_call":
            item |= {"input": text}
            yield self._event("response.custom_tool_call_input.done", **place, input=text)
        else:
            item |= {"arguments": text}
            kind = "response.function_call_arguments.done"
            yield self._event(kind, **place, name=item["name"], arguments=text)
        item["status"] = status
        yield self._event(
            "response.output_item.done", output_index=place["output_index"], item=item
        )
        self._pieces, self._logprobs = [], []


def _joined(pieces: Sequence[TextPiece]) -> TextPiece:
    logprobs = [one for piece in pieces for one in piece.logprobs or ()]
    return TextPiece("".join(piece.text for piece in pieces), tuple(logprobs))


def _usage_of(completion: Completion) -> dict[str, Any]:
    """What an answer took."""
    n_prompt, n_answer = completion.prompt_tokens, len(completion.tokens)
    return {
        "input_tokens": n_prompt,
        "input_tokens_details": {
            "cached_tokens": completion.reused_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": n_answer,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": n_prompt + n_answer,
    }


def _head(request: ResponsesRequest, model: str, sampling: Sampling) -> dict[str, Any]:
    """What a response repeats of its request."""
    choice = request.tool_choice or "auto"
    text = request.text.model_dump(by_alias=True, exclude_none=True) if request.text else {}
    return {
        "model": model,
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": request.store is not False,
        "temperature": sampling.temperature,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": written_tools(request.tools or ()),
        "top_logprobs": request.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": request.truncation or "disabled",
        "user": request.user,
    }


def _part(text: str, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _without_bytes(logprobs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Log probabilities as the events of a stream have them."""
    return [
        {
            "token": one["token"],
            "logprob": one["logprob"],
            "top_logprobs": [
                {"token": top["token"], "logprob": top["logprob"]} for top in one["top_logprobs"]
            ],
        }
        for one in logprobs
    ]
