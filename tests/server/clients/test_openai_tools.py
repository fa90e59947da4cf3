"""Tools through OpenAI's own client.

The demo model knows none: where it must call one, its arguments are any that are allowed.
"""

from __future__ import annotations

import json
from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletionMessage

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
FORCED: Any = {"type": "function", "function": {"name": "weather"}}


def _as_sent(message: ChatCompletionMessage) -> Any:
    return message.model_dump(exclude_none=True)


def test_a_tool_that_must_be_called_is_called_with_arguments_that_fit(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model="any",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],
        tool_choice=FORCED,
        temperature=0,
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    call = choice.message.tool_calls[0]
    assert call.type == "function" and call.function.name == "weather"
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "unit"}
    assert arguments["unit"] in ("celsius", "fahrenheit")
    # What a tool gave back is a message like any other.
    after = openai.chat.completions.create(
        model="any",
        messages=[
            {"role": "user", "content": "What is the weather in Paris?"},
            _as_sent(choice.message),
            {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"},
        ],
        tools=[WEATHER],
        tool_choice="none",
        max_tokens=8,
        temperature=0,
    )
    assert after.choices[0].message.tool_calls is None
    assert after.choices[0].message.content


def test_a_streamed_call_is_the_same_call(openai: OpenAI) -> None:
    options: Any = {
        "model": "any",
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [WEATHER],
        "tool_choice": FORCED,
        "temperature": 0,
    }
    whole = openai.chat.completions.create(**options)
    with openai.chat.completions.stream(**options) as stream:
        pieces = [
            event.arguments_delta
            for event in stream
            if event.type == "tool_calls.function.arguments.delta"
        ]
        streamed = stream.get_final_completion()
    (expected,), calls = whole.choices[0].message.tool_calls, streamed.choices[0].message.tool_calls
    assert calls is not None
    (call,) = calls
    assert call.function.name == expected.function.name
    assert call.function.arguments == expected.function.arguments == "".join(pieces)
    assert streamed.choices[0].finish_reason == "tool_calls"
