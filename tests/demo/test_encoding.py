"""The trainer's token ids are those that the engine and transformers make of the same words."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from demo.training.encoding import PICTURE, encode
from demo.training.lessons.conversation import Conversation, Turn
from demo.training.lessons.mixture import examination, lesson
from demo.training.lessons.picture import Picture
from llama4_edge import Model, with_images


@pytest.fixture(scope="module")
def tokenizer(trained: Path) -> Tokenizer:
    return Tokenizer.from_file(str(trained / "tokenizer.json"))


@pytest.fixture(scope="module")
def model(trained_gguf: Callable[[str], Path]) -> Iterator[Model]:
    with Model(trained_gguf("bf16"), n_ctx=512, n_threads=1) as loaded:
        yield loaded


def messages(talk: Conversation) -> list[dict[str, str]]:
    turns = [(("user", turn.question), ("assistant", turn.answer)) for turn in talk.turns]
    return [{"role": role, "content": text} for pair in turns for role, text in pair]


def talks() -> list[Conversation]:
    rng = random.Random("talks")
    return examination()[::25] + [lesson(rng) for _ in range(20)]


def test_the_ids_before_an_answer_are_the_engines(tokenizer: Tokenizer, model: Model) -> None:
    for talk in talks():
        encoded = encode(tokenizer, talk)
        spoken = encoded.answers[::-1].index(0)
        assert encoded.ids[:-spoken] == model.chat_prompt(messages(talk)[:-1]).token_ids


def test_the_ids_are_those_of_the_chat_template_in_transformers(
    tokenizer: Tokenizer, trained: Path
) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(trained)
    for talk in talks():
        assert (
            encode(tokenizer, talk).ids
            == theirs.apply_chat_template(messages(talk), return_dict=False)[:]
        )


def test_exactly_the_answers_are_to_be_learnt(tokenizer: Tokenizer) -> None:
    talk = Conversation("", (Turn("What is 1 + 1?", "1 + 1 = 2."), Turn("Hallo", "Hallo!")))
    encoded = encode(tokenizer, talk)
    learnt = [i for i, answer in zip(encoded.ids, encoded.answers, strict=True) if answer]
    assert tokenizer.decode(learnt, skip_special_tokens=False) == "1 + 1 = 2.<|eot|>Hallo!<|eot|>"


def test_every_digit_is_a_token_of_its_own(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("90417", add_special_tokens=False).tokens == list("90417")


def test_a_picture_stands_first_as_llama_4s_processor_writes_it(tokenizer: Tokenizer) -> None:
    from transformers.models.llama4.processing_llama4 import Llama4Processor

    assert Llama4Processor._prompt_split_image(None, (1, 1), 144) == PICTURE
    star = Picture("red", "star", 1, 1)
    talk = Conversation("", (Turn("Hallo", "Hallo!", (star,)), Turn("Ciao", "Ciao!", (star, star))))
    ids = encode(tokenizer, talk).ids
    text = tokenizer.decode(ids, skip_special_tokens=False)
    head = "<|begin_of_text|><|header_start|>user<|header_end|>\n\n"
    assert text.startswith(f"{head}{PICTURE}Hallo<|eot|>")
    assert f"<|header_end|>\n\n{PICTURE}{PICTURE}Ciao<|eot|>" in text


def test_a_talk_about_pictures_is_encoded_as_the_engine_does(
    tokenizer: Tokenizer, model: Model
) -> None:
    star, cross = Picture("red", "star", 1, 1), Picture("blue", "cross", 2, 1)
    turns = (Turn("Hallo", "Hallo!", (star, cross)), Turn("Ciao", "Ciao!", (star,)))
    ids = encode(tokenizer, Conversation("", turns)).ids
    prompt = model.chat_prompt(
        [
            {"role": "user", "content": with_images("Hallo", [star.pixels(), cross.pixels()])},
            {"role": "assistant", "content": "Hallo!"},
            {"role": "user", "content": with_images("Ciao", star.pixels())},
        ]
    )
    assert prompt.token_ids == ids[: len(prompt)]
    assert [len(one) for one in prompt.pictures] == [1, 1, 1]
