"""The events of an answer, awaited or not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from llama4_edge import AnswerEnded, AsyncModel, Completion, Model, Sampling, TextPiece
from tests.tiny_model import never_ending

WILD = Sampling(temperature=3.0, top_k=0, top_p=1.0, seed=11)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = never_ending().write(tmp_path_factory.mktemp("endless") / "endless.gguf")
    with Model(path, n_ctx=256, n_threads=1, n_parallel=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def whole(model: Model) -> Completion:
    return model.generate("Hello", max_tokens=24, sampling=WILD)


def test_the_pieces_of_the_events_are_the_text_and_the_last_is_the_end(
    model: Model, whole: Completion
) -> None:
    stream = model.generate("Hello", max_tokens=24, sampling=WILD, stream=True)
    *pieces, end = stream.events()
    assert all(isinstance(piece, TextPiece) and piece.text for piece in pieces)
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextPiece)) == whole.text
    assert isinstance(end, AnswerEnded)
    assert end.completion == stream.completion
    assert (end.completion.text, end.completion.finish_reason) == (whole.text, "length")


def test_awaited_events_are_the_same(model: Model, whole: Completion) -> None:
    async def texts() -> list[str]:
        asked = AsyncModel(model)
        stream = await asked.generate("Hello", max_tokens=24, sampling=WILD, stream=True)
        *pieces, end = [event async for event in stream.events()]
        assert isinstance(end, AnswerEnded)
        assert end.completion.finish_reason == "length"
        return [piece.text for piece in pieces if isinstance(piece, TextPiece)]

    assert "".join(asyncio.run(texts())) == whole.text


def test_events_go_on_where_a_reader_of_pieces_stopped(model: Model, whole: Completion) -> None:
    stream = model.generate("Hello", max_tokens=24, sampling=WILD, stream=True)
    first = next(stream)
    *pieces, _end = stream.events()
    assert first + "".join(piece.text for piece in pieces if isinstance(piece, TextPiece)) == (
        whole.text
    )


def test_a_closed_answer_ends_without_a_reason(model: Model) -> None:
    stream = model.generate("Hello", max_tokens=24, sampling=WILD, stream=True)
    events = stream.events()
    first = next(events)
    stream.close()
    (end,) = events
    assert isinstance(first, TextPiece) and isinstance(end, AnswerEnded)
    assert (end.completion.text, end.completion.finish_reason) == (first.text, None)
