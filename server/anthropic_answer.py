"""An answer as Anthropic's Messages API writes it, piece by piece and whole.

Promises that a stream's events come in the order of that protocol, that together they are what the
whole answer is, and that no block of text is empty. Knows nothing of HTTP.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import Any

from ..chat.answer import Completion
from ..chat.events import AnswerEvent, TextPiece, ToolCallBegun, ToolCallEnded, ToolCallPiece
from .errors import ApiError, anthropic_body
from .writing import Event

PING: Event = {"type": "ping"}


class MessageWriter:
    """Writes one answer.

    Args:
        model: what the model is called.
        max_tokens: what the request allowed.
    """

    def __init__(self, model: str, max_tokens: int) -> None:
        self._model, self._max_tokens = model, max_tokens
        self._id = f"msg_{secrets.token_hex(12)}"
        self._content: list[dict[str, Any]] = []
        self._is_open = False
        self._pieces: list[str] = []  # of the block of text that is open
        # Whitespace that is only text if something follows it.
        self._held = ""
        self._whole: dict[str, Any] = {}

    def opened(self) -> Iterable[Event]:
        """Nothing: the first event counts what of the prompt was there already."""
        return ()

    def begun(self, prompt_tokens: int, reused_tokens: int) -> Iterator[Event]:
        """The events with which a stream begins."""
        usage = _usage(prompt_tokens, reused_tokens, 0)
        yield {"type": "message_start", "message": self._message([], None, None, usage)}
        yield PING

    def events(self, event: AnswerEvent) -> Iterator[Event]:
        """The events of a stream that one of ours is."""
        if isinstance(event, TextPiece):
            yield from self._text(event.text)
        elif isinstance(event, ToolCallBegun):
            block = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
            yield from self._open(block)
        elif isinstance(event, ToolCallPiece):
            yield self._delta({"type": "input_json_delta", "partial_json": event.arguments})
        elif isinstance(event, ToolCallEnded):
            self._content[-1]["input"] = dict(event.call.arguments)
            yield from self._close()

    def ended(self, completion: Completion) -> Iterator[Event]:
        """The events with which a stream ends."""
        yield from self._close()
        reason, stop_sequence = self._stop(completion)
        usage = _usage_of(completion)
        delta = {"stop_reason": reason, "stop_sequence": stop_sequence}
        yield {"type": "message_delta", "delta": delta, "usage": usage}
        yield {"type": "message_stop"}
        self._whole = self._message(self._content, reason, stop_sequence, usage)

    def whole(self) -> dict[str, Any]:
        """The message of which all events were taken."""
        return self._whole

    def failed(self, error: ApiError) -> Event:
        """The event that tells an error."""
        return anthropic_body(error)

    def _message(
        self,
        content: list[dict[str, Any]],
        reason: str | None,
        stop_sequence: str | None,
        usage: dict[str, int],
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop_sequence,
            "usage": usage,
        }

    def _text(self, text: str) -> Iterator[Event]:
        if not (self._is_open and self._content[-1]["type"] == "text"):
            self._held += text
            if self._held.isspace():
                return
            text, self._held = self._held, ""
            yield from self._open({"type": "text", "text": ""})
        self._pieces.append(text)
        yield self._delta({"type": "text_delta", "text": text})

    def _open(self, block: dict[str, Any]) -> Iterator[Event]:
        yield from self._close()
        self._content.append(dict(block))
        self._is_open = True
        index = len(self._content) - 1
        yield {"type": "content_block_start", "index": index, "content_block": block}

    def _delta(self, delta: dict[str, str]) -> Event:
        return {
            "type": "content_block_delta", "index": len(self._content) - 1, "delta": delta,
        }  # fmt: skip

    def _close(self) -> Iterator[Event]:
        self._held = ""
        if self._is_open:
            self._is_open = False
            if self._content[-1]["type"] == "text":
                self._content[-1]["text"] = "".join(self._pieces)
                self._pieces.clear()
            yield {"type": "content_block_stop", "index": len(self._content) - 1}

    def _stop(self, completion: Completion) -> tuple[str, str | None]:
        """Why the answer ended, and the stop sequence that ended it."""
        if completion.finish_reason == "length":
            is_full = len(completion.tokens) < self._max_tokens
            return "model_context_window_exceeded" if is_full else "max_tokens", None
        if completion.tool_calls:
            return "tool_use", None
        if completion.stop_string is not None:
            return "stop_sequence", completion.stop_string
        return "end_turn", None


def _usage_of(completion: Completion) -> dict[str, int]:
    n_answer = len(completion.tokens)
    return _usage(completion.prompt_tokens, completion.reused_tokens, n_answer)


def _usage(prompt_tokens: int, reused_tokens: int, output_tokens: int) -> dict[str, int]:
    """Anthropic counts what was read anew and what was still there apart."""
    return {
        "input_tokens": prompt_tokens - reused_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": reused_tokens,
        "output_tokens": output_tokens,
    }
