"""The tools of a request of OpenAI's Responses API, as functions that the model is shown.

Promises that each tool that the client runs can be called: a function, a custom tool, which takes a
text, and those of a namespace; and that its calls come back under the client's own names. What
OpenAI runs is left out beside them, which is told once, and refused where it is all there is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..chat.tool_calls import ToolCall
from .errors import ApiError
from .hosted_tools import tell_left_out
from .schema import responses as wire

_INPUT = "input"  # the argument that the text of a custom tool is
_INPUT_SCHEMA = {
    "type": "object",
    "properties": {_INPUT: {"type": "string"}},
    "required": [_INPUT],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class CallableTool:
    """A tool that the model may call, and what it belongs to."""

    given: wire.FunctionTool | wire.CustomTool
    namespace: str | None = None

    @property
    def is_custom(self) -> bool:
        """Whether it takes a text in place of arguments."""
        return isinstance(self.given, wire.CustomTool)

    @property
    def shown_name(self) -> str:
        """What the model calls it."""
        return shown_name(self.given.name, self.namespace)

    @property
    def called(self) -> dict[str, str]:
        """How a call names it."""
        names = {"name": self.given.name}
        return names if self.namespace is None else {**names, "namespace": self.namespace}

    @property
    def shown(self) -> dict[str, Any]:
        """Its definition, as OpenAI's chat protocol has it."""
        if isinstance(self.given, wire.CustomTool):
            function = {
                "name": self.shown_name,
                "description": _custom_description(self.given),
                "parameters": _INPUT_SCHEMA,
            }
        else:
            function = self.given.model_dump(exclude={"type"}, exclude_none=True)
            function["name"] = self.shown_name
        return {"type": "function", "function": function}


def shown_name(name: str, namespace: str | None) -> str:
    """What the model calls a tool of a namespace."""
    if namespace is None:
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


def as_arguments(text: str) -> str:
    """What a custom tool was called with, as arguments."""
    return json.dumps({_INPUT: text}, ensure_ascii=False)


def input_of(call: ToolCall) -> str:
    """The text that a custom tool is called with; where there is none, all that was written."""
    text = call.arguments.get(_INPUT)
    return text if isinstance(text, str) else call.written or ""


def callable_tools(tools: Iterable[wire.Tool]) -> tuple[CallableTool, ...]:
    """The tools that the client runs.

    Raises:
        ApiError: there are tools, and OpenAI runs all of them.
    """
    hosted = [tool.type for tool in tools if isinstance(tool, wire.HostedTool)]
    own = tuple(_own(tools))
    if hosted and not own:
        raise ApiError(
            400,
            f"tools: this server has no {hosted[0]} tool, expected tools that the client runs: of "
            "type function, custom or namespace",
            "tools",
            "invalid_value",
        )
    for kind in hosted:
        tell_left_out(kind)
    return own


def _own(tools: Iterable[wire.Tool]) -> Iterator[CallableTool]:
    for tool in tools:
        if isinstance(tool, wire.NamespaceTool):
            yield from (CallableTool(inner, tool.name) for inner in tool.tools)
        elif not isinstance(tool, wire.HostedTool):
            yield CallableTool(tool)


def written_tools(tools: Iterable[wire.Tool]) -> list[dict[str, Any]]:
    """Tools as a response repeats them: those that the model may call."""
    return [_written(tool) for tool in tools if not isinstance(tool, wire.HostedTool)]


def _written(tool: wire.FunctionTool | wire.CustomTool | wire.NamespaceTool) -> dict[str, Any]:
    if isinstance(tool, wire.FunctionTool):
        return {**tool.model_dump(), "strict": bool(tool.strict)}
    if isinstance(tool, wire.NamespaceTool):
        return {
            **tool.model_dump(exclude={"tools"}),
            "tools": [_written(inner) for inner in tool.tools],
        }
    return tool.model_dump(exclude_none=True)


def _custom_description(tool: wire.CustomTool) -> str:
    """What is told of a custom tool: its input's grammar, too."""
    texts = [tool.description] if tool.description else []
    if isinstance(tool.format, wire.GrammarInput):
        texts.append(f"{_INPUT} follows this {tool.format.syntax} grammar:")
        texts.append(tool.format.definition)
    return "\n".join(texts)
