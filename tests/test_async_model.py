"""The same model, asked by tasks."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import weakref
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from llama4_edge import AsyncModel, AsyncStream, Model, Sampling, TokenLogprobs
from llama4_edge.async_model import taken_together
from llama4_edge.chat.events import AnswerEnded, TextPiece
from llama4_edge.errors import ContextFullError, EngineError, SettingError
from llama4_edge.runtime import scheduler as scheduler_module
from llama4_edge.runtime import sequence as sequence_module
from llama4_edge.runtime.handles import Handles
from llama4_edge.runtime.request import RUN_AHEAD
from llama4_edge.runtime.sequence import Piece
from tests.asking import halted, until
from tests.tiny_model import never_ending

_T = TypeVar("_T")

WILD = Sampling(temperature=3.0, top_k=0, top_p=1.0, seed=11)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return never_ending().write(tmp_path_factory.mktemp("endless") / "endless.gguf")


@pytest.fixture(scope="module")
def sync(path: Path) -> Iterator[Model]:
    with Model(path, n_ctx=256, n_threads=1, n_parallel=4) as loaded:
        yield loaded


@pytest.fixture
def model(sync: Model) -> AsyncModel:
    return AsyncModel(sync)


def run(work: Coroutine[Any, Any, _T]) -> _T:
    return asyncio.run(asyncio.wait_for(work, 120))


async def text_of(stream: AsyncStream) -> str:
    return "".join([piece async for piece in stream])


def alone(sync: Model, number: int) -> str:
    return sync.generate(f"Hello {number}", max_tokens=8, sampling=replace(WILD, seed=number)).text


def test_two_hundred_tasks_are_answered_as_alone(sync: Model, model: AsyncModel) -> None:
    async def ask(number: int) -> str:
        sampling = replace(WILD, seed=number)
        if number % 2:
            answer = await model.generate(f"Hello {number}", max_tokens=8, sampling=sampling)
            return answer.text
        stream = await model.generate(
            f"Hello {number}", max_tokens=8, sampling=sampling, stream=True
        )
        return await text_of(stream)

    async def work() -> list[str]:
        return await asyncio.gather(*(ask(number) for number in range(200)))

    found = run(work())
    expected = [alone(sync, number) for number in range(200)]
    # Rounding may choose another token where two are as good as equal.
    assert sum(one != two for one, two in zip(found, expected, strict=True)) <= 2


def test_the_loop_goes_on_while_an_answer_is_made(sync: Model, model: AsyncModel) -> None:
    async def work() -> None:
        with halted(sync.engine):  # who waited for the answer here would wait until this ends
            answer = asyncio.create_task(model.generate("Hello", sampling=WILD))
            for _ in range(10):
                await asyncio.sleep(0.001)
            assert not answer.done()
        assert len((await answer).tokens) == 252

    run(work())


def test_a_task_that_is_cancelled_ends_its_answers(sync: Model, model: AsyncModel) -> None:
    async def read() -> None:
        stream = await model.generate("Hello", sampling=WILD, stream=True)
        streams.append(stream)
        await text_of(stream)
        await asyncio.sleep(600)

    async def ask() -> None:
        await model.generate("Hello", n=4)
        await asyncio.sleep(600)

    async def work() -> None:
        tasks = [asyncio.create_task(read()) for _ in range(4)]
        tasks.append(asyncio.create_task(ask()))
        await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in outcomes] == [asyncio.CancelledError] * 5
        assert len((await model.generate("Hello", max_tokens=3)).tokens) == 3

    streams: list[AsyncStream] = []
    run(work())
    until(lambda: not sync.engine.scheduler._running)
    assert {stream.completion.finish_reason for stream in streams} <= {None, "length"}


def test_a_stream_is_closed_by_its_block_and_when_it_is_forgotten(
    sync: Model, model: AsyncModel
) -> None:
    async def work() -> None:
        async with await model.generate("Hello", sampling=WILD, stream=True) as stream:
            pieces = [await anext(stream)]
        assert stream.completion.text == "".join(pieces)
        assert [piece async for piece in stream] == []
        for _ in range(4):
            await anext(await model.generate("Hello", sampling=WILD, stream=True))
        gc.collect()
        assert len((await model.generate("x", max_tokens=3)).tokens) == 3

    run(work())


@pytest.mark.parametrize("fails", [False, True], ids=["cancelled", "failed"])
def test_a_stream_whose_task_ended_early_is_kept_by_nothing(
    sync: Model, model: AsyncModel, fails: bool
) -> None:
    """A server reads the answers of each request in tasks, of which many end so."""
    halt = ExitStack()

    async def read(stream: AsyncStream, begun: asyncio.Event) -> None:
        async for _ in stream:
            if fails:
                raise RuntimeError
            if not begun.is_set():  # with fewer than all tokens: it is not read to its end
                halt.enter_context(halted(sync.engine))
            begun.set()

    async def left() -> AsyncStream | None:
        stream = await model.generate("Hello", sampling=WILD, stream=True)
        kept = weakref.ref(stream)
        begun = asyncio.Event()
        task = asyncio.create_task(read(stream, begun))
        if not fails:
            await begun.wait()
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or isinstance(task.exception(), RuntimeError)
        del stream, task
        gc.collect()
        return kept()

    with halt:
        assert run(left()) is None


def test_a_stream_is_cancelled_from_another_task(model: AsyncModel) -> None:
    async def work() -> None:
        stream = await model.generate("Hello", sampling=WILD, stream=True)
        asyncio.get_running_loop().call_later(0.02, stream.cancel)
        pieces = [piece async for piece in stream]
        completion = stream.completion
        assert completion.text == "".join(pieces)
        if len(completion.tokens) < 252:
            assert completion.finish_reason is None

    run(work())


def test_a_task_that_waits_gives_up_what_it_does_not_read(model: AsyncModel) -> None:
    async def work() -> None:
        streams = [await model.generate("Hello", sampling=WILD, stream=True) for _ in range(4)]
        assert len((await model.generate("x", max_tokens=3)).tokens) == 3
        with pytest.raises(EngineError, match="ended by a later request"):
            await text_of(streams[0])
        for stream in streams[1:]:
            await text_of(stream)
            assert len(stream.completion.tokens) == 252

    run(work())


def test_texts_are_scored_among_answers(sync: Model, model: AsyncModel) -> None:
    texts = [f"Hello, this is text number {number}." for number in range(12)]

    async def work() -> list[list[TokenLogprobs]]:
        answers = [asyncio.create_task(model.generate(text, max_tokens=50)) for text in texts[:3]]
        scores = await asyncio.gather(*(model.score(text, top=2) for text in texts))
        await asyncio.gather(*answers)
        return scores

    for text, scores in zip(texts, run(work()), strict=True):
        tokens = sync.text_prompt(text).positions
        assert [one.token for one in scores] == tokens[1:]
        expected = [one.logprob for one in sync.score(tokens)]
        assert [one.logprob for one in scores] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("what", ["answer", "score"])
def test_a_task_that_is_cancelled_ends_the_reading_of_its_prompt_within_a_batch(
    path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """As a server's whose client vanishes: nothing of the prompt is decoded after that."""
    n_batches = 0

    async def work(model: AsyncModel) -> None:
        loop, scheduler = asyncio.get_running_loop(), model.model.engine.scheduler

        def decode(handles: Handles, pieces: Sequence[Piece]) -> bool:
            nonlocal n_batches
            n_batches += 1
            if n_batches == 3:
                (request,) = scheduler._running
                loop.call_soon_threadsafe(task.cancel)
                until(lambda: request.cancelled)
                assert not sequence_module.decode(handles, pieces)
                return False
            return sequence_module.decode(handles, pieces)

        monkeypatch.setattr(scheduler_module, "decode", decode)
        asked = model.generate([5] * 250) if what == "answer" else model.score([5] * 250)
        task: asyncio.Task[object] = asyncio.create_task(asked)
        with pytest.raises(asyncio.CancelledError):
            await task
        while scheduler._running:
            await asyncio.sleep(0.001)

    with Model(path, n_ctx=256, n_ubatch=32, n_threads=1, n_parallel=2) as model:
        run(work(AsyncModel(model)))
    assert n_batches == 3


def test_a_task_that_is_cancelled_ends_its_scoring(
    sync: Model, model: AsyncModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def decode(handles: Handles, pieces: Sequence[Piece]) -> bool:
        begun.set()
        assert go_on.wait(600)
        return sequence_module.decode(handles, pieces)

    async def work() -> None:
        tasks = [asyncio.create_task(model.score([5] * 250)) for _ in range(40)]
        await asyncio.to_thread(begun.wait)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        go_on.set()
        assert {type(one) for one in outcomes} == {asyncio.CancelledError}
        assert len(await model.score([5] * 10)) == 9

    monkeypatch.setattr(scheduler_module, "decode", decode)
    run(work())
    assert not sync.engine.scheduler._running
    assert not sync.engine.scheduler._waiting


def test_several_answers_to_one_prompt_follow_each_others_seeds(
    sync: Model, model: AsyncModel
) -> None:
    async def work() -> None:
        answers = await model.chat("Hello", n=3, max_tokens=8, sampling=WILD)
        assert [one.seed for one in answers] == [11, 12, 13]
        streams = await model.chat("Hello", n=3, max_tokens=8, sampling=WILD, stream=True)
        texts = [await text_of(stream) for stream in streams]
        assert texts == [one.text for one in answers]
        assert texts == [one.text for one in sync.chat("Hello", n=3, max_tokens=8, sampling=WILD)]

    run(work())


@pytest.mark.parametrize("n_parallel", [1, 4])
def test_answers_that_are_read_together_share_the_sequences(path: Path, n_parallel: int) -> None:
    """None is given up for another one of them, and each is more than it may run ahead."""

    async def work(model: AsyncModel) -> tuple[list[str], list[str]]:
        options: dict[str, Any] = {"max_tokens": 2 * RUN_AHEAD, "sampling": WILD}
        alone = await model.generate("Hello", n=3, **options)
        streams = await model.generate("Hello", n=3, stream=True, **options)
        texts, ends = [""] * 3, [""] * 3
        async for taken in taken_together(streams):
            for number, events in taken:
                for event in events:
                    if isinstance(event, AnswerEnded):
                        ends[number] = event.completion.text
                    elif isinstance(event, TextPiece):
                        texts[number] += event.text
        assert texts == ends
        return texts, [one.text for one in alone]

    # (Flash attention on the CPU sums in f16 where only a prompt's last token is read again.)
    with Model(
        path, n_ctx=512, n_threads=1, n_parallel=n_parallel, cache_ram=0, flash_attention="off"
    ) as model:
        texts, alone = run(work(AsyncModel(model)))
    assert [text[:40] for text in texts] == [text[:40] for text in alone]
    assert len(set(texts)) == 3


def test_answers_that_are_read_together_end_with_their_reader(model: AsyncModel) -> None:
    async def work() -> None:
        streams = await model.generate("Hello", n=3, stream=True, max_tokens=200, sampling=WILD)
        async for _taken in (together := taken_together(streams)):
            break
        await together.aclose()
        assert [stream.completion.finish_reason for stream in streams] == [None] * 3

    run(work())


def test_a_cancellation_that_comes_with_a_piece_is_not_forgotten(
    sync: Model, model: AsyncModel
) -> None:
    async def work() -> None:
        for turns in [*range(5)] * 4:
            with halted(sync.engine):
                stream = await model.generate("Hello", sampling=WILD, stream=True)
                task = asyncio.create_task(text_of(stream))
                await asyncio.sleep(0)  # it waits for a piece
            while not stream._event.is_set():
                await asyncio.sleep(0)
            with halted(sync.engine):  # with fewer than all tokens, none of which is read yet
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    run(work())


def test_a_file_is_not_taken_for_a_model(path: Path) -> None:
    with pytest.raises(SettingError, match=r"expected a Model; AsyncModel\.open\(path\) loads one"):
        AsyncModel(path)  # type: ignore[arg-type]


def test_errors_are_those_of_the_model(path: Path) -> None:
    async def work() -> None:
        async with await AsyncModel.open(path, n_ctx=256, n_threads=1, n_parallel=2) as model:
            with pytest.raises(ContextFullError, match="found 257 tokens, expected at most 256"):
                await model.generate("x" * 257)
            assert (await model.logits([1, 2])).shape[0] == 2
            with pytest.raises(EngineError, match="neither copied nor pickled"):
                pickle.dumps(model)
            # What nobody reads holds both sequences.
            streams = [await model.generate("Hello", sampling=WILD, stream=True) for _ in range(2)]
            waiting = asyncio.create_task(model.generate("Hello", sampling=WILD))
            await asyncio.sleep(0.01)
        with pytest.raises(EngineError, match="the model was closed"):
            await waiting
        with pytest.raises(EngineError, match="the model was closed"):
            await text_of(streams[0])
        with pytest.raises(EngineError, match="the model was closed"):
            await model.generate("Hello")

    run(work())
