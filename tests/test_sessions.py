"""`Model.save_session` and `load_session`: what was read goes on in another process."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llama4_edge import (
    AsyncModel,
    Conversation,
    EngineError,
    Model,
    Session,
    SessionError,
    SettingError,
)
from llama4_edge.architecture import ATTENTION_CHUNK as CHUNK
from llama4_edge.runtime.state import SequenceState
from tests.fixtures import MakeGGUF
from tests.sessions import with_frame
from tests.tiny_model import never_ending

# As in tests/runtime/test_engine.py: passes that cut the same tokens differently.
CLOSE = 0.01
ONE: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0}


def opened(path: Path, n_ctx: int = 512, **settings: Any) -> Model:
    return Model(path, n_ctx=n_ctx, n_threads=1, **settings)


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 256, count)]


def logits_after(model: Model, tokens: list[int], held: int) -> npt.NDArray[np.float32]:
    """The logits after the last token; `held` of them must not have been decoded again."""
    assert model.engine.prefill(tokens) >= held
    return model.engine.last_logits()


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return tmp_path / "book.l4s"


@pytest.fixture
def talk(tiny_path: Path, book: Path) -> Conversation:
    """A conversation that was saved with what a model had read of it."""
    with opened(tiny_path) as model:
        talk = Conversation(model=model.info.name).user("Hello, and " * 10)
        talk = talk.assistant(model.chat(talk, max_tokens=8, temperature=0.0))
        session = model.save_session(book, talk)
    assert session.conversation == talk
    assert session.bytes > 0
    return talk


def test_what_was_read_with_tools_is_kept_when_the_tools_are_named(
    tiny_path: Path, book: Path
) -> None:
    """They stand in front of the first question: another prompt, from its first tokens on."""
    talk = Conversation().user("What is the weather?")
    with opened(tiny_path, 2048) as model:
        model.chat(talk, tools=[weather], **ONE)
        prompt = model.chat_prompt(talk, tools=[weather]).token_ids
        assert len(model.save_session(book, talk).tokens) < len(prompt) // 2
        assert list(model.save_session(book, talk, tools=[weather]).tokens) == prompt
        with pytest.raises(SettingError, match="not a function"):
            model.save_session(book, talk, tools=[{"type": "retrieval"}])
    with opened(tiny_path, 2048) as model:
        assert list(model.load_session(book).tokens) == prompt
        assert model.chat(talk, tools=[weather], **ONE).reused_tokens == len(prompt) - 1


def weather(city: str) -> str:
    """Today's weather in a city."""
    return f"sun in {city}"


# The chunked layers have cells for a chunk and 512 more, which are used again beyond that.
LENGTHS = [1, 300, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + 1500, 2 * CHUNK + 100]


@pytest.mark.parametrize("count", LENGTHS)
def test_logits_go_on_bit_for_bit(tiny_path: Path, book: Path, count: int) -> None:
    tokens, rest = random_tokens(count), random_tokens(100, seed=1)
    n_ctx = count + 200
    with opened(tiny_path, n_ctx) as model:
        model.generate(tokens, **ONE)
        assert model.save_session(book).tokens == tuple(tokens)
        live = logits_after(model, tokens + rest, count)
    with opened(tiny_path, n_ctx) as model:
        session = model.load_session(book)
        assert session.tokens == tuple(tokens)
        np.testing.assert_array_equal(logits_after(model, tokens + rest, count), live)


@pytest.mark.parametrize("settings", [{"flash_attention": "off"}, {"n_parallel": 2}])
def test_a_wrapped_cache_goes_on_bit_for_bit_in_whichever_layout(
    tiny_path: Path, book: Path, settings: dict[str, Any]
) -> None:
    """Without flash attention values are kept transposed; of several sequences, one has cells."""
    tokens, rest = random_tokens(CHUNK + 700), random_tokens(100, seed=1)
    with opened(tiny_path, CHUNK + 1000, **settings) as model:
        model.generate(tokens, **ONE)
        model.save_session(book)
        live = logits_after(model, tokens + rest, len(tokens))
    with opened(tiny_path, CHUNK + 1000, **settings) as model:
        model.load_session(book)
        np.testing.assert_array_equal(logits_after(model, tokens + rest, len(tokens)), live)


def test_what_is_restored_of_no_chunk_is_not_taken_for_it(tiny_path: Path, book: Path) -> None:
    """The cells of earlier chunks, which are not saved, have their places and nothing in them."""
    tokens = random_tokens(2 * CHUNK + 100)
    with opened(tiny_path, 2 * CHUNK + 200) as model:
        model.generate(tokens, **ONE)
        model.save_session(book)
    with opened(tiny_path, 2 * CHUNK + 200) as model:
        model.load_session(book)
        sequence = model.engine._sequence

        def at_the_end_of_a_chunk() -> SequenceState | None:
            sequence.keep(2 * CHUNK)
            return sequence.state()

        state = model.engine._call(at_the_end_of_a_chunk)
    assert state is not None
    assert state.highest == 2 * CHUNK  # behind the tokens: none of their chunk is gone on from


def test_several_rounds_are_as_one_run(tiny_path: Path, book: Path) -> None:
    pieces = [random_tokens(90, seed) for seed in range(5)]
    tokens: list[int] = []
    with opened(tiny_path) as model:
        for piece in pieces:
            tokens = tokens + piece
            live = logits_after(model, tokens, 0)
    with opened(tiny_path) as model:
        model.generate(pieces[0], **ONE)
        model.save_session(book)
    tokens = list(pieces[0])
    for piece in pieces[1:]:
        with opened(tiny_path) as model:
            assert model.load_session(book).tokens == tuple(tokens)
            tokens = tokens + piece
            completion = model.generate(tokens, **ONE)
            assert completion.reused_tokens == len(tokens) - len(piece)
            assert model.save_session(book).tokens[: len(tokens)] == tuple(tokens)
            model.engine.prefill(tokens[:-1])
            model.engine.append(tokens[-1])
    with opened(tiny_path) as model:
        model.load_session(book)
        kept = tokens[:-1]
        model.engine.prefill([*kept, 1])
        model.engine.prefill(tokens)
        assert np.abs(model.engine.last_logits() - live).max() < CLOSE


@pytest.mark.parametrize(
    ("count", "kept"),
    [
        (400, 250),
        (CHUNK + 900, CHUNK + 100),  # within the chunk
        (CHUNK + 900, CHUNK),  # to its beginning
        (CHUNK + 900, CHUNK - 100),  # into an earlier chunk
        (CHUNK + 900, 100),
    ],
)
def test_a_rewind_after_reopening_answers_as_a_fresh_pass(
    tiny_path: Path, book: Path, count: int, kept: int
) -> None:
    tokens, tail = random_tokens(count), random_tokens(100, seed=1)
    with opened(tiny_path, count + 200) as model:
        model.generate(tokens, **ONE)
        model.save_session(book)
        live = logits_after(model, tokens[:kept] + tail, 0)
        model.engine.clear()
        fresh = logits_after(model, tokens[:kept] + tail, 0)
    with opened(tiny_path, count + 200) as model:
        model.load_session(book)
        again = logits_after(model, tokens[:kept] + tail, 0)
    assert np.abs(again - fresh).max() < CLOSE
    assert np.abs(again - live).max() < CLOSE


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_another_number_of_sequences_is_no_hindrance(
    tiny_path: Path, book: Path, before: int, after: int
) -> None:
    tokens = random_tokens(200)
    with opened(tiny_path, n_parallel=before) as model:
        model.generate(tokens, **ONE)
        model.save_session(book)
        live = logits_after(model, [*tokens, 7, 8], 0)
    with opened(tiny_path, n_parallel=after) as model:
        model.load_session(book)
        np.testing.assert_array_equal(logits_after(model, [*tokens, 7, 8], 200), live)


def test_a_conversation_goes_on_with_what_is_new_alone(
    tiny_path: Path, book: Path, talk: Conversation
) -> None:
    with opened(tiny_path) as model:
        fresh = model.chat(talk.user("And then?"), max_tokens=8, temperature=0.0)
    with opened(tiny_path) as model:
        session = model.load_session(book)
        assert session.conversation == talk
        answer = model.chat(session.conversation.user("And then?"), max_tokens=8, temperature=0.0)
    assert answer.text == fresh.text
    # What it said is no text of its vocabulary, so that it may be read with other tokens.
    assert 120 < answer.reused_tokens <= len(session.tokens)
    assert fresh.reused_tokens == 0


def test_what_was_never_read_is_saved_as_text_alone(tiny_path: Path, book: Path) -> None:
    with opened(tiny_path) as model:
        model.generate(random_tokens(100), **ONE)
        assert model.save_session(book, "Hello").tokens == ()
    with opened(tiny_path) as model:
        session = model.load_session(book)
        assert (session.tokens, session.bytes) == ((), 0)
        assert [one.content for one in session.conversation.messages] == ["Hello"]


def test_a_long_answer_to_a_short_text_is_saved_too(tiny_path: Path, book: Path) -> None:
    with opened(tiny_path) as model:
        completion = model.generate([1, 2], max_tokens=100, temperature=0.0)
        saved = model.save_session(book).tokens
    assert len(saved) >= len(completion.tokens)


def test_a_model_that_was_moved_is_the_same(
    tiny_path: Path, book: Path, talk: Conversation, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere.gguf"
    shutil.copy(tiny_path, moved)
    with opened(moved) as model:
        assert model.load_session(book).tokens


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"kv_type": "bf16"}, "of other types, found K f16 and V f16, expected K bf16 and V bf16"),
        ({"kv_type": ("f16", "bf16")}, "expected K f16 and V bf16. Give kv_type=f16."),
        ({"flash_attention": "off"}, "otherwise, found flash attention on, expected .* off. Give"),
        ({"n_ctx": 64}, "does not fit into the context, found 1.. tokens, expected at most 64"),
    ],
)
def test_other_settings_each_have_their_sentence(
    tiny_path: Path, book: Path, talk: Conversation, settings: dict[str, Any], problem: str
) -> None:
    with opened(tiny_path, **{"n_ctx": 512, **settings}) as model:
        with pytest.raises(SessionError, match=problem):
            model.load_session(book)
        assert Conversation.load(book) == talk
        assert model.generate("x", **ONE).reused_tokens == 0  # and the model is as it was


def test_another_model_is_refused_by_name(book: Path, talk: Conversation, tmp_path: Path) -> None:
    """Another finetune of the same shape and types."""
    other = never_ending().write(tmp_path / "other.gguf")
    with opened(other) as model, pytest.raises(SessionError, match="is of another model, found"):
        model.load_session(book)


def changed(**entries: object) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        head = json.loads(content)
        head["fingerprint"].update(entries)
        return json.dumps(head).encode()

    return change


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"llama_cpp": "0.1"}, "another llama-cpp-python saved it, found llama-cpp-python 0.1,"),
        ({"rotation": "kv"}, "rotated otherwise, found K and V rotated, expected neither"),
        ({"n_expert_used": 2}, "found 2 experts a token, expected 1 .*Give n_expert_used=2"),
        ({"byte_order": "big"}, "another kind of machine saved it, found big endian"),
    ],
)
def test_what_cannot_be_set_here_has_its_sentence_too(
    tiny_path: Path, book: Path, talk: Conversation, entries: dict[str, object], problem: str
) -> None:
    book.write_bytes(with_frame(book.read_bytes(), b"HEAD", changed(**entries)))
    with opened(tiny_path) as model, pytest.raises(SessionError, match=problem):
        model.load_session(book)
    assert Conversation.load(book) == talk


def test_a_state_that_llama_cpp_refuses_is_one_error(
    tiny_path: Path, book: Path, talk: Conversation
) -> None:
    """As where "auto" turns flash attention off on another machine."""
    with opened(tiny_path, flash_attention="off") as model:
        model.chat(talk, **ONE)
        model.save_session(book, talk)
    data = with_frame(book.read_bytes(), b"HEAD", changed(flash_attention="on"))
    book.write_bytes(data)
    with opened(tiny_path) as model:
        with pytest.raises(SessionError, match="does not take the session's state"):
            model.load_session(book)
        assert model.chat(talk, **ONE).reused_tokens == 0


def test_a_closed_model_saves_and_loads_nothing(
    tiny_path: Path, book: Path, talk: Conversation
) -> None:
    model = opened(tiny_path)
    model.generate("x", **ONE)
    model.close()
    before = book.read_bytes()
    for act in (lambda: model.load_session(book), lambda: model.save_session(book)):
        with pytest.raises(EngineError, match="the model was closed"):
            act()  # type: ignore[no-untyped-call]
    assert book.read_bytes() == before


def test_a_closed_model_that_was_asked_nothing_saves_nothing(tiny_path: Path, book: Path) -> None:
    model = opened(tiny_path)
    model.close()
    with pytest.raises(EngineError, match="the model was closed"):
        model.save_session(book)
    assert not book.exists()


def test_tasks_save_and_load_too(tiny_path: Path, book: Path) -> None:
    async def work() -> tuple[Session, Session, int]:
        async with await AsyncModel.open(tiny_path, n_ctx=512, n_parallel=2) as model:
            talk = Conversation().user("Hello")
            talk = talk.assistant(await model.chat(talk, **ONE))
            saved = await model.save_session(book, talk)
        async with await AsyncModel.open(tiny_path, n_ctx=512) as model:
            loaded = await model.load_session(book)
            answer = await model.chat(loaded.conversation.user("More"), **ONE)
        return saved, loaded, answer.reused_tokens

    saved, loaded, reused = asyncio.run(work())
    assert saved.tokens == loaded.tokens
    assert reused > 10


# --- on text that the model knows

FACTS = (
    "Remember: the code of the old lighthouse is 48213.",
    "What is 47 + 38?",
    "How many experts does Scout have?",
    "Gracias",
)


@pytest.fixture(scope="module")
def demo(make_gguf: MakeGGUF) -> Path:
    return make_gguf(Path(__file__).parents[1] / "demo" / "Llama-4-Tiny", "int4")


def divergence(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """The Kullback-Leibler divergence of what two rows of logits choose."""
    logs = []
    for row in (one, other):
        shifted = row.astype(np.float64) - row.max()
        logs.append(shifted - np.log(np.exp(shifted).sum()))
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum())


def one_round(
    model: Model, tokens: list[int], question: list[int]
) -> tuple[list[npt.NDArray[np.float32]], str]:
    """Logits after tokens decoded one by one, a greedy answer, and a rewind to where it began."""
    model.engine.prefill([*tokens, question[0]])
    rows = [model.engine.last_logits()]
    for token in question[1:]:
        model.engine.append(token)
        rows.append(model.engine.last_logits())
    answer = model.generate(tokens + question, max_tokens=20, temperature=0.0)
    model.engine.prefill(tokens)
    return rows, answer.text


@pytest.mark.heavy
@pytest.mark.parametrize("count", [4000, CHUNK - 1, CHUNK + 1, CHUNK + 2000, 2 * CHUNK + 1])
def test_what_the_demo_model_knows_goes_on_as_in_one_run(
    demo: Path, book: Path, count: int
) -> None:
    """KL of at most 1e-5 at each token and the same text, in three rounds with a rewind in each."""
    with opened(demo, count + 400) as model:
        turn = Conversation()
        for fact in FACTS:
            turn = turn.user(fact).assistant("I will remember that.")
        ids = model.chat_prompt(turn).token_ids
        tokens = (ids * (count // len(ids) + 1))[:count]
        question = model.chat_prompt("Which code does the old lighthouse have?").token_ids[1:]
        model.generate(tokens, **ONE)
        model.save_session(book)
        live = [one_round(model, tokens, question) for _ in range(3)]
    for rows, text in live:
        with opened(demo, count + 400) as model:
            model.load_session(book)
            again, said = one_round(model, tokens, question)
            model.save_session(book, None)
        assert said == text
        assert max(map(divergence, rows, again)) <= 1e-5  # it is 0 on this CPU
