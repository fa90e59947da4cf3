"""Bytes of tokens in, text out: never half a character, never a piece of a stop string.

Promises that the text does not depend on how the bytes were cut into pieces. Knows nothing of
tokens, models or vocabularies.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the bytes of an answer into text, and ends it at the first stop string.

    Bytes that are not UTF-8 become U+FFFD. A character is given out when its last byte is there.
    Text that might be the beginning of a stop string is held back until that is decided. The stop
    string that is complete first wins; of two completed by the same character, the longer. The
    text ends before it.

    Args:
        stop: the stop strings, none of them empty.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._matched

    @property
    def n_waiting(self) -> int:
        """How many of the last bytes wait for others of their character."""
        return len(self._decoder.getstate()[0])

    def push(self, data: bytes) -> str:
        """The text that has become certain with these bytes; "" once a stop string was found."""
        return self._advance(self._decoder.decode(data))

    def finish(self) -> str:
        """The text that was held back, now that no more bytes will come."""
        text = self._advance(self._decoder.decode(b"", final=True))
        text, self._held = text + self._held, ""
        return text

    def _advance(self, new: str) -> str:
        if self._matched is not None:
            return ""
        text = self._held + new
        matches = [
            (at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0
        ]
        if matches:
            _, start, self._matched = min(matches)
            self._held = ""
            return text[:start]
        certain = len(text) - self._undecided(text)
        self._held = text[certain:]
        return text[:certain]

    def _undecided(self, text: str) -> int:
        """The length of the longest end of the text that a stop string could begin with."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
