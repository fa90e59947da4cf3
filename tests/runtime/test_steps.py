"""Several tokens in one call of native code: what comes is what comes one by one."""

from __future__ import annotations

import ctypes
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llama4_edge.architecture import ATTENTION_CHUNK as CHUNK
from llama4_edge.errors import EngineError
from llama4_edge.runtime import scheduler as scheduler_module
from llama4_edge.runtime import sequence as sequence_module
from llama4_edge.runtime.bindings import library
from llama4_edge.runtime.bindings import steps as steps_module
from llama4_edge.runtime.bindings.steps import Steps, Taken
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.request import Request
from llama4_edge.runtime.sampling import Sampling
from llama4_edge.runtime.settings import EngineSettings
from tests.asking import paused, until
from tests.gguf_maker import tiny_model

THREE = EngineSettings(n_ctx=512, n_batch=128, n_ubatch=64, n_threads=1, n_parallel=3)
GREEDY = Sampling(temperature=0.0)
DRAWN = Sampling(temperature=1.5, top_k=40, top_p=0.95, min_p=0.01, seed=4)

Accept = Callable[[int, bool], bool]


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> Iterator[Engine]:
    with Engine(tiny_path, THREE) as loaded:
        yield loaded


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Taken]:
    """What each call brought; they last until something ends, however slow the machine is."""
    seen: list[Taken] = []
    take = Steps.take

    def noting(self: Steps, batch: Any, choices: Any, most: int, _seconds: float) -> Taken | None:
        result = take(self, batch, choices, most, 60.0)
        if result is not None:
            seen.append(result)
        return result

    monkeypatch.setattr(Steps, "take", noting)
    return seen


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    assert steps_module._native() is not None, "the native code was not built: make test builds it"


def go_on(_token: int, _is_end: bool) -> bool:
    return True


def asked(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling = GREEDY,
    count: int | None = 40,
    accept: Sequence[Accept] = (),
    *,
    ignores_ends: bool = False,
) -> list[Request]:
    """The requests, asked at the same time, when all have ended."""
    engine.clear()
    takers = [*accept, *[go_on] * (len(prompts) - len(accept))]
    requests = [
        engine.request(prompt, sampling, count, taker, paced=False, ignores_ends=ignores_ends)
        for prompt, taker in zip(prompts, takers, strict=True)
    ]
    with paused(engine):
        for request in requests:
            engine.scheduler.submit(request)
    # Who waits for a request has the engine look around, which ends a call of several steps.
    until(lambda: all(request.ended for request in requests))
    return requests


def texts(requests: Sequence[Request]) -> list[list[int]]:
    return [request.text for request in requests]


def held(engine: Engine, number: int) -> int:
    """How many tokens llama.cpp holds of a sequence."""
    handles = engine._handles
    return engine._call(
        lambda: int(handles.llama.llama_memory_seq_pos_max(handles.memory, number)) + 1
    )


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "_native", lambda: None)


def test_the_structs_are_those_of_llama_h() -> None:
    def fields(struct: Any) -> list[tuple[str, int]]:
        return [(name, getattr(struct, name).offset) for name, *_ in struct._fields_]

    llama = library.llama()
    pointer = ctypes.sizeof(ctypes.c_void_p)
    names = ["n_tokens", "token", "embd", "pos", "n_seq_id", "seq_id", "logits"]
    assert fields(llama.llama_batch) == [(name, pointer * i) for i, name in enumerate(names)]
    names = ["data", "size", "selected", "sorted"]
    assert fields(llama.llama_token_data_array) == [(name, 8 * i) for i, name in enumerate(names)]
    assert fields(llama.llama_token_data) == [("id", 0), ("logit", 4), ("p", 8)]


PROMPTS = [[5] * 20, [9, 8, 7], [31, 32] * 9]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, replace(DRAWN, top_k=200, top_p=1.0)])
@pytest.mark.parametrize("n_sequences", [1, 3])
def test_the_tokens_are_those_one_by_one(
    engine: Engine,
    taken: list[Taken],
    monkeypatch: pytest.MonkeyPatch,
    sampling: Sampling,
    n_sequences: int,
) -> None:
    together = asked(engine, PROMPTS[:n_sequences], sampling)
    assert sum(len(one.tokens) for one in taken) >= 38
    one_by_one(monkeypatch)
    assert texts(asked(engine, PROMPTS[:n_sequences], sampling)) == texts(together)
    assert {one.outcome for one in together} == {"length"}
    assert all(one.n_chosen == 40 for one in together)
    assert all(one.decode_seconds > 0 for one in together)


def test_who_wants_no_more_ends_at_that_token_and_leaves_the_others(
    engine: Engine, taken: list[Taken]
) -> None:
    whole = texts(asked(engine, PROMPTS))
    counts = iter(range(100))
    requests = asked(engine, PROMPTS, accept=[go_on, lambda *_: next(counts) < 10])
    assert [one.outcome for one in requests] == ["length", "stop", "length"]
    assert requests[1].text == whole[1][: len(PROMPTS[1]) + 11]
    assert texts(requests)[::2] == whole[::2]


def test_what_is_remembered_is_what_llama_cpp_holds(engine: Engine, taken: list[Taken]) -> None:
    counts = iter(range(100))
    (request,) = asked(engine, [[3, 4, 5]], accept=[lambda *_: next(counts) < 10])
    (sequence,) = (one for one in engine.scheduler._sequences if one.tokens[:3] == [3, 4, 5])
    assert len(sequence.tokens) == held(engine, sequence.number)
    # More was decoded than was wanted: what is asked for next is not disturbed by it.
    assert sequence.tokens[: len(request.text)] == request.text
    assert len(sequence.tokens) > len(request.text)
    prompt = [*request.text, 77]
    rows: list[npt.NDArray[np.float32]] = []

    def accept(_token: int, _is_end: bool) -> bool:
        assert following.sequence is not None
        rows.append(np.array(following.sequence.last_logits()))
        return False

    following = engine.request(prompt, GREEDY, None, accept)
    engine.scheduler.submit(following)
    until(lambda: following.ended)
    assert following.reused_tokens == len(request.text)
    assert np.abs(engine.logits(prompt)[-1] - rows[0]).max() < 0.01


def test_an_error_of_who_takes_the_tokens_ends_its_request_alone(
    engine: Engine, taken: list[Taken]
) -> None:
    def fail(_token: int, _is_end: bool) -> bool:
        if next(counts) == 5:
            raise ZeroDivisionError
        return True

    counts = iter(range(100))
    requests = asked(engine, PROMPTS, accept=[fail])
    assert isinstance(requests[0].error, ZeroDivisionError)
    assert requests[0].n_chosen == 6
    assert [one.outcome for one in requests[1:]] == ["length", "length"]


@pytest.mark.parametrize("ignores_ends", [False, True])
def test_an_end_of_an_answer_ends_the_call_if_it_ends_the_answer(
    tmp_path: Path, taken: list[Taken], ignores_ends: bool
) -> None:
    model = tiny_model()
    # Every token has this direction, which the row of the end points to: it is the likeliest.
    n_vocab = len(model.tensors["output.weight"])
    model.tensors["token_embd.weight"][:, 0] = 5.0
    model.tensors["output.weight"][:, 0] = 0.0
    model.tensors["output.weight"][n_vocab - 1, 0] = 50.0
    told: list[bool] = []

    def accept(_token: int, is_end: bool) -> bool:
        told.append(is_end)
        return True

    with Engine(model.write(tmp_path / "ends.gguf"), THREE) as ending:
        asked(ending, [[1, 2]], count=5, accept=[accept], ignores_ends=ignores_ends)
    assert told == [not ignores_ends] * 5
    # The first token comes with the prompt, and the last of those left is chosen one by one.
    assert [len(one.tokens) for one in taken] == ([4] if ignores_ends else [1] * 3)


@pytest.mark.parametrize("n_prompt", [CHUNK - 20, CHUNK - 1, CHUNK])
def test_the_ends_of_a_chunk_are_decoded_one_by_one(
    tiny_path: Path, taken: list[Taken], monkeypatch: pytest.MonkeyPatch, n_prompt: int
) -> None:
    seen: list[int] = []

    def decode(handles: Any, pieces: Any) -> bool:
        seen.extend(len(piece.sequence.tokens) for piece in pieces if len(piece.tokens) == 1)
        return sequence_module.decode(handles, pieces)

    monkeypatch.setattr(scheduler_module, "decode", decode)
    settings = replace(THREE, n_ctx=CHUNK + 64, n_batch=2048, n_ubatch=512, n_parallel=1)
    prompt = [int(token) for token in np.random.default_rng(1).integers(0, 200, n_prompt)]
    with Engine(tiny_path, settings) as engine:
        together = texts(asked(engine, [prompt], DRAWN))
        assert {CHUNK - 1, CHUNK} - {n_prompt - 1} <= set(seen)
        assert sum(len(one.tokens) for one in taken) > 30
        one_by_one(monkeypatch)
        assert texts(asked(engine, [prompt], DRAWN)) == together


def test_an_answer_that_fills_the_context_has_as_many_tokens(
    engine: Engine, taken: list[Taken]
) -> None:
    (request,) = asked(engine, [[2] * 490], count=None)
    assert (request.outcome, request.n_chosen) == ("length", 512 - 490 + 1)


def test_who_wants_something_ends_the_call_after_a_token(engine: Engine) -> None:
    handles, batch = engine._handles, engine._handles.batch
    choice = steps_module.Choice(None, 1)
    engine.clear()

    def take() -> Taken | None:
        batch.clear()
        batch.add([5], 0, 0, 1)
        handles.thread.ask_attention()
        return handles.steps.take(batch, [choice], 50, 60.0)

    result = engine._call(take)
    assert result is not None
    assert (result.tokens.shape, result.n_decoded, result.failed) == ((1, 1), 1, False)
    engine._call(lambda: engine._sequence._clear())


@pytest.mark.parametrize("status", [2, -3])
@pytest.mark.parametrize("fails_at", [1, 2, 7])
def test_a_decoding_that_fails_is_tried_again_one_by_one(
    engine: Engine,
    taken: list[Taken],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    fails_at: int,
) -> None:
    alone = texts(asked(engine, PROMPTS))
    llama, native = engine._handles.llama, engine._handles.steps._llama
    counts = itertools.count(1)

    def decode(context: Any, batch: Any) -> int:
        if next(counts) == fails_at:
            return status
        return int(llama.llama_decode(context, batch))

    prototype = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, llama.llama_batch)
    failing, address = prototype(decode), native.llama_decode
    native.llama_decode = ctypes.cast(failing, ctypes.c_void_p).value
    try:
        again = asked(engine, PROMPTS)
    finally:
        native.llama_decode = address
    assert any(one.failed for one in taken)
    assert [one.error for one in again] == [None] * 3
    assert texts(again) == alone


def test_logits_that_are_no_numbers_are_an_error(tmp_path: Path, taken: list[Taken]) -> None:
    model = tiny_model()
    model.tensors["output.weight"][:] = np.nan
    with Engine(model.write(tmp_path / "nan.gguf"), THREE) as broken:
        (request,) = asked(broken, [[1, 2]])
    assert isinstance(request.error, EngineError)
    assert "NaN or infinite" in str(request.error)


@pytest.mark.parametrize(
    "sampling",
    [
        replace(GREEDY, repeat_penalty=1.3),
        replace(DRAWN, top_k=0),
        replace(DRAWN, top_n_sigma=1.0),
        replace(DRAWN, mirostat=2),
        replace(GREEDY, logit_bias=((5, 1.0),)),
    ],
)
def test_what_takes_more_than_the_largest_logits_is_chosen_one_by_one(
    engine: Engine, taken: list[Taken], sampling: Sampling
) -> None:
    (request,) = asked(engine, PROMPTS[:1], sampling)
    assert request.n_chosen == 40
    assert not taken


def test_answers_of_many_threads_are_those_alone(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[Request] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(6):
            prompt = [chance.randrange(200) for _ in range(chance.randrange(1, 60))]
            is_paced = chance.random() < 0.5
            request = engine.request(
                prompt, GREEDY, chance.randrange(1, 200), go_on, paced=is_paced
            )
            engine.scheduler.submit(request)
            if chance.random() < 0.3:
                time.sleep(chance.random() * 0.02)
                engine.scheduler.cancel(request)
            while not request.ended:
                engine.scheduler.wait(request, partial(has_news, request, request.n_chosen))
                request.take()
            if request.outcome is not None:
                whole.append(request)

    def has_news(request: Request, count: int) -> bool:
        return request.n_chosen > count or request.ended

    # (Flash attention on the CPU sums few tokens in f16.)
    with Engine(tiny_path, replace(THREE, flash_attention="off")) as engine:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert len(whole) > 20
        assert not any(engine.scheduler.uses(one) for one in engine.scheduler._sequences)
        one_by_one(monkeypatch)
        for beside in whole:
            (alone,) = asked(engine, [beside.text[: beside.n_prompt]], count=beside.max_tokens)
            if alone.text == beside.text:
                continue
            # Rounding may choose another token where two are as good as equal.
            pairs = enumerate(zip(alone.text, beside.text, strict=True))
            place, both = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
            logits = engine.logits(alone.text[:place])[-1]
            assert abs(logits[both[0]] - logits[both[1]]) < 0.006


def test_closing_ends_what_goes_on(tiny_path: Path, taken: list[Taken]) -> None:
    for _ in range(10):
        # (So many tokens that no answer comes to its end meanwhile, however late it is closed.)
        with Engine(tiny_path, replace(THREE, n_ctx=2**16)) as engine:
            requests = [
                engine.request(prompt, GREEDY, None, go_on, paced=False) for prompt in PROMPTS
            ]
            for request in requests:
                engine.scheduler.submit(request)
            for request in requests:
                engine.scheduler.wait(request, lambda request=request: request.n_chosen > 0)  # type: ignore[misc]
            # (A call lasts for a minute now, or until an answer ends, unless it is told to stop.)
        for request in requests:
            assert isinstance(request.error, EngineError)
            assert request.error.problem == "the model was closed"
