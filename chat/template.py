"""The chat template of a GGUF: messages in, pieces of prompt out.

Promises to render as transformers does, inside a sandbox, and that only the template itself can
write control tokens: the same characters in a message stay plain text. A template is a program: one
that is not known runs in a process with limits. Knows nothing of token ids or models.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ..errors import TemplateError
from ..units import told_apart
from .messages import checked_messages, checked_tools, checked_variables
from .rendering import MAX_FAULT, RenderingError, Template
from .template_process import TemplateProcess
from .vocabulary import any_of

KNOWN = {
    "95a231a15c8c976ac511e62c6fdf477ea9e3ca7a87cbb9974e0dd653eccb4563": "Meta's for Llama 4",
    "c3ad141ecbcb8b086b0b07fc689cecc81b23ba554ecab666f89881a836ed63ed": "that of Llama-4-Tiny",
}
"""The templates that are known to end, by the SHA-256 of their text. Meta's is the one that
transformers has for Llama 4 (``processing_llama4.chat_template``)."""

MAX_CHARACTERS = 1 << 20
"""The longest template: Meta's has five thousand characters."""

# Meta encodes a header, with its empty line, apart from the message below it: a message that
# begins with a newline does not merge with that line (ChatFormat._encode_header in
# llama_models/llama4/chat_format.py).
_HEADER_END, _EMPTY_LINE = "<|header_end|>", "\n\n"

# Hieroglyphs first: templates may write a list as Python does, which would escape what is not
# printable. Then Unicode's noncharacters and a private-use plane.
_MARKS = (range(0x13000, 0x13400), range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE))

_CORRECT = "Convert the model again with a corrected chat template."


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
        TemplateError: there is no template, or it is not valid Jinja, or takes too long or too much
            memory to compile.
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
        if len(source) > MAX_CHARACTERS:
            found, most = told_apart(len(source), MAX_CHARACTERS)
            raise TemplateError(
                "the chat template is too large",
                found=found,
                expected=f"at most {most}",
                hint=_CORRECT,
            )
        self.source = source
        # One character cannot be kept apart from the same one in a message.
        tokens = tuple(token for token in control_tokens if len(token) > 1)
        self._characters = set(source).union(*tokens)
        self._pattern = any_of(tokens)
        self._breaks = _Breaks(tokens)
        self._constants = {"bos_token": bos_token, "eos_token": eos_token}
        self._roles = tuple(dict.fromkeys(_QUOTED_WORD.findall(source)))
        self._template: Template | TemplateProcess
        try:
            self._template = Template(source) if is_known(source) else TemplateProcess(source)
        except RenderingError as error:
            raise TemplateError(
                "the chat template is not valid Jinja", found=_visible(str(error)), hint=_CORRECT
            ) from error

    def close(self) -> None:
        """End the process in which the template runs, if there is one; `render` starts another."""
        self._template.close()

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

        All of them are values of JSON.

        Raises:
            TemplateError: a message is malformed, or the template fails on these messages, or takes
                too long or too much memory.
        """
        values = {
            "messages": checked_messages(messages, self._roles),
            "tools": checked_tools(tools),
            **checked_variables(variables),
        }
        mark = self._unused_character(values)
        names = {
            **self._constants,
            **{name: self._breaks.value(value, mark) for name, value in values.items()},
            "add_generation_prompt": bool(add_generation_prompt),
        }
        try:
            text = self._template.render(names)
        except RenderingError as error:
            raise TemplateError(
                "the chat template does not render these messages",
                found=_visible(str(error).replace(mark, "")) or None,
            ) from error
        return tuple(self._pieces(text, mark))

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
        """A character of no control token, and neither of the template nor of what it is given."""
        used = self._characters.union(*_strings(values))
        for character in map(chr, chain(*_MARKS)):
            if character not in used:
                return character
        raise TemplateError("the messages use every character of Unicode's private planes")


class _Breaks:
    """Where a mark goes in the strings of a message, so that none can be part of a control token.

    Of tokens like ``<|eot|>`` it goes before every ``|``, and of tokens like ``<think>`` behind
    every ``<`` and before every ``>``: whatever a template cuts out of a message, changes or joins,
    neither the beginning nor the end of such a token comes from it. And it goes behind a first
    character at the end of a string. Matching control tokens then finds only what the template
    wrote, and removing the mark gives the text back.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        words = [token for token in tokens if token[1].isalnum()]
        separators = {token[1] for token in tokens if not token[1].isalnum()}
        self._before = separators | {token[-1] for token in words}
        self._behind = {token[0] for token in words}
        self._initials = tuple({token[0] for token in tokens})

    def value(self, value: Any, mark: str) -> Any:
        """The same value with marks in all strings, the names in mappings too."""
        if isinstance(value, str):
            return self._text(value, mark)
        if isinstance(value, dict):
            return {self._text(key, mark): self.value(item, mark) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, mark) for item in value]
        return value

    def _text(self, text: str, mark: str) -> str:
        for character in self._before:
            text = text.replace(character, mark + character)
        for character in self._behind:
            text = text.replace(character, character + mark)
        return text + mark if text.endswith(self._initials) else text


def is_known(source: str) -> bool:
    """Whether it is one of the templates that are known to end."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest() in KNOWN


# What a template compares a role with.
_QUOTED_WORD = re.compile(r"""(?<=['"])[A-Za-z_]\w{0,39}(?=['"])""")


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_strings, chain(value.keys(), value.values())))
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_strings, value))


def _visible(text: str) -> str:
    """What a template says, bounded and on one line: it may hold anything."""
    shown = text if len(text) <= 2 * MAX_FAULT else text[: 2 * MAX_FAULT] + "..."
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in shown
    )
