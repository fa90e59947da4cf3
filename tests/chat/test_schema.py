"""Answers that are held to JSON Schemas, and schemas that none can be held to."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from llama4_edge import AsyncModel, Completion, Model
from llama4_edge.errors import SettingError
from tests.chat.schemas import CAT, INTEGER, SCHEMAS, SHORT, closed, obj

WILD: dict[str, Any] = {"temperature": 9.0, "top_k": 0, "top_p": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> Iterator[Model]:
    with Model(tiny_path, n_ctx=256, n_threads=1, n_parallel=4) as loaded:
        yield loaded


def answers(model: Model, schema: object, n: int = 6) -> list[Completion]:
    return model.generate("Hello", response_format=schema, max_tokens=100, n=n, **WILD)  # type: ignore[call-overload,no-any-return]


def wrapped(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}


def test_there_are_more_than_a_hundred_schemas() -> None:
    assert len(SCHEMAS) > 100


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_is_as_the_schema_says_or_ends_by_length(name: str, model: Model) -> None:
    schema = SCHEMAS[name]
    kind = validator_for(schema, default=Draft202012Validator)
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER)
    reasons: Counter[str | None] = Counter()
    for answer in answers(model, wrapped(schema)):
        reasons[answer.finish_reason] += 1
        if answer.finish_reason == "stop":
            validator.validate(json.loads(answer.text))
    assert set(reasons) <= {"stop", "length"}
    assert reasons["stop"] or name in ENDLESS


# Of which a model without sense rarely finds the end.
ENDLESS = {
    "pattern inside", "pattern with quotes", "allOf of patterns", "uri", "string", "minLength",
    "map that is not empty",
}  # fmt: skip


def test_properties_come_in_the_order_of_the_schema(model: Model) -> None:
    names = ["zebra", "apple", "mango", "Banana", "10", "9"]
    found = answers(model, closed({name: {"type": "null"} for name in names}), n=16)
    whole = [answer.text for answer in found if answer.finish_reason == "stop"]
    assert whole and all(list(json.loads(text)) == names for text in whole)


def test_white_space_is_as_people_write_it(model: Model) -> None:
    for answer in answers(model, {"type": "array", "items": {"type": "null"}}, n=32):
        gaps = re.findall(r"\s+", answer.text)
        assert all(re.fullmatch(r" |\n[ \t]{0,20}", gap) for gap in gaps)
        assert not answer.text.startswith((" ", "\n"))


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"name": "a", "schema": INTEGER, "strict": True}},
        {"type": "json_schema", "name": "a", "schema": INTEGER},  # OpenAI's Responses
        {"type": "json_object", "schema": INTEGER},  # llama.cpp's server
        INTEGER,
    ],
)
def test_a_schema_may_come_in_several_forms(form: dict[str, Any], model: Model) -> None:
    assert all(isinstance(json.loads(answer.text), int) for answer in answers(model, form))


def test_json_is_an_object_and_text_is_anything(model: Model) -> None:
    whole = [
        answer
        for answer in answers(model, {"type": "json_object"}, n=16)
        if answer.finish_reason == "stop"
    ]
    assert whole and all(isinstance(json.loads(answer.text), dict) for answer in whole)
    plain = model.generate("Hello", max_tokens=9, **WILD)
    text = model.generate("Hello", max_tokens=9, response_format={"type": "text"}, **WILD)
    assert text.tokens == plain.tokens


def test_a_class_of_pydantics_is_its_schema(model: Model) -> None:
    from enum import Enum

    from pydantic import BaseModel, Field

    class Colour(Enum):
        RED = "red"
        BLUE = "blue"

    class Part(BaseModel):
        colour: Colour
        share: float = Field(ge=0, le=1)

    class Thing(BaseModel):
        name: str = Field(max_length=5)
        parts: list[Part] = Field(max_length=2)
        note: str | None = Field(None, max_length=3)

    found = answers(model, Thing, n=32)
    whole = [answer.text for answer in found if answer.finish_reason == "stop"]
    assert whole
    for text in whole:
        Thing.model_validate_json(text)


def test_a_form_holds_awaited_answers_and_streams_too(model: Model) -> None:
    async def asked() -> str:
        stream = await AsyncModel(model).generate(
            "Hello", stream=True, response_format=CAT, max_tokens=160, **WILD
        )
        return "".join([piece async for piece in stream])

    streamed = "".join(
        model.generate("Hello", stream=True, response_format=CAT, max_tokens=160, **WILD)
    )
    assert asyncio.run(asked()) == streamed
    Draft202012Validator(CAT).validate(json.loads(streamed))


def test_answers_of_different_forms_are_made_at_the_same_time(model: Model) -> None:
    streams = [
        model.generate("Hello", stream=True, response_format={"const": [n] * 9}, **WILD)
        for n in range(4)
    ]
    texts = ["".join(stream) for stream in streams]
    assert [json.loads(text) for text in texts] == [[n] * 9 for n in range(4)]


NODE = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
MANY = [{"anyOf": [closed({f"a{i}_{j}": INTEGER}) for j in range(8)]} for i in range(8)]


def chained(link: Callable[[str], Any], n: int = 3000) -> dict[str, Any]:
    """Definitions of which each refers to the next."""
    links = {f"d{at + 1}": link(f"#/$defs/d{at}") for at in range(n)}
    return {"$ref": f"#/$defs/d{n}", "$defs": {"d0": INTEGER, **links}}


REFUSED: dict[str, tuple[Any, str]] = {
    "a word as a type": (
        obj({"a": {"type": "strin"}}), "no valid JSON Schema at /properties/a/type",
    ),
    "a list": ([], "is an object"),
    "a count beyond measure": (
        {"type": "array", "items": SHORT, "minItems": 2.0**53}, "is too large, found 9,007,199,254",
    ),
    "a draft that is no name": ({"$schema": True}, "no valid JSON Schema at /\\$schema"),
    "a draft that is a list": ({"$schema": [{}]}, "no valid JSON Schema at /\\$schema"),
    "not JSON": (obj({"a": {"const": {1, 2}}}), "not JSON at /properties/a/const, found set"),
    "a name that is no string": ({1: 2}, "not JSON"),
    "infinity": ({"const": float("inf")}, "not JSON at /const"),
    "a lone surrogate": ({"const": "\ud800"}, "not JSON at /const"),
    "false": (False, "no value meets the schema"),
    "an empty enum": ({"enum": []}, "no value meets"),
    "a part that is false": (closed({"a": False}), "no value meets"),
    "contradicting types": ({"allOf": [{"type": "string"}, INTEGER]}, "no value meets"),
    "an enum of other types": ({"type": "string", "enum": [1]}, "no value meets"),
    "minimum above maximum": (
        closed({"n": {"type": "integer", "minimum": 3, "maximum": 2}}),
        "at /properties/n, found .*minimum .3. is greater than maximum .2.",
    ),
    "lengths that contradict": (
        {"type": "string", "minLength": 3, "maxLength": 2}, "minLength .3. is greater",
    ),
    "a pattern and a length": (
        {"type": "string", "pattern": "^ab$", "minLength": 5}, "Regex is empty",
    ),
    "no multiple in a range": (
        {"type": "integer", "multipleOf": 7, "minimum": 8, "maximum": 13}, "multiple of 7",
    ),
    "more items than there may be": (
        {"type": "array", "minItems": 2, "prefixItems": [INTEGER], "items": False}, "no value",
    ),
    "a reference to itself": ({"$ref": "#"}, "refers to itself for the same value"),
    "a reference to itself among others": (
        obj({"a": {"anyOf": [INTEGER, {"$ref": "#/properties/a"}]}}),
        "refers to itself for the same value at /properties/a",
    ),
    "an object without end": (NODE, "no value meets"),
    "an array without end": ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "no value"),
    "two that need each other": (
        {"$ref": "#/$defs/a", "$defs": {"a": closed({"b": {"$ref": "#/$defs/b"}}),
                                        "b": closed({"a": {"$ref": "#/$defs/a"}})}},
        "no value meets",
    ),
    "too many items": (
        {"type": "array", "items": {"type": "array", "items": INTEGER, "minItems": 1000},
         "minItems": 1000},
        "the smallest value .* is too large, found 1,001,001 values",
    ),
    "a product of alternatives": ({"allOf": MANY}, "schema too large"),
    "many properties that may be left out": (
        obj({f"p{number}": INTEGER for number in range(600)}, required=[]),
        "too many properties in a row that may be left out, found 600, expected at most 490",
    ),
    "thousands of properties that may be left out": (
        closed({"a": obj({f"p{number}": INTEGER for number in range(5000)})}),
        "left out at /properties/a, found 5,000",
    ),
    "many properties that may be left out, in alternatives": (
        closed({"a": {"anyOf": [obj({f"p{option}_{number}": INTEGER for number in range(300)})
                                for option in range(3)]}}),
        "too many alternatives of anyOf or oneOf at one place at /properties/a, found 7,201",
    ),
    "a chain of references": (chained(lambda to: {"$ref": to}), "a chain of 3,002"),
    "a chain of optional properties": (chained(lambda to: obj({"a": {"$ref": to}})), "6,002"),
    "a chain of alternatives": (
        chained(lambda to: {"anyOf": [INTEGER, {"$ref": to}]}, 700), "nested too deep",
    ),
    "draft 3": (
        {"$schema": "http://json-schema.org/draft-03/schema#", "divisibleBy": 4},
        "unknown draft at /\\$schema, found .*draft-03.*, expected draft-04, ",
    ),
    "a draft that nobody knows": ({"$schema": "http://a.b/c"}, "at /\\$schema, found 'http://a"),
    "two anchors of one name": (
        {"$ref": "#a", "$defs": {"x": {"$anchor": "a", **INTEGER}, "y": {"$anchor": "a"}}},
        "two schemas have one anchor at /\\$defs/., found 'a'",
    ),
    "multiples of a tenth": (
        closed({"n": {"type": "number", "multipleOf": 0.1}}),
        "multipleOf .* float64 .* at /properties/n, found 0.1, expected a whole number, or 0.5",
    ),
    "multiples of a large number": (
        {"type": "integer", "multipleOf": 10**9 + 7}, "multipleOf .*found 1000000007",
    ),
    "a large integer in an enum": (
        {"enum": [1, {"a": [2**64]}]}, "integer in enum .* found 18446744073709551616",
    ),
    "a possessive repetition": (
        {"type": "string", "pattern": "^a++a$"}, "pattern cannot .*possessive",
    ),
    "schemas that depend on themselves": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"dependentSchemas": {"x": {"$ref": "#/$defs/a"}}}}},
        "refers to itself for the same value at /\\$defs/a",
    ),
    "too deep": ({"items": json.loads('{"items":' * 200 + "{}" + "}" * 200)}, "nested too deep"),
    "too large": ({"enum": list(range(200_000))}, "too large"),
    "not": (obj({"a": {"not": INTEGER}}), "cannot be enforced at /properties/a, found not"),
    "if": ({"if": INTEGER, "then": {"minimum": 3}}, "found if"),
    "contains": ({"type": "array", "contains": INTEGER}, "found contains"),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "found uniqueItems"),
    "unevaluatedProperties with allOf": (
        {"allOf": [obj({"a": INTEGER})], "unevaluatedProperties": False}, "unevaluatedProperties",
    ),
    "a misspelled keyword": (obj({}, requried=["a"]), "unknown keyword, found requried.*required"),
    "nullable": ({"type": "string", "nullable": True}, '"null" among the types'),
    "a format": ({"type": "string", "format": "regex"}, "a format cannot be enforced.*uuid"),
    "a lookahead": (
        obj({"a": {"type": "string", "pattern": "^(?=a)b"}}), "pattern cannot .* at /properties/a",
    ),
    "a backreference": ({"type": "string", "pattern": r"(a)\1"}, "a backreference"),
    "too many repetitions": ({"type": "string", "pattern": "a{1000000}"}, "a part too often"),
    "patterns of names that overlap": (
        {"type": "object", "patternProperties": {"^a": INTEGER, "b$": SHORT}}, "not disjoint",
    ),
    "oneOf of what overlaps": (
        obj({"a": {"oneOf": [{"minimum": 1}, {"maximum": 3}]}}),
        "two options.* at /properties/a/oneOf, found options 0 and 1",
    ),
    "a reference into the web": ({"$ref": "https://example.com/s.json"}, "another document"),
    "a reference to nothing": (
        {"$ref": "#/$defs/a"}, "names nothing in the schema, found '#/\\$defs/a'",
    ),
    "many names that are not told apart": (
        {"type": "object", "minProperties": 3, "additionalProperties": INTEGER}, "minProperties 3",
    ),
    "names by a length": ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_to_is_refused_at_once_with_its_place(name: str, model: Model) -> None:
    schema, message = REFUSED[name]
    begin = time.process_time()
    with pytest.raises(SettingError, match=message) as caught:
        model.generate("Hello", response_format=wrapped(schema), stream=True)
    assert str(caught.value).startswith("response_format.json_schema.schema")
    assert len(str(caught.value)) < 600
    assert time.process_time() - begin < 10


def test_what_is_only_defined_is_not_looked_at(model: Model) -> None:
    schema = {"type": "null", "$defs": {"unused": {"not": {}, "uniqueItems": True}}}
    assert answers(model, schema, n=1)[0].text == "null"


def test_a_callers_schema_is_not_changed(model: Model) -> None:
    schema = SCHEMAS["dependentRequired"]
    before = json.dumps(schema)
    answers(model, schema, n=1)
    assert json.dumps(schema) == before
