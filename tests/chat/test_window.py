"""At the end of the context the oldest exchanges leave, whole and about half at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llama4_edge import AsyncModel, Conversation, Model, Stream, with_documents
from llama4_edge.chat.options import AnswerSettings
from llama4_edge.chat.prompt import Prompts
from llama4_edge.chat.window import prompt_of
from llama4_edge.errors import ContextFullError, EngineError, SettingError
from tests.asking import until
from tests.tiny_model import never_ending

N_CTX = 256
PARTS = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> Iterator[Model]:
    with Model(tiny_path, n_ctx=N_CTX) as opened:
        yield opened


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model whose answers do not end by themselves."""
    path = never_ending().write(tmp_path_factory.mktemp("endless") / "endless.gguf")
    with Model(path, n_ctx=N_CTX, n_parallel=2) as opened:
        yield opened


def talk(exchanges: int, length: int = 20) -> list[dict[str, str]]:
    """So many exchanges, each its own, and a question."""
    messages = []
    for number in range(exchanges):
        messages.append({"role": "user", "content": f"{number:02}" + "q" * length})
        messages.append({"role": "assistant", "content": f"{number:02}" + "a" * length})
    return [*messages, {"role": "user", "content": "last"}]


def shown(model: Model, messages: Any, **options: Any) -> str:
    prompt = model.chat_prompt(messages, when_full="drop", **options).token_ids
    return model.detokenize(prompt, special=True)


def test_what_fits_is_shown_whole(model: Model) -> None:
    messages = talk(2)
    shown = model.chat_prompt(messages, when_full="drop")
    assert shown.token_ids == model.chat_prompt(messages).token_ids
    assert model.chat(messages, when_full="drop", **GREEDY).dropped_messages == 0


def test_by_default_messages_that_do_not_fit_are_refused(model: Model) -> None:
    with pytest.raises(ContextFullError, match=f"expected at most {N_CTX}"):
        model.chat(talk(20), **GREEDY)


def test_the_oldest_exchanges_leave_and_the_answer_says_how_many_messages(model: Model) -> None:
    messages = talk(20)
    answer = model.chat(messages, when_full="drop", **GREEDY)
    dropped = answer.dropped_messages
    assert 0 < dropped < 40 and dropped % 2 == 0
    # The rest alone asks the same.
    rest = model.chat(messages[dropped:], **GREEDY)
    assert (answer.text, answer.prompt_tokens) == (rest.text, rest.prompt_tokens)
    assert rest.dropped_messages == 0
    with model.chat(messages, stream=True, when_full="drop", **GREEDY) as stream:
        assert stream.dropped_messages == dropped
        assert ("".join(stream), stream.completion.dropped_messages) == (answer.text, dropped)


def test_system_messages_and_what_comes_before_the_first_question_stay(model: Model) -> None:
    system = {"role": "system", "content": "Be brief."}
    greeting = {"role": "assistant", "content": "Welcome."}
    later = {"role": "system", "content": "Be kind."}
    messages = [system, greeting, *talk(2), later, *talk(20)]
    text = shown(model, messages)
    for kept in ("Be brief.", "Welcome.", "Be kind."):
        assert kept in text
    assert text.index("Be brief.") < text.index("Welcome.") < text.index("Be kind.")
    dropped = model.chat(messages, when_full="drop", **GREEDY).dropped_messages
    assert len([one for one in messages if f">\n\n{one['content']}<" not in text]) <= dropped


def test_documents_in_the_first_question_stay_before_the_first_that_is_shown(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.md").write_text("Call me Ishmael.", encoding="utf-8")
    Path("b.md").write_text("It was.", encoding="utf-8")
    messages: list[Any] = talk(20, 2)
    asked = messages[0]["content"]
    documents = with_documents("", ["a.md", "b.md"])
    prompts = Prompts(model.vocabulary, PARTS)
    settings = AnswerSettings(when_full="drop")
    for content in (
        with_documents(asked, ["a.md", "b.md"]),
        [{"type": "text", "text": documents + asked}],
    ):
        messages[0] = {"role": "user", "content": content}
        prompt = prompt_of(prompts, messages, settings, N_CTX)
        text = model.detokenize(prompt.token_ids)
        assert text.startswith(documents)
        first = text.removeprefix(documents)[:2]
        assert prompt.dropped_messages == 2 * int(first) > 0
        assert text.count("Ishmael") == 1


def test_a_last_exchange_that_alone_does_not_fit_is_refused(model: Model) -> None:
    messages = [*talk(20)[:-1], {"role": "user", "content": "x" * 2 * N_CTX}]
    for length in (2 * N_CTX, 5_000_000):
        messages[-1] = {"role": "user", "content": "x" * length}
        with pytest.raises(ContextFullError, match=f"expected at most {N_CTX}"):
            model.chat(messages, when_full="drop", **GREEDY)


def test_a_last_exchange_stays_whole(model: Model) -> None:
    messages = [*talk(20), {"role": "assistant", "content": "call"}]
    messages += [{"role": "tool", "content": "42"}]
    assert "last" in shown(model, messages) and shown(model, messages).count("42") == 1


def test_turns_that_follow_begin_alike_until_half_the_context_is_new(model: Model) -> None:
    turns = [model.chat(talk(number, 5), when_full="drop", max_tokens=0) for number in range(8, 40)]
    pairs = list(pairwise(turns))
    again = [one.dropped_messages < two.dropped_messages for one, two in pairs]
    # An exchange has 37 tokens, so that three or four of them are half of the context.
    assert 32 / 4 - 1 <= sum(again) <= 32 / 3
    for dropped, (one, two) in zip(again, pairs, strict=True):
        # All but the last question and what follows it, which are others, is read already.
        assert dropped or two.reused_tokens >= one.prompt_tokens - 20
    assert not any(one and two for one, two in pairwise(again))


def test_a_conversation_brings_what_happens_at_the_end_of_the_context(model: Model) -> None:
    conversation = Conversation(talk(20), when_full="drop")  # type: ignore[arg-type]
    assert model.chat(conversation, **GREEDY).dropped_messages > 0
    with pytest.raises(ContextFullError):
        model.chat(conversation, when_full="stop", **GREEDY)


def test_an_answer_that_meets_the_end_of_the_context_goes_on_without_the_oldest(
    endless: Model,
) -> None:
    messages = talk(3, 5)
    asked = len(endless.chat_prompt(messages))
    stopped = endless.chat(messages, temperature=0.0)
    assert (stopped.finish_reason, len(stopped.tokens)) == ("length", N_CTX - asked + 1)
    answer = endless.chat(messages, temperature=0.0, when_full="drop")
    assert answer.finish_reason == "length"
    # It begins as the other one, and ends where the last exchange alone fills the context.
    assert answer.tokens[: len(stopped.tokens)] == stopped.tokens
    alone = len(endless.chat_prompt(messages[-1:]))
    assert len(answer.tokens) == N_CTX - alone + 1
    assert (answer.dropped_messages, answer.prompt_tokens) == (6, asked)


def test_what_is_chosen_after_that_is_what_a_prompt_with_that_beginning_gets(
    endless: Model,
) -> None:
    messages = [*talk(3, 5)[:-1], {"role": "user", "content": "and"}]
    asked = len(endless.chat_prompt(messages))
    answer = endless.chat(messages, temperature=0.0, when_full="drop")
    n_before = N_CTX - asked + 1
    prompt = [*endless.chat_prompt(messages[-1:]).token_ids, *answer.tokens[:n_before]]
    expected = endless.generate(prompt, temperature=0.0)
    assert answer.tokens[n_before:] == expected.tokens
    # All that is left was decoded again, but for what was common and for what was chosen last.
    assert n_before < answer.reread_tokens <= len(prompt)


def test_streams_and_several_answers_go_on_too(endless: Model) -> None:
    messages = talk(3, 5)
    options: dict[str, Any] = {"seed": 3, "when_full": "drop"}
    alone = [endless.chat(messages, **{**options, "seed": 3 + number}) for number in range(4)]
    together = endless.chat(messages, n=4, **options)
    assert [one.dropped_messages for one in together] == [6] * 4
    assert [len(one.tokens) for one in together] == [len(one.tokens) for one in alone]
    streams = endless.chat(messages, n=4, stream=True, **options)
    texts = ["".join(stream) for stream in streams]
    assert texts == [stream.completion.text for stream in streams]
    assert [stream.dropped_messages for stream in streams] == [6] * 4


async def in_tasks(model: Model, messages: Any) -> list[int]:
    tasks = AsyncModel(model)
    answers = await tasks.chat(messages, n=2, temperature=0.0, when_full="drop")
    stream = await tasks.chat(messages, stream=True, temperature=0.0, when_full="drop")
    text = "".join([piece async for piece in stream])
    assert text == stream.completion.text == answers[0].text
    return [one.dropped_messages for one in (*answers, stream.completion)]


def test_tasks_get_the_same(endless: Model) -> None:
    import asyncio

    assert asyncio.run(in_tasks(endless, talk(3, 5))) == [6, 6, 6]


def read_until_full(stream: Stream) -> None:
    """Read a piece; what fits beside it is so little that it waits for no reader."""
    next(stream)
    until(lambda: stream._request.is_full)


def test_an_answer_that_waits_to_go_on_can_be_closed(endless: Model) -> None:
    streams = [
        endless.chat(talk(3, 5), stream=True, when_full="drop", temperature=0.0) for _ in range(2)
    ]
    for stream in streams:
        read_until_full(stream)
    for stream in streams:
        stream.close()
        assert stream.completion.finish_reason is None
    assert endless.generate("x", max_tokens=2).finish_reason == "length"


def test_answers_that_share_one_sequence_go_on_one_after_the_other(endless: Model) -> None:
    with Model(endless.info.path, n_ctx=N_CTX) as model:
        answers = model.chat(talk(3, 5), n=3, temperature=0.0, when_full="drop")
        assert len({answer.tokens for answer in answers}) == 1
        assert [answer.dropped_messages for answer in answers] == [6, 6, 6]
        # Who reads two at the same time has the first ended by the second, as without dropping.
        one, two = (
            model.chat(talk(3, 5), stream=True, temperature=0.0, when_full="drop") for _ in range(2)
        )
        read_until_full(one)
        assert "".join(two) == answers[0].text
        with pytest.raises(EngineError, match="ended by a later request"):
            list(one)


def test_what_waits_to_go_on_ends_with_the_model(endless: Model) -> None:
    with Model(endless.info.path, n_ctx=N_CTX) as model:
        stream = model.chat(talk(3, 5), stream=True, temperature=0.0, when_full="drop")
        read_until_full(stream)
    with pytest.raises(EngineError, match="the model was closed"):
        list(stream)


def test_stop_strings_and_the_number_of_tokens_count_over_the_gap(endless: Model) -> None:
    messages = talk(3, 5)
    whole = endless.chat(messages, temperature=0.0, when_full="drop")
    n_before = N_CTX - len(endless.chat_prompt(messages)) + 1
    some = endless.chat(messages, temperature=0.0, when_full="drop", max_tokens=n_before + 3)
    assert (some.tokens, some.finish_reason) == (whole.tokens[: n_before + 3], "length")
    assert some.dropped_messages > 0


@pytest.mark.parametrize("value", ["shift", None, True, 3])
def test_other_words_are_refused(model: Model, value: Any) -> None:
    with pytest.raises(SettingError, match=r"when_full is unknown.*expected stop, drop"):
        model.chat("x", when_full=value)
    with pytest.raises(SettingError, match="when_full is unknown"):
        Conversation(when_full=value)


def test_a_text_has_no_exchanges_to_drop(model: Model) -> None:
    with pytest.raises(SettingError, match="drops exchanges, and a text has none"):
        model.generate("x", when_full="drop")


def test_it_is_saved_with_a_conversation_where_it_is_not_the_default(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    for when_full in ("stop", "drop"):
        Conversation(when_full=when_full).save(file)
        assert Conversation.load(file).when_full == when_full
        assert ("when_full" in file.read_text()) is (when_full == "drop")
