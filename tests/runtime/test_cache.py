"""What was read is not read again: by sequences that go back, and by those that lost their place.

Answers are compared with those of a context that reads everything from its beginning.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llama4_edge.architecture import ATTENTION_CHUNK as CHUNK
from llama4_edge.errors import SettingError
from llama4_edge.runtime.cache import WORTH_KEEPING, Cache
from llama4_edge.runtime.choosing import Chooser
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.main_memory import usual_cache
from llama4_edge.runtime.request import Request
from llama4_edge.runtime.sequence import CachedSequence
from llama4_edge.runtime.settings import EngineSettings
from tests.asking import ask, ended, random_tokens, resident_bytes

SMALL = EngineSettings(
    n_ctx=1024, n_batch=128, n_ubatch=64, n_outputs=16, n_threads=1, cache_ram=64 << 20
)
LONG = replace(SMALL, n_ctx=18 * 1024, n_batch=2048, n_ubatch=512, n_outputs=1)

# As in test_engine: what other batches, so another order of sums and f16 in the cache, may change.
CLOSE = 0.01

Logits = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request gets ``first``, the logits that its first token was chosen from."""
    choose = Chooser._choose_one

    def noting(self: Chooser, request: Any) -> bool:
        if not hasattr(request, "first"):
            request.first = np.array(request.sequence.last_logits())
        return choose(self, request)

    monkeypatch.setattr(Chooser, "_choose_one", noting)


note_reading = Cache.note_reading


@pytest.fixture(autouse=True)
def copying_is_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading counts as endless: a copy that the system interrupted is no reason to read again."""
    monkeypatch.setattr(Cache, "note_reading", lambda *_: None)


def asked(engine: Engine, prompt: Sequence[int], count: int = 1) -> Any:
    """A request that has ended."""
    return ended(engine, ask(engine, prompt, count))


def distance(one: Logits, other: Logits) -> float:
    return float(np.abs(one - other).max())


# --- going back


WHOLE = random_tokens(2 * CHUNK + 300)
# (Every pass ends in a piece of 64 tokens or more, for which ggml on the CPU sums in f32.)
BRANCHES = {
    count: random_tokens(100, seed=count)
    for count in (
        5000,
        CHUNK - 1,
        CHUNK,
        CHUNK + 1,
        2 * CHUNK - 1,
        2 * CHUNK,
        2 * CHUNK + 1,
        2 * CHUNK + 200,
    )
}


@pytest.fixture(scope="module")
def fresh(tiny_path: Path) -> dict[int, Logits]:
    """The logits after each branch, of one pass that branches off in a sequence of its own."""
    result = {}
    with Engine(tiny_path, replace(LONG, n_parallel=2)) as engine:
        trunk, branch = engine.scheduler._sequences
        for count, rest in sorted(BRANCHES.items()):

            def work(count: int = count, rest: list[int] = rest) -> Logits:
                trunk.extend(WHOLE[len(trunk.tokens) : count])
                branch.copy(trunk)
                branch.extend(rest)
                return np.array(branch.last_logits())

            result[count] = engine._handles.thread.call(work)
    return result


@pytest.fixture(scope="module")
def long_state(tiny_path: Path) -> Any:
    with Engine(tiny_path, LONG) as engine:
        asked(engine, WHOLE)
        return engine.state_of(WHOLE)


def go_back(engine: Engine, fresh: dict[int, Logits], back: dict[int, int]) -> None:
    """Branch off at these positions, one after the other, where so much is held of each."""
    for count, kept in back.items():
        assert engine.prefill([*WHOLE[:count], *BRANCHES[count]]) == kept
        assert distance(engine.last_logits(), fresh[count]) < CLOSE


@pytest.mark.heavy
def test_a_sequence_goes_back_as_if_it_had_read_no_further(
    tiny_path: Path, fresh: dict[int, Logits]
) -> None:
    with Engine(tiny_path, LONG) as engine:
        engine.prefill(WHOLE)
        # Within the last chunk all is there; else the position's chunk is read from its beginning.
        within = (2 * CHUNK + 200, 2 * CHUNK + 1, 2 * CHUNK)
        go_back(engine, fresh, {count: count for count in within} | {2 * CHUNK - 1: CHUNK})


def test_a_sequence_goes_back_several_chunks(
    tiny_path: Path, fresh: dict[int, Logits], long_state: Any
) -> None:
    with Engine(tiny_path, replace(LONG, cache_ram=0)) as engine:
        engine.keep_state(long_state)
        go_back(engine, fresh, {CHUNK + 1: CHUNK, CHUNK: CHUNK, CHUNK - 1: 0, 5000: 0})


def test_with_checkpoints_nothing_is_read_again(tiny_path: Path, fresh: dict[int, Logits]) -> None:
    with Engine(tiny_path, LONG) as engine:
        asked(engine, WHOLE)
        (sequence,) = engine.scheduler._sequences
        assert sequence.ends == [CHUNK, 2 * CHUNK]
        for count in sorted(BRANCHES, reverse=True):
            request = asked(engine, [*WHOLE[:count], *BRANCHES[count]])
            assert request.reused_tokens == count
            assert distance(request.first, fresh[count]) < CLOSE
            assert sequence.ends == [end for end in (CHUNK, 2 * CHUNK) if end < count + 100]


@pytest.mark.heavy
def test_a_branch_is_left_and_taken_up_again_across_chunks(
    tiny_path: Path, fresh: dict[int, Logits]
) -> None:
    with Engine(tiny_path, LONG) as engine:
        asked(engine, WHOLE)
        branch = [*WHOLE[:5000], *BRANCHES[5000]]
        assert asked(engine, branch).reused_tokens == 5000
        back = asked(engine, [*WHOLE[: 2 * CHUNK + 200], *BRANCHES[2 * CHUNK + 200]])
        assert back.reused_tokens == 2 * CHUNK + 200
        assert distance(back.first, fresh[2 * CHUNK + 200]) < CLOSE
        again = asked(engine, branch)
        assert again.reused_tokens == 5000
        assert distance(again.first, fresh[5000]) < CLOSE


def test_another_sequence_branches_off_from_one_that_is_busy(
    tiny_path: Path, fresh: dict[int, Logits], long_state: Any
) -> None:
    with Engine(tiny_path, replace(LONG, n_parallel=2, n_batch=512)) as engine:
        engine.keep_state(long_state)
        busy = ask(engine, [*WHOLE, 5], 2000, paced=True)  # so nobody reads it to its end
        engine.scheduler.wait(busy, lambda: busy.n_chosen > 0)
        for count in (5000, CHUNK, 2 * CHUNK - 1, 2 * CHUNK + 200):
            beside = asked(engine, [*WHOLE[:count], *BRANCHES[count]])
            assert not busy.ended
            assert beside.reused_tokens == count
            assert distance(beside.first, fresh[count]) < CLOSE
        engine.scheduler.cancel(busy)


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_state_is_gone_back_in_after_it_went_to_another_engine(
    tiny_path: Path, fresh: dict[int, Logits], long_state: Any, checkpoints: bool
) -> None:
    state = long_state if checkpoints else replace(long_state, checkpoints=())
    with Engine(tiny_path, replace(LONG, n_parallel=2, n_batch=512)) as engine:
        for count in (CHUNK + 1, CHUNK, 2 * CHUNK, 2 * CHUNK + 1):
            engine.clear()
            engine.keep_state(state)
            request = asked(engine, [*WHOLE[:count], *BRANCHES[count]])
            kept = count if checkpoints or count > 2 * CHUNK else count // CHUNK * CHUNK
            assert request.reused_tokens == kept
            assert distance(request.first, fresh[count]) < CLOSE


@pytest.mark.parametrize("begin", [CHUNK - 200, CHUNK, CHUNK + 300])
def test_an_abort_where_a_chunk_begins_loses_nothing_but_its_ubatch(
    tiny_path: Path, begin: int, long_state: Any
) -> None:
    rest = random_tokens(700, seed=7)
    with Engine(tiny_path, LONG) as engine:
        engine.keep_state(long_state)
        (sequence,) = engine.scheduler._sequences
        thread = engine._handles.thread

        def aborted() -> tuple[int, int]:
            sequence.keep(begin)
            thread.abort_graph()
            sequence.begin(rest)  # as decode does
            batch = engine._handles.batch
            batch.clear()
            batch.add(rest, 0, begin, 1)
            status = engine._handles.llama.llama_decode(engine._handles.context, batch.native)
            thread.rearm()
            sequence.settle()
            return int(status), len(sequence.tokens)

        assert thread.call(aborted) == (2, begin)
        thread.call(lambda: sequence.extend(rest))
        expected = engine.last_logits()
        engine.clear()
        engine.prefill([*WHOLE[:begin], *rest])
        assert distance(engine.last_logits(), expected) < CLOSE


# --- taking a place


@pytest.fixture
def engine(tiny_path: Path) -> Iterator[Engine]:
    with Engine(tiny_path, SMALL) as loaded:
        yield loaded


class Talk:
    """A conversation: each prompt is all that was said, and something new."""

    def __init__(self, engine: Engine, seed: int, beginning: Sequence[int] = ()) -> None:
        self._engine, self._seed = engine, seed
        self.text = list(beginning)
        self.n_held = len(self.text)
        self.n_turns = 0

    def turn(self, n_new: int = 100, n_answer: int = 11) -> Any:
        self.n_turns += 1
        self.text += random_tokens(n_new, seed=1000 * self._seed + self.n_turns)
        request = asked(self._engine, self.text, n_answer)
        self.text, self.n_held = request.text, len(request.text) - 1
        return request


def test_a_second_conversation_does_not_cost_the_first_its_reading(engine: Engine) -> None:
    talks = [Talk(engine, seed) for seed in range(4)]
    for talk in talks:
        assert talk.turn().reused_tokens == 0
    for _ in range(3):
        for talk in talks:
            n_held = talk.n_held
            assert talk.turn().reused_tokens == n_held


def test_answers_from_kept_states_are_those_of_a_fresh_pass(tiny_path: Path) -> None:
    # (Flash attention on the CPU sums in f16 where fewer than 64 tokens are read at a time.)
    settings = replace(SMALL, flash_attention="off")
    with Engine(tiny_path, settings) as engine, Engine(tiny_path, settings) as other:
        talks = [Talk(engine, seed) for seed in range(3)]
        for _ in range(4):
            for talk in talks:
                request = talk.turn()
                other.clear()
                other.prefill(request.text[: request.n_prompt])
                assert distance(other.last_logits(), request.first) < CLOSE


def test_a_state_goes_on_bit_for_bit_as_the_sequence_would(engine: Engine) -> None:
    prompt, rest = random_tokens(300), random_tokens(80, seed=1)
    first = asked(engine, prompt, 5)
    live = asked(engine, [*first.text, *rest])
    engine.clear()
    first = asked(engine, prompt, 5)
    asked(engine, random_tokens(200, seed=2))
    back = asked(engine, [*first.text, *rest])
    assert back.reused_tokens == live.reused_tokens == 304
    np.testing.assert_array_equal(back.first, live.first)


@pytest.mark.parametrize("n_parallel", [1, 2, 4])
@pytest.mark.parametrize("n_document", [200, 600])
def test_twenty_questions_about_one_document_read_it_once(
    tiny_path: Path, n_parallel: int, n_document: int
) -> None:
    document = random_tokens(n_document, seed=99)
    with Engine(tiny_path, replace(SMALL, n_parallel=n_parallel)) as engine:
        asked(engine, document)
        for number in range(20):
            question = random_tokens(30, seed=number)
            request = asked(engine, [*document, *question], 20)
            assert request.reused_tokens == n_document
            if number % 5 == 4:  # something else comes between
                asked(engine, random_tokens(150, seed=500 + number), 5)


@pytest.mark.parametrize("n_parallel", [2, 4])
def test_questions_asked_at_the_same_time_read_their_document_once(
    tiny_path: Path, n_parallel: int
) -> None:
    document = random_tokens(500, seed=99)
    with Engine(tiny_path, replace(SMALL, n_parallel=n_parallel)) as engine:
        asked(engine, document)
        asked(engine, random_tokens(200, seed=1))

        def question(number: int) -> int:
            request = asked(engine, [*document, *random_tokens(30, seed=number)], 20)
            return int(request.reused_tokens)

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(question, range(20))) == [500] * 20


def test_conversations_with_one_system_prompt_keep_what_is_their_own(engine: Engine) -> None:
    system = random_tokens(200, seed=98)
    talks = [Talk(engine, seed, system) for seed in range(3)]
    for number, talk in enumerate(talks):
        assert talk.turn().reused_tokens == (200 if number else 0)
    for _ in range(2):
        for talk in talks:
            n_held = talk.n_held
            assert talk.turn().reused_tokens == n_held


def saved(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each state has that is saved from now on."""
    counts: list[int] = []
    state = CachedSequence.state

    def counting(self: CachedSequence) -> Any:
        counts.append(len(self.tokens))
        return state(self)

    monkeypatch.setattr(CachedSequence, "state", counting)
    return counts


def test_nothing_is_copied_while_places_are_free_or_what_is_there_goes_on(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(tiny_path, replace(SMALL, n_parallel=3)) as engine:
        counts = saved(engine, monkeypatch)
        talks = [Talk(engine, seed) for seed in range(3)]
        for _ in range(3):
            for talk in talks:
                talk.turn()
        asked(engine, talks[0].text[:-5], 30)  # another answer to the same
        asked(engine, [*talks[0].text[:-5], 1, 2, 3], 5)
        assert counts == []
        Talk(engine, 7).turn()
        assert counts == [len(talks[1].text) - 1]


def test_what_is_short_or_held_elsewhere_is_not_kept(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(tiny_path, replace(SMALL, n_parallel=2)) as engine:
        counts = saved(engine, monkeypatch)
        for seed in range(4):
            asked(engine, random_tokens(10, seed=seed), 5)
        prompt = random_tokens(300, seed=9)
        first = ask(engine, prompt, 5)
        for request in (first, ask(engine, prompt, 5, after=first)):
            ended(engine, request)
        asked(engine, random_tokens(100, seed=10), 5)
        assert counts == []
        asked(engine, random_tokens(100, seed=11), 5)
        assert counts == [304]
        assert asked(engine, prompt).reused_tokens == 299


def test_requests_take_places_side_by_side(tiny_path: Path) -> None:
    # llama.cpp decodes neighbours in one ubatch, and others in ubatches of their own.
    def begin(engine: Engine, seeds: range) -> list[Request]:
        """Requests that answer until they are cancelled."""
        requests = [ask(engine, random_tokens(100, seed), None, paced=True) for seed in seeds]
        for one in requests:
            engine.scheduler.wait(one, lambda one=one: one.n_chosen or one.ended)  # type: ignore[misc]
        return requests

    def end(engine: Engine, request: Request) -> None:
        engine.scheduler.cancel(request)
        engine.scheduler.wait(request, lambda: request.ended)

    with Engine(tiny_path, replace(SMALL, n_parallel=6)) as engine:
        begun = begin(engine, range(6))
        # The places that were used least lately have gaps between them.
        for number in (0, 3, 1, 4, 2, 5):
            end(engine, begun[number])
        running = begin(engine, range(10, 13))
        numbers = sorted(one.sequence.number for one in running if one.sequence is not None)
        assert numbers == list(range(numbers[0], numbers[0] + 3))
        for request in running:
            end(engine, request)
        # What they took the places of is still there.
        for seed in range(6):
            assert asked(engine, random_tokens(100, seed)).reused_tokens >= 99


def test_a_state_that_is_the_beginning_of_another_is_dropped(engine: Engine) -> None:
    talk, other = Talk(engine, 1), Talk(engine, 2)
    for _ in range(4):
        talk.turn()
        other.turn()
        assert [len(kept.tokens) for kept in engine.cache._kept] == [talk.n_held]


def test_the_least_recently_used_leaves_first_and_the_budget_holds(tiny_path: Path) -> None:
    with Engine(tiny_path, SMALL) as engine:
        asked(engine, random_tokens(200, seed=0), 5)
        (sequence,) = engine.scheduler._sequences
        one = engine._handles.thread.call(sequence.nbytes)
    with Engine(tiny_path, replace(SMALL, cache_ram=2 * one + one // 2)) as engine:
        prompts = [random_tokens(200, seed=seed) for seed in range(4)]
        for prompt in prompts:
            asked(engine, prompt, 5)
            assert engine.cache.nbytes <= engine.cache.budget
        # Held are the last, and kept the two before it.
        for number, n_reused in ((1, 199), (3, 199), (0, 0)):
            assert asked(engine, prompts[number], 5).reused_tokens == n_reused
            assert engine.cache.nbytes <= engine.cache.budget


@pytest.mark.parametrize(("seconds_to_read", "seconds_per_byte"), [(1e-6, 1e-9), (1.0, 1e-3)])
def test_what_is_read_as_soon_as_it_is_copied_is_not_kept(
    engine: Engine, seconds_to_read: float, seconds_per_byte: float
) -> None:
    prompts = [random_tokens(200, seed=seed) for seed in range(2)]
    cache = engine.cache
    asked(engine, prompts[0], 5)
    note_reading(cache, WORTH_KEEPING - 1, 0.0)  # too little to tell
    note_reading(cache, 200, seconds_to_read)
    note_reading(cache, 200, 2 * seconds_to_read)  # something else had the processor
    cache._seconds_per_byte = seconds_per_byte
    asked(engine, prompts[1], 5)
    assert cache.nbytes == 0
    assert asked(engine, prompts[0], 5).reused_tokens == 0
    cache._seconds_per_byte = seconds_to_read / 1e9
    asked(engine, prompts[1], 5)
    assert cache.nbytes > 0
    assert asked(engine, prompts[0], 5).reused_tokens == 199


def test_without_a_budget_nothing_is_kept(tiny_path: Path) -> None:
    with Engine(tiny_path, replace(SMALL, cache_ram=0)) as engine:
        prompts = [random_tokens(200, seed=seed) for seed in range(2)]
        for prompt in (*prompts, *prompts):
            assert asked(engine, prompt, 5).reused_tokens == 0
        assert engine.cache.nbytes == 0


@pytest.mark.heavy
def test_checkpoints_stay_within_the_budget_and_leave_before_states(
    tiny_path: Path, long_state: Any
) -> None:
    checkpoint = long_state.checkpoints[0].nbytes
    with Engine(tiny_path, replace(LONG, cache_ram=checkpoint + 200_000)) as engine:
        (sequence,) = engine.scheduler._sequences
        asked(engine, random_tokens(150, seed=1))
        asked(engine, WHOLE)
        assert sequence.ends == [2 * CHUNK]
        assert len(engine.cache._kept) == 1
        assert engine.cache.nbytes <= engine.cache.budget
        # Also those that come with a state.
        engine.keep_state(long_state)
        assert sequence.ends == [2 * CHUNK]
        assert engine.cache.nbytes <= engine.cache.budget
    with Engine(tiny_path, replace(LONG, cache_ram=checkpoint - 1)) as engine:
        asked(engine, WHOLE[: CHUNK + 10])
        assert engine.cache.nbytes == 0


def test_a_state_that_llama_cpp_refuses_is_read_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [random_tokens(200, seed=seed) for seed in range(2)]
    for prompt in prompts:
        asked(engine, prompt, 5)
    with monkeypatch.context() as patch:
        patch.setattr(engine._handles.llama, "llama_state_seq_set_data_ext", lambda *_: 0)
        request = asked(engine, prompts[0], 5)
    assert request.reused_tokens == 0
    assert "it is read again" in caplog.text
    assert asked(engine, prompts[1], 5).reused_tokens == 199


def test_a_state_that_cannot_be_copied_is_lost_and_nothing_else(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [random_tokens(200, seed=seed) for seed in range(2)]
    asked(engine, prompts[0], 5)
    with monkeypatch.context() as patch:
        patch.setattr(engine._handles.llama, "llama_state_seq_get_data_ext", lambda *_: 0)
        assert asked(engine, prompts[1], 5).n_chosen == 5
    assert "204 tokens that were read are not kept" in caplog.text
    assert engine.cache.nbytes == 0
    assert asked(engine, prompts[1], 5).reused_tokens == 199


def test_what_a_request_had_read_when_it_was_cancelled_is_gone_on_from(engine: Engine) -> None:
    prompt = random_tokens(900, seed=5)
    request = ask(engine, prompt, 100)
    engine.scheduler.wait(request, lambda: request.n_chosen > 0)
    engine.scheduler.cancel(request)
    ended(engine, request)
    asked(engine, random_tokens(200, seed=6))
    assert asked(engine, prompt).reused_tokens == 899


# --- many


@pytest.mark.parametrize("n_parallel", [1, 2, 4])
def test_conversations_of_many_threads_keep_their_reading_through_cancels_and_errors(
    tiny_path: Path, n_parallel: int
) -> None:
    settings = replace(SMALL, n_parallel=n_parallel, flash_attention="off")
    whole: list[Any] = []
    with Engine(tiny_path, settings) as engine:

        def fault(_token: int, _is_end: bool) -> bool:
            raise ValueError

        def talk(number: int) -> None:
            chance = random.Random(number)
            mine = Talk(engine, number)
            for _ in range(5):
                n_held = mine.n_held
                request = mine.turn(n_new=chance.randrange(20, 150), n_answer=20)
                assert request.reused_tokens >= n_held - WORTH_KEEPING
                whole.append(request)
                lost = ask(engine, random_tokens(200, seed=chance.randrange(10**6)), 500)
                if chance.random() < 0.5:
                    engine.scheduler.cancel(lost)
                    ended(engine, lost)
                    continue
                engine.scheduler.cancel(lost)
                with pytest.raises(ValueError):
                    ended(engine, ask(engine, [*mine.text, 5], 5, accept=fault))

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(talk, range(6)))
        assert not engine.scheduler._running
        assert not engine.in_thread(lambda: list(engine._handles._samplers))
        assert engine.cache.nbytes <= engine.cache.budget
    with Engine(tiny_path, replace(settings, cache_ram=0, n_parallel=1)) as alone:
        for request in whole:
            alone.clear()
            alone.prefill(request.text[: request.n_prompt])
            assert distance(alone.last_logits(), request.first) < CLOSE


def test_two_hundred_switches_of_conversations_take_no_more_memory(tiny_path: Path) -> None:
    budget = 2 << 20
    with Engine(tiny_path, replace(SMALL, cache_ram=budget)) as engine:
        prompts = [random_tokens(300, seed=seed) for seed in range(20)]
        for prompt in prompts:
            asked(engine, prompt, 2)
        before = resident_bytes()
        for number in range(200):
            prompt = prompts[number % 20 if number < 40 else number % 6]
            asked(engine, prompt, 2)
            assert engine.cache.nbytes <= budget
        # Each of the states has 0.15 MiB.
        assert resident_bytes() - before < 5 << 20


# --- settings


@pytest.mark.parametrize("value", [-1, 1.5, "8 GiB", True])
def test_a_budget_is_a_number_of_bytes(value: Any) -> None:
    with pytest.raises(SettingError, match="cache_ram is outside its range"):
        EngineSettings(cache_ram=value)


def test_the_usual_budget_is_llama_cpps_or_a_quarter_of_what_is_left() -> None:
    assert usual_cache(64 << 30) == 8 << 30
    assert usual_cache(8 << 30) == 2 << 30
    assert usual_cache(-1) == 0
