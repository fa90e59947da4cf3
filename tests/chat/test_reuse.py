"""In a conversation only what is new is decoded, wherever it goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llama4_edge import Completion, Conversation, Message, Model
from tests.tiny_model import never_ending


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = never_ending().write(tmp_path_factory.mktemp("endless") / "endless.gguf")
    with Model(path, n_ctx=1024) as opened:
        yield opened


def ask(model: Model, talk: Conversation) -> Completion:
    return model.chat(talk, temperature=0.0, max_tokens=20)


def said(model: Model, *questions: str) -> Conversation:
    """A conversation of these questions and their answers, which the model holds."""
    model.engine.clear()
    talk = Conversation().system("Be brief.")
    for question in questions:
        talk = talk.user(question)
        talk = talk.assistant(ask(model, talk))
    return talk


def common(model: Model, talk: Conversation, other: Conversation) -> int:
    """How many tokens two prompts have in common."""
    pairs = zip(model.chat_prompt(talk).token_ids, model.chat_prompt(other).token_ids, strict=False)
    return next(at for at, (one, two) in enumerate(pairs) if one != two)


def test_a_turn_decodes_what_was_asked_and_what_the_template_adds(model: Model) -> None:
    talk = said(model, "one", "two")
    held = len(model.chat_prompt(Conversation(talk.messages[:-1])).token_ids) + 20
    answer = ask(model, talk.user("three"))
    # The last token that was chosen was not decoded yet; the end of the answer follows it.
    assert answer.reused_tokens == held - 1
    assert answer.prompt_tokens == len(model.chat_prompt(talk.user("three")).token_ids)


def test_undo_and_retry_decode_one_token_or_the_new_question(model: Model) -> None:
    talk = said(model, "one", "two", "three")
    retry = Conversation(talk.messages[:-1])
    answer = ask(model, retry)
    assert answer.prompt_tokens - answer.reused_tokens == 1
    undone = Conversation(talk.messages[:-2]).user("other")
    answer = ask(model, undone)
    assert answer.reused_tokens == common(model, retry, undone)
    assert answer.reused_tokens > len(model.chat_prompt(Conversation(talk.messages[:4])).token_ids)


def test_an_edited_message_and_a_branch_keep_what_comes_before(model: Model) -> None:
    talk = said(model, "one", "two", "three")
    edited = Conversation((*talk.messages[:3], Message("user", "two!"))).assistant("x").user("four")
    answer = ask(model, edited)
    assert answer.reused_tokens == common(model, talk.user("four"), edited)
    # And back: what the branch left is what both have in common.
    answer = ask(model, talk.user("four"))
    assert answer.reused_tokens >= common(model, talk.user("four"), edited)


def test_another_system_message_shares_what_is_before_it(model: Model) -> None:
    talk = said(model, "one")
    other = talk.system("Be long.").user("two")
    assert ask(model, other).reused_tokens == common(model, talk.user("two"), other)


def test_the_answer_after_a_reuse_is_that_of_a_model_that_holds_nothing(model: Model) -> None:
    talk = said(model, "one", "two").user("three")
    reused = ask(model, talk)
    model.engine.clear()
    fresh = ask(model, talk)
    assert (reused.text, fresh.reused_tokens) == (fresh.text, 0)
    assert reused.reused_tokens > 0
