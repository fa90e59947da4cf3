"""A request of OpenAI's Responses API as what a model is asked.

Promises that items which were stored and items which just came in are shown alike. Knows nothing of
HTTP, and not where items are stored.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ApiError
from .responses_store import StoredItem
from .responses_tools import CallableTool, as_arguments, callable_tools, shown_name
from .schema import responses as wire
from .schema.openai import wanted_adapters

LOGPROBS = "message.output_text.logprobs"
"""What ``include`` names to have the log probabilities."""

_CALLS = ("function_call", "custom_tool_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


@dataclass(frozen=True)
class Asked:
    """What a model is asked.

    Attributes:
        messages: as OpenAI's chat protocol has them.
        items: all that is answered, oldest first, what was said before included.
        tools: those that the model may call.
        options: keywords of ``Model.chat``, without the sampling.
    """

    messages: list[dict[str, Any]]
    items: tuple[StoredItem, ...]
    tools: tuple[CallableTool, ...]
    options: dict[str, Any]


def asked(
    request: wire.PromptFields,
    before: Iterable[StoredItem] = (),
    item_of: Callable[[str], StoredItem | None] = lambda _: None,
) -> Asked:
    """What the model is asked.

    Args:
        before: what was said in the responses before this one.
        item_of: the stored item of an id.

    Raises:
        ApiError: there is nothing to answer, an item is not stored, or a tool is not given.
    """
    new = list(_items(request.input, item_of))
    if not new:
        raise ApiError(400, "input is missing.", "input", "missing_required_parameter")
    items = (*before, *new)
    messages = list(_messages(items))
    if request.instructions:
        messages.insert(0, {"role": "system", "content": request.instructions})
    tools = callable_tools(request.tools or ())
    return Asked(messages, items, tools, _options(request, tools))


def _options(request: wire.PromptFields, tools: Sequence[CallableTool]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if tools:
        options |= _tool_options(request, tools)
    elif request.tool_choice not in (None, "none", "auto"):
        raise ApiError(400, "a tool is to be called, and there are no tools", "tool_choice")
    form = request.text.format if request.text else None
    if isinstance(form, wire.SchemaFormat):
        schema = {"name": form.name, "schema": form.schema_, "strict": bool(form.strict)}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif isinstance(form, wire.JsonFormat):
        options["response_format"] = {"type": "json_object"}
    if request.truncation == "auto":
        options["when_full"] = "drop"
    if isinstance(request, wire.ResponsesRequest):
        options["max_tokens"] = request.max_output_tokens
        if request.top_logprobs is not None or LOGPROBS in (request.include or ()):
            options |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
        options |= wanted_adapters(request.lora)
    return options


def _tool_options(request: wire.PromptFields, tools: Sequence[CallableTool]) -> dict[str, Any]:
    """The tools, and whether they are called."""
    choice = request.tool_choice
    given: str | dict[str, Any] = choice if isinstance(choice, str) else "auto"
    if isinstance(choice, wire.NamedTool):
        tool = _named(tools, choice.name, "tool_choice.name")
        given = {"type": "function", "function": {"name": tool.shown_name}}
    elif isinstance(choice, wire.AllowedTools):
        tools = [
            _named(tools, tool.name, f"tool_choice.tools[{index}].name")
            for index, tool in enumerate(choice.tools)
        ]
        given = choice.mode
    return {
        "tools": [tool.shown for tool in tools],
        "tool_choice": given,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
    }


def _named(tools: Sequence[CallableTool], name: str, where: str) -> CallableTool:
    """The tool of a name.

    Raises:
        ApiError: there is none.
    """
    for tool in tools:
        if name in (tool.given.name, tool.shown_name):
            return tool
    raise ApiError(400, f"{where}: there is no such tool", where, "invalid_value")


def _items(
    items: Sequence[wire.Item], item_of: Callable[[str], StoredItem | None]
) -> Iterator[StoredItem]:
    """The items as they are stored."""
    for index, item in enumerate(items):
        if isinstance(item, wire.ItemReference):
            stored = item_of(item.id)
            if stored is None:
                where = f"input[{index}].id"
                raise ApiError(400, f"{where}: there is no such item here", where, "not_found")
            yield stored
        elif isinstance(item, wire.Message):
            parts = [_part(part, item.role) for part in item.content]
            message = {"role": item.role, "content": parts}
            yield _stored("message", item.id or new_id("msg"), message)
        elif isinstance(item, wire.FunctionCall | wire.CustomToolCall):
            call = item.model_dump(exclude={"type", "id"}, exclude_none=True)
            kind = "fc" if isinstance(item, wire.FunctionCall) else "ctc"
            yield _stored(item.type, item.id or new_id(kind), call)
        elif isinstance(item, wire.CallOutput):
            given = [_part(part, "user") for part in item.output]
            output = {"call_id": item.call_id, "output": given}
            kind = "fco" if item.type == "function_call_output" else "ctco"
            yield _stored(item.type, item.id or new_id(kind), output)


def _stored(kind: str, id: str, fields: Mapping[str, Any]) -> StoredItem:
    return {"id": id, "type": kind, "status": "completed", **fields}


def new_id(kind: str) -> str:
    """An identifier that nothing else has."""
    return f"{kind}_{secrets.token_hex(24)}"


def _part(part: wire.Part, role: str) -> dict[str, Any]:
    if isinstance(part, wire.InputImage):
        return {"type": "input_image", "image_url": part.image_url, "detail": "auto"}
    text = part.refusal if isinstance(part, wire.Refusal) else part.text
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": []}
    return {"type": "input_text", "text": text}


def _messages(items: Iterable[StoredItem]) -> Iterator[dict[str, Any]]:
    """Items as messages: calls belong to the text before them, pictures of results follow these."""
    assistant: dict[str, Any] | None = None
    pictures: list[dict[str, Any]] = []
    for item in items:
        kind, role = item["type"], item.get("role")
        if assistant is not None and kind not in _CALLS:
            yield assistant
            assistant = None
        if pictures and kind not in _OUTPUTS:
            yield {"role": "user", "content": pictures}
            pictures = []
        if kind in _CALLS:
            assistant = assistant or {"role": "assistant", "content": ""}
            is_custom = kind == "custom_tool_call"
            arguments = as_arguments(item["input"]) if is_custom else item["arguments"]
            name = shown_name(item["name"], item.get("namespace"))
            function = {"name": name, "arguments": arguments}
            call = {"id": item["call_id"], "type": "function", "function": function}
            assistant.setdefault("tool_calls", []).append(call)
        elif kind in _OUTPUTS:
            parts = [_shown(part) for part in item["output"]]
            text = "".join(part["text"] for part in parts if part["type"] == "text")
            yield {"role": "tool", "tool_call_id": item["call_id"], "content": text}
            pictures += [part for part in parts if part["type"] != "text"]
        elif role == "assistant":
            assistant = {"role": role, "content": _content(item["content"])}
        else:
            role = "system" if role == "developer" else role
            yield {"role": role, "content": _content(item["content"])}
    if assistant is not None:
        yield assistant
    if pictures:
        yield {"role": "user", "content": pictures}


def _content(content: Iterable[Mapping[str, Any]]) -> str | list[dict[str, Any]]:
    """A text, or parts with pictures."""
    parts = [_shown(part) for part in content]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _shown(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "input_image":
        return {"type": "image_url", "image_url": {"url": part["image_url"]}}
    return {"type": "text", "text": part["text"]}
