"""What OpenAI's own client makes of the server: text, tools, structure, probabilities, pictures.

The demo model answers what it was trained for; where it must call a tool or keep to a schema, what
it says is any text that is allowed.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
from typing import Literal

from openai import OpenAI
from PIL import Image
from pydantic import BaseModel

from demo.training.lessons.picture import Picture
from llama4_edge import Model
from tests.server.clients.openai_clients import async_openai_client
from tests.server.running import RunningServer

EXPERTS = "How many experts does Scout have?"
EXPERTS_ANSWER = "Scout has 16 experts."
QUESTIONS = {
    EXPERTS: EXPERTS_ANSWER,
    "Repeat: Ana tower 7": "Ana tower 7",
    "Repeat: old lighthouse Ben": "old lighthouse Ben",
    "Repeat: 12 blue door": "12 blue door",
    "Say this again: quiet river 9": "quiet river 9",
    "Copy these words: golden bell Mona": "golden bell Mona",
}
WEATHER = {
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
FORCED = {"type": "function", "function": {"name": "weather"}}


class Pet(BaseModel):
    """What an answer has to be."""

    kind: Literal["cat", "dog"]
    is_young: bool


# --- text


def test_an_answer_is_what_the_model_says(openai: OpenAI, demo_model: Model) -> None:
    answer = openai.chat.completions.create(
        model="any", messages=[{"role": "user", "content": EXPERTS}], temperature=0
    )
    (choice,) = answer.choices
    assert choice.message.content == EXPERTS_ANSWER
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    same = demo_model.chat(EXPERTS, temperature=0.0)
    assert answer.usage.prompt_tokens == same.prompt_tokens
    assert answer.usage.completion_tokens == len(same.tokens)


def test_a_stream_is_the_same_text_and_ends_with_the_number_of_tokens(openai: OpenAI) -> None:
    with openai.chat.completions.create(
        model="any",
        messages=[{"role": "user", "content": EXPERTS}],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == EXPERTS_ANSWER
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_the_clients_own_stream_gathers_the_answer(openai: OpenAI) -> None:
    with openai.chat.completions.stream(
        model="any", messages=[{"role": "user", "content": EXPERTS}], temperature=0
    ) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        whole = stream.get_final_completion()
    assert "".join(pieces) == EXPERTS_ANSWER
    assert whole.choices[0].message.content == EXPERTS_ANSWER


def test_a_conversation_goes_on_without_reading_it_again(openai: OpenAI) -> None:
    first = "My name is Ana. What is the code of the old tower?"
    answer = openai.chat.completions.create(
        model="any", messages=[{"role": "user", "content": first}], temperature=0
    )
    said = answer.choices[0].message.content
    assert said is not None and answer.usage is not None
    second = openai.chat.completions.create(
        model="any",
        messages=[
            {"role": "user", "content": first},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "What is my name?"},
        ],
        temperature=0,
    )
    assert second.choices[0].message.content is not None
    assert "Ana" in second.choices[0].message.content
    assert second.usage is not None and second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens is not None
    assert second.usage.prompt_tokens_details.cached_tokens >= answer.usage.prompt_tokens


def test_many_ask_at_the_same_time_and_each_gets_its_own_answer(
    demo_server: RunningServer,
) -> None:
    async def ask_all() -> list[str | None]:
        async with async_openai_client(demo_server) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="any",
                        messages=[{"role": "user", "content": question}],
                        temperature=0,
                    )
                    for question in QUESTIONS
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask_all()) == list(QUESTIONS.values())


def test_streams_side_by_side_do_not_mix(demo_server: RunningServer) -> None:
    async def ask_all() -> list[str]:
        async with async_openai_client(demo_server) as client:

            async def text(question: str) -> str:
                stream = await client.chat.completions.create(
                    model="any",
                    messages=[{"role": "user", "content": question}],
                    temperature=0,
                    stream=True,
                )
                return "".join(
                    [
                        choice.delta.content or ""
                        async for chunk in stream
                        for choice in chunk.choices
                    ]
                )

            return await asyncio.gather(*map(text, QUESTIONS))

    assert asyncio.run(ask_all()) == list(QUESTIONS.values())


def test_several_answers_to_one_question_come_in_order(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model="any", messages=[{"role": "user", "content": EXPERTS}], temperature=0, n=3
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {EXPERTS_ANSWER}


def test_a_seed_repeats_an_answer_and_a_stop_string_ends_it(openai: OpenAI) -> None:
    def ask(**more: object) -> str | None:
        answer = openai.chat.completions.create(  # type: ignore[call-overload]
            model="any",
            messages=[{"role": "user", "content": "Repeat: Ana tower 7 river 12"}],
            max_tokens=12,
            **more,
        )
        text: str | None = answer.choices[0].message.content
        return text

    assert ask(seed=5, temperature=2.0) == ask(seed=5, temperature=2.0)
    assert ask(temperature=0, stop=[" 7"]) == "Ana tower"


def test_the_list_of_models_has_the_name_that_answers_give(openai: OpenAI) -> None:
    (model,) = openai.models.list().data
    answer = openai.chat.completions.create(
        model=model.id, messages=[{"role": "user", "content": "Hello"}], max_tokens=1
    )
    assert answer.model == model.id
    assert openai.models.retrieve(model.id).id == model.id


# --- probabilities


def test_each_token_has_its_probability_and_that_of_the_likeliest(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model="any",
        messages=[{"role": "user", "content": EXPERTS}],
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    shown = b"".join(bytes(token.bytes or ()) for token in logprobs.content)
    assert shown.decode() == EXPERTS_ANSWER
    for token in logprobs.content:
        values = [other.logprob for other in token.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        # The likeliest was taken.
        assert token.logprob == values[0] <= 0.0
        assert sum(map(math.exp, values)) <= 1.0 + 1e-6


def test_a_streams_probabilities_are_those_of_the_whole_answer(openai: OpenAI) -> None:
    options = {
        "model": "any",
        "messages": [{"role": "user", "content": EXPERTS}],
        "temperature": 0,
        "logprobs": True,
    }
    whole = openai.chat.completions.create(**options)  # type: ignore[call-overload]
    streamed = [
        token
        for chunk in openai.chat.completions.create(**options, stream=True)  # type: ignore[call-overload]
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content or ()
    ]
    expected = whole.choices[0].logprobs.content
    assert [token.token for token in streamed] == [token.token for token in expected]
    assert [token.logprob for token in streamed] == [token.logprob for token in expected]


# --- tools


def test_a_tool_that_must_be_called_is_called_with_arguments_that_fit(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model="any",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],  # type: ignore[list-item]
        tool_choice=FORCED,  # type: ignore[arg-type]
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
            choice.message.model_dump(exclude_none=True),  # type: ignore[list-item]
            {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"},
        ],
        tools=[WEATHER],  # type: ignore[list-item]
        tool_choice="none",
        max_tokens=8,
        temperature=0,
    )
    assert after.choices[0].message.tool_calls is None
    assert after.choices[0].message.content


def test_a_streamed_call_is_the_same_call(openai: OpenAI) -> None:
    options = {
        "model": "any",
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [WEATHER],
        "tool_choice": FORCED,
        "temperature": 0,
    }
    whole = openai.chat.completions.create(**options)  # type: ignore[call-overload]
    with openai.chat.completions.stream(**options) as stream:  # type: ignore[arg-type]
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


# --- structure


def test_an_answer_is_an_instance_of_a_pydantic_class(openai: OpenAI) -> None:
    answer = openai.chat.completions.parse(
        model="any",
        messages=[{"role": "user", "content": "Which pet?"}],
        response_format=Pet,
        temperature=0,
    )
    assert isinstance(answer.choices[0].message.parsed, Pet)


def test_plain_json_is_an_object(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model="any",
        messages=[{"role": "user", "content": "Say something as JSON."}],
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "count",
                "schema": {
                    "type": "object",
                    "properties": {"count": {"type": "integer", "minimum": 1, "maximum": 9}},
                    "required": ["count"],
                    "additionalProperties": False,
                },
            },
        },
        temperature=0,
    )
    assert 1 <= json.loads(answer.choices[0].message.content or "")["count"] <= 9


# --- pictures


def test_a_picture_as_a_data_url_is_seen(openai: OpenAI) -> None:
    file = io.BytesIO()
    Image.fromarray(Picture("blue", "star", 3, seed=11).pixels()).save(file, "png")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    answer = openai.chat.completions.create(
        model="any",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": "What do you see?"},
                ],
            }
        ],
        temperature=0,
    )
    text = answer.choices[0].message.content
    assert text is not None
    assert "blue" in text and "star" in text


# --- completions


def test_a_text_is_continued(openai: OpenAI, demo_model: Model) -> None:
    answer = openai.completions.create(
        model="any", prompt="Ana walks from the", max_tokens=8, temperature=0
    )
    assert (
        answer.choices[0].text
        == demo_model.generate("Ana walks from the", max_tokens=8, temperature=0.0).text
    )


def test_echo_gives_the_probability_of_each_token_of_a_prompt(openai: OpenAI) -> None:
    prompt = "Ana walks from the old tower to the river."
    answer = openai.completions.create(
        model="any", prompt=prompt, max_tokens=0, echo=True, logprobs=2, temperature=0
    )
    (choice,) = answer.choices
    assert choice.text == prompt
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None and "".join(logprobs.tokens) == prompt
    assert logprobs.token_logprobs is not None and logprobs.top_logprobs is not None
    # Nothing stands before the first token.
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0.0 for value in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == [
        len("".join(logprobs.tokens[:number])) for number in range(len(logprobs.tokens))
    ]


def test_prompts_together_are_answered_in_their_order(openai: OpenAI) -> None:
    prompts = ["Ana walks from the", "It is quiet in the"]
    together = openai.completions.create(model="any", prompt=prompts, max_tokens=6, temperature=0)
    apart = [
        openai.completions.create(model="any", prompt=prompt, max_tokens=6, temperature=0)
        for prompt in prompts
    ]
    assert [choice.text for choice in together.choices] == [one.choices[0].text for one in apart]
    assert [choice.index for choice in together.choices] == [0, 1]
