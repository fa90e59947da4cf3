"""Rows of features decoded in the place of tokens: here a name stands for the row of a token."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llama4_edge.errors import EngineError
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.features import names_in
from llama4_edge.runtime.request import Request
from llama4_edge.runtime.sampling import Sampling
from llama4_edge.runtime.settings import EngineSettings
from tests.gguf_maker import tiny_model

GREEDY = Sampling(temperature=0.0)
# (Flash attention on the CPU sums in f16 where fewer than 64 tokens are read at a time.)
SETTINGS = EngineSettings(
    n_ctx=1024,
    n_batch=128,
    n_ubatch=64,
    n_outputs=16,
    n_threads=1,
    n_parallel=3,
    flash_attention="off",
)
TEXT = [int(token) for token in np.random.default_rng(5).integers(0, 256, 300)]
# Two pictures among text, of which one ends a batch.
NAMED = (range(20, 170), range(250, 299))


class EmbeddingRows:
    """The rows of the embedding: the name -1 - t stands for the token t. Makes 40 in a call."""

    def __init__(self, fault: str | None = None) -> None:
        self.table = tiny_model().tensors["token_embd.weight"].astype(np.float32)
        self.made: list[int] = []
        self.threads: set[int] = set()
        self.n_steps = 0
        self.fault = fault

    def is_ready(self, names: Sequence[int]) -> bool:
        return set(names) <= set(self.made)

    def step(self, names: Sequence[int]) -> None:
        if self.fault:
            raise EngineError(self.fault)
        self.n_steps += 1
        self.threads.add(threading.get_ident())
        self.made += [name for name in dict.fromkeys(names) if name not in self.made][:40]

    def rows(self, positions: Sequence[int]) -> npt.NDArray[np.float32]:
        assert self.is_ready(names_in(positions))
        rows: npt.NDArray[np.float32] = self.table[[max(one, -1 - one) for one in positions]]
        return rows


def named(tokens: Sequence[int]) -> list[int]:
    """The same text, with names in the places of some tokens."""
    return [
        -1 - token if any(index in places for places in NAMED) else token
        for index, token in enumerate(tokens)
    ]


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> Iterator[Engine]:
    with Engine(tiny_path, SETTINGS) as loaded:
        yield loaded


def finish(
    engine: Engine, prompt: Sequence[int], features: EmbeddingRows | None, count: int = 12
) -> Request:
    request = engine.request(
        prompt, GREEDY, count, lambda token, is_end: True, paced=False, features=features
    )
    engine.scheduler.submit(request)
    engine.scheduler.wait(request, lambda: request.ended)
    return request


def test_logits_after_rows_are_those_after_the_tokens_of_these_rows(engine: Engine) -> None:
    features = EmbeddingRows()
    given, expected = engine.logits(named(TEXT), features), engine.logits(TEXT)
    # The pieces differ, and so does the order of sums; another text is off by 1.
    assert np.abs(given - expected).max() < 0.003
    assert threading.get_ident() not in features.threads


def test_an_answer_after_rows_is_that_after_tokens_and_they_are_made_once(engine: Engine) -> None:
    features, prompt = EmbeddingRows(), [1, *named(TEXT)[1:]]
    answer = finish(engine, prompt, features)
    assert answer.text[300:] == finish(engine, [1, *TEXT[1:]], None).text[300:]
    # A name is wanted once, however often it stands in the text.
    assert sorted(features.made) == sorted({name for name in prompt if name < 0})
    again = finish(engine, [*prompt, 7, 8], EmbeddingRows("what was read is made again"))
    assert again.error is None
    assert again.reused_tokens == 300


def test_other_names_are_another_text(engine: Engine) -> None:
    prompt = [2, *named(TEXT)[1:]]
    finish(engine, prompt, EmbeddingRows())
    prompt[100] -= 1
    assert finish(engine, prompt, EmbeddingRows()).reused_tokens == 100


def test_requests_with_and_without_rows_are_answered_together(engine: Engine) -> None:
    def prompts(first: int) -> list[list[int]]:
        return [[first, *named(TEXT)[1:]], [first, *TEXT[5:250]], [first, *named(TEXT)[1:200]]]

    requests = [
        engine.request(
            prompt, GREEDY, 12, lambda token, is_end: True, paced=False, features=EmbeddingRows()
        )
        for prompt in prompts(3)
    ]
    for request in requests:
        engine.scheduler.submit(request)
    for request in requests:
        engine.scheduler.wait(request, lambda one=request: one.ended)  # type: ignore[misc]
    engine.scheduler.check()
    for prompt, request in zip(prompts(3), requests, strict=True):
        assert request.error is None
        text = [-1 - name if name < 0 else name for name in prompt]
        assert request.text[len(prompt) :] == finish(engine, text, None).text[len(prompt) :]


def test_an_error_of_features_ends_the_request_that_names_them_alone(engine: Engine) -> None:
    faulty = engine.request(
        named(TEXT)[::-1],
        GREEDY,
        5,
        lambda token, is_end: True,
        features=EmbeddingRows("the picture is broken"),
    )
    engine.scheduler.submit(faulty)
    other = finish(engine, TEXT[::-1], None)
    engine.scheduler.wait(faulty, lambda: faulty.ended)
    assert str(faulty.error) == "the picture is broken"
    assert other.error is None


def test_names_without_features_are_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match="not in the model's vocabulary"):
        engine.logits(named(TEXT))


def test_names_are_told_from_tokens() -> None:
    assert names_in([1, 2, -1, -2, 3]) == [-1, -2]
    assert names_in([1, 2]) == []


def test_tokens_among_features_are_decoded_with_them_in_one_call(engine: Engine) -> None:
    prompt = [3, *TEXT[:50], *named(TEXT)[60:200]]
    prompt[70], prompt[100] = 9, 10  # as separators stand between a picture's tiles
    features = EmbeddingRows()
    for name in names_in(prompt):
        features.made.append(name)
    before = engine._handles.n_decoded
    request = finish(engine, prompt, features, count=1)
    assert request.error is None
    # A ubatch has 64 tokens.
    assert engine._handles.n_decoded - before == -(-len(prompt) // 64)
