"""Control tokens of a fine-tune: read where that is asked for, shown, and ends where they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llama4_edge import Message, Model
from llama4_edge.chat.vocabulary import Vocabulary
from llama4_edge.errors import ContextFullError, SettingError
from tests.gguf_maker import I32, TinyModel, Value
from tests.tiny_model import never_ending

HEADER_START, HEADER_END = 257, 258


def speaker() -> TinyModel:
    """A model that only ever says a control token."""
    model = never_ending()
    model.tensors["output.weight"][HEADER_START, 0] = 50.0
    return model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaker().write(tmp_path_factory.mktemp("speaker") / "m.gguf")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model(path, n_ctx=256, n_threads=1) as loaded:
        yield loaded


def test_an_answer_shows_control_tokens_only_where_that_is_asked_for(model: Model) -> None:
    hidden = model.generate("x", max_tokens=3, temperature=0.0)
    shown = model.generate("x", max_tokens=3, temperature=0.0, special=True)
    assert (hidden.text, shown.text) == ("", "<|header_start|>" * 3)
    assert hidden.tokens == shown.tokens == (HEADER_START,) * 3
    assert (
        list(model.generate("x", max_tokens=2, temperature=0.0, special=True, stream=True))
        == ["<|header_start|>"] * 2
    )


def test_a_prompt_names_control_tokens_only_where_that_is_asked_for(model: Model) -> None:
    text = "a<|header_end|>b"
    plain = model.generate(text, max_tokens=1)
    read = model.generate(text, max_tokens=1, special=True)
    assert (plain.prompt_tokens, read.prompt_tokens) == (len(text), 3)
    asked = [Message("user", text)]
    prompt = model.chat_prompt(asked, special=True).token_ids
    assert prompt.count(HEADER_END) == model.chat_prompt(asked).token_ids.count(HEADER_END) + 1
    assert model.chat(asked, max_tokens=1, special=True).prompt_tokens == len(prompt)
    with pytest.raises(SettingError, match="special is of the wrong type, found 1"):
        model.generate("x", special=1)  # type: ignore[call-overload]


def test_a_further_end_token_ends_an_answer(tmp_path: Path) -> None:
    further = speaker()
    further.keys["llama4_edge.eog_token_ids"] = Value([HEADER_START], I32, I32)
    with Model(further.write(tmp_path / "m.gguf"), n_ctx=256, n_threads=1) as model:
        assert model.engine.is_end(HEADER_START)
        completion = model.generate("x", max_tokens=3, temperature=0.0)
        assert (completion.tokens, completion.finish_reason) == ((), "stop")


@pytest.mark.parametrize("spare", ["", "one "])
def test_a_text_that_cannot_fit_is_not_tokenized_to_its_end(
    model: Model, monkeypatch: pytest.MonkeyPatch, spare: str
) -> None:
    class Untouched:
        def encode(self, *_: object, **__: object) -> None:
            raise AssertionError("the text was tokenized")

    monkeypatch.setattr(model.vocabulary, "_tokenizer", Untouched())
    longest = len("<|begin_of_text|>")
    document = spare + "word " * 9_999_999 + "word!"
    found = rf"found at least {-(-len(document) // longest)} tokens, expected at most 256\."
    with pytest.raises(ContextFullError, match=found):
        model.generate(document)
    with pytest.raises(ContextFullError, match=found):
        model.chat(document)
    half = len(document) // 2
    parts = [{"type": "text", "text": document[:half]}]
    with pytest.raises(ContextFullError, match=found):
        model.chat(
            [{"role": "user", "content": parts}, {"role": "assistant", "content": document[half:]}]
        )


def test_tokenizing_stops_soon_after_the_limit(model: Model) -> None:
    text = "a b " * 500_000
    whole = model.tokenize(text)
    some = model.vocabulary.encode(text, limit=1000)
    assert 1000 < len(some) <= 400_000 < len(whole)
    assert some == whole[: len(some)]
    assert model.vocabulary.encode("a b", limit=1000) == model.tokenize("a b")
    with pytest.raises(ContextFullError, match=r"found at least \d{4,6} tokens"):
        model.generate("a " * 400_000)


def test_what_is_a_little_too_long_is_counted_exactly(model: Model) -> None:
    with pytest.raises(ContextFullError, match="found 300 tokens, expected at most 256"):
        model.generate("a" * 300)


def test_no_text_is_known_to_be_too_long_where_tokens_take_any_white_space(model: Model) -> None:
    metadata = {**model.info.gguf.metadata, "llama4_edge.added_tokens.rstrip": (HEADER_END,)}
    assert Vocabulary(metadata).least_tokens(10_000) == 0
    assert model.vocabulary.least_tokens(17_000) == 1000
