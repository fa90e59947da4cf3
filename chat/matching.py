"""Where a text names added tokens, by the rules of tokenizers (added_vocabulary.rs).

Knows nothing of ids or of vocabularies.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

# Symbols that are alphabetic: letters in circles and squares.
_ENCIRCLED = frozenset(
    chr(code)
    for first, last in (
        (0x24B6, 0x24E9),
        (0x1F130, 0x1F149),
        (0x1F150, 0x1F169),
        (0x1F170, 0x1F189),
    )
    for code in range(first, last + 1)
)


class Matcher:
    """Finds some texts in another, the longest at each place; quick for any number of them.

    Args:
        texts: none of them empty.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(texts)
        lengths: dict[str, set[int]] = {}
        for text in self._texts:
            lengths.setdefault(text[:2], set()).add(len(text))
        # By their first two characters, or by the only one.
        self._lengths = {key: sorted(values, reverse=True) for key, values in lengths.items()}
        firsts = {re.escape(text[0]) for text in self._texts}
        self._first = re.compile(f"[{''.join(sorted(firsts))}]") if firsts else None

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Where they begin and end, from left to right; none overlaps the one before."""
        candidate = self._first.search(text) if self._first else None
        while candidate and self._first:
            start = candidate.start()
            end = self._end(text, start)
            if end is None:
                candidate = self._first.search(text, start + 1)
            else:
                yield start, end
                candidate = self._first.search(text, end)

    def _end(self, text: str, start: int) -> int | None:
        for key in (text[start : start + 2], text[start]):
            for length in self._lengths.get(key, ()):
                if text[start : start + length] in self._texts:
                    return start + length
        return None


def is_alone(text: str, start: int, end: int) -> bool:
    """Whether no letter of a word touches a stretch of a text."""
    before, after = text[start - 1 : start], text[end : end + 1]
    return not ((before and _is_word(before)) or (after and _is_word(after)))


def _is_word(character: str) -> bool:
    """Whether a character is in ``\\w`` of Rust's regex: Unicode's, where Python's is narrower."""
    category = unicodedata.category(character)
    return (
        category[0] in "LM"
        or category in ("Nd", "Nl", "Pc")
        or character in "\u200c\u200d"
        or character in _ENCIRCLED
    )


def is_space(character: str) -> bool:
    """Whether a character is in Unicode's white space; Python's has four control codes more."""
    return character.isspace() and character not in "\x1c\x1d\x1e\x1f"
