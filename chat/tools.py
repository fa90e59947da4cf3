"""The tools that a model may call: what it is told of each, and whether a call is as that says.

Promises that a tool which exists has a name, a JSON Schema that is one, and rendering as it was
given. A schema names nothing outside itself: nothing is fetched. Knows no template, and no form in
which calls are written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import SettingError, did_you_mean
from ..ranges import value_text, wrong_type
from ..untrusted import shown
from .arguments import problem_with, schema_problem
from .functions import Function
from .messages import checked_tools

if TYPE_CHECKING:
    from .tool_calls import ToolCall

MAX_TOOLS = 512
"""How many tools a model may be given at a time."""

_NAME = re.compile(r"[\w.:/-]{1,128}")

_SHAPE = '{"type": "function", "function": {"name": ..., "parameters": {...}}}, or a function'


@dataclass(frozen=True)
class Tool:
    """A tool: what the model is told of it, and what is called where it is a Python function.

    Args:
        definition: what the model is shown, as it was given.
        name, description: what the definition says.
        parameters: the JSON Schema of the arguments.
        strict: whether arguments that are not as the schema says are made impossible, in calls as
            the template asks for them; in other forms they are checked as those of any tool.
        function: what a call of it runs; None where only the caller can.
    """

    definition: Mapping[str, Any]
    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False
    function: Function | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, tool: object) -> Tool:
        """The tool that a definition or a Python function describes.

        Raises:
            SettingError: it is neither, or something in it cannot be described.
        """
        if isinstance(tool, Tool):
            return tool
        if isinstance(tool, Mapping):
            return _of_definition(tool)
        if callable(tool):
            function = Function.of(tool)
            return replace(_of_definition(function.definition), function=function)
        raise wrong_type("a tool", tool, _SHAPE)

    def problem_of(self, arguments: Mapping[str, Any]) -> str | None:
        """What is wrong with arguments by the tool's schema; None where nothing is."""
        if self.function is not None:
            known = self.parameters["properties"]
            if unknown := [name for name in arguments if name not in known]:
                return f"{self.name} has no parameter {unknown[0][:100]}"
        return problem_with(dict(arguments), self.parameters)


ToolInput = Mapping[str, Any] | Callable[..., Any] | Tool
"""A tool as it may be given: OpenAI's definition, or a Python function."""


@dataclass(frozen=True)
class ToolChoice:
    """Whether tools are called.

    Args:
        mode: "none" shows the model no tools, "auto" leaves it free, "required" has it call at
            least one, and "named" the one of this name.
    """

    mode: Literal["none", "auto", "required", "named"] = "auto"
    name: str = ""

    @property
    def is_forced(self) -> bool:
        """Whether the answer is a call and nothing else."""
        return self.mode in ("required", "named")

    @classmethod
    def of(cls, choice: object, tools: Sequence[Tool]) -> ToolChoice:
        """What a choice in OpenAI's form means: a word, the name of a tool, or an object with one.

        Raises:
            SettingError: it is something else, or there is no such tool.
        """
        if isinstance(choice, ToolChoice):
            choice = {"name": choice.name} if choice.mode == "named" else choice.mode
        names = [tool.name for tool in tools]
        words = [mode for mode in get_args(_Mode) if mode != "named"]
        if isinstance(choice, str) and choice in words:
            if choice == "required" and not tools:
                raise SettingError('tool_choice is "required", and there are no tools')
            return cls(choice)  # type: ignore[arg-type]
        name = _name_in(choice)
        if name is None:
            raise wrong_type(
                "tool_choice",
                choice,
                f'{", ".join(words)}, or {{"type": "function", "function": {{"name": ...}}}}',
            )
        if name not in names:
            raise SettingError(
                "tool_choice names no tool",
                found=shown(name),
                expected=", ".join([*words, *names])[:1000],
                hint=did_you_mean(name[:100], [*words, *names]),
            )
        return cls("named", name)


_Mode = Literal["none", "auto", "required", "named"]


def as_tools(tools: object) -> tuple[Tool, ...]:
    """The tools in a list of definitions and Python functions; None is none.

    Raises:
        SettingError: one of them is no tool, or two have the same name.
    """
    if tools is None:
        return ()
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Iterable):
        raise wrong_type("tools", tools, f"a list of tools: {_SHAPE}")
    given = tuple(islice(tools, MAX_TOOLS + 1))
    if len(given) > MAX_TOOLS:
        raise SettingError("there are too many tools", expected=f"at most {MAX_TOOLS}")
    taken = tuple(map(Tool.of, given))
    names: set[str] = set()
    for tool in taken:
        if tool.name in names:
            raise SettingError("two tools have the same name", found=tool.name)
        names.add(tool.name)
    return taken


def checked_call(call: ToolCall, tools: Sequence[Tool]) -> ToolCall:
    """The call, with what is wrong with it by the schema of its tool."""
    if call.error is not None:
        return call
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        return replace(call, error=f"there is no tool {call.name[:128]}")
    return replace(call, error=tool.problem_of(call.arguments))


def _of_definition(definition: Mapping[str, Any]) -> Tool:
    """The tool of OpenAI's definition, whose function may also stand in it directly.

    Raises:
        SettingError: it is none.
    """
    from ..errors import TemplateError

    try:
        copy = (checked_tools([definition]) or [{}])[0]
    except TemplateError as error:
        raise SettingError("a tool is not JSON", found=error.found, expected=_SHAPE) from error
    kind = copy.get("type", "function")
    if kind != "function":
        raise SettingError("a tool is not a function", found=f'"type": {shown(kind)}',
                           expected='"function"')  # fmt: skip
    inner = copy.get("function", copy)
    if not isinstance(inner, dict):
        raise SettingError("a tool has no function", found=shown(inner), expected=_SHAPE)
    name, description = inner.get("name"), inner.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SettingError(
            "a tool has no name that can be called",
            found=shown(name),
            expected="1 to 128 letters, digits and _ - . : /",
        )
    if not (description is None or isinstance(description, str)):
        raise wrong_type(f"the description of the tool {name}", description, "a string")
    strict = inner.get("strict")
    if not (strict is None or isinstance(strict, bool)):
        raise wrong_type(f"strict of the tool {name}", strict, "true or false")
    parameters = inner.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    _check_schema(name, parameters)
    return Tool(copy, name, description or "", parameters, bool(strict))


def _check_schema(name: str, parameters: object) -> None:
    """Refuse what is no JSON Schema of an object.

    Raises:
        SettingError: it is none.
    """
    if not isinstance(parameters, dict):
        raise wrong_type(f"the parameters of the tool {name}", parameters, "a JSON Schema")
    if parameters.get("type", "object") != "object":
        raise SettingError(
            f"the parameters of the tool {name} are no object",
            found=value_text(parameters["type"]),
            expected='"object"',
        )
    if problem := schema_problem(parameters):
        raise SettingError(
            f"the parameters of the tool {name} are not a JSON Schema", found=problem
        )


def _name_in(choice: object) -> str | None:
    """The name of a tool in ``tool_choice``."""
    if isinstance(choice, Mapping):
        if choice.get("type", "function") != "function":
            return None
        inner = choice.get("function", choice)
        choice = inner.get("name") if isinstance(inner, Mapping) else None
    return choice if isinstance(choice, str) else None
