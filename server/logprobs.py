"""The probabilities of tokens, in the two forms that OpenAI's protocols have for them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from ..chat.vocabulary import Vocabulary
from ..runtime.logprobs import TokenLogprobs

_LEAST = -9999.0  # OpenAI's word for a probability of zero, for which JSON has none


def chat_logprobs(tokens: Iterable[TokenLogprobs], vocabulary: Vocabulary) -> dict[str, Any]:
    """As ``/v1/chat/completions`` writes them."""
    return {"content": [_entry(one, vocabulary) for one in tokens], "refusal": None}


def _entry(one: TokenLogprobs, vocabulary: Vocabulary) -> dict[str, Any]:
    top = [_token(token, logprob, vocabulary) for token, logprob in one.top]
    return {**_token(one.token, one.logprob, vocabulary), "top_logprobs": top}


def _token(token: int, logprob: float, vocabulary: Vocabulary) -> dict[str, Any]:
    data = vocabulary.token_bytes(token, special=True)
    text = data.decode("utf-8", "replace")
    return {"token": text, "logprob": max(logprob, _LEAST), "bytes": list(data)}


class TextLogprobs:
    """As ``/v1/completions`` writes them, which counts the characters before each token.

    Args:
        n_top: how many of the likeliest are listed.
    """

    def __init__(self, vocabulary: Vocabulary, n_top: int) -> None:
        self._vocabulary, self._n_top = vocabulary, n_top
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def of(self, entries: Sequence[TokenLogprobs | int]) -> dict[str, Any]:
        """Those of the next tokens; a token alone is the first of a prompt, which has none."""
        tokens: list[str] = []
        logprobs: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for entry in entries:
            token = entry if isinstance(entry, int) else entry.token
            offsets.append(self._offset)
            tokens.append(self._text(token))
            self._offset += len(self._decoder.decode(self._vocabulary.token_bytes(token)))
            if isinstance(entry, int):
                logprobs.append(None)
                tops.append(None)
            else:
                logprobs.append(max(entry.logprob, _LEAST))
                tops.append(self._top(entry))
        return {
            "tokens": tokens,
            "token_logprobs": logprobs,
            "top_logprobs": tops if self._n_top else None,
            "text_offset": offsets,
        }

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """The likeliest tokens and their own, the chosen one among them, by their text."""
        top: dict[str, float] = {}
        for token, logprob in entry.top:
            # Of two with the same text, such as parts of characters, the likelier counts.
            top.setdefault(self._text(token), max(logprob, _LEAST))
        top.setdefault(self._text(entry.token), max(entry.logprob, _LEAST))
        return top

    def _text(self, token: int) -> str:
        data = self._vocabulary.token_bytes(token, special=True)
        try:
            return data.decode()
        except UnicodeDecodeError:
            # OpenAI's form, in which parts of different characters stay different.
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
