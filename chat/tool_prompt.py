"""Tools, calls and results as chat templates take them.

Promises that nothing of them is lost on the way into a prompt: what Meta's template would leave out
or spell as Python does is given to it in a form that it shows, and a template that knows no tools
gets them as text. What a template shows by itself stays as it is. Knows no token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import TemplateError
from ..untrusted import shown
from .conversation import Message, message_record
from .tool_calls import ToolCall, read_arguments
from .tools import Tool

INTRODUCTION = (
    "Given the following functions, please respond with a JSON for a function call with its proper "
    "arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and '
    "its value}.Do not use variables.\n\n"
)
"""With which Meta's template for Llama 4 introduces tools: the words that the model was trained
with."""

Messages = list[Mapping[str, Any]]


@dataclass(frozen=True)
class ToolPrompt:
    """What a template is given.

    Args:
        messages: with calls and results in its form.
        tools: the definitions that it shows; None where there are none.
        variables: further names.
    """

    messages: Messages
    tools: list[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


def tool_prompt(
    given: Sequence[Mapping[str, Any]], tools: Sequence[Tool], source: str
) -> ToolPrompt:
    """Messages and tools for the template with this text."""
    messages = [_cleaned(message) for message in given]
    if not knows(source, "tool_calls"):
        messages = [_as_text(message) for message in messages]
    if not tools:
        return ToolPrompt(messages)
    definitions = [tool.definition for tool in tools]
    if not knows(source, "tools"):
        return ToolPrompt(_introduced(messages, definitions))
    if not knows(source, "tools_in_user_message"):
        return ToolPrompt(messages, definitions)
    # Meta's template writes them into the first message behind the system's, as text of the user.
    at = 1 if messages and messages[0].get("role") == "system" else 0
    first = messages[at] if at < len(messages) else None
    content = None if first is None else first.get("content")
    if first is not None and first.get("role") == "user" and _is_text(content):
        messages[at] = {**first, "content": _text(content)}
        return ToolPrompt(messages, definitions)
    # It cannot where that has pictures, or is somebody else's; then into the system's.
    if at == 0:
        messages.insert(0, {"role": "system", "content": ""})
    return ToolPrompt(messages, definitions, {"tools_in_user_message": False})


def knows(source: str, name: str) -> bool:
    """Whether a template's text has this name in it."""
    return re.search(rf"\b{name}\b", source) is not None


def shown_text(definition: Mapping[str, Any]) -> str:
    """A tool as Meta's template writes it."""
    return _json(definition, indent=4)


def as_mapping(message: Message) -> Mapping[str, Any]:
    """A message as templates take it."""
    record = message_record(message)
    if message.tool_calls:
        record["tool_calls"] = [call.as_openai() for call in message.tool_calls]
    return record


def _cleaned(message: Any) -> Any:
    """A message with its calls as mappings of arguments, and without a list of no calls."""
    if not isinstance(message, Mapping):
        return message  # the template's own check refuses it
    calls = message.get("tool_calls")
    if calls:
        content = message.get("content")
        if not isinstance(calls, list | tuple):
            raise _malformed(calls)
        return {
            **message,
            "content": "" if content is None else content,
            "tool_calls": [_with_arguments(call) for call in calls],
        }
    if "tool_calls" in message and not calls:
        message = {name: value for name, value in message.items() if name != "tool_calls"}
    if message.get("role") in ("tool", "ipython") and _is_text(message.get("content")):
        return {**message, "content": _text(message["content"])}
    return message


def _with_arguments(call: Any) -> Mapping[str, Any]:
    """A call whose arguments are a mapping, where their text is one in JSON."""
    if isinstance(call, ToolCall):
        call = call.as_openai()
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise _malformed(call)
    written = inner.get("arguments", {})
    arguments, problem = read_arguments(written) if isinstance(written, str) else (written, None)
    shown_arguments = arguments if problem is None or arguments else written
    return {**call, "function": {"name": inner["name"], "arguments": shown_arguments}}


def _malformed(found: Any) -> TemplateError:
    return TemplateError(
        "the tool_calls of a message are malformed",
        found=shown(found),
        expected='a list of {"function": {"name": ..., "arguments": {...}}}',
    )


def _as_text(message: Any) -> Any:
    """A message without calls: as Meta's ChatFormat writes them, they follow its text."""
    if not isinstance(message, Mapping):
        return message
    content: Any = message.get("content")
    if message.get("role") in ("tool", "ipython") and isinstance(content, Mapping | list):
        return {**message, "content": _json(content)}
    if "tool_calls" not in message:
        return message
    calls = "".join(map(_call_text, message["tool_calls"]))
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    if isinstance(content, list | tuple):
        return {**rest, "content": [*content, {"type": "text", "text": calls}]}
    return {**rest, "content": content + calls if isinstance(content, str) else content}


def _call_text(call: Mapping[str, Any]) -> str:
    inner = call["function"]
    return _json({"type": "function", "name": inner["name"], "parameters": inner["arguments"]})


def _json(value: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent)
    except (TypeError, ValueError, RecursionError) as error:
        raise TemplateError(
            "a message holds something that JSON has not", found=str(error)[:200]
        ) from error


def _introduced(messages: Messages, definitions: Sequence[Mapping[str, Any]]) -> Messages:
    """The messages with the tools in front of the first question."""
    introduction = INTRODUCTION + "".join(f"{shown_text(one)}\n\n" for one in definitions)
    at = next((at for at, one in enumerate(messages) if _role(one) == "user"), None)
    if at is None:
        return [{"role": "user", "content": introduction.strip()}, *messages]
    content: Any = messages[at].get("content")
    whole: Any = introduction + content if isinstance(content, str) else content
    if isinstance(content, list | tuple):
        whole = [{"type": "text", "text": introduction}, *content]
    return [*messages[:at], {**messages[at], "content": whole}, *messages[at + 1 :]]


def _role(message: Any) -> object:
    return message.get("role") if isinstance(message, Mapping) else None


def _is_text(content: Any) -> bool:
    """Whether it is a text, or parts of text."""
    return isinstance(content, str) or (
        isinstance(content, list | tuple)
        and bool(content)
        and all(
            isinstance(part, Mapping)
            and part.get("type") in ("text", "input_text")
            and isinstance(part.get("text"), str)
            for part in content
        )
    )


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
