"""Grammars of answers that are calls of tools.

Promises calls as Llama 4's template asks for them, with arguments that their schemas allow; and,
where the model is free, arguments of that kind for the tools that are strict. Knows no token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SettingError
from .forms import Form
from .schema import schema_grammar
from .tools import Tool, ToolChoice

MAX_CALLS = 16
"""How many calls an answer has at most that must have one."""

_HEAD = '{"name": %s, "parameters": '
_SEPARATORS = ("; ", ", ", "\n")


def calls_form(tools: Sequence[Tool], choice: ToolChoice, *, parallel: bool) -> Form | None:
    """The form of an answer that has to call tools, or to call strict ones rightly.

    None is any text.
    """
    if choice.mode == "none":
        return None
    if choice.mode == "named":
        tools = [tool for tool in tools if tool.name == choice.name]
    elif choice.mode == "auto":
        tools = [tool for tool in tools if tool.strict]
    if not tools:
        return None
    several = choice.mode == "required" and parallel
    value = {
        "tools": [[tool.name, dict(tool.parameters)] for tool in tools],
        "most": MAX_CALLS if several else 1,
        "free": not choice.is_forced,
    }
    return Form("calls", value, "tool_choice" if choice.is_forced else "tools")


def calls_grammar(value: Mapping[str, Any]) -> str:
    """llguidance's grammar of the ``value`` of a `calls_form`.

    Raises:
        SettingError: the schema of a tool cannot be enforced.
    """
    names = [f"call_{at}" for at in range(len(value["tools"]))]
    rules = ["%llguidance {}"]
    if value["free"]:
        rules += [f"start: ({' | '.join(names)})* rest", "rest: TEXT", r"TEXT: /(.|\n)*/"]
    else:
        separators = " | ".join(map(json.dumps, _SEPARATORS))
        more = f" (separator call){{0,{value['most'] - 1}}}" if value["most"] > 1 else ""
        rules += [f"start: call{more}", f"call: {' | '.join(names)}"]
        rules += [f"separator: {separators}"] if more else []
    for rule, (name, parameters) in zip(names, value["tools"], strict=True):
        head = json.dumps(_HEAD % json.dumps(name, ensure_ascii=False), ensure_ascii=False)
        if value["free"]:
            rules += [
                f"{rule}_head[lazy]: TEXT {head}",
                f'{rule}: {rule}_head {rule}_arguments "}}"',
            ]
        else:
            rules += [f'{rule}: {head} {rule}_arguments "}}"']
        rules += [f"{rule}_arguments: %json {_arguments_schema(name, parameters)}"]
    return "\n".join(rules) + "\n"


def _arguments_schema(name: str, parameters: Mapping[str, Any]) -> str:
    """What llguidance makes of a tool's schema, with no arguments that it does not name."""
    closed: dict[str, Any] = {"type": "object", **parameters}
    if not _OPENING & set(closed):
        closed = {"properties": {}, **closed, "additionalProperties": False}
    made = json.loads(schema_grammar(closed, f"the parameters of the tool {name}"))
    schemas = [one["json_schema"] for one in made["grammars"]]
    if len(schemas) != 1:
        raise SettingError(f"the parameters of the tool {name} cannot be enforced")
    return json.dumps(schemas[0])


# Beside these, more properties than those named may be meant.
_OPENING = frozenset(
    ("additionalProperties", "patternProperties", "propertyNames", "unevaluatedProperties", "$ref",
     "allOf", "anyOf", "oneOf", "minProperties", "dependentSchemas", "dependencies")
)  # fmt: skip
