"""What a model says about pictures, alone and among others, and when it has seen them before."""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from demo.training.evaluate import last_answer, picture_questions
from demo.training.lessons.mixture import picture_examination
from llama4_edge import AsyncModel, Conversation, with_images
from llama4_edge.errors import ContextFullError
from llama4_edge.model import Model
from llama4_edge.runtime.files.session_file import SessionFile
from llama4_edge.vision import images, opening, seen
from llama4_edge.vision.images import ImageTiles
from llama4_edge.vision.seen import SEEN
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
    """200 of them, all right in bf16 and in int4; see tests marked heavy."""
    for question in picture_questions(20):
        assert last_answer(model, question) == question.turns[-1].answer


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
    first, second = (question.pictures[0] for question in picture_examination(2))
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
    prompt = model.chat_prompt(
        user(image(question.pictures[0].pixels()), text("What colour is it?"))
    )
    logits = model.logits(prompt)
    assert logits.shape == (len(prompt), model.engine.n_vocab)
    said = model.generate(prompt, max_tokens=10, temperature=0)
    assert said.text == f"{question.pictures[0].colour.capitalize()}."
    assert int(logits[-1].argmax()) == said.tokens[0]
    # A list of its ids is ids: the model has never seen the row of <|patch|> in place of features.
    blind = model.logits(prompt.token_ids)
    assert np.abs(blind[-1] - logits[-1]).max() > 0.1


def test_several_answers_and_streams_see_the_picture_too(model: Model) -> None:
    question = picture_examination(1)[0]
    messages = user(image(question.pictures[0].pixels()), text(question.turns[0].question))
    answers = model.chat(messages, n=2, max_tokens=30, temperature=0)
    assert [answer.text for answer in answers] == [question.turns[0].answer] * 2
    with model.chat(messages, stream=True, max_tokens=30, temperature=0) as stream:
        assert "".join(stream) == question.turns[0].answer


def test_the_oldest_exchange_leaves_with_its_picture_where_the_context_is_full(
    make_gguf: MakeGGUF, make_projector: MakeProjector
) -> None:
    first, second = (question.pictures[0] for question in picture_examination(2))
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
    """Alone, and in conversations with two or three."""
    questions = picture_questions(200)
    with Model(make_gguf(DEMO, recipe), n_ctx=1024, projector=make_projector(DEMO)) as model:
        right = [last_answer(model, one) == one.turns[-1].answer for one in questions]
    assert sum(right) >= 196
    several = [
        one for one, question in zip(right, questions, strict=True) if len(question.pictures) > 1
    ]
    assert sum(several) >= 0.95 * len(several)


# ---- sessions


@pytest.fixture
def folder(make_gguf: MakeGGUF, make_projector: MakeProjector, tmp_path: Path) -> Path:
    """A model with its projector beside it, which nobody names."""
    (tmp_path / "model.gguf").symlink_to(make_gguf(DEMO))
    shutil.copyfile(make_projector(DEMO), tmp_path / "mmproj-model.gguf")
    return tmp_path


def saved_talk(folder: Path) -> tuple[Conversation, list[int], list[str]]:
    """A session about two pictures in a file, its tokens, and what comes next if it goes on."""
    talk = Conversation().user(with_images("What do you see?", [noise(500, 300), noise(340, 90)]))
    with Model(folder / "model.gguf", n_ctx=2048) as model:
        talk = talk.assistant(model.chat(talk, max_tokens=5, temperature=0).text)
        saved = model.save_session(folder / "talk.l4s", talk)
        follow = model.chat(talk.user("And now?"), max_tokens=5, temperature=0)
    return talk, list(saved.tokens), [follow.text]


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have seen no picture, as another process."""
    monkeypatch.setattr(SEEN, "_seen", OrderedDict())
    monkeypatch.setattr(SEEN, "_levels", OrderedDict())
    monkeypatch.setattr(SEEN, "_n_bytes", 0)


def test_a_reopened_session_neither_opens_nor_encodes_its_pictures_nor_loads_the_projector(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, tokens, expected = saved_talk(folder)
    forget(monkeypatch)
    monkeypatch.setattr(opening, "pixels_of", None)
    with Model(folder / "model.gguf", n_ctx=2048) as model:
        monkeypatch.setattr(model._pictures, "loaded", None)
        session = model.load_session(folder / "talk.l4s")
        assert session.conversation == replace(talk, model=model.info.name)
        again = model.chat(session.conversation.user("And now?"), max_tokens=5, temperature=0)
        assert [again.text] == expected
        assert again.reused_tokens >= len(tokens) - 5  # but for the header of the answer
        # The pictures are saved with the session once more.
        model.save_session(folder / "talk.l4s", session.conversation)
    with SessionFile(folder / "talk.l4s") as file:
        assert file.head is not None
        assert [one.size for one in file.head.pictures] == [(500, 300), (340, 90)]


def test_what_was_forgotten_of_a_session_is_cut_and_encoded_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, expected = saved_talk(folder)
    forget(monkeypatch)
    with Model(folder / "model.gguf", n_ctx=2048) as model:
        talk = model.load_session(folder / "talk.l4s").conversation
        model.engine.clear()
        assert model._pictures._projector is None
        again = model.chat(talk.user("And now?"), max_tokens=5, temperature=0)
        assert [again.text] == expected
        assert again.reused_tokens == 0
        assert model._pictures._projector is not None


def test_a_session_of_another_projector_has_its_pictures_read_anew(
    folder: Path, make_projector: MakeProjector
) -> None:
    _, tokens, _ = saved_talk(folder)
    shutil.copyfile(make_projector(DEMO, "q8_0"), folder / "mmproj-model.gguf")
    with Model(folder / "model.gguf", n_ctx=2048) as model:
        talk = model.load_session(folder / "talk.l4s").conversation
        again = model.chat(talk.user("And now?"), max_tokens=5, temperature=0)
        assert 0 < again.reused_tokens < tokens.index(min(tokens))
        assert model._pictures._projector is not None


def test_pictures_are_cut_once_where_exchanges_leave(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch)
    n_cuts = 0

    def counted(pixels: Array) -> ImageTiles:
        nonlocal n_cuts
        n_cuts += 1
        return images.cut(pixels)

    monkeypatch.setattr(seen, "cut", counted)
    talk: list[dict[str, Any]] = []
    for number in range(8):
        talk += user(image(Image.fromarray(noise(90, 80 + number))), text("What do you see?"))
        talk += [{"role": "assistant", "content": "Nothing."}]
    with Model(folder / "model.gguf", n_ctx=700) as model:
        prompt = model.chat_prompt(talk[:-1], when_full="drop")
    assert 0 < len(prompt.pictures) < 8
    assert n_cuts == 8
