"""Grammars of answers that are calls of tools.

Promises calls as Llama 4's template asks for them, with arguments that their schemas allow; and,
where the model is free, arguments of that kind for the tools that are strict. Knows no token.
"""

from __future__ import annotations

import json
import re
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


def calls_or_answer(tools: Sequence[Tool], answer: Form, *, parallel: bool) -> Form:
    """The form of an answer that either calls tools or is JSON of a schema.

    Arguments are held to the schemas of tools that are not strict too, where that is possible.
    """
    value = {
        "tools": [[tool.name, dict(tool.parameters)] for tool in tools],
        "most": MAX_CALLS if parallel else 1,
        "free": False,
        "lenient": [tool.name for tool in tools if not tool.strict],
        "answer": answer.value,
    }
    return Form("calls", value, answer.where)


def calls_grammar(value: Mapping[str, Any], where: str) -> str:
    """llguidance's grammar of the ``value`` of a `calls_form`, or of `calls_or_answer`.

    Args:
        where: the setting that the form came in.

    Raises:
        SettingError: the schema of a tool, or of the answer, cannot be enforced.
    """
    names = [f"call_{at}" for at in range(len(value["tools"]))]
    rules = ["%llguidance {}"]
    if value["free"]:
        rules += [f"start: ({' | '.join(names)})* rest", "rest: TEXT", r"TEXT: /(.|\n)*/"]
    else:
        separators = " | ".join(map(json.dumps, _SEPARATORS))
        more = f" (separator call){{0,{value['most'] - 1}}}" if value["most"] > 1 else ""
        answer = " | answer" if "answer" in value else ""
        rules += [f"start: call{more}{answer}", f"call: {' | '.join(names)}"]
        rules += [f"separator: {separators}"] if more else []
    for rule, (name, parameters) in zip(names, value["tools"], strict=True):
        written = json.dumps(name, ensure_ascii=False)
        head = json.dumps(_HEAD % written, ensure_ascii=False)
        if value["free"]:
            rules += [
                f"{rule}_head[lazy]: TEXT {head}",
                f'{rule}: {rule}_head {rule}_arguments "}}"',
            ]
        else:
            if "answer" in value:
                # As JSON's lexemes are cut: the longest is taken, which is to be that of both.
                head = " ".join(map(json.dumps, re.findall(r'"(?:\\.|[^"])*"|.', _HEAD % written)))
            rules += [f'{rule}: {head} {rule}_arguments "}}"']
        lenient = name in value.get("lenient", ())
        schema = _arguments_schema(name, parameters, is_lenient=lenient)
        rules += [f"{rule}_arguments: %json {schema}"]
    if "answer" in value:
        rules += [f"answer: %json {_schema(value['answer'], where)}"]
    return "\n".join(rules) + "\n"


def _arguments_schema(name: str, parameters: Mapping[str, Any], *, is_lenient: bool) -> str:
    """What llguidance makes of a tool's schema, with no arguments that it does not name.

    Args:
        is_lenient: whether any arguments may come where the schema cannot be enforced.
    """
    closed: dict[str, Any] = {"type": "object", **parameters}
    if not _OPENING & set(closed):
        closed = {"properties": {}, **closed, "additionalProperties": False}
    try:
        return _schema(closed, f"the parameters of the tool {name}")
    except SettingError:
        if not is_lenient:
            raise
        return _schema({"type": "object"}, name)


def _schema(schema: object, where: str) -> str:
    """A schema in llguidance's words, to stand in a grammar."""
    made = json.loads(schema_grammar(schema, where))
    schemas = [one["json_schema"] for one in made["grammars"]]
    if len(schemas) != 1:
        raise SettingError(f"{where} cannot be enforced")
    return json.dumps(schemas[0])


# Beside these, more properties than those named may be meant.
_OPENING = frozenset(
    ("additionalProperties", "patternProperties", "propertyNames", "unevaluatedProperties", "$ref",
     "allOf", "anyOf", "oneOf", "minProperties", "dependentSchemas", "dependencies")
)  # fmt: skip
