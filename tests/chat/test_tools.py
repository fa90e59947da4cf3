"""Tools are described exactly or refused by name, and arguments are compared with what they say."""

from __future__ import annotations

import datetime
import enum
import functools
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional, TypedDict

import numpy as np
import pytest
from pydantic import BaseModel, Field

from llama4_edge.chat.arguments import problem_with
from llama4_edge.chat.tool_calls import ToolCall
from llama4_edge.chat.tool_results import call_tool
from llama4_edge.chat.tools import Tool, ToolChoice, as_tools, checked_call
from llama4_edge.errors import SettingError


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


UserId = NewType("UserId", int)


@dataclass
class Point:
    x: int
    y: float = 1.0


class Options(TypedDict, total=False):
    name: str


class Order(BaseModel):
    amount: int


def described(annotation: Any) -> dict[str, Any]:
    """The schema of a parameter with this annotation."""

    def f(x: int) -> None:
        pass

    f.__annotations__ = {"x": annotation}
    return dict(Tool.of(f).parameters["properties"]["x"])


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, {"type": "string"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (None, {"type": "null"}),
        (Any, {}),
        (list, {"type": "array"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        # Repetitions are dropped, and not refused.
        (set[str], {"type": "array", "items": {"type": "string"}}),
        (Iterable[int], {"type": "array", "items": {"type": "integer"}}),
        (datetime.date, {"type": "string", "format": "date"}),
        (datetime.datetime, {"type": "string", "format": "date-time"}),
        (uuid.UUID, {"type": "string", "format": "uuid"}),
        (Path, {"type": "string"}),
        (UserId, {"type": "integer"}),
        (Literal[Level.LOW, 3], {"enum": ["low", 3]}),
        (dict, {"type": "object"}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (
            tuple[int, str],
            {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "string"}],
                "minItems": 2,
                "maxItems": 2,
            },
        ),
        (Literal["c", "f"], {"type": "string", "enum": ["c", "f"]}),
        (Literal[1, "a"], {"enum": [1, "a"]}),
        (Level, {"type": "string", "enum": ["low", "high"]}),
        (Optional[int], {"type": ["integer", "null"]}),  # noqa: UP045
        (int | str, {"type": ["integer", "string"]}),
        (
            list[int] | None,
            {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]},
        ),
        (Annotated[int, "how many"], {"type": "integer", "description": "how many"}),
        (
            Point,
            {
                "type": "object",
                "properties": {"x": {"type": "integer"}, "y": {"type": "number"}},
                "additionalProperties": False,
                "required": ["x"],
            },
        ),
        (
            Options,
            {
                "type": "object",
                "properties": {"name": {"type": "string"}},
                "additionalProperties": False,
            },
        ),
        (
            Order,
            {
                "type": "object",
                "title": "Order",
                "properties": {"amount": {"type": "integer", "title": "Amount"}},
                "required": ["amount"],
            },
        ),
    ],
)  # fmt: skip
def test_an_annotation_is_described(annotation: Any, schema: dict[str, Any]) -> None:
    assert described(annotation) == schema


@pytest.mark.parametrize(
    "annotation", [bytes, object(), dict[int, str], complex, list[bytes], type]
)
def test_what_cannot_be_described_is_refused_by_name(annotation: Any) -> None:
    with pytest.raises(SettingError, match=r"parameter x of f|signature of f"):
        described(annotation)


def documented(city: str, unit: Literal["c", "f"] = "c", *, days: int = 1) -> str:
    """Tell the weather.

    Of any city.

    Args:
        city: where, which may
            take two lines.
        unit (str): of it.
        days: how many

    Returns:
        the weather
    """
    return f"{city} {unit} {days}"


def test_a_function_is_described_by_its_signature_and_docstring() -> None:
    assert Tool.of(documented).definition == {
        "type": "function",
        "function": {
            "name": "documented",
            "description": "Tell the weather.\n\nOf any city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "where, which may take two lines."},
                    "unit": {
                        "type": "string",
                        "enum": ["c", "f"],
                        "description": "of it.",
                        "default": "c",
                    },
                    "days": {"type": "integer", "description": "how many", "default": 1},
                },
                "required": ["city"],
            },
        },
    }


def test_functions_get_values_of_their_types() -> None:
    def f(
        level: Level,
        point: Point,
        order: Order,
        pair: tuple[int, str],
        either: Point | int,
        tags: set[str],
        /,
        number: float = 0.0,
    ) -> None:
        seen.extend((level, point, order, pair, either, tags, number))

    f.__annotations__ = {
        "level": Level, "point": Point, "order": Order, "pair": tuple[int, str],
        "either": Point | int, "tags": set[str], "number": float,
    }  # fmt: skip
    seen: list[object] = []
    arguments = {
        "level": "high", "point": {"x": 1}, "order": {"amount": 2}, "pair": [3, "x"],
        "either": {"x": 4, "y": 0}, "tags": ["a", "a"], "number": 5,
    }  # fmt: skip
    arguments["tags"] = ["a", "b"]
    tool = Tool.of(f)
    result = call_tool(ToolCall("1", "f", arguments), [tool])
    assert result.error is None
    assert seen == [
        Level.HIGH, Point(1), Order(amount=2), (3, "x"), Point(4, 0.0), {"a", "b"}, 5.0
    ]  # fmt: skip
    assert isinstance(seen[-1], float)


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (3, "a tool is of the wrong type"),
        (lambda x: x, "no name that can be called"),
        ({}, "no name that can be called, found None"),
        ({"name": "a b"}, "found 'a b'"),
        ({"name": "f", "parameters": []}, "parameters of the tool f"),
        ({"name": "f", "parameters": {"type": "array"}}, "are no object"),
        (
            {"name": "f", "parameters": {"properties": {"x": {"type": "strin"}}}},
            "not a JSON Schema",
        ),
        ({"name": "f", "description": 3}, "description of the tool f"),
        ({"name": "f", "strict": "yes"}, "strict of the tool f"),
        ({"type": "web_search"}, "is not a function"),
        ({"name": "f", "parameters": {"x": {1}}}, "is not JSON"),
    ],
)
def test_what_is_no_tool_is_refused(tool: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        as_tools([tool])


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(SettingError, match="two tools have the same name, found documented"):
        as_tools([documented, documented])


def test_parameters_without_a_name_or_an_annotation_are_refused() -> None:
    def several(*numbers: int) -> None:
        pass

    def bare(x) -> None:  # type: ignore[no-untyped-def]
        pass

    for function, found in (
        (several, "parameter numbers of several"),
        (bare, "parameter x of bare"),
    ):
        with pytest.raises(SettingError, match=found):
            Tool.of(function)


@pytest.mark.parametrize(
    ("choice", "mode", "name"),
    [
        ("auto", "auto", ""),
        ("none", "none", ""),
        ("required", "required", ""),
        ("documented", "named", "documented"),
        ({"type": "function", "function": {"name": "documented"}}, "named", "documented"),
        ({"type": "function", "name": "documented"}, "named", "documented"),
    ],
)
def test_a_choice_is_read(choice: object, mode: str, name: str) -> None:
    taken = ToolChoice.of(choice, as_tools([documented]))
    assert (taken.mode, taken.name) == (mode, name)
    assert ToolChoice.of(taken, as_tools([documented])) == taken


@pytest.mark.parametrize("choice", ["documnted", {"name": "x"}, 3, None, {"type": "any"}, {}])
def test_a_choice_that_means_nothing_is_refused(choice: object) -> None:
    with pytest.raises(SettingError, match="tool_choice"):
        ToolChoice.of(choice, as_tools([documented]))
    with pytest.raises(SettingError, match="there are no tools"):
        ToolChoice.of("required", ())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"city": "Köln"}, None),
        ({"city": 3}, "['city']: 3 is not of type 'string'"),
        ({}, "'city' is a required property"),
        ({"city": "x", "unit": "k"}, "['unit']: 'k' is not one of ['c', 'f']"),
        ({"city": "x", "night": True}, "documented has no parameter night"),
    ],
)
def test_arguments_are_compared_with_the_schema(
    arguments: dict[str, Any], error: str | None
) -> None:
    call = checked_call(ToolCall("1", "documented", arguments), as_tools([documented]))
    assert call.error == error
    assert call.arguments == arguments


def test_no_schema_makes_a_comparison_fetch_hang_or_fail() -> None:
    patterns = {"type": "object", "properties": {"x": {"pattern": "^(a+)+$"}}}
    assert problem_with({"x": "a" * 40 + "!"}, patterns) is None
    assert "does not match" in str(
        problem_with({"x": "b"}, {"properties": {"x": {"pattern": "^a+$"}}})
    )
    elsewhere = {"properties": {"x": {"$ref": "http://127.0.0.1:9/x"}}}
    assert "cannot be compared" in str(problem_with({"x": 1}, elsewhere))
    endless = {"properties": {"x": {"$ref": "#/properties/x"}}}
    assert "cannot be compared" in str(problem_with({"x": 1}, endless))


def test_what_a_function_raises_is_a_short_result() -> None:
    def f() -> None:
        raise RuntimeError("no\nway" + "!" * 5000)

    result = call_tool(ToolCall("7", "f"), as_tools([f]))
    assert result.content.startswith("Error: RuntimeError: no way!!!")
    assert len(result.content) == 500
    assert isinstance(result.error, RuntimeError)
    assert result.message.tool_call_id == "7"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("21 °C", "21 °C"),
        (None, "null"),
        ({"a": [1, "é"]}, '{"a": [1, "é"]}'),
        (Point(1), '{"x": 1, "y": 1.0}'),
        (Order(amount=2), '{"amount": 2}'),
        ({2, 1}, None),
        (Level.LOW, '"low"'),
        ([Level.LOW, datetime.date(2024, 2, 29)], '["low", "2024-02-29"]'),
        (b"caf\xc3\xa9", '"café"'),
        ({"a": np.float32(1.5), "b": np.arange(3)}, '{"a": 1.5, "b": [0, 1, 2]}'),
        ("a\ud800b", "a?b"),
    ],
)
def test_results_are_text_or_json(value: object, text: str | None) -> None:
    def f() -> object:
        return value

    f.__annotations__ = {}
    content = call_tool(ToolCall("1", "f"), as_tools([f])).content
    assert content == (text or "[1, 2]")


def test_texts_become_what_a_parameter_is_annotated_with() -> None:
    def f(day: datetime.date, at: datetime.datetime, key: uuid.UUID, file: Path) -> list[str]:
        return [type(one).__name__ for one in (day, at, key)] + [str(file.name), str(at.tzinfo)]

    key = "12345678-1234-5678-1234-567812345678"
    call = {"day": "2024-02-29", "at": "2024-02-29T01:02:03Z", "key": key, "file": "a/b.txt"}
    content = call_tool(ToolCall("1", "f", call), as_tools([f])).content
    assert content == '["date", "datetime", "UUID", "b.txt", "UTC"]'
    wrong = call_tool(ToolCall("1", "f", {**call, "day": "tomorrow"}), as_tools([f]))
    assert wrong.content == "Error: ValueError: Invalid isoformat string: 'tomorrow'"


def test_a_default_of_none_may_be_said() -> None:
    def f(n: int = None) -> int | None:  # type: ignore[assignment]  # noqa: RUF013
        return n

    [tool] = as_tools([f])
    assert tool.parameters["properties"]["n"] == {"type": ["integer", "null"], "default": None}
    assert call_tool(ToolCall("1", "f", {"n": None}), [tool]).content == "null"


def test_a_function_that_is_wrapped_is_the_one_inside() -> None:
    @functools.lru_cache
    def f(n: int) -> int:
        return n + 1

    assert call_tool(ToolCall("1", "f", {"n": 1}), as_tools([f])).content == "2"


def test_fields_of_pydantics_describe_a_parameter() -> None:
    annotation = Annotated[str, Field(description="why")]
    assert described(annotation) == {"type": "string", "description": "why"}


def test_a_generator_is_no_result() -> None:
    def f() -> object:
        return (number for number in range(3))

    f.__annotations__ = {}
    content = call_tool(ToolCall("1", "f"), as_tools([f])).content
    assert content == "Error: TypeError: the function gave a generator, expected a value or a list"


def test_ctrl_c_in_a_function_is_no_result() -> None:
    def f() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_tool(ToolCall("1", "f"), as_tools([f]))
