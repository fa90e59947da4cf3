"""What OpenAI's older protocols answer: ``/v1/chat/completions`` and ``/v1/completions``."""

from __future__ import annotations

from typing import Any, Literal

from ..body import Schema
from .openai import ToolCallField

FinishReason = Literal["stop", "length", "tool_calls"]


class CachedTokens(Schema):
    """Tokens of the prompt that were not decoded again."""

    cached_tokens: int


class Usage(Schema):
    """Tokens of the prompt and of all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Timings(Schema):
    """What took how long, in llama.cpp's words."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float


class AnswerMessage(Schema):
    """What the model says, or calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCallField] | None = None


class ChatChoice(Schema):
    """One of the answers."""

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason


class ChatAnswer(Schema):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings


class TextChoice(Schema):
    """One of the texts."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason


class CompletionAnswer(Schema):
    """The continuations of texts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    timings: Timings
