"""A call of a tool, as the model asked for it.

Promises that its arguments can be written as JSON, and that a call which cannot be carried out as
it stands says why. Knows nothing of how calls are written in an answer, or of how tools are run.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from ..errors import SettingError
from ..ranges import check_text, wrong_type
from ..untrusted import Record, shown

MAX_DEPTH = 100
"""Levels of lists and mappings in arguments."""

_MAX_DIGITS = 400  # of an integer: a float can hold 309

# Brackets, and strings as a whole, the last of which may be cut off.
_BRACKETS = re.compile(r'[{}\[\]]|"(?:[^"\\]|\\.)*(?:"|\\?\Z)', re.DOTALL)


def new_call_id() -> str:
    """An identifier that no other call has."""
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool.

    Args:
        id: what the message with its result names.
        name: of the tool.
        arguments: by name; empty where they could not be read.
        error: why it cannot be carried out as it stands: arguments that are cut off, are not JSON,
            or are not what the tool's schema asks for. None where nothing is wrong.
        written: the arguments as they were written, where the model did.

    Raises:
        SettingError: one of them is of the wrong type, or the arguments are not JSON.
    """

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    written: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_text("the id of a tool call", self.id)
        check_text("the name of a tool call", self.name)
        check_text("the error of a tool call", self.error, or_none=True)
        check_text("the text of a tool call", self.written, or_none=True)
        if not isinstance(self.arguments, Mapping):
            raise SettingError(
                "the arguments of a tool call are of the wrong type",
                found=shown(self.arguments),
                expected="a mapping of names to values",
            )
        copy, problem = read_arguments(_as_text(self.arguments))
        if problem is not None:
            raise SettingError(
                "the arguments of a tool call are not JSON",
                found=problem,
                expected="strings, numbers, booleans, None, lists and mappings of these",
            )
        object.__setattr__(self, "arguments", copy)

    @classmethod
    def of(cls, id: str, name: str, written: str, error: str | None = None) -> ToolCall:
        """The call whose arguments are this text; where that is no JSON object, it says so."""
        arguments, problem = read_arguments(written)
        return cls(id, name, arguments, error or problem, written)

    @property
    def arguments_json(self) -> str:
        """The arguments as JSON; what the model wrote, where they are not JSON at all."""
        return _as_text(self.arguments) if self.written is None else self.written

    def as_openai(self) -> dict[str, Any]:
        """The call as OpenAI's API has it."""
        function = {"name": self.name, "arguments": self.arguments_json}
        return {"id": self.id, "type": "function", "function": function}

    def as_record(self) -> dict[str, Any]:
        """The call as conversations are saved with it."""
        record = {"id": self.id, "name": self.name, "arguments": self.arguments_json}
        return record if self.error is None else {**record, "error": self.error}


def as_calls(calls: object) -> tuple[ToolCall, ...]:
    """The calls in a list of `ToolCall` values and of mappings in OpenAI's form; None is none.

    Raises:
        SettingError: one of them is no call.
    """
    if calls is None:
        return ()
    if isinstance(calls, str | bytes | Mapping) or not isinstance(calls, Iterable):
        raise wrong_type("the tool_calls of a message", calls, "a list of ToolCall values")
    return tuple(call if isinstance(call, ToolCall) else _of_mapping(call) for call in calls)


def call_of_record(record: Record) -> ToolCall:
    """The call that ``ToolCall.as_record`` wrote.

    Raises:
        Llama4EdgeError: an entry is of another type; or SettingError.
    """
    error = record.text("error") if "error" in record else None
    call = ToolCall.of(record.text("id"), record.text("name"), record.text("arguments"), error)
    return call if call.error == error else replace(call, error=error)


def _of_mapping(call: object) -> ToolCall:
    """The call in OpenAI's form, whose arguments are a text or an object."""
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(inner, Mapping) or "name" not in inner:
        raise wrong_type(
            "a tool call",
            call,
            '{"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}',
        )
    arguments = inner.get("arguments", {})
    identifier = call.get("id") or new_call_id()
    if isinstance(arguments, str):
        return ToolCall.of(identifier, inner["name"], arguments)
    return ToolCall(identifier, inner["name"], arguments)


def read_arguments(text: str) -> tuple[dict[str, Any], str | None]:
    """The arguments in a JSON object, and what is wrong with them, if something is.

    Where it is not JSON, or no object, there are none. Of a name that occurs twice the last value
    counts, as everywhere, and that is said.
    """
    repeated: list[str] = []

    def record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        taken = dict(pairs)
        if len(taken) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            repeated.extend(name for name, count in counts.items() if count > 1)
        return taken

    if _depth(text) > MAX_DEPTH:
        return {}, f"the arguments are nested more than {MAX_DEPTH} levels deep"
    try:
        value = json.loads(
            text,
            object_pairs_hook=record,
            parse_constant=_no_number,
            parse_int=_integer,
            parse_float=_float,
        )
    except json.JSONDecodeError as error:
        return {}, f"the arguments are not JSON: {error.msg} at character {error.pos + 1}"
    except ValueError as error:
        return {}, str(error)
    if not isinstance(value, dict):
        return {}, "the arguments are not an object with names and values"
    return value, f"{shown(repeated[0])} is given twice" if repeated else None


def _as_text(arguments: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(arguments), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingError(
            "the arguments of a tool call are not JSON",
            found=str(error)[:200],
            expected="strings, numbers, booleans, None, lists and mappings of these",
        ) from error


def _depth(text: str) -> int:
    """How deeply brackets are nested in a text, those in strings not counted."""
    most = depth = 0
    for match in _BRACKETS.finditer(text):
        if match[0] in "{[":
            depth += 1
            most = max(most, depth)
        elif match[0] in "}]":
            depth -= 1
    return most


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {digits[:40]} is too large")
    return number
