"""What answers took, as OpenAI and llama.cpp count it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..chat.answer import Completion
from .state import Served


def usage_of(record: Served) -> dict[str, Any]:
    """The tokens of a request, of all of its answers."""
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "total_tokens": record.prompt_tokens + record.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": record.cached_tokens},
    }


def timings_of(completions: Sequence[Completion]) -> dict[str, Any]:
    """How long the first answer's prompt and all answers took, in llama.cpp's words."""
    first = completions[0]
    read = first.prompt_tokens - first.reused_tokens
    count = sum(len(one.tokens) for one in completions)
    seconds = max(one.decode_seconds for one in completions)
    return {
        "cache_n": first.reused_tokens,
        "prompt_n": read,
        "prompt_ms": round(first.prefill_seconds * 1000, 3),
        "prompt_per_second": _rate(read, first.prefill_seconds),
        "predicted_n": count,
        "predicted_ms": round(seconds * 1000, 3),
        "predicted_per_second": _rate(count, seconds),
    }


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0 else 0.0
