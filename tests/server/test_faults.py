"""What is wrong with a body is told in our words: the field, what was found, what was expected."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from llama4_edge.server.body import Schema, parsed
from llama4_edge.server.errors import ApiError
from llama4_edge.server.schema import anthropic, conversations, openai, responses, utilities

BODIES: dict[type[Schema], dict[str, Any]] = {
    openai.ChatRequest: {"messages": [{"role": "user", "content": "Hi"}]},
    openai.CompletionRequest: {"prompt": "Hi"},
    responses.ResponsesRequest: {"input": "Hi"},
    anthropic.MessagesRequest: {
        "model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}],
    },
    anthropic.CountRequest: {"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
    utilities.TokenizeRequest: {"content": "Hi"},
    utilities.DetokenizeRequest: {"tokens": [5]},
    conversations.NewConversation: {"messages": [{"role": "user", "content": "Hi"}]},
    conversations.ChangedConversation: {
        "version": "1", "messages": [{"role": "user", "content": "Hi"}],
    },
    conversations.NewName: {"name": "x"},
}  # fmt: skip
WRONG: list[Any] = [
    None, True, 3, -7, 2**70, 1.5, 1e400, -0.5, "", "x", "x" * 3000, [], [3], ["x"], [[3]], [None],
    [{}], [{"type": "x"}], [{"role": "user", "content": 3}], [{"role": "x"}], {}, {"a": 1},
    {"type": "x"}, {"type": "json_schema", "json_schema": {"name": 3}}, [[1, 2, 3]], {"5": "x"},
]  # fmt: skip
PYDANTICS = ("Input", "should", "Value error", "valid ", "Unable", "Extra", "Field", "validation")


def refusal(schema: type[Schema], body: dict[str, Any]) -> ApiError | None:
    try:
        parsed(json.dumps(body).replace("Infinity", "1e999").encode(), schema)
    except ApiError as error:
        return error
    return None


@pytest.mark.parametrize("schema", BODIES, ids=lambda schema: schema.__name__)
def test_no_sentence_is_pydantics(schema: type[Schema]) -> None:
    assert refusal(schema, BODIES[schema]) is None
    refused = 0
    for name, field in schema.model_fields.items():
        for value in WRONG:
            error = refusal(schema, {**BODIES[schema], field.alias or name: value})
            if error is None:
                continue
            refused += 1
            assert not any(word in error.message for word in PYDANTICS), (name, value, error)
            assert len(error.message) < 1000
            assert error.param is None or error.param.partition("[")[0].partition(".")[0] in (
                *schema.model_fields, field.alias, "the body",
            ), (name, value, error)  # fmt: skip
    assert refused > 5 * len(schema.model_fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": "warm"}, "temperature: found 'warm', expected a number."),
        ({"max_tokens": 1.5}, "max_tokens: found 1.5, expected a whole number."),
        ({"max_tokens": -2}, "max_tokens: found -2, expected at least -1."),
        ({"n": 129}, "n: found 129, expected at most 128."),
        ({"stop": 5}, "stop: found 5, expected a string or a list."),
        ({"stop": [5]}, "stop[0]: found 5, expected a string."),
        ({"stream": "yes"}, "stream: found 'yes', expected true or false."),
        ({"messages": []}, "messages: found 0 entries, expected at least 1."),
        ({"messages": [3]}, "messages[0]: found 3, expected an object."),
        ({"modalities": ["x"]}, "modalities[0]: found 'x', expected 'text'."),
        ({"tool_choice": "any"},
         "tool_choice: found 'any', expected 'none', 'auto' or 'required' or an object."),
        ({"logit_bias": 5}, "logit_bias: found 5, expected an object or a list."),
        ({"temperature": float("inf")}, "temperature: found Infinity, expected a number."),
    ],
)  # fmt: skip
def test_what_was_found_and_expected_is_said(fields: dict[str, Any], message: str) -> None:
    error = refusal(openai.ChatRequest, {**BODIES[openai.ChatRequest], **fields})
    assert error is not None
    assert error.message == message


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ('{"temperature": 0, "temperature": 1}', "temperature"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "messages[0].content"),
        ('{"messages": [{"role": "user", "content": [{"type": "text", "text": "a",'
         ' "\\u0074ext": "b"}]}]}', "messages[0].content[0].text"),
        ('{"tools": [{"function": {"parameters": {"properties": {"x": {}, "x": {}}}}}]}',
         "tools[0].function.parameters.properties.x"),
    ],
)  # fmt: skip
def test_a_field_that_is_there_twice_is_refused(text: str, param: str) -> None:
    """Which one counts differs between programs: a proxy could check the one and we read the
    other."""
    with pytest.raises(ApiError) as caught:
        parsed(text.encode(), openai.ChatRequest)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert caught.value.code == "duplicate_parameter"
    assert caught.value.message == f"{param} is there twice, expected once."


def test_every_schema_that_is_read_is_tried() -> None:
    def below(schema: type[BaseModel]) -> set[str]:
        found = {schema.__name__}
        return found.union(*(below(inner) for inner in schema.__subclasses__()))

    read = {name for name in below(Schema) if name.endswith("Request")} - {"Request"}
    assert read <= {schema.__name__ for schema in BODIES}
