"""The chat template of a GGUF: messages in, pieces of prompt out.

Promises to render as transformers does, inside a sandbox, and that only the template itself can
write control tokens: the same characters in a message stay plain text. Knows nothing of token ids
or models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import TemplateError
from .vocabulary import any_of

MAX_CHARACTERS = 100_000_000
"""The longest prompt a template may write: ten million tokens are about forty million."""

MAX_STEPS = 1_000_000
"""How many steps the ranges of one rendering may count in all."""

# Meta encodes a header, with its empty line, apart from the message below it: a message that
# begins with a newline does not merge with that line (ChatFormat._encode_header in
# llama_models/llama4/chat_format.py).
_HEADER_END, _EMPTY_LINE = "<|header_end|>", "\n\n"

# What Llama 4's template writes where an image belongs.
_IMAGE = "<|image|>"

# Unicode's noncharacters first, which no text should hold, then a private-use plane.
_BREAKS = (range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE))


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered prompt: plain text, or the name of one control token."""

    text: str
    control: bool


class ChatTemplate:
    """A chat template, compiled.

    Args:
        source: the Jinja text, from ``tokenizer.chat_template``; None if the model has none.
        control_tokens: the names of the control tokens of the model's vocabulary.
        bos_token, eos_token: what the template sees under these names.

    Raises:
        TemplateError: there is no template, or it is not valid Jinja.
    """

    def __init__(
        self,
        source: str | None,
        *,
        control_tokens: Iterable[str] = (),
        bos_token: str = "",
        eos_token: str = "",
    ) -> None:
        if not source or not source.strip():
            raise TemplateError(
                "the model has no chat template",
                expected="tokenizer.chat_template in the GGUF",
                hint="Convert an Instruct checkpoint with its chat template, or use the model "
                "for plain text (`llama4 run --raw`, `Model.generate`).",
            )
        self.source = source
        tokens = tuple(control_tokens)
        self._pattern = any_of(tokens)
        self._openings = any_of({token[:2] for token in tokens if len(token) > 1})
        self._initials = tuple({token[0] for token in tokens})
        self._constants = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError, ValueError) as error:
            raise TemplateError(
                "the chat template is not valid Jinja",
                found=_describe(error),
                hint="Convert the model again with a corrected chat template.",
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[Piece, ...]:
        """The prompt for these messages, taken apart at the control tokens the template wrote.

        Args:
            messages: each with "role" and "content", oldest first.
            add_generation_prompt: whether the header of the answer comes last.
            tools: descriptions of functions, for templates that can show them.
            variables: further names for the template, such as ``{"date_string": "..."}``.

        Raises:
            TemplateError: a message is malformed or has an image, or the template fails on these
                messages.
        """
        values = {"messages": [_message(message) for message in messages], "tools": tools}
        values.update(variables or {})
        mark = self._unused_character(values)
        names = {
            **self._constants,
            **{name: self._break_openings(value, mark) for name, value in values.items()},
            "add_generation_prompt": add_generation_prompt,
            "range": _counted_range(MAX_STEPS),
        }
        pieces = tuple(self._pieces(self._text(names), mark))
        if Piece(_IMAGE, control=True) in pieces:
            raise TemplateError(
                "a message has an image, and images cannot be read yet",
                expected="messages of text",
                hint="Describe in words what the image shows.",
            )
        return pieces

    def _text(self, names: Mapping[str, Any]) -> str:
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate(names):
                parts.append(part)
                length += len(part)
                if length > MAX_CHARACTERS:
                    raise _TooMuchError(f"more than {MAX_CHARACTERS} characters")
        # Whatever Python error a template provokes in its expressions is the template's fault.
        except Exception as error:
            raise TemplateError(
                "the chat template does not render these messages", found=_describe(error)
            ) from error
        return "".join(parts)

    def _pieces(self, text: str, mark: str) -> Iterator[Piece]:
        parts = self._pattern.split(text) if self._pattern else [text]
        after_header = False
        for index, part in enumerate(parts):
            if index % 2:
                yield Piece(part, control=True)
                after_header = part == _HEADER_END
                continue
            plain = part.replace(mark, "")
            if after_header and plain.startswith(_EMPTY_LINE):
                yield Piece(_EMPTY_LINE, control=False)
                plain = plain[len(_EMPTY_LINE) :]
            if plain:
                yield Piece(plain, control=False)

    def _unused_character(self, values: object) -> str:
        """A character that neither the template nor anything it is given contains."""
        used = set(self.source).union(*_strings(values))
        for character in map(chr, chain(*_BREAKS)):
            if character not in used:
                return character
        raise TemplateError("the messages use every character of Unicode's private planes")

    def _break_openings(self, value: Any, mark: str) -> Any:
        """The same value, where no string can begin a control token.

        The mark goes between the first two characters of every opening ("<|"), and behind a first
        character at the end of a string, where what follows might complete it. Matching control
        tokens then finds only what the template wrote, and removing the mark gives the text back.
        """
        if isinstance(value, str):
            text = str.__str__(value)
            if self._openings:
                text = self._openings.sub(lambda match: mark.join(match[0]), text)
            return text + mark if text.endswith(self._initials) else text
        if isinstance(value, Mapping):
            return {key: self._break_openings(item, mark) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._break_openings(item, mark) for item in value]
        return value


class _TooMuchError(Exception):
    """A template asked for more than any prompt needs."""


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, which also refuses the operators that make much out of little."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        operands = (left, right)
        sizes = [value if isinstance(value, (int, float)) else len(value) for value in operands]
        if operator == "**" and abs(sizes[1]) > 64:
            raise _TooMuchError(f"a power of {sizes[1]}")
        if not all(isinstance(value, (int, float)) for value in operands) and (
            sizes[0] * sizes[1] > MAX_CHARACTERS
        ):
            raise _TooMuchError(f"a repetition of {sizes[0]} by {sizes[1]}")
        return super().call_binop(context, operator, left, right)


def _environment() -> jinja2.Environment:
    """What templates of the transformers library expect to find."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter would escape <, > and & for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _counted_range(limit: int) -> Callable[..., range]:
    """``range`` whose calls share one limit, so that loops inside loops end."""
    left = limit

    def counted(*arguments: int) -> range:
        nonlocal left
        numbers = range(*arguments)
        left -= max(1, len(numbers))
        if left < 0:
            raise _TooMuchError(f"loops of more than {limit} steps")
        return numbers

    return counted


_SPEAKERS = ("system", "user", "assistant")


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TemplateError(
            "a message is not a mapping", found=type(message).__name__, expected="role and content"
        )
    if not isinstance(message.get("role"), str) or "content" not in message:
        raise TemplateError(
            "a message has no role or no content",
            found=", ".join(map(str, message)) or "nothing",
            expected='{"role": "user", "content": "..."}',
        )
    content = message["content"]
    # What a tool gave back is data, which templates write as JSON; a call of one has no text.
    is_text = message["role"] in _SPEAKERS and not message.get("tool_calls")
    if is_text and not (isinstance(content, str) or _is_parts(content)):
        raise TemplateError(
            "the content of a message is not text",
            found=repr(content),
            expected='a string, or a list of {"type": "text", "text": "..."}',
        )
    return dict(message)


def _is_parts(content: object) -> bool:
    return isinstance(content, (list, tuple)) and all(
        isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in content
    )


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_strings, chain(value.keys(), value.values())))
    elif isinstance(value, (list, tuple)):
        yield from chain.from_iterable(map(_strings, value))


def _describe(error: BaseException) -> str:
    line = getattr(error, "lineno", None)
    where = f" in line {line}" if line else ""
    name = "" if type(error) is jinja2.TemplateError else f"{type(error).__name__}: "
    return f"{name}{error}{where}"
