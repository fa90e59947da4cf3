"""The tool calls in an answer, found while it is being written.

Promises that the same text gives the same calls and the same other text in whichever pieces it
comes, in linear time; that text is held back only while it may be the beginning of a call; that
what names no tool stays text; and that a call which is cut off or malformed is there all the same,
with what is wrong. Nothing is evaluated. Knows no schema and no model.

Llama 4 writes calls as its template asks, as its documentation shows, and as it likes: JSON objects
with ``name`` and ``parameters`` (or ``arguments``, or OpenAI's ``function`` around them), alone, in
lists, one after another with or without ``;`` and ``,``, between ``<|python_start|>`` and
``<|python_end|>``, in Markdown fences; ``[f(a=1), g(b="x")]``; and Llama 3's
``<function=f>{"a": 1}</function>``. Text may stand before, between and behind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby

from .events import CallEvent, ToolCallBegun, ToolCallEnded, ToolCallPiece
from .literals import (
    WORDS,
    MalformedError,
    Source,
    Step,
    quoted,
    quoted_ascii,
    read_value,
    read_word,
    unexpected,
)
from .tool_calls import ToolCall, new_call_id, read_arguments

Found = str | CallEvent
"""What an answer has in it: text, and calls."""


class CallParser:
    """Takes the text of an answer in, and gives text and calls out.

    Args:
        tools: the names of the tools' parameters, in order, by the tool's name.
        most: how many calls there may be; what follows the last of them is left out.
        new_id: makes the identifier of a call.
    """

    def __init__(
        self,
        tools: Mapping[str, Sequence[str]],
        *,
        most: int | None = None,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._parameters = dict(tools)
        # Names are also read as JSON writes them in ASCII.
        self._names = {**{quoted_ascii(name): name for name in tools}, **{n: n for n in tools}}
        self._most, self._new_id = most, new_id
        self._source = Source()
        self._found: list[Found] = []
        self._n_calls = 0
        # Of the call that is being read.
        self._begun: ToolCallBegun | None = None
        self._written: list[str] = []
        self._error: str | None = None
        self._steps = self._answer()
        next(self._steps)

    @property
    def is_full(self) -> bool:
        """Whether there are as many calls as there may be."""
        return self._begun is None and self._n_calls == self._most

    def push(self, text: str) -> list[Found]:
        """What has become certain with this text."""
        if text and not self.is_full:
            self._source.add(text)
            next(self._steps)
        return self._taken()

    def finish(self) -> list[Found]:
        """What was held back, now that no more text comes."""
        self._source.ended = True
        if not self.is_full:
            with suppress(StopIteration):
                next(self._steps)
        return self._taken()

    def _taken(self) -> list[Found]:
        """What was found since the last time, with neighbours that are of one thing joined."""
        found, self._found = self._found, []
        joined: list[Found] = []
        for kind, run in groupby(found, type):
            members = list(run)
            if kind is str:
                joined.append("".join(map(str, members)))
            elif kind is ToolCallPiece:
                pieces = [one for one in members if isinstance(one, ToolCallPiece)]
                joined.append(
                    ToolCallPiece(pieces[0].index, "".join(one.arguments for one in pieces))
                )
            else:
                joined.extend(members)
        return joined

    # ---- the answer

    def _answer(self) -> Step[None]:
        """Text and calls in turn, to the end."""
        source = self._source
        # White space before a call that begins the answer is none of its text.
        character = yield from source.space()
        while character:
            if character not in _BEGINNINGS or not (yield from self._group()):
                self._text(source.release())
                yield from self._plain()
            character = yield from source.peek()
        if not self._n_calls:
            self._text(source.release())

    def _plain(self) -> Step[None]:
        """Text up to a character with which a call may begin, given out at once."""
        source = self._source
        while True:
            match = _NO_BEGINNING.match(source.text, source.at)
            if match:
                source.at = match.end()
                self._text(source.release())
            if source.at < len(source.text) or source.ended:
                return
            yield

    def _group(self) -> Step[bool]:
        """Calls that follow each other, with what encloses and separates them.

        Returns False where there is no call: then all that was read is held.
        """
        source = self._source
        in_list = in_fence = found = False
        while True:
            # What separates calls is held, since something else may follow.
            yield from source.run(_SEPARATORS if found else _WHITE_SPACE)
            character = yield from source.peek()
            is_call = is_end = False
            if not character:
                if found:
                    source.release()
                return found
            if character == "{":
                is_call = yield from self._json_call()
            elif character == "[" and not in_list:
                source.at += 1
                in_list = True
                continue
            elif character == "]":
                source.at += 1
                is_end = in_list
                in_list = False
            elif character == "`":
                if (yield from source.run(_TICKS)) == "```" and not in_fence:
                    yield from source.run(_LANGUAGE)
                    in_fence = True
                    continue
                is_end = in_fence
                in_fence = False
            elif character == "<":
                marker = yield from self._one_of(_MARKERS)
                if marker == _PYTHON_START:
                    continue
                is_end = marker in (_PYTHON_END, _FUNCTION_END)
                is_call = marker == _FUNCTION and (yield from self._tagged_call())
            elif in_list and _begins_name(character):
                is_call = yield from self._python_call()
            if is_end and found:
                source.release()
            elif is_call:
                found = True
            elif found:
                self._text(source.release())
                return True
            else:
                return False

    # ---- the forms of a call

    def _json_call(self) -> Step[bool]:
        """A JSON object with a tool's name and arguments; False where it is something else."""
        source = self._source
        source.at += 1
        n_open = 1
        name: str | None = None
        kept: list[str] | None = None  # arguments that came before the name
        while True:
            yield from source.space()
            key = yield from self._string_of(_KEYS)
            if key is None or (yield from source.space()) != ":":
                return False
            source.at += 1
            if key in _ARGUMENTS and name is not None:
                yield from self._streamed(name)
                yield from self._closing(n_open)
                return True
            character = yield from source.space()
            if key == "function" and character == "{" and n_open == 1:
                source.at += 1
                n_open = 2
                continue
            if key in _ARGUMENTS and kept is None:
                kept = []
                is_right = yield from self._kept(kept)
            elif key in ("name", "function"):
                name = yield from self._string_of(self._names)
                is_right = name is not None
            elif key == "type":
                is_right = (yield from self._string_of(("function",))) is not None
            else:
                is_right = key == "id" and (yield from self._kept([]))
            if not is_right:
                return False
            while (character := (yield from source.space())) == "}":
                source.at += 1
                n_open -= 1
                if not n_open:
                    if name is not None:
                        self._whole(name, "".join(kept or ["{}"]))
                    return name is not None
            if character != ",":
                return False
            source.at += 1

    def _tagged_call(self) -> Step[bool]:
        """What follows ``<function=``."""
        source = self._source
        name = yield from self._one_of(self._names)
        if name is None or (yield from source.peek()) != ">":
            return False
        source.at += 1
        if (yield from source.space()) != "{":
            return False
        yield from self._streamed(self._names[name])
        return True

    def _python_call(self) -> Step[bool]:
        """A call as in Python, whose arguments are literals."""
        source = self._source
        name = yield from self._one_of(self._parameters)
        if name is None or (yield from source.space()) != "(":
            return False
        source.at += 1
        if (yield from source.space()) == ")":
            source.at += 1
            self._whole(name, "{}")
            return True
        positional = iter(self._parameters[name])
        try:
            while True:
                if not (yield from self._python_argument(name, positional)):
                    return False
                character = yield from source.space()
                if character == ",":
                    source.at += 1
                    character = yield from source.space()
                    if character != ")":
                        continue
                if character != ")":
                    raise unexpected(character, "a comma or )")
                source.at += 1
                self._write("}")
                break
        except MalformedError as error:
            yield from self._rest(error, 1)
        self._end()
        return True

    def _python_argument(self, name: str, positional: Iterator[str]) -> Step[bool]:
        """One argument, written as an entry of a JSON object.

        Returns False where the first is none: then the call has not begun.
        """
        source = self._source
        character = yield from source.space()
        value = None
        if _begins_name(character):
            parameter = yield from read_word(source)
            following = yield from source.space()
            if parameter in WORDS and following in (",", ")"):
                parameter, value = next(positional, ""), WORDS[parameter]
            elif following == "=":
                source.at += 1
            else:
                parameter = ""
        else:
            begins = character in _BEGINNINGS_OF_LITERALS
            parameter = next(positional, "") if begins and character else ""
        if not parameter:
            if self._begun is None:
                return False
            raise unexpected((yield from source.peek()), "name=value")
        if self._begun is None:
            self._begin(name)
        self._write(f"{', ' if self._written else '{'}{quoted(parameter)}: ")
        if value is not None:
            self._write(value)
        else:
            yield from read_value(source, self._write, python=True)
        return True

    # ---- their arguments

    def _streamed(self, name: str) -> Step[None]:
        """The arguments of a call, given out while they are read."""
        source = self._source
        self._begin(name)
        kept: list[str] = []
        try:
            if (yield from source.space()) == "{":
                yield from read_value(source, self._write, python=False)
            else:
                yield from read_value(source, kept.append, python=False)
                self._write(_unwrapped("".join(kept)))
        except MalformedError as error:
            self._write("".join(kept))
            yield from self._rest(error)
        self._end()

    def _kept(self, kept: list[str]) -> Step[bool]:
        """A value, whole; False where there is none."""
        try:
            yield from read_value(self._source, kept.append, python=False)
        except MalformedError:
            return False
        return True

    def _rest(self, error: MalformedError, n_open: int = 0) -> Step[None]:
        """The rest of malformed arguments, in so many brackets, as it stands."""
        source, depth = self._source, error.depth + n_open
        self._error = str(error)
        self._write(error.read)
        while True:
            yield from source.copy(_ORDINARY, self._write)
            character = yield from source.peek()
            is_closing = character in ("}", "]", ")")
            if not character or (depth <= 0 and (is_closing or character in (",", ";", "\n"))):
                return
            source.at += 1
            self._write(character)
            if character == '"':
                yield from self._rest_of_string()
            elif is_closing:
                depth -= 1
                if depth <= 0:
                    return
            elif character in ("{", "[", "("):
                depth += 1

    def _rest_of_string(self) -> Step[None]:
        source = self._source
        while True:
            yield from source.copy(_IN_STRING, self._write)
            character = yield from source.peek()
            if not character:
                return
            source.at += 1
            self._write(character)
            if character == '"':
                return
            self._write((yield from source.peek()))
            source.at += bool((yield from source.peek()))

    def _closing(self, n_open: int) -> Step[None]:
        """The end of an object behind its arguments; it may be missing, or have more entries."""
        source = self._source
        while n_open:
            character = yield from source.space()
            if character == ",":
                source.at += 1
                if (yield from source.space()) not in ('"', "'"):
                    return
                try:
                    yield from read_value(source, _ignore, python=False)
                    if (yield from source.space()) != ":":
                        return
                    source.at += 1
                    yield from read_value(source, _ignore, python=False)
                except MalformedError:
                    return
            elif character == "}":
                source.at += 1
                n_open -= 1
            else:
                return
        source.release()

    # ---- what is given out

    def _text(self, text: str) -> None:
        if text:
            self._found.append(text)

    def _begin(self, name: str) -> None:
        """What was held is a call."""
        self._source.release()
        self._source.holding = False
        self._written, self._error = [], None
        self._begun = ToolCallBegun(self._n_calls, self._new_id(), name)
        self._n_calls += 1
        self._found.append(self._begun)

    def _write(self, text: str) -> None:
        """More of the arguments of the call that has begun."""
        if text:
            assert self._begun is not None
            self._written.append(text)
            self._found.append(ToolCallPiece(self._begun.index, text))

    def _end(self) -> None:
        begun = self._begun
        assert begun is not None
        self._source.holding = True
        self._source.release()
        call = ToolCall.of(begun.id, begun.name, "".join(self._written), self._error)
        self._found.append(ToolCallEnded(begun.index, call))
        self._begun = None
        if self.is_full:
            self._source.at = len(self._source.text)

    def _whole(self, name: str, arguments: str) -> None:
        """A call that was read to its end before it could be told from text."""
        self._begin(name)
        self._write(_unwrapped(arguments))
        self._end()

    # ---- words

    def _one_of(self, words: Collection[str]) -> Step[str | None]:
        """The longest of some words that stands here; reads no more than could be one."""
        source = self._source
        word, left = "", list(words)
        while True:
            character = yield from source.peek()
            longer = [one for one in left if one.startswith(word + character)] if character else []
            if not longer:
                return word if word in left else None
            source.at += 1
            word, left = word + character, longer

    def _string_of(self, words: Mapping[str, str] | Collection[str]) -> Step[str | None]:
        """The one of some words that stands here in quotes."""
        source = self._source
        quote = yield from source.peek()
        if quote not in ('"', "'"):
            return None
        source.at += 1
        word = yield from self._one_of(words)
        if word is None or (yield from source.peek()) != quote:
            return None
        source.at += 1
        return words[word] if isinstance(words, Mapping) else word


def _unwrapped(arguments: str) -> str:
    """The JSON in a JSON string, as OpenAI writes arguments; no arguments for null."""
    if arguments == "null":
        return "{}"
    if arguments.startswith('"'):
        inner = str(json.loads(arguments))
        if read_arguments(inner)[0] or inner.strip() == "{}":
            return inner
    return arguments


def _begins_name(character: str) -> bool:
    return character.isalpha() or character == "_"


def _ignore(_text: str) -> None:
    pass


_PYTHON_START, _PYTHON_END = "<|python_start|>", "<|python_end|>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_MARKERS = (_PYTHON_START, _PYTHON_END, _FUNCTION, _FUNCTION_END)

_ARGUMENTS = ("parameters", "arguments")
_KEYS = ("name", "type", "id", "function", *_ARGUMENTS)

_BEGINNINGS = ("{", "[", "<", "`")
_BEGINNINGS_OF_LITERALS = frozenset("\"'0123456789+-.[{(")
# Of the characters of `_BEGINNINGS` those too that the next one shows to begin nothing.
_NO_BEGINNING = re.compile(
    r"""(?:[^{\[<`]+|\{(?=[^\s"'])|\[(?=[^\s\w{<`])|<(?=[^|f])|`(?=[^`]))+"""
)
_WHITE_SPACE = re.compile(r"\s+")
_SEPARATORS = re.compile(r"[\s;,]+")
_TICKS = re.compile(r"`+")
_LANGUAGE = re.compile(r"[A-Za-z_]+")
_ORDINARY = re.compile(r"[^{}\[\]()\",;\n]+")
_IN_STRING = re.compile(r'[^"\\]+')
