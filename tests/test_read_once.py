"""What one prompt shares with what was read before is not read again, whatever came between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llama4_edge import AsyncModel, Message, Model, Sampling, with_documents
from llama4_edge.chat.answer import Completion
from llama4_edge.runtime.cache import WORTH_KEEPING
from tests.tiny_model import never_ending

GREEDY = Sampling(temperature=0.0)
WORDS = ("river", "stone", "window", "green", "seven", "letter", "quiet", "market", "lamp", "north")


def text(seed: int, n_words: int = 20) -> str:
    chosen = [WORDS[(seed * 7 + index * (3 + seed % 5)) % len(WORDS)] for index in range(n_words)]
    return " ".join([f"{seed}:", *chosen])


class Reader:
    """Asks a model, and knows what it has read."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.prompts: list[Sequence[int]] = []

    def ask(self, messages: Sequence[Message]) -> Completion:
        """The answer; nothing of the prompt was read again that an earlier prompt began with.

        Nothing but a few tokens at its end, which are not worth a copy.
        """
        prompt = self.model.chat_prompt(messages).token_ids
        completion = self.model.chat(messages, max_tokens=8, sampling=GREEDY)
        known = max((common(prompt, one) for one in self.prompts), default=0)
        assert completion.reused_tokens > known - WORTH_KEEPING
        assert completion.prompt_tokens == len(prompt)
        self.prompts.append(prompt)
        return completion


def common(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def user(seed: int) -> Message:
    return Message("user", text(seed))


def assistant(seed: int) -> Message:
    return Message("assistant", text(seed))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return never_ending().write(tmp_path_factory.mktemp("endless") / "m.gguf")


@pytest.fixture
def model(path: Path) -> Iterator[Model]:
    with Model(path, n_ctx=2048, n_threads=1, cache_ram=64 << 20) as loaded:
        yield loaded


TALK = [user(1), assistant(2), user(3), assistant(4), user(5)]


def test_a_conversation_reads_only_what_is_new(model: Model) -> None:
    reader = Reader(model)
    assert reader.ask(TALK[:1]).reused_tokens == 0
    reader.ask(TALK[:3])
    reader.ask(TALK)


def test_undo_and_retry_go_on_from_what_is_left(model: Model) -> None:
    reader = Reader(model)
    for count in (1, 3, 5):
        reader.ask(TALK[:count])
    retried = reader.ask(TALK)
    assert retried.reused_tokens == retried.prompt_tokens - 1
    undone = reader.ask([*TALK[:2], user(8)])  # /undo, and another question
    assert undone.reused_tokens >= common(*reader.prompts[-2:])
    reader.ask([*TALK[:2], user(8), assistant(9), user(10)])


def test_an_edited_message_and_a_branch_go_on_from_where_they_differ(model: Model) -> None:
    reader = Reader(model)
    for count in (1, 3, 5):
        reader.ask(TALK[:count])
    branch = [user(1), assistant(2), user(6), assistant(7), user(5)]
    reader.ask(branch)
    back = reader.ask([*TALK, assistant(7), user(8)])
    assert back.reused_tokens >= len(reader.prompts[2])  # all of the first branch
    reader.ask([*branch, assistant(3), user(4)])


@pytest.mark.parametrize("n_parallel", [1, 2, 4])
def test_conversations_that_take_turns_are_read_once(path: Path, n_parallel: int) -> None:
    with Model(path, n_ctx=2048, n_threads=1, n_parallel=n_parallel) as model:
        reader = Reader(model)
        talks = [[user(10 * number)] for number in range(5)]
        for turn in range(4):
            for number, talk in enumerate(talks):
                completion = reader.ask(talk)
                assert turn == 0 or completion.reused_tokens > 140 * turn
                talk += [assistant(turn + number), user(turn + 50 + number)]


def test_questions_about_a_document_read_it_once(model: Model, tmp_path: Path) -> None:
    document = tmp_path / "book.md"
    document.write_text("\n".join(text(seed) for seed in range(8)))
    reader = Reader(model)
    n_read = 0
    for number in range(20):
        completion = reader.ask([Message("user", with_documents(text(number, 5), [document]))])
        n_read += completion.prompt_tokens - completion.reused_tokens
        if number % 6 == 5:
            n_read -= reader.ask([user(100 + number)]).reused_tokens
    # All questions together are shorter than the document once more.
    assert n_read < 2 * completion.prompt_tokens


def test_threads_and_tasks_that_ask_about_one_system_prompt_read_it_once(path: Path) -> None:
    system = Message("system", text(1, 60))

    def reread(completions: Sequence[Completion]) -> int:
        return max(one.prompt_tokens - one.reused_tokens for one in completions)

    with Model(path, n_ctx=1024, n_threads=1, n_parallel=4) as model:
        model.chat([system], max_tokens=1)

        def question(number: int) -> Completion:
            return model.chat([system, user(number)], max_tokens=8)

        with ThreadPoolExecutor(8) as pool:
            assert reread(list(pool.map(question, range(20)))) < 250

        async def ask_all() -> list[Completion]:
            beside = AsyncModel(model)
            asked = [beside.chat([system, user(50 + n)], max_tokens=8) for n in range(20)]
            return await asyncio.gather(*asked)

        assert reread(asyncio.run(ask_all())) < 250


def test_a_model_without_a_budget_keeps_the_last_conversation_alone(path: Path) -> None:
    with Model(path, n_ctx=1024, n_threads=1, cache_ram=0) as model:
        first, second = ([user(1)], [user(2)])
        n_header = common(model.chat_prompt(first).token_ids, model.chat_prompt(second).token_ids)
        for messages in (first, second, first):
            completion = model.chat(messages, max_tokens=3)
        assert completion.reused_tokens == n_header
        assert model.engine.cache.nbytes == 0
