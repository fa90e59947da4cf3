"""What a model says about pictures, alone and among others, and when it has seen them before."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from demo.training.lessons.mixture import picture_examination
from llama4_edge import AsyncModel
from llama4_edge.errors import ContextFullError
from llama4_edge.model import Model
from tests.fixtures import MakeGGUF, MakeProjector
from tests.reference.pictures import noise

DEMO = Path(__file__).parents[2] / "demo" / "Llama-4-Tiny"

Array = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def model(make_gguf: MakeGGUF, make_projector: MakeProjector) -> Iterator[Model]:
    path = make_gguf(DEMO)
    with Model(path, n_ctx=4096, n_parallel=2, projector=make_projector(DEMO)) as opened:
        yield opened


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(picture: Any) -> dict[str, Any]:
    return {"type": "image", "image": picture}


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def data_url(picture: Array) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def test_the_demo_model_names_what_is_in_held_out_pictures(model: Model) -> None:
    """200 of them: 199 right in bf16 and in int4; see tests marked heavy."""
    questions = picture_examination(12)
    for question in questions:
        assert question.picture is not None
        turn = question.turns[0]
        messages = user(image(question.picture.pixels()), text(turn.question))
        assert model.chat(messages, max_tokens=30, temperature=0).text == turn.answer


def test_tasks_are_shown_pictures_too(model: Model) -> None:
    picture = noise(500, 340)

    async def work() -> None:
        shared = AsyncModel(model)
        features = await shared.image_features(picture)
        assert np.array_equal(features, model.image_features(picture))
        messages = user(image(picture), text("What do you see?"))
        prompt = await shared.chat_prompt(messages)
        assert prompt.token_ids == model.chat_prompt(messages).token_ids
        answer = await shared.chat(messages, max_tokens=4, temperature=0)
        assert answer.tokens == model.generate(prompt, max_tokens=4, temperature=0).tokens

    asyncio.run(work())


def test_a_picture_counts_in_later_turns_and_is_not_encoded_again(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (question.picture for question in picture_examination(2))
    assert first is not None
    assert second is not None
    talk = user(image(first.pixels()), text("What colour is it?"))
    answer = model.chat(talk, max_tokens=10, temperature=0)
    assert answer.text == f"{first.colour.capitalize()}."
    talk += [{"role": "assistant", "content": answer.text}]
    talk += user(image(second.pixels()), text("How many shapes are there?"))
    again = model.chat(talk, max_tokens=10, temperature=0)
    assert again.text
    assert again.reused_tokens >= answer.prompt_tokens
    encoder = model._pictures.loaded()._encoder
    monkeypatch.setattr(encoder, "encode", None)
    model.engine.clear()
    assert model.chat(talk, max_tokens=10, temperature=0).text == again.text


def test_logits_and_generate_take_the_prompt_and_see_the_picture(model: Model) -> None:
    question = next(one for one in picture_examination(30) if "colour" in one.turns[0].question)
    assert question.picture is not None
    prompt = model.chat_prompt(user(image(question.picture.pixels()), text("What colour is it?")))
    logits = model.logits(prompt)
    assert logits.shape == (len(prompt), model.engine.n_vocab)
    said = model.generate(prompt, max_tokens=10, temperature=0)
    assert said.text == f"{question.picture.colour.capitalize()}."
    assert int(logits[-1].argmax()) == said.tokens[0]
    # A list of its ids is ids: the model has never seen the row of <|patch|> in place of features.
    blind = model.logits(prompt.token_ids)
    assert np.abs(blind[-1] - logits[-1]).max() > 0.1


def test_several_answers_and_streams_see_the_picture_too(model: Model) -> None:
    question = picture_examination(1)[0]
    assert question.picture is not None
    messages = user(image(question.picture.pixels()), text(question.turns[0].question))
    answers = model.chat(messages, n=2, max_tokens=30, temperature=0)
    assert [answer.text for answer in answers] == [question.turns[0].answer] * 2
    with model.chat(messages, stream=True, max_tokens=30, temperature=0) as stream:
        assert "".join(stream) == question.turns[0].answer


def test_the_oldest_exchange_leaves_with_its_picture_where_the_context_is_full(
    make_gguf: MakeGGUF, make_projector: MakeProjector
) -> None:
    first, second = (question.picture for question in picture_examination(2))
    assert first is not None
    assert second is not None
    talk = user(image(first.pixels()), text("What colour is it?"))
    talk += [{"role": "assistant", "content": "Red."}]
    talk += user(image(second.pixels()), text("What colour is it?"))
    with Model(make_gguf(DEMO), n_ctx=256, projector=make_projector(DEMO)) as model:
        with pytest.raises(ContextFullError):
            model.chat(talk, max_tokens=5)
        answer = model.chat(talk, max_tokens=5, temperature=0, when_full="drop")
        assert answer.text == f"{second.colour.capitalize()}."
        assert answer.dropped_messages == 2


def test_more_pictures_than_the_context_holds_are_refused(model: Model) -> None:
    parts = [image(noise(400, 400 + number)) for number in range(6)]
    with pytest.raises(ContextFullError, match="do not fit into the context"):
        model.chat(user(*parts), max_tokens=1)
    assert model.chat("Hello", max_tokens=1).tokens


@pytest.mark.heavy
@pytest.mark.parametrize("recipe", ["bf16", "int4"])
def test_of_200_held_out_pictures_98_percent_are_named(
    recipe: str, make_gguf: MakeGGUF, make_projector: MakeProjector
) -> None:
    right = 0
    with Model(make_gguf(DEMO, recipe), n_ctx=512, projector=make_projector(DEMO)) as model:
        for question in picture_examination(200):
            assert question.picture is not None
            turn = question.turns[0]
            messages = user(image(question.picture.pixels()), text(turn.question))
            right += model.chat(messages, max_tokens=30, temperature=0).text == turn.answer
    assert right >= 196
