"""What OpenAI's answers have in common: their heads, and the events of their streams.

A chunk is one event of a stream; its head is written once for all of them.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .errors import ApiError, openai_body


@dataclass(frozen=True)
class Head:
    """What every chunk of an answer begins with."""

    id: str
    object: str
    created: int
    model: str

    @classmethod
    def new(cls, prefix: str, kind: str, model: str) -> Head:
        """That of an answer which begins now."""
        return cls(f"{prefix}-{secrets.token_hex(12)}", kind, int(time.time()), model)

    @property
    def fields(self) -> dict[str, Any]:
        """For an answer that comes in one piece."""
        return {
            "id": self.id, "object": self.object, "created": self.created, "model": self.model,
        }  # fmt: skip

    def chunk(self, choices: str, more: str = "") -> bytes:
        """An event with choices, which are JSON, and with what else is to be in it."""
        return f"{self._beginning}[{choices}]{more}}}\n\n".encode()

    @cached_property
    def _beginning(self) -> str:
        return f'data: {compact(self.fields)[:-1]},"choices":'


def compact(value: object) -> str:
    """A value as JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def failure_event(error: ApiError) -> bytes:
    """The event that ends a stream with an error."""
    return f"data: {compact(openai_body(error))}\n\n".encode()
