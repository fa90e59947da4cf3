"""What OpenAI's own client makes of a conversation: text, streams, pictures."""

from __future__ import annotations

import asyncio
import base64
import io

from openai import OpenAI
from PIL import Image

from demo.training.lessons.picture import Picture
from llama4_edge import Model
from tests.server.clients.openai_clients import EXPERTS, EXPERTS_ANSWER, async_openai_client
from tests.server.running import RunningServer

QUESTIONS = {
    EXPERTS: EXPERTS_ANSWER,
    "Repeat: Ana tower 7": "Ana tower 7",
    "Repeat: old lighthouse Ben": "old lighthouse Ben",
    "Repeat: 12 blue door": "12 blue door",
    "Say this again: quiet river 9": "quiet river 9",
    "Copy these words: golden bell Mona": "golden bell Mona",
}


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
    first = "My name is Ana."
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
