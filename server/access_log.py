"""One line for each request, for people or for programs.

Promises that no line holds a key, or anything of what was said.
"""

from __future__ import annotations

from typing import Any

from ..untrusted import brief
from .state import Served


def record_of(served: Served) -> dict[str, Any]:
    """A request as JSON; rates are tokens a second."""
    record: dict[str, Any] = {
        "event": "request",
        "method": served.method,
        "path": brief(served.path, 1000),
        "status": served.status,
        "seconds": round(served.seconds, 6),
    }
    if served.prompt_tokens:
        record |= {
            "first_seconds": round(served.first_seconds, 6) or None,
            "prompt_tokens": served.prompt_tokens,
            "cached_tokens": served.cached_tokens,
            "completion_tokens": served.completion_tokens,
            "prompt_rate": _rate(served.read_tokens, served.prefill_seconds),
            "completion_rate": _rate(served.completion_tokens, served.decode_seconds),
        }
    if served.vanished:
        record["vanished"] = True
    if served.error is not None:
        record["error"] = served.error
    return record


def line_of(served: Served) -> str:
    """A request in a line."""
    words = [
        served.method,
        brief(served.path),
        "hung up" if served.vanished else str(served.status),
    ]
    words.append(f"{served.seconds:.3f} s")
    text = " ".join(words)
    if served.prompt_tokens:
        cached = f", {served.cached_tokens:,} cached" if served.cached_tokens else ""
        text += f", prompt {served.prompt_tokens:,}{cached}"
        text += _shown(_rate(served.read_tokens, served.prefill_seconds))
        text += f", answer {served.completion_tokens:,}"
        text += _shown(_rate(served.completion_tokens, served.decode_seconds))
    return f"{text}: {served.error}" if served.error is not None else text


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 1) if count and seconds > 0 else None


def _shown(rate: float | None) -> str:
    return "" if rate is None else f" ({rate:,.1f}/s)"
