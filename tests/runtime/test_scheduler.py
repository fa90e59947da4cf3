"""Many requests at once: who is decoded when, how each ends, and that none disturbs another."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama4_edge.architecture import ATTENTION_CHUNK as CHUNK
from llama4_edge.errors import ContextFullError, EngineError, SettingError
from llama4_edge.runtime import scheduler as scheduler_module
from llama4_edge.runtime import sequence as sequence_module
from llama4_edge.runtime.bindings.sampler import Sampler
from llama4_edge.runtime.choosing import Chooser
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.handles import Handles
from llama4_edge.runtime.request import RUN_AHEAD, Request
from llama4_edge.runtime.sequence import Piece
from llama4_edge.runtime.settings import EngineSettings
from tests.asking import (
    WILD,
    answer,
    ask,
    ended,
    held,
    paused,
    random_tokens,
    resident_bytes,
    until,
)
from tests.gguf_maker import tiny_model

# What is kept in main memory is in `test_cache`: here, no test finds what another one has read.
FOUR = EngineSettings(
    n_ctx=1024, n_batch=128, n_ubatch=64, n_outputs=16, n_threads=1, n_parallel=4, cache_ram=0
)
# What other batches, so another order of sums and f16 in the cache, may change. Flash attention on
# the CPU sums in f16 where fewer than 64 tokens are decoded: of 3,300 rows at up to 330 tokens, by
# whether others were read in the same batch, one in 70 was off by more than 0.01, and none by more
# than 0.02. Another prompt is off by 1.
CLOSE = 0.05

# At 6,000 tokens it is 0.24. Without flash attention 0.0008 at most was seen, at any length up to
# 20,000.
VERY_CLOSE = 0.003


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> Iterator[Engine]:
    with Engine(tiny_path, FOUR) as loaded:
        yield loaded


def samplers(engine: Engine) -> list[Sampler]:
    """Those that are not freed, once the engine's thread has done what it was asked before."""
    return engine.in_thread(lambda: list(engine._handles._samplers))


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request gets ``rows``, the logits that its tokens were chosen from."""
    choose = Chooser._choose_one

    def noting(self: Chooser, request: Any) -> bool:
        row = np.array(request.sequence.last_logits())
        request.rows = [*getattr(request, "rows", []), row]
        return choose(self, request)

    monkeypatch.setattr(Chooser, "_choose_one", noting)


def assert_same(alone: Any, beside: Any, close: float = CLOSE) -> None:
    """Every token was chosen from the same logits, up to where rounding chose another one."""
    assert alone.text[: alone.n_prompt] == beside.text[: beside.n_prompt]
    pairs = zip(alone.text[alone.n_prompt :], beside.text[beside.n_prompt :], strict=False)
    for index, (token, other) in enumerate(pairs):
        assert np.abs(alone.rows[index] - beside.rows[index]).max() < close
        if token != other:
            return
    assert len(alone.text) == len(beside.text)


@dataclass
class Batches:
    """The pieces of each batch that was decoded, as sequence numbers and numbers of tokens."""

    all: list[dict[int, int]]
    before: Callable[[Sequence[Piece]], object] = lambda _pieces: None


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Batches:
    seen = Batches([])

    def decode(handles: Handles, pieces: Sequence[Piece]) -> bool:
        seen.all.append({piece.sequence.number: len(piece.tokens) for piece in pieces})
        seen.before(pieces)
        return sequence_module.decode(handles, pieces)

    monkeypatch.setattr(scheduler_module, "decode", decode)
    return seen


class Held:
    """Called with a token or a batch: lets the first `count` pass and holds the engine at the next.

    So whatever a test does then comes before what follows, however late the test gets its turn.
    """

    def __init__(self, count: int = 0) -> None:
        self._left = count
        self._there, self._go_on = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> bool:
        self._left -= 1
        if self._left == -1:
            self._there.set()
            assert self._go_on.wait(600)
        return True

    def __enter__(self) -> None:
        """When the engine is held."""
        assert self._there.wait(600)

    def __exit__(self, *_: object) -> None:
        self._go_on.set()


# --- alone and beside others


def test_answers_beside_others_are_those_alone(engine: Engine) -> None:
    prompts = [random_tokens(count, seed=count) for count in (1, 2, 40, 63, 64, 65, 130, 300)]
    alone: list[Any] = [ended(engine, ask(engine, prompt, 30)) for prompt in prompts]
    firsts = [one.rows[0] for one in alone]
    assert all(np.abs(one - two).max() > 1.0 for one, two in itertools.combinations(firsts, 2))
    for _ in range(3):
        requests = [ask(engine, prompt, 30) for prompt in prompts]
        for request, expected in zip(requests, alone, strict=True):
            assert_same(expected, ended(engine, request))


def test_the_same_seed_gives_the_same_text_beside_others(engine: Engine) -> None:
    prompt = random_tokens(20)
    alone = ended(engine, ask(engine, prompt, 30))
    with paused(engine):
        together = [ask(engine, prompt, 30, replace(WILD, seed=seed)) for seed in (3, 4, 5)]
    first, *others = [ended(engine, one) for one in together]
    assert_same(alone, first)
    # Sampling forgives small differences of logits, but for a draw just at the edge of a token.
    assert first.text[:30] == alone.text[:30]
    assert all(one.text[:30] != first.text[:30] for one in others)


# --- fairness


def test_a_long_prompt_delays_nobody_by_more_than_a_ubatch(
    engine: Engine, batches: Batches
) -> None:
    sixth = Held(5)
    answering = ask(engine, random_tokens(10), 400, accept=sixth)
    with sixth:
        batches.all.clear()
        long = ask(engine, random_tokens(1000, seed=1), 1)
    answer(engine, long)
    reading = [batch for batch in batches.all if sum(batch.values()) > 4]
    assert sum(batch[max(batch, key=batch.__getitem__)] for batch in reading) >= 990
    assert all(min(batch.values()) == 1 and len(batch) == 2 for batch in reading)
    assert all(sum(batch.values()) <= FOUR.n_ubatch for batch in reading)
    answer(engine, answering)


def test_a_short_prompt_is_read_beside_a_long_one(engine: Engine, batches: Batches) -> None:
    batches.before = second = Held(1)
    ends: list[str] = []

    def ending(name: str) -> Callable[[int, bool], bool]:
        return lambda _token, _is_end: not ends.append(name)  # type: ignore[func-returns-value]

    long = ask(engine, random_tokens(1000, seed=2), 1, accept=ending("long"))
    with second:
        short = ask(engine, random_tokens(20, seed=3), 1, accept=ending("short"))
    answer(engine, short)
    answer(engine, long)
    assert ends == ["short", "long"]


def test_prompts_share_a_batch_equally_and_leave_nothing_of_it_empty(
    engine: Engine, batches: Batches
) -> None:
    with paused(engine):
        requests = [ask(engine, random_tokens(n, seed=n), 1) for n in (10, 300, 301, 302)]
    for request in requests:
        answer(engine, request)
    assert sorted(batches.all[0].values()) == [10, 18, 18, 18]


def test_requests_begin_in_the_order_in_which_they_came(engine: Engine) -> None:
    order: list[int] = []

    def noting(number: int) -> Callable[[int, bool], bool]:
        def accept(_token: int, _is_end: bool) -> bool:
            if number not in order:
                order.append(number)
            return True

        return accept

    with paused(engine):
        requests = [
            ask(engine, random_tokens(30, seed=number), 5, accept=noting(number))
            for number in range(12)
        ]
    for request in requests:
        answer(engine, request)
    # Those that are answered at the same time get their first tokens in one batch.
    assert [set(order[first : first + 4]) for first in (0, 4, 8)] == [
        set(range(first, first + 4)) for first in (0, 4, 8)
    ]


# --- how requests end


def test_a_cancelled_prompt_ends_within_its_batch_and_disturbs_nobody(
    engine: Engine, batches: Batches
) -> None:
    prompt = random_tokens(10, seed=5)
    alone = ended(engine, ask(engine, prompt, 300))
    fourth = Held(3)
    other = ask(engine, prompt, 300, accept=fourth)
    with fourth:
        pass
    for seed in range(6):
        # In the first batch of its prompt, or in another one.
        batches.before = reading = Held(seed)
        long = ask(engine, random_tokens(1000, seed=seed), 1)
        with reading:
            engine.scheduler.cancel(long)
            before = len(batches.all)
        until(lambda long=long: long.ended)  # type: ignore[misc]
        assert sum(max(batch.values()) > 1 for batch in batches.all[before:]) <= 1
        assert (long.outcome, long.error) == (None, None)
    assert_same(alone, ended(engine, other))


def test_an_aborted_batch_is_decoded_again_without_loss(engine: Engine, batches: Batches) -> None:
    """Whatever llama.cpp held of it: nothing, a token of each, or all of it."""
    prompts = [random_tokens(count, seed=count) for count in (5, 200, 90)]
    alone = [ended(engine, ask(engine, prompt, 20)) for prompt in prompts]
    numbers = itertools.count()
    timers: list[threading.Timer] = []

    def abort(_pieces: Sequence[Piece]) -> None:
        if next(numbers) % 3 == 0:
            timers.append(threading.Timer(0.0003 * (next(numbers) % 7), thread.abort_graph))
            timers[-1].start()

    thread = engine._handles.thread
    batches.before = abort
    requests = [ask(engine, prompt, 20) for prompt in prompts]
    for request in requests:
        ended(engine, request)
    for timer in timers:  # none aborts a batch of another test
        timer.join()
    for request, expected in zip(requests, alone, strict=True):
        assert_same(expected, request)


def test_an_answer_is_cancelled_within_one_token(engine: Engine) -> None:
    fourth = Held(3)
    request = ask(engine, random_tokens(10), None, accept=fourth)
    with fourth:
        engine.scheduler.cancel(request)
        chosen = request.n_chosen
    answer(engine, request)
    assert request.n_chosen <= chosen + 2
    assert request.outcome is None


def test_a_request_that_waits_is_cancelled_before_it_begins(engine: Engine) -> None:
    tenth = Held(9)
    running = [ask(engine, random_tokens(5, seed=seed), 300, accept=tenth) for seed in range(4)]
    with tenth:
        waiting = ask(engine, random_tokens(5), 5)
        engine.scheduler.cancel(waiting)
    assert answer(engine, waiting) == []
    for request in running:
        assert len(answer(engine, request)) == 300


def test_an_answer_ends_where_the_context_is_full(engine: Engine) -> None:
    request = ask(engine, random_tokens(1000), None)
    other = ask(engine, random_tokens(10), 50)
    assert len(answer(engine, request)) == 25  # the last token needs no place
    assert request.outcome == "length"
    assert len(answer(engine, other)) == 50


def test_what_does_not_fit_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(ContextFullError, match="found 1025 tokens, expected at most 1024"):
        ask(engine, random_tokens(1025))
    with pytest.raises(EngineError, match="no tokens to decode"):
        ask(engine, [])


def test_an_error_of_llama_cpp_ends_the_request_it_concerns_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [random_tokens(30, seed=seed) for seed in range(4)]
    alone = [ended(engine, ask(engine, prompt, 20)) for prompt in prompts]
    llama = engine._handles.llama
    decode = llama.llama_decode
    doomed = next(token for token in range(256) if not any(token in one.text for one in alone))

    def failing(context: Any, native: Any) -> int:
        tokens = [native.token[index] for index in range(native.n_tokens)]
        return -3 if doomed in tokens else decode(context, native)

    with monkeypatch.context() as patch:
        patch.setattr(llama, "llama_decode", failing)
        with paused(engine):
            requests = [ask(engine, prompt, 20) for prompt in prompts[:3]]
            wrong = ask(engine, [doomed, 1], 20)
        with pytest.raises(EngineError, match=r"cannot decode \(status -3\)"):
            answer(engine, wrong)
        for request in requests:
            ended(engine, request)
    for expected, request in zip(alone, requests, strict=False):
        assert_same(expected, request)
    assert_same(alone[3], ended(engine, ask(engine, prompts[3], 20)))


def test_an_error_in_what_takes_the_tokens_ends_its_request_alone(engine: Engine) -> None:
    def fail(_token: int, _is_end: bool) -> bool:
        raise RuntimeError("no text")

    other = ask(engine, random_tokens(10), 50)
    wrong = ask(engine, random_tokens(10, seed=1), 50, accept=fail)
    with pytest.raises(RuntimeError, match="no text"):
        answer(engine, wrong)
    assert len(answer(engine, other)) == 50


def test_logits_that_are_no_numbers_end_requests_with_an_error(tmp_path: Path) -> None:
    model = tiny_model()
    model.tensors["output_norm.weight"][:] = np.nan
    with Engine(model.write(tmp_path / "nan.gguf"), FOUR) as engine:
        for request in [ask(engine, random_tokens(10, seed=seed)) for seed in range(6)]:
            with pytest.raises(EngineError, match="NaN or infinite"):
                answer(engine, request)


def test_a_fault_of_the_scheduler_lets_nobody_wait_for_ever(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> object:
        raise AssertionError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(engine.scheduler, "_next_batch", fail)
        request = ask(engine, random_tokens(10))
        with pytest.raises(AssertionError, match="a fault"):
            answer(engine, request)
    assert len(answer(engine, ask(engine, random_tokens(10)))) == 10


def test_looking_often_leaves_no_calls_for_others_to_wait_behind(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "_LOST_AFTER", -1.0)
    with paused(engine):
        request = ask(engine, random_tokens(10), 500)
        for _ in range(100):
            engine.scheduler.look()
        seen: list[int] = []
        engine._handles.thread.post(lambda: seen.append(request.n_chosen))
    until(lambda: seen)
    assert seen[0] <= 2
    until(lambda: engine._handles.thread._calls.qsize() <= 1)
    answer(engine, request)


def test_closing_ends_all_requests_with_one_error_each(tiny_path: Path) -> None:
    engine = Engine(tiny_path, FOUR)
    thread = engine._handles.thread

    def until_closing(_token: int, _is_end: bool) -> bool:
        until(lambda: thread._closed)
        return True

    requests = [
        ask(engine, random_tokens(10, seed=seed), 1000, accept=until_closing) for seed in range(6)
    ]
    until(lambda: requests[0].n_chosen)
    engine.close()
    for request in requests:
        with pytest.raises(EngineError, match="the model was closed"):
            answer(engine, request)
        assert request.ended
    with pytest.raises(EngineError, match="the model was closed"):
        ask(engine, [1])


# --- readers


def test_a_request_goes_on_for_a_while_without_its_reader_and_then_waits(engine: Engine) -> None:
    slow = ask(engine, random_tokens(10), 500, paced=True)
    until(lambda: slow.is_paused)
    other = ask(engine, random_tokens(10, seed=1), 200)
    assert len(answer(engine, other)) == 200
    assert slow.n_chosen == RUN_AHEAD
    assert len(answer(engine, slow)) == 500


def test_who_reads_leaves_the_engine_alone_while_it_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look ends the call of C++ that makes several tokens."""
    monkeypatch.setattr(scheduler_module, "_LOST_AFTER", 1e9)
    lookers: list[threading.Thread] = []
    look = engine.scheduler.look

    def noted() -> None:
        lookers.append(threading.current_thread())
        look()

    first = Held()
    request = ask(engine, random_tokens(10), RUN_AHEAD // 2, accept=first, paced=True)
    with first:
        monkeypatch.setattr(engine.scheduler, "look", noted)
    assert len(answer(engine, request)) == RUN_AHEAD // 2
    assert threading.current_thread() not in lookers


def test_what_is_held_up_goes_on_whenever_it_is_read(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of both threads is quicker: nothing but the reader wakes the engine."""
    monkeypatch.setattr(scheduler_module, "_LOST_AFTER", 1e9)
    for seed in range(3):
        request = ask(engine, random_tokens(10, seed=seed), 900, paced=True)
        if seed:
            until(lambda held_up=request: held_up.is_held_up)  # type: ignore[misc]
        assert len(answer(engine, request)) == 900


def test_a_thread_that_waits_gives_up_what_it_does_not_read_if_all_do(engine: Engine) -> None:
    mine = [ask(engine, random_tokens(10, seed=seed), 500, paced=True) for seed in range(4)]
    until(lambda: all(one.is_paused for one in mine))
    assert len(answer(engine, ask(engine, random_tokens(20), 5))) == 5
    with pytest.raises(EngineError, match="ended by a later request to the same model"):
        answer(engine, mine[0])
    assert [len(answer(engine, one)) for one in mine[1:]] == [500] * 3


def test_a_thread_that_has_ended_holds_no_sequence(engine: Engine) -> None:
    def open_streams() -> None:
        requests.extend(
            ask(engine, random_tokens(10, seed=seed), 500, paced=True) for seed in range(4)
        )
        until(lambda: all(one.is_paused for one in requests))

    requests: list[Request] = []
    thread = threading.Thread(target=open_streams)
    thread.start()
    thread.join()
    assert len(answer(engine, ask(engine, random_tokens(20), 5))) == 5
    for one in requests:
        engine.scheduler.cancel(one)


def test_the_engines_own_thread_cannot_wait(engine: Engine) -> None:
    request = ask(engine, random_tokens(10), 2)
    with pytest.raises(EngineError, match="own thread cannot wait"):
        engine._handles.thread.call(lambda: answer(engine, request))
    answer(engine, request)


def test_the_first_sequence_is_not_touched_while_it_answers(engine: Engine) -> None:
    requests = [ask(engine, random_tokens(10, seed=seed), 300, paced=True) for seed in range(4)]
    until(lambda: all(one.n_chosen for one in requests))
    for use in (engine.clear, lambda: engine.prefill([1]), lambda: engine.append(1)):
        with pytest.raises(EngineError, match="answering a request"):
            use()
    assert [len(answer(engine, one)) for one in requests] == [300] * 4


# --- what was read


def test_answers_to_one_prompt_share_its_reading(engine: Engine, batches: Batches) -> None:
    prompt = random_tokens(500, seed=9)
    alone = ended(engine, ask(engine, prompt, 20))
    for sequence in engine.scheduler._sequences:
        engine._handles.thread.call(partial(sequence.keep, 0))
    batches.all.clear()
    requests: list[Request] = []
    for _ in range(6):
        after = requests[-1] if requests else None
        requests.append(ask(engine, prompt, 20, after=after))
    for request in requests:
        assert_same(alone, ended(engine, request))
    assert [one.reused_tokens for one in requests] == [0, 499, 499, 499, 499, 499]
    read = sum(count for batch in batches.all for count in batch.values() if count > 1)
    assert read == 500


def test_a_prompt_that_waits_for_another_is_read_where_that_is_cancelled(
    engine: Engine, batches: Batches
) -> None:
    prompt = random_tokens(900, seed=11)
    batches.before = begun = Held()
    first = ask(engine, prompt, 5)
    second = ask(engine, prompt, 5, after=first)
    with begun:
        assert first.sequence
        engine.scheduler.cancel(first)
    assert len(answer(engine, second)) == 5


def test_a_conversation_takes_up_the_sequence_that_holds_it(engine: Engine) -> None:
    talks = [random_tokens(100, seed=20 + number) for number in range(4)]
    for _ in range(3):
        for number, talk in enumerate(talks):
            request = ask(engine, talk, 10)
            answer(engine, request)
            talks[number] = [*request.text, *random_tokens(15, seed=number)]
    order = [2, 0, 3, 1]
    for number in order:
        request = ask(engine, talks[number], 3)
        answer(engine, request)
        assert request.reused_tokens == len(talks[number]) - 16  # its last token was not decoded


def test_a_new_prompt_takes_the_place_of_what_was_used_least_lately(engine: Engine) -> None:
    prompts = [random_tokens(50, seed=30 + number) for number in range(5)]
    for prompt in prompts[:4]:
        answer(engine, ask(engine, prompt, 3))
    answer(engine, ask(engine, prompts[0], 3))
    answer(engine, ask(engine, prompts[4], 3))  # in the place of the second
    reused = []
    for number in (0, 2, 3, 4):
        request = ask(engine, prompts[number], 3)
        answer(engine, request)
        reused.append(request.reused_tokens)
    assert reused == [49] * 4
    request = ask(engine, prompts[1], 3)
    answer(engine, request)
    assert request.reused_tokens == 0


def test_what_another_sequence_holds_is_copied_and_not_read(engine: Engine) -> None:
    shared = random_tokens(300, seed=40)
    first = ask(engine, [*shared, *random_tokens(400, seed=41)], 400, paced=True)
    until(lambda: first.n_chosen)
    prompt = [*shared, *random_tokens(30, seed=42)]
    beside: Any = ended(engine, ask(engine, prompt, 20))
    assert beside.reused_tokens == 300
    assert not first.ended
    assert np.abs(engine.logits(prompt)[-1] - beside.rows[0]).max() < CLOSE
    answer(engine, first)


@pytest.mark.parametrize("copied", [CHUNK + 100, CHUNK - 100])
def test_a_copy_is_gone_on_with_only_within_the_chunk_of_its_highest_position(
    tiny_path: Path, copied: int
) -> None:
    settings = replace(FOUR, n_ctx=CHUNK + 1280, n_batch=2048, n_ubatch=512, n_parallel=2)
    long = random_tokens(CHUNK + 1100)
    # (Every pass ends in a piece of 64 tokens or more, for which ggml on the CPU sums in f32.)
    prompt = [*long[:copied], *random_tokens(184, seed=1)]
    with Engine(tiny_path, settings) as engine:
        first = ask(engine, long, RUN_AHEAD + 20, paced=True)
        until(lambda: first.n_chosen)
        beside: Any = ended(engine, ask(engine, prompt, 1))
        assert beside.reused_tokens == (copied if copied >= CHUNK else 0)
        assert not first.ended
        answer(engine, first)
    with Engine(tiny_path, replace(settings, n_parallel=1)) as alone:
        alone.prefill(prompt)
        assert np.abs(alone.last_logits() - beside.rows[0]).max() < CLOSE


# --- many


def traffic(engine: Engine, seed: int, seconds: float, longest: int) -> tuple[int, int]:
    """Random requests of eight threads, some of them cancelled; how many ended whole, and not."""
    until_when = time.monotonic() + seconds
    shared = random_tokens(longest // 2, seed=99)
    whole: list[Request] = []
    cancelled: list[Request] = []

    def work(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        # On a busy machine the time is over before much has ended.
        for _ in itertools.takewhile(
            lambda n_done: n_done < 4 or time.monotonic() < until_when, itertools.count()
        ):
            length = int(longest ** chance.random())
            prompt = random_tokens(length, seed=chance.randrange(10**6))
            if chance.random() < 0.3:
                prompt[: length // 2] = shared[: length // 2]
            sampling = replace(WILD, seed=chance.randrange(10**6))
            request = ask(engine, prompt, chance.randrange(1, 40), sampling)
            if chance.random() < 0.2:
                time.sleep(chance.random() * 0.05)
                engine.scheduler.cancel(request)
            ended(engine, request)
            (whole if request.outcome else cancelled).append(request)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    until(lambda: not held(engine))
    settings = replace(engine.settings, n_parallel=1, cache_ram=0)
    with Engine(engine.path, settings) as other:
        for beside in whole:
            prompt = beside.text[: beside.n_prompt]
            other.clear()
            alone = ended(other, ask(other, prompt, beside.n_chosen, beside.sampling))
            assert_same(alone, beside, VERY_CLOSE)
    assert engine.cache.nbytes <= engine.cache.budget
    return len(whole), len(cancelled)


@pytest.mark.parametrize(("n_parallel", "cache_ram"), [(1, 1 << 20), (3, 8 << 20), (8, 0)])
def test_mixed_traffic_loses_nothing_and_mixes_nothing(
    tiny_path: Path, n_parallel: int, cache_ram: int
) -> None:
    settings = replace(
        FOUR, n_parallel=n_parallel, n_ctx=2304, flash_attention="off", cache_ram=cache_ram
    )
    with Engine(tiny_path, settings) as engine:
        whole, _ = traffic(engine, seed=n_parallel, seconds=2.0, longest=1000)
        assert whole > 8
        assert not engine.scheduler._running
        assert not samplers(engine)


@pytest.mark.heavy
def test_minutes_of_mixed_traffic_lose_nothing_and_mix_nothing(tiny_path: Path) -> None:
    settings = EngineSettings(
        n_ctx=20480,
        n_batch=512,
        n_ubatch=256,
        n_threads=1,
        n_parallel=8,
        flash_attention="off",
    )
    with Engine(tiny_path, settings) as engine:
        for seed in range(6):
            whole, cancelled = traffic(engine, seed=100 + seed, seconds=20.0, longest=20_000)
            assert whole > 8 and cancelled > 0
            assert not samplers(engine)


@pytest.mark.parametrize("cycles", [20, pytest.param(200, marks=pytest.mark.heavy)])
def test_engines_open_and_close_in_the_middle_of_requests_without_growing(
    tiny_path: Path, cycles: int
) -> None:
    def cycle() -> None:
        with Engine(tiny_path, FOUR) as engine:
            requests = [ask(engine, random_tokens(100, seed=seed), 1000) for seed in range(6)]
            until(lambda: requests[0].n_chosen)

    for _ in range(5):
        cycle()
    before = resident_bytes()
    for _ in range(cycles):
        cycle()
    # A context that stayed would keep its 4 MiB of KV cache and several of compute buffers.
    assert resident_bytes() - before < 20 * 2**20


def test_a_batch_has_room_for_a_token_of_each_sequence() -> None:
    with pytest.raises(SettingError, match="n_batch is outside its range, found 3"):
        EngineSettings(n_batch=3, n_parallel=4)
