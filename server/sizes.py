"""How much a body may say, from what the model can take of it.

Promises that what cannot be answered is refused before anything is made of it, and that no body
has so many values that reading them holds up whoever else is answered. Knows no protocol, but what
fields are called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..chat.tools import MAX_TOOLS
from .errors import CONTEXT_FULL, ApiError

_MOST_VALUES = 1_000_000
_MOST_NESTED = 100_000  # lists and objects, which take longest to be made


@dataclass(frozen=True)
class Limits:
    """What the model takes.

    Args:
        n_ctx: tokens of a prompt; None where that is not known yet, as is the next.
        n_vocab: tokens that there are.
    """

    n_ctx: int | None = None
    n_vocab: int | None = None

    @property
    def values(self) -> int:
        """The most values in a body."""
        return max(_MOST_VALUES, 2 * (self.n_ctx or 0))

    @property
    def nested(self) -> int:
        """The most lists and objects in a body."""
        return max(_MOST_NESTED, 2 * (self.n_vocab or 0))

    def check(self, body: Mapping[str, Any]) -> None:
        """Refuse what a body has too many of.

        Raises:
            ApiError: a prompt has more tokens or messages than the context, or there are more
                biases than tokens, or too many tools.
        """
        if self.n_ctx is not None:
            for name in ("messages", "prompt", "input"):
                self._check_prompt(name, body.get(name), drops=body.get("truncation") == "auto")
        for name, most in (("logit_bias", self.n_vocab), ("tools", MAX_TOOLS)):
            value = body.get(name)
            if most is not None and isinstance(value, list | dict) and len(value) > most:
                found, expected = f"{len(value):,} entries", f"at most {most:,}"
                raise ApiError(
                    400, f"{name}: found {found}, expected {expected}.", name, "invalid_value"
                )

    def _check_prompt(self, name: str, value: object, *, drops: bool) -> None:
        assert self.n_ctx is not None
        if not isinstance(value, list) or drops:
            return
        inner = [one for one in value if isinstance(one, list)] if name == "prompt" else []
        longest = max(map(len, inner), default=0) if inner else len(value)
        # Of texts each is a prompt.
        if longest > self.n_ctx and not (name == "prompt" and isinstance(value[0], str)):
            what = "tokens" if name == "prompt" else "entries, each of which has tokens"
            raise _full(name, f"{longest:,} {what}", self.n_ctx)


class Counter:
    """Counts the values of JSON text that comes in pieces.

    Args:
        prompt_field: where the text has the tokens that the model is shown, if it has.
    """

    def __init__(self, limits: Limits, prompt_field: str | None = None) -> None:
        self._limits, self._prompt_field = limits, prompt_field
        self._values = self._nested = 0
        self._run = 0  # values since a list or an object began or ended
        self._in_string = self._is_escaped = False

    def add(self, piece: bytes) -> None:
        """Count those of the next piece.

        Raises:
            ApiError: there are too many.
        """
        outside = self._outside(piece)
        if not outside:
            return
        commas, opened = outside.count(b","), outside.count(b"[") + outside.count(b"{")
        last = max(map(outside.rfind, (b"[", b"]", b"{", b"}")))
        self._run = outside.count(b",", last + 1) + (self._run if last < 0 else 0)
        self._values += commas + opened
        self._nested += opened
        if self._values > self._limits.values:
            raise self._too_many(f"{self._limits.values:,} values")
        if self._nested > self._limits.nested:
            raise self._too_many(f"{self._limits.nested:,} lists and objects")

    def _too_many(self, most: str) -> ApiError:
        n_ctx = self._limits.n_ctx
        if self._prompt_field == "prompt" and n_ctx is not None and self._run > n_ctx:
            return _full("prompt", f"more than {self._run:,} tokens", n_ctx)
        return ApiError(
            413,
            f"The body says too much, found more than {most}.",
            headers={"Connection": "close"},
        )

    def _outside(self, piece: bytes) -> bytes:
        """What of a piece is outside of strings."""
        begin = 0
        if self._in_string:
            begin = self._end_of_string(piece, int(self._is_escaped))
            if self._in_string:
                return b""
        outside = _STRING.sub(rb"\1", piece[begin:])
        if (start := outside.find(b'"')) >= 0:
            self._in_string = True
            self._end_of_string(outside, start + 1)
            outside = outside[:start]
        return outside

    def _end_of_string(self, piece: bytes, begin: int) -> int:
        """Where the text goes on after a string of which there may be more."""
        inside = _INSIDE.match(piece, begin)
        end = len(piece) if inside is None else inside.end()
        self._is_escaped = piece[end:] == b"\\"
        self._in_string = end >= len(piece) or self._is_escaped
        return end + 1


# Whole strings; of one that does not end here, all is kept.
_STRING = re.compile(
    rb"""
    " [^"\\]* (?: \\. [^"\\]* )* " | ( " [^"\\]* (?: \\. [^"\\]* )* \\? \Z )
    """,
    re.DOTALL | re.VERBOSE,
)
_INSIDE = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


def _full(name: str, found: str, n_ctx: int) -> ApiError:
    return ApiError(
        400,
        f"{name} does not fit into the context, found {found}, expected at most {n_ctx:,} tokens.",
        name,
        CONTEXT_FULL,
    )
