"""Messages to token ids, whoever gives them and whatever template the model has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from llama4_edge import Model
from llama4_edge.chat import template_process
from llama4_edge.errors import SettingError, TemplateError
from tests.gguf_maker import STR, Value
from tests.tiny_model import with_chat_tokens


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> Iterator[Model]:
    with Model(tiny_path, n_ctx=256, n_threads=1) as loaded:
        yield loaded


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children() if child.status() != "zombie"}


def test_the_process_of_the_template_ends_with_the_model(tiny_path: Path) -> None:
    before = children()
    model = Model(tiny_path, n_ctx=256, n_threads=1)
    model.generate("Hello", max_tokens=1)
    assert children() <= before
    model.chat("Hello", max_tokens=1)
    model.chat("Hello", max_tokens=1)
    assert len(children() - before) == 1
    model.close()
    assert children() <= before


def test_a_hostile_template_leaves_the_model_for_plain_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_process, "SECONDS", 0.1)
    tiny = with_chat_tokens()
    tiny.keys["tokenizer.chat_template"] = Value("{{ 9 ** 99999999 }}", STR)
    with Model(tiny.write(tmp_path / "m.gguf"), n_ctx=256, n_threads=1) as model:
        for _ in range(2):
            with pytest.raises(TemplateError, match="takes too long to compile"):
                model.chat("Hello")
        assert model.generate("Hello", max_tokens=1).tokens


@pytest.mark.parametrize(
    ("messages", "error", "message"),
    [
        ([{"role": "usr", "content": "x"}], TemplateError, "found 'usr', .* Did you mean user?"),
        ([{"role": "user", "content": None}], TemplateError, "is not text, found None"),
        ([{"role": "user", "content": b"x"}], TemplateError, "is not text, found b'x'"),
        ([{"role": "user", "content": {"type": "text"}}], TemplateError, "is not text"),
        ([{"role": ["user"], "content": "x"}], TemplateError, "has no role or no content"),
        ([{"role": "user"}], TemplateError, "has no role or no content"),
        ([{"content": "x"}], TemplateError, "has no role or no content"),
        ([["role", "user"]], TemplateError, "a message is not a mapping, found list"),
        ([None], TemplateError, "a message is not a mapping, found NoneType"),
        (["Hello"], TemplateError, "a message is not a mapping, found str"),
        (b"Hello", TemplateError, "a message is not a mapping, found int"),
        (range(2), TemplateError, "a message is not a mapping, found int"),
        ([{"role": "tool", "content": {1}}], TemplateError, "something that JSON has not"),
        ([{"role": "tool", "content": 10**4000}], TemplateError, "found an integer of 13288 bits"),
        ({"role": "user", "content": "x"}, SettingError, "messages are of the wrong type"),
        (5, SettingError, "messages are of the wrong type, found 5"),
        (None, SettingError, "messages are of the wrong type, found None"),
        (10**4000, SettingError, "messages are of the wrong type, found an integer of 13288 bits"),
        ([], SettingError, "there are no messages"),
    ],
)
def test_messages_of_the_wrong_type_are_one_error(
    messages: Any, error: type[Exception], message: str, model: Model
) -> None:
    with pytest.raises(error, match=message):
        model.chat(messages)
