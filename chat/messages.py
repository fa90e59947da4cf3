"""What a chat template is given: messages and other values of JSON, checked and copied.

Promises that what passes can be written as JSON, is bounded in depth, and that a message has a role
and a content that templates can show. Knows no template.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..errors import TemplateError, did_you_mean
from ..untrusted import shown

ROLES = ("system", "user", "assistant", "tool", "ipython")
"""The roles of Llama 4: those of Meta's ChatFormat, and transformers' word for ``ipython``."""

MAX_DEPTH = 100
"""Levels of lists and mappings in a value."""

_SPEAKERS = ("system", "user", "assistant")

# Of an integer: Python writes none in decimals that is much longer.
_MAX_BITS = 10_000


def checked_messages(messages: object, roles: Collection[str]) -> list[dict[str, Any]]:
    """Copies of the messages.

    Args:
        roles: those that there are beside `ROLES`.

    Raises:
        TemplateError: they are no list, or one of them is malformed.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise TemplateError(
            "messages are of the wrong type", found=shown(messages), expected="a list of messages"
        )
    return [_message(message, roles) for message in messages]


def checked_tools(tools: object) -> list[Any] | None:
    """A copy of the descriptions of functions.

    Raises:
        TemplateError: they are no list of mappings.
    """
    if tools is None:
        return None
    if not (isinstance(tools, list | tuple) and all(isinstance(tool, Mapping) for tool in tools)):
        raise TemplateError(
            "tools are of the wrong type", found=shown(tools), expected="a list of mappings"
        )
    copy: list[Any] = _copied(tools, "tools")
    return copy


def checked_variables(variables: object) -> dict[str, Any]:
    """A copy of names and values.

    Raises:
        TemplateError: they are no mapping of strings to values of JSON.
    """
    if variables is None:
        return {}
    if not isinstance(variables, Mapping):
        raise TemplateError(
            "variables are of the wrong type", found=shown(variables), expected="a mapping"
        )
    copy: dict[str, Any] = _copied(variables, "variables")
    return copy


def _message(message: object, roles: Collection[str]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TemplateError(
            "a message is not a mapping", found=type(message).__name__, expected="role and content"
        )
    role = message.get("role")
    if not isinstance(role, str) or "content" not in message:
        raise TemplateError(
            "a message has no role or no content",
            found=shown(", ".join(map(str, message))) if message else "nothing",
            expected='{"role": "user", "content": "..."}',
            hint='Parts are its content: [{"role": "user", "content": parts}]'
            if "type" in message
            else None,
        )
    if role not in ROLES and role not in roles:
        raise TemplateError(
            "the role of a message is unknown",
            found=shown(role),
            expected=f"{', '.join(ROLES)}, or one that the chat template names",
            hint=did_you_mean(role[:40], ROLES),
        )
    content = message["content"]
    # What a tool gave back is data, which templates write as JSON; a call of one has no text.
    is_text = role in _SPEAKERS and not message.get("tool_calls")
    if is_text and not (isinstance(content, str) or _is_parts(content)):
        raise TemplateError(
            "the content of a message is not text",
            found=shown(content),
            expected='a string, or a list of {"type": "text", "text": "..."} and '
            '{"type": "image", "image": picture}',
        )
    copy: dict[str, Any] = _copied(message, "a message")
    return copy


def _is_parts(content: object) -> bool:
    return isinstance(content, list | tuple) and all(
        isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in content
    )


def _copied(value: object, where: str, depth: int = 0) -> Any:
    """The value in Python's own types, as JSON has them.

    Raises:
        TemplateError: it is something else, or nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise TemplateError(f"{where} is nested too deeply", expected=f"at most {MAX_DEPTH} levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and int.bit_length(value) <= _MAX_BITS:
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list | tuple):
        return [_copied(item, where, depth + 1) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str.__str__(key): _copied(item, where, depth + 1) for key, item in value.items()}
    raise TemplateError(
        f"{where} holds something that JSON has not",
        found=shown(value),
        expected="strings, numbers, true, false, null, lists, and mappings with strings as keys",
    )
