"""One value of JSON, or a literal of Python, read character by character and written as JSON.

Promises JSON in pieces that together are the same whichever way the text was cut, in time that
grows with its length; what is no literal raises `MalformedError`. Nothing is evaluated. Knows
nothing of tools.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TypeVar

from .tool_calls import MAX_DEPTH

_T = TypeVar("_T")

Step = Generator[None, None, _T]
"""A reader: it yields where it needs more text, and returns what it has read."""

Write = Callable[[str], object]


class MalformedError(Exception):
    """Text that is no literal.

    Args:
        read: what was read and not written.

    Attributes:
        depth: how many brackets are open there.
    """

    def __init__(self, problem: str, read: str = "") -> None:
        super().__init__(problem)
        self.read = read
        self.depth = 0


class CutError(MalformedError):
    """The text ends in the middle of a literal."""


class Source:
    """Text that arrives in pieces, and what of it was read but may turn out to be something else.

    ``at`` is the next character to read of ``text``. All that was read since the last `release` is
    held, while ``holding``.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self.holding = True
        self._held: list[str] = []
        self._begin = 0

    def add(self, text: str) -> None:
        """More text has come."""
        if self.holding:
            self._held.append(self.text[self._begin : self.at])
        self.text = self.text[self.at :] + text
        self.at = self._begin = 0

    def release(self) -> str:
        """All that was held, and is no more."""
        held = "".join((*self._held, self.text[self._begin : self.at]))
        self._held.clear()
        self._begin = self.at
        return held

    def peek(self) -> Step[str]:
        """The next character; "" at the end."""
        while self.at >= len(self.text):
            if self.ended:
                return ""
            yield
        return self.text[self.at]

    def space(self) -> Step[str]:
        """The next character that is no white space; "" at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            yield

    def run(self, pattern: re.Pattern[str]) -> Step[str]:
        """The characters that a pattern of single characters matches, as many as there are."""
        parts: list[str] = []
        yield from self.copy(pattern, parts.append)
        return "".join(parts)

    def copy(self, pattern: re.Pattern[str], write: Write) -> Step[None]:
        """Write these characters as they come."""
        while True:
            match = pattern.match(self.text, self.at)
            if match:
                self.at = match.end()
                write(match[0])
            if self.at < len(self.text) or self.ended:
                return
            yield


def read_value(source: Source, write: Write, *, python: bool) -> Step[None]:
    """Read one value, and write it as JSON.

    Both spellings are taken: ``true`` and ``True``, quotes of either kind, a comma before a closing
    bracket.

    Args:
        python: whether escapes in strings, tuples and numbers are those of Python.

    Raises:
        MalformedError: there is none; CutError where the text ends in it.
    """
    closers: list[str] = []
    try:
        while True:
            yield from _one(source, write, closers, python)
            while closers:
                character = yield from source.space()
                if character == ",":
                    source.at += 1
                    character = yield from source.space()
                    if character != closers[-1]:
                        write(", ")
                        if closers[-1] == "}":
                            yield from _key(source, write, python)
                        break
                if character != closers[-1]:
                    raise unexpected(character, f"a comma or {closers[-1]}")
                source.at += 1
                write("}" if closers.pop() == "}" else "]")
            else:
                return
    except MalformedError as error:
        error.depth = len(closers)
        raise


def read_word(source: Source) -> Step[str]:
    """A name as Python has it, perhaps with dots."""
    word = yield from source.run(_WORD)
    return word


def quoted(text: str) -> str:
    """A string of JSON."""
    return json.dumps(text, ensure_ascii=False)


def quoted_ascii(text: str) -> str:
    """What stands between the quotes of a string of JSON in ASCII."""
    return json.dumps(text)[1:-1]


def _one(source: Source, write: Write, closers: list[str], python: bool) -> Step[None]:
    """A value without brackets, or an opening one, or two with nothing between."""
    character = yield from source.space()
    if character in ("{", "[") or (python and character == "("):
        if len(closers) == MAX_DEPTH:
            raise MalformedError(f"the arguments are nested more than {MAX_DEPTH} levels deep")
        source.at += 1
        closers.append(_CLOSER[character])
        write("{" if character == "{" else "[")
        following = yield from source.space()
        if following == closers[-1]:
            source.at += 1
            write("}" if closers.pop() == "}" else "]")
        else:
            if character == "{":
                yield from _key(source, write, python)
            yield from _one(source, write, closers, python)
    elif character in ("'", '"'):
        yield from _string(source, write, python)
    elif character and (character in "+-." or "0" <= character <= "9"):
        digits = yield from source.run(_DIGITS)
        yield from _expect_more(source, digits)
        write(_number(digits))
    elif character.isalpha() or character == "_":
        word = yield from read_word(source)
        following = yield from source.peek()
        if python and word in ("r", "R", "u", "U") and following in ("'", '"'):
            yield from _string(source, write, python, raw=word in "rR")
        elif word not in WORDS:
            yield from _expect_more(source, word)
            raise MalformedError(f"{word[:40]} is not a value", word)
        else:
            write(WORDS[word])
    else:
        raise unexpected(character, "a value")


def _key(source: Source, write: Write, python: bool) -> Step[None]:
    """The name of an entry, and what stands between it and its value."""
    character = yield from source.space()
    if character in ("'", '"'):
        yield from _string(source, write, python)
    elif python and (character.isalpha() or character == "_"):
        # Meta's own python_list format writes {name=value}.
        write(quoted((yield from read_word(source))))
    else:
        raise unexpected(character, "a name in quotes")
    character = yield from source.space()
    if character != ":" and not (python and character == "="):
        raise unexpected(character, "a colon")
    source.at += 1
    write(": ")


def _string(source: Source, write: Write, python: bool, *, raw: bool = False) -> Step[None]:
    quote = source.text[source.at]
    source.at += 1
    write('"')
    closing = 1
    if python and (yield from source.peek()) == quote:
        source.at += 1
        if (yield from source.peek()) != quote:
            write('"')
            return
        source.at += 1
        closing = 3
    inner = "'" if quote == "'" else '\\"'
    n_quotes = 0  # that follow each other and may be the end
    while n_quotes < closing:
        character = yield from source.peek()
        if character != quote:
            write(inner * n_quotes)
            n_quotes = 0
            yield from source.copy(_PLAIN, write)
            character = yield from source.peek()
        if not character:
            raise CutError("the arguments are cut off")
        source.at += 1
        if character == quote:
            n_quotes += 1
        elif character != "\\":
            write(quoted(character)[1:-1])
        elif raw:
            write("\\\\")
            if following := (yield from source.peek()):
                source.at += 1
                write(quoted(following)[1:-1])
        else:
            write((yield from _escape(source, python)))
    write('"')


def _escape(source: Source, python: bool) -> Step[str]:
    """What JSON writes for what stands behind a backslash.

    A backslash that begins no escape was meant, as in a regular expression or a path.
    """
    character = yield from source.peek()
    if not character:
        raise CutError("the arguments are cut off")
    source.at += 1
    if character in '"\\bfnrt':
        return "\\" + character
    if character == "'":
        return character
    if character == "/" and not python:
        return "/"
    if character == "u" or (python and character in "xU"):
        return (yield from _code(source, character))
    if python and character in "01234567":
        digits = character
        while len(digits) < 3 and (yield from source.peek()) in tuple("01234567"):
            digits += source.text[source.at]
            source.at += 1
        return quoted(chr(int(digits, 8)))[1:-1]
    if python and character == "N" and (yield from source.peek()) == "{":
        name = yield from source.run(_NAME_OF_CHARACTER)
        with suppress(KeyError):
            text = unicodedata.lookup(name[1:])
            source.at += (yield from source.peek()) == "}"
            return quoted(text)[1:-1]
        return "\\\\N" + quoted(name)[1:-1]
    if python and character in "av\n":
        return {"a": "\\u0007", "v": "\\u000b", "\n": ""}[character]
    return "\\\\" + quoted(character)[1:-1]


def _code(source: Source, kind: str) -> Step[str]:
    """The character of which so many hexadecimal digits are the code."""
    digits, count = "", {"x": 2, "u": 4, "U": 8}[kind]
    while len(digits) < count:
        character = yield from source.peek()
        if not character:
            raise CutError("the arguments are cut off")
        if character not in "0123456789abcdefABCDEF":
            break
        digits += character
        source.at += 1
    if len(digits) < count or int(digits, 16) > 0x10FFFF:
        return f"\\\\{kind}{digits}"
    return f"\\u{digits}" if kind == "u" else json.dumps(chr(int(digits, 16)))[1:-1]


def _number(text: str) -> str:
    """A number as JSON has it, of one as JSON or Python has it."""
    if _JSON_NUMBER.fullmatch(text):
        return text
    match = _PYTHON_NUMBER.fullmatch(text)
    if match is None:
        raise MalformedError(f"{text[:40]} is not a number", text)
    sign = "-" if match["sign"] == "-" else ""
    plain = match["number"].replace("_", "")
    if match["prefix"]:
        if len(plain) > _MAX_PREFIXED:
            raise MalformedError(f"a number has {len(plain):,} digits", text)
        with suppress(ValueError):
            return f"{sign}{int(plain, 0)}"
        raise MalformedError(f"{text[:40]} is not a number", text)
    whole, point, rest = plain.partition(".")
    if not point:
        mantissa, exponent, power = plain.lower().partition("e")
        return f"{sign}{mantissa.lstrip('0') or '0'}{exponent}{power}"
    fraction, exponent, power = rest.lower().partition("e")
    return f"{sign}{whole.lstrip('0') or '0'}.{fraction or '0'}{exponent}{power}"


def _expect_more(source: Source, read: str) -> Step[None]:
    """Refuse the end of the text behind a number or word, of which more may be missing."""
    if not (yield from source.peek()):
        raise CutError("the arguments are cut off", read)


def unexpected(character: str, expected: str) -> MalformedError:
    """The error for a character that belongs elsewhere; "" is the end of the text."""
    if not character:
        return CutError("the arguments are cut off")
    return MalformedError(
        f"the arguments are not JSON: {character!r} stands where {expected} belongs"
    )


_CLOSER = {"{": "}", "[": "]", "(": ")"}
WORDS = {
    "true": "true", "false": "false", "null": "null",
    "True": "true", "False": "false", "None": "null",
}  # fmt: skip
_MAX_PREFIXED = 300  # characters of a hexadecimal number

_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"[\w.]+")
_PLAIN = re.compile(r"""[^"'\\\x00-\x1f]+""")
_DIGITS = re.compile(r"[\w.+-]+")
_NAME_OF_CHARACTER = re.compile(r"[^}\n\"']+")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_PYTHON_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?P<number>(?P<prefix>0[xX]_?[0-9a-fA-F]|0[oO]_?[0-7]|0[bB]_?[01])"
    r"(?:_?[0-9a-fA-F])*|(?:[0-9](?:_?[0-9])*\.?(?:[0-9](?:_?[0-9])*)?|\.[0-9](?:_?[0-9])*)"
    r"(?:[eE][+-]?[0-9](?:_?[0-9])*)?)"
)
