"""Anthropic's protocol, with Anthropic's own client."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message
from PIL import Image

from llama4_edge import Model
from llama4_edge.server.settings import ServerSettings
from tests.server.running import RunningServer, running_server

USER: dict[str, Any] = {"role": "user", "content": "What is the capital of France?"}
LIKELIEST = {"temperature": 0.0}


@pytest.fixture
def client(demo_server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=demo_server.url, api_key="x", max_retries=0) as client:
        yield client


def asked(*messages: Any, **options: Any) -> dict[str, Any]:
    """The arguments of the client's methods."""
    fields = {"model": "tiny", "max_tokens": 40, "messages": messages or [USER], **options}
    return {**fields, "extra_body": {**LIKELIEST, **options.get("extra_body", {})}}


def said(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_an_answer_is_the_models(client: anthropic.Anthropic, demo_model: Model) -> None:
    expected = demo_model.chat(USER["content"], temperature=0.0, max_tokens=40)
    answer = client.messages.create(**asked())
    assert said(answer) == expected.text
    assert (answer.stop_reason, answer.role, answer.type) == ("end_turn", "assistant", "message")
    usage = answer.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == expected.prompt_tokens
    assert usage.output_tokens == len(expected.tokens)


def test_a_stream_is_the_whole_answer(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**asked())
    with client.messages.stream(**asked()) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert said(final) == said(whole)
    assert final.stop_reason == whole.stop_reason
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert final.usage.output_tokens == whole.usage.output_tokens
    with client.messages.stream(**asked()) as stream:
        assert "".join(stream.text_stream) == said(whole)


def test_the_events_of_a_stream_come_in_their_order(client: anthropic.Anthropic) -> None:
    kinds = [event.type for event in client.messages.create(**asked(), stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_answers_may_be_awaited(demo_server: RunningServer, client: anthropic.Anthropic) -> None:
    async def ask() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=demo_server.url, api_key="x") as other:
            answers = await asyncio.gather(*(other.messages.create(**asked()) for _ in range(3)))
            async with other.messages.stream(**asked()) as stream:
                streamed = await stream.get_final_text()
        return [*map(said, answers), streamed]

    assert set(asyncio.run(ask())) == {said(client.messages.create(**asked()))}


def test_what_was_said_before_is_not_read_again(client: anthropic.Anthropic) -> None:
    system = "You are the only one who is asked about the capitals of Europe. " * 4
    first = client.messages.create(**asked(system=system))
    turns = [USER, {"role": "assistant", "content": said(first)}, {"role": "user", "content": "?"}]
    second = client.messages.create(**asked(*turns, system=system))
    before = first.usage.input_tokens + (first.usage.cache_read_input_tokens or 0)
    assert (second.usage.cache_read_input_tokens or 0) >= before
    with client.messages.stream(**asked(*turns, system=system)) as stream:
        start = next(iter(stream))
        assert start.type == "message_start"
        assert (start.message.usage.cache_read_input_tokens or 0) >= before


def test_stop_sequences_and_limits_end_an_answer(client: anthropic.Anthropic) -> None:
    whole = said(client.messages.create(**asked()))
    word = whole.split()[2]
    answer = client.messages.create(**asked(stop_sequences=["zzz", word]))
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", word)
    assert said(answer) == whole[: whole.index(word)]
    answer = client.messages.create(**asked(max_tokens=2))
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 2)
    answer = client.messages.create(**asked(max_tokens=0))
    assert (answer.stop_reason, answer.content) == ("max_tokens", [])


def test_an_answer_goes_on_from_its_beginning(client: anthropic.Anthropic) -> None:
    whole = said(client.messages.create(**asked()))
    words = whole.split(" ")
    beginning = " ".join(words[:3])
    answer = client.messages.create(**asked(USER, {"role": "assistant", "content": beginning}))
    assert beginning + said(answer) == whole


def picture(colour: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {
        "type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data},
    }  # fmt: skip


def test_pictures_are_seen(client: anthropic.Anthropic, demo_model: Model) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    text = "What do you see?"
    parts = [{"type": "image", "image": file.getvalue()}, {"type": "text", "text": text}]
    expected = demo_model.chat([{"role": "user", "content": parts}], temperature=0.0, max_tokens=20)
    content = [picture("red"), {"type": "text", "text": text}]
    message = {"role": "user", "content": content}
    answer = client.messages.create(**asked(message, max_tokens=20))
    assert said(answer) == expected.text
    usage = answer.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == expected.prompt_tokens > 144
    counted = client.messages.count_tokens(model="tiny", messages=[message])  # type: ignore[list-item]
    assert counted.input_tokens == expected.prompt_tokens


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    tools: list[Any] = [TOOL]
    for fields in ({}, {"system": "Be brief."}, {"tools": tools, "system": "Be brief."}):
        counted = client.messages.count_tokens(model="tiny", messages=[USER], **fields)  # type: ignore[list-item]
        usage = client.messages.create(**asked(**fields, max_tokens=1)).usage
        assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


TOOL = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def test_errors_are_anthropics(client: anthropic.Anthropic, demo_server: RunningServer) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**asked({"role": "robot", "content": "x"}))
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert "messages[0].role" in body["error"]["message"]
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(**asked(extra_body={"temperature": -1.0}))
    with pytest.raises(anthropic.BadRequestError, match="data URL"):
        source = {"type": "url", "url": "https://a.example/b.png"}
        content = [{"type": "image", "source": source}]
        client.messages.create(**asked({"role": "user", "content": content}))
    with pytest.raises(anthropic.BadRequestError, match="maximum") as caught:
        client.messages.create(**asked({"role": "user", "content": "word " * 5000}))
    # As Anthropic's own begins, by which agents know it.
    body = caught.value.body
    assert re.match(r"prompt is too long: \d+ tokens > 4096 maximum", body["error"]["message"])
    with demo_server.client() as plain:
        answer = plain.get("/v1/messages")
        assert (answer.status_code, answer.json()["type"]) == (405, "error")


def test_a_stream_that_cannot_begin_is_an_error(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        client.messages.create(**asked({"role": "user", "content": "word " * 5000}), stream=True)


def test_a_key_comes_as_anthropics_clients_send_it(tiny_model: Model) -> None:
    with running_server(tiny_model, ServerSettings(api_keys=("secret",))) as server:
        given = {"base_url": server.url, "max_retries": 0}
        for key in ({"api_key": "secret"}, {"auth_token": "secret"}):
            with anthropic.Anthropic(**given, **key) as client:  # type: ignore[arg-type]
                client.messages.create(**asked(max_tokens=1))
        with (
            anthropic.Anthropic(**given, api_key="wrong") as client,  # type: ignore[arg-type]
            pytest.raises(anthropic.AuthenticationError) as caught,
        ):
            client.messages.create(**asked(max_tokens=1))
        body: Any = caught.value.body
        assert body["error"]["type"] == "authentication_error"


def test_a_tool_is_called_and_its_result_answered(
    client: anthropic.Anthropic, demo_model: Model
) -> None:
    question = {"role": "user", "content": "What is the weather in Oslo?"}
    tools: Any = {"tools": [TOOL], "tool_choice": {"type": "any"}}
    first = client.messages.create(**asked(question, **tools, max_tokens=80))
    (call,) = first.content
    assert call.type == "tool_use"
    assert (first.stop_reason, call.name) == ("tool_use", "get_weather")
    assert call.input in ({"city": "Paris"}, {"city": "Oslo"})
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": call.id, "content": "12 °C"}
    turns = [question, first.to_param(), {"role": "user", "content": [result]}]
    second = client.messages.create(**asked(*turns, tools=[TOOL]))
    function = {"name": call.name, "arguments": call.input}
    expected = demo_model.chat(
        [
            question,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": call.id, "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": call.id, "content": "12 °C"},
        ],
        tools=[openai_tool(TOOL)],
        temperature=0.0,
        max_tokens=40,
    )
    assert said(second) == expected.text
    usage = second.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == expected.prompt_tokens


def openai_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {
        "name": tool["name"],
        "description": tool["description"],
        "parameters": tool["input_schema"],
    }
    return {"type": "function", "function": function}


def test_a_call_of_a_tool_is_streamed(client: anthropic.Anthropic) -> None:
    arguments = asked(
        {"role": "user", "content": "What is the weather in Oslo?"},
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "get_weather"},
        max_tokens=80,
    )
    whole = client.messages.create(**arguments)
    with client.messages.stream(**arguments) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    (call,), (expected,) = final.content, whole.content
    assert call.type == expected.type == "tool_use"
    assert json.loads("".join(pieces)) == call.input == expected.input
    assert len(pieces) > 1
    assert final.stop_reason == "tool_use"


def test_an_answer_may_be_held_to_a_schema(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(
        **asked(
            output_config={"format": {"type": "json_schema", "schema": TOOL["input_schema"]}},
            max_tokens=200,
        )
    )
    assert json.loads(said(answer)) in ({"city": "Paris"}, {"city": "Oslo"})


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ({**TOOL, "input_schema": {"type": "nothing"}}, "tools"),
        ({**TOOL, "name": "a b"}, "tools"),
        ({**TOOL, "type": "bash_20250124"}, "bash_20250124"),
    ],
)
def test_tools_that_are_none_are_refused(
    client: anthropic.Anthropic, tool: dict[str, Any], words: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=words):
        client.messages.create(**asked(tools=[tool]))
