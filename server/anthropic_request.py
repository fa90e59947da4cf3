"""A request of Anthropic's Messages API as what a model is asked.

Promises that a text is shown as it came, but for the line in which Claude Code counts its requests:
that changes with each of them, and with it everything behind it would be read anew. Knows nothing
of HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from .errors import ApiError
from .hosted_tools import tell_left_out
from .schema import anthropic as wire
from .schema.openai import wanted_adapters

Part = dict[str, Any]
"""Of a message: a text or a picture, as OpenAI's chat protocol has them."""

_BILLING = re.compile(r"\Ax-anthropic-billing-header:(?:[ \t]*[\w-]+=[^;\n]*;?)*\s*")


@dataclass(frozen=True)
class Asked:
    """What a model is asked.

    Attributes:
        messages: as OpenAI's chat protocol has them.
        prefill: how the answer begins; it goes on from there.
        options: keywords of ``Model.chat``.
    """

    messages: list[dict[str, Any]]
    prefill: str
    options: dict[str, Any]


def asked(request: wire.CountRequest) -> Asked:
    """What the model is asked.

    Raises:
        ApiError: a block stands where its kind cannot, or the beginning of the answer is given
            together with what does not go with it.
    """
    messages = _merged(_messages(request))
    if all(message["role"] == "system" for message in messages):
        raise ApiError(400, "the messages say nothing that can be answered", "messages")
    options = _options(request)
    prefill = ""
    if messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:
        prefill = messages.pop()["content"]
        _check_prefill(request, prefill, messages, options)
    return Asked(messages, prefill, options)


def _check_prefill(
    request: wire.CountRequest,
    prefill: str,
    messages: list[dict[str, Any]],
    options: dict[str, Any],
) -> None:
    """Refuse the beginning of an answer that cannot be gone on with."""
    param = f"messages[{len(request.messages) - 1}].content"
    if not messages:
        raise ApiError(400, "the only message is the assistant's; expected one to answer", param)
    if "tools" in options or "response_format" in options:
        raise ApiError(
            400,
            "the last message is the assistant's, which its answer would go on with; that goes "
            "neither with tools nor with output_config.format. Let the user have the last word",
            param,
        )
    if prefill != prefill.rstrip():
        raise ApiError(400, "the beginning of an answer cannot end with whitespace", param)


def _options(request: wire.CountRequest) -> dict[str, Any]:
    """The keywords of ``Model.chat`` that a request asks for."""
    options: dict[str, Any] = {}
    choice = request.tool_choice
    if tools := _own_tools(request):
        options["tools"] = [_tool(tool) for tool in tools]
        options["tool_choice"] = _tool_choice(choice)
        if choice is not None and not isinstance(choice, wire.NoChoice):
            options["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    elif isinstance(choice, wire.AnyChoice | wire.ToolChoice):
        raise ApiError(400, "a tool is to be called, and there are no tools", "tool_choice")
    if request.output_config and (form := request.output_config.format):
        schema = {"name": "answer", "schema": form.schema_, "strict": True}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    if isinstance(request, wire.MessagesRequest):
        options["max_tokens"] = request.max_tokens
        if request.stop_sequences:
            options["stop"] = request.stop_sequences
        for name in ("temperature", "top_p", "top_k"):
            if (value := getattr(request, name)) is not None:
                options[name] = value
        options |= wanted_adapters(request.lora)
    return options


def _own_tools(request: wire.CountRequest) -> list[wire.Tool]:
    """The tools that the client runs.

    Raises:
        ApiError: there are tools, and Anthropic runs all of them.
    """
    tools = request.tools or []
    hosted = [tool.type for tool in tools if isinstance(tool, wire.HostedTool)]
    own = [tool for tool in tools if isinstance(tool, wire.Tool)]
    if hosted and not own:
        raise ApiError(
            400,
            f"this server has no {hosted[0]} tool, expected tools with a name and an input_schema",
            "tools",
        )
    for kind in hosted:
        tell_left_out(kind)
    return own


def _tool(tool: wire.Tool) -> dict[str, Any]:
    described = {} if tool.description is None else {"description": tool.description}
    function = {"name": tool.name, **described, "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _tool_choice(choice: wire.Choice | None) -> str | dict[str, Any]:
    if isinstance(choice, wire.ToolChoice):
        return {"type": "function", "function": {"name": choice.name}}
    if isinstance(choice, wire.NoChoice):
        return "none"
    return "required" if isinstance(choice, wire.AnyChoice) else "auto"


def _messages(request: wire.CountRequest) -> Iterator[dict[str, Any]]:
    """The messages, oldest first, their contents as parts; those that say nothing are left out."""
    texts = [_BILLING.sub("", block.text, count=1) for block in request.system]
    if system := [_text(text) for text in texts if text]:
        yield {"role": "system", "content": system}
    for index, message in enumerate(request.messages):
        where = f"messages[{index}].content"
        if message.role == "assistant":
            yield from _of_assistant(message, where)
        else:
            yield from _of_user(message, where)


def _of_assistant(message: wire.Message, where: str) -> Iterator[dict[str, Any]]:
    parts: list[Part] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(message.content):
        if isinstance(block, wire.TextBlock):
            parts.append(_text(block.text))
        elif isinstance(block, wire.ToolUseBlock):
            arguments = json.dumps(block.input, ensure_ascii=False)
            function = {"name": block.name, "arguments": arguments}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif not isinstance(block, wire.ThinkingBlock):
            raise _misplaced(block, "assistant", f"{where}[{index}]")
    if parts or calls:
        yield {"role": "assistant", "content": parts, "tool_calls": calls}


def _of_user(message: wire.Message, where: str) -> Iterator[dict[str, Any]]:
    """What tools gave back, and then what the user says; pictures of results are among that."""
    parts: list[Part] = []
    for index, block in enumerate(message.content):
        if isinstance(block, wire.ToolResultBlock) and message.role == "user":
            shown = list(_shown(block.content))
            texts = [part["text"] for part in shown if part["type"] == "text"]
            if block.is_error:
                texts[:1] = [f"Error: {texts[0]}" if texts else "Error"]
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": "\n".join(texts)}
            parts += [part for part in shown if part["type"] != "text"]
        elif isinstance(block, wire.ToolUseBlock | wire.ToolResultBlock):
            raise _misplaced(block, message.role, f"{where}[{index}]")
        elif not isinstance(block, wire.ThinkingBlock):
            parts += _shown([block])
    if parts:
        yield {"role": message.role, "content": parts}


def _misplaced(block: wire.Block, role: str, where: str) -> ApiError:
    return ApiError(400, f"a message of the {role} cannot have a block of type {block.type}", where)


def _shown(blocks: Iterable[Any]) -> Iterator[Part]:
    """Blocks as texts and pictures."""
    for block in blocks:
        if isinstance(block, wire.ImageBlock):
            source = block.source
            url = (
                source.url
                if isinstance(source, wire.UrlSource)
                else f"data:{source.media_type};base64,{source.data}"
            )
            yield {"type": "image_url", "image_url": {"url": url}}
        elif isinstance(block, wire.TextBlock):
            yield _text(block.text)
        elif isinstance(block, wire.ToolReferenceBlock):
            yield _text(block.tool_name)
        elif isinstance(block, wire.SearchResultBlock):
            yield _text(f"{block.title} ({block.source})")
            yield from _shown(block.content)
        else:
            yield from _document(block)


def _document(block: wire.DocumentBlock) -> Iterator[Part]:
    for text in (block.title, block.context):
        if text:
            yield _text(text)
    if isinstance(block.source, wire.TextSource):
        yield _text(block.source.data)
    else:
        yield from _shown(block.source.content)


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _merged(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours of the same role as one message, as Anthropic's protocol wants it."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool" or not merged or merged[-1]["role"] != message["role"]:
            merged.append(message)
            continue
        for name in ("content", "tool_calls"):
            if name in message:
                merged[-1][name] += message[name]
    for message in merged:
        if message["role"] != "tool":
            message["content"] = _content(message["content"])
        if not message.get("tool_calls", True):
            del message["tool_calls"]
    return merged


def _content(parts: list[Part]) -> str | list[Part]:
    """A text, or parts with pictures; between two texts there is a line break."""
    joined: list[Part] = []
    for are_texts, group in groupby(parts, key=lambda part: part["type"] == "text"):
        those = list(group)
        joined += [_text("\n".join(part["text"] for part in those))] if are_texts else those
    if len(joined) <= 1 and all(part["type"] == "text" for part in joined):
        return "".join(part["text"] for part in joined)
    return joined
