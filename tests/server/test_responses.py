"""OpenAI's Responses protocol, with OpenAI's own client."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from openai.types.responses import Response
from PIL import Image

from llama4_edge import Model
from tests.server.running import RunningServer

QUESTION = "What is the capital of France?"


@pytest.fixture
def client(demo_server: RunningServer) -> Iterator[openai.OpenAI]:
    url = f"{demo_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        yield client


def asked(**options: Any) -> dict[str, Any]:
    """The arguments of the client's methods."""
    return {
        "model": "tiny", "input": QUESTION, "temperature": 0.0, "max_output_tokens": 40, **options,
    }  # fmt: skip


def tokens(response: Response) -> tuple[int, int, int]:
    """Of the prompt, those of it that were cached, and of the answer."""
    usage = response.usage
    assert usage is not None
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    return usage.input_tokens, usage.input_tokens_details.cached_tokens, usage.output_tokens


def test_an_answer_is_the_models(client: openai.OpenAI, demo_model: Model) -> None:
    expected = demo_model.chat(QUESTION, temperature=0.0, max_tokens=40)
    response = client.responses.create(**asked())
    assert response.output_text == expected.text
    assert (response.status, response.object) == ("completed", "response")
    n_prompt, _, n_answer = tokens(response)
    assert (n_prompt, n_answer) == (expected.prompt_tokens, len(expected.tokens))


def test_a_stream_is_the_whole_answer(client: openai.OpenAI) -> None:
    whole = client.responses.create(**asked())
    events = list(client.responses.create(**asked(), stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == [
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == whole.output_text
    with client.responses.stream(**asked()) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(texts) == final.output_text == whole.output_text


def test_answers_may_be_awaited(demo_server: RunningServer, client: openai.OpenAI) -> None:
    async def ask() -> list[str]:
        url = f"{demo_server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="x") as other:
            answers = await asyncio.gather(*(other.responses.create(**asked()) for _ in range(3)))
            async with other.responses.stream(**asked()) as stream:
                streamed = await stream.get_final_response()
        return [one.output_text for one in (*answers, streamed)]

    assert set(asyncio.run(ask())) == {client.responses.create(**asked()).output_text}


def test_a_response_goes_on_from_the_one_before_and_reads_only_what_is_new(
    client: openai.OpenAI, demo_model: Model
) -> None:
    first = client.responses.create(**asked(instructions="Answer in one sentence."))
    second = client.responses.create(
        **asked(
            input="And of Norway?",
            previous_response_id=first.id,
            instructions="Answer in one sentence.",
        )
    )
    expected = demo_model.chat(
        [
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "And of Norway?"},
        ],
        temperature=0.0,
        max_tokens=40,
    )
    assert second.output_text == expected.text
    assert second.previous_response_id == first.id
    n_prompt, n_cached, _ = tokens(second)
    n_before, _, n_answer = tokens(first)
    assert n_prompt == expected.prompt_tokens
    assert n_cached >= n_before + n_answer
    third = client.responses.create(**asked(input="Why?", previous_response_id=second.id))
    # Instructions are those of one response alone.
    assert third.instructions is None
    items = client.responses.input_items.list(third.id, order="asc").data
    assert [item.type for item in items] == ["message"] * 5


def test_a_conversation_may_be_sent_whole(client: openai.OpenAI) -> None:
    first = client.responses.create(**asked())
    turns: list[Any] = [{"role": "user", "content": QUESTION}, *first.output]
    turns.append({"role": "user", "content": "And of Norway?"})
    whole = client.responses.create(**asked(input=turns, store=False))
    after = client.responses.create(**asked(input="And of Norway?", previous_response_id=first.id))
    assert whole.output_text == after.output_text
    assert tokens(whole)[0] == tokens(after)[0]


def test_responses_are_kept_until_they_are_deleted(client: openai.OpenAI) -> None:
    response = client.responses.create(**asked(metadata={"a": "b"}))
    again = client.responses.retrieve(response.id)
    assert again.to_dict() == response.to_dict()
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError, match="no such response"):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(response.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**asked(previous_response_id=response.id))
    assert (caught.value.param, caught.value.code) == (
        "previous_response_id", "previous_response_not_found",
    )  # fmt: skip
    forgotten = client.responses.create(**asked(store=False))
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(forgotten.id)


def test_input_items_come_in_pages(client: openai.OpenAI) -> None:
    turns: list[Any] = [{"role": "user", "content": str(number)} for number in range(5)]
    response = client.responses.create(**asked(input=turns, max_output_tokens=1))

    def texts(**query: Any) -> list[str]:
        pages = client.responses.input_items.list(response.id, limit=2, **query)
        return [item.to_dict()["content"][0]["text"] for item in pages]  # type: ignore[index]

    assert texts() == ["4", "3", "2", "1", "0"]
    assert texts(order="asc") == ["0", "1", "2", "3", "4"]
    first = client.responses.input_items.list(response.id, limit=2, order="asc")
    assert (len(first.data), first.has_more) == (2, True)
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.responses.input_items.list(response.id, limit=0)


def test_pictures_are_seen(client: openai.OpenAI, demo_model: Model) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    parts = [{"type": "image", "image": file.getvalue()}, {"type": "text", "text": "What?"}]
    expected = demo_model.chat([{"role": "user", "content": parts}], temperature=0.0, max_tokens=9)
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "input_text", "text": "What?"},
    ]
    turns: list[Any] = [{"role": "user", "content": content}]
    response = client.responses.create(**asked(input=turns, max_output_tokens=9))
    assert response.output_text == expected.text
    after = client.responses.create(**asked(input="Why?", previous_response_id=response.id))
    assert tokens(after)[1] >= expected.prompt_tokens


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(**asked(max_output_tokens=2))
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert tokens(response)[2] == 2


def test_tokens_are_counted(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="tiny", input=QUESTION, instructions="Hm.")
    response = client.responses.create(**asked(instructions="Hm.", max_output_tokens=1))
    assert counted.input_tokens == tokens(response)[0]


def test_errors_name_the_field(client: openai.OpenAI) -> None:
    for options, param in (
        ({"input": "word " * 5000}, "input"),
        ({"temperature": -1.0}, "temperature"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"background": True}, "background"),
        ({"extra_body": {"max_tokens": 5}}, "max_tokens"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**asked(**options))
        assert caught.value.param == param


FUNCTION = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def test_a_function_is_called_and_its_output_answered(client: openai.OpenAI) -> None:
    options = asked(tools=[FUNCTION], max_output_tokens=80)
    first = client.responses.create(**options, tool_choice="required")
    (call,) = first.output
    assert call.type == "function_call"
    assert (call.name, call.status) == ("get_weather", "completed")
    assert json.loads(call.arguments)["city"] in ("Paris", "Oslo")
    output: list[Any] = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "12 °C"}
    ]
    after = client.responses.create(**{**options, "input": output}, previous_response_id=first.id)
    turns: list[Any] = [{"role": "user", "content": QUESTION}, *first.output, *output]
    whole = client.responses.create(**{**options, "input": turns})
    assert after.output_text == whole.output_text
    assert tokens(after)[0] == tokens(whole)[0]
    items = client.responses.input_items.list(after.id, order="asc").data
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]


def test_a_call_of_a_function_is_streamed(client: openai.OpenAI) -> None:
    choice = {"type": "function", "name": "get_weather"}
    options = asked(tools=[FUNCTION], tool_choice=choice, max_output_tokens=80)
    whole = client.responses.create(**options)
    with client.responses.stream(**options) as stream:
        kinds, pieces = [], []
        for event in stream:
            kinds.append(event.type.removeprefix("response."))
            if event.type == "response.function_call_arguments.delta":
                pieces.append(event.delta)
        final = stream.get_final_response()
    (call,), (expected,) = final.output, whole.output
    assert call.type == expected.type == "function_call"
    assert "".join(pieces) == call.arguments == expected.arguments
    assert kinds[:3] == ["created", "in_progress", "output_item.added"]
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]


def test_an_answer_may_be_held_to_a_schema(client: openai.OpenAI) -> None:
    class City(pydantic.BaseModel):
        city: Literal["Paris", "Oslo"]

    response = client.responses.parse(**asked(max_output_tokens=200), text_format=City)
    assert isinstance(response.output_parsed, City)


def test_log_probabilities_come_with_their_tokens(client: openai.OpenAI, demo_model: Model) -> None:
    expected = demo_model.chat(
        QUESTION, temperature=0.0, max_tokens=5, logprobs=True, top_logprobs=2
    )
    options = asked(max_output_tokens=5, top_logprobs=2, include=["message.output_text.logprobs"])
    response = client.responses.create(**options)
    (item,) = response.output
    assert item.type == "message"
    (part,) = item.content
    assert part.type == "output_text"
    assert expected.logprobs is not None
    assert part.logprobs is not None
    # Not to the last bit: the server may read the prompt in other batches than the model did.
    assert [one.logprob for one in part.logprobs] == pytest.approx(
        [one.logprob for one in expected.logprobs], abs=1e-4
    )
    assert b"".join(bytes(one.bytes) for one in part.logprobs).decode() == part.text
    assert {len(one.top_logprobs) for one in part.logprobs} == {2}
