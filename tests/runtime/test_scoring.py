"""How likely the tokens of a text are: what transformers says, and among other requests."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama4_edge.architecture import ATTENTION_CHUNK as CHUNK
from llama4_edge.errors import ContextFullError, EngineError, SettingError
from llama4_edge.runtime import scheduler as scheduler_module
from llama4_edge.runtime import scoring as scoring_module
from llama4_edge.runtime import sequence as sequence_module
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.handles import Handles
from llama4_edge.runtime.logprobs import TokenLogprobs
from llama4_edge.runtime.sampling import Sampling
from llama4_edge.runtime.sequence import CachedSequence, Piece
from llama4_edge.runtime.settings import EngineSettings
from tests.asking import answer, ask, paused, random_tokens

# (Flash attention on the CPU sums in f16 where fewer than 64 tokens are read at a time.)
SETTINGS = EngineSettings(
    n_ctx=512,
    n_batch=128,
    n_ubatch=64,
    n_outputs=16,
    n_threads=1,
    n_parallel=3,
    flash_attention="off",
)
GREEDY = Sampling(temperature=0.0)

# As in test_engine: what batches of other sizes may change.
CLOSE = 0.01


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> Iterator[Engine]:
    with Engine(tiny_path, SETTINGS) as loaded:
        yield loaded


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[list[Piece]]:
    """The pieces of each batch."""
    seen: list[list[Piece]] = []

    def decode(handles: Handles, pieces: Sequence[Piece]) -> bool:
        seen.append(list(pieces))
        assert sum(piece.outputs for piece in pieces) <= SETTINGS.n_outputs
        return sequence_module.decode(handles, pieces)

    monkeypatch.setattr(scheduler_module, "decode", decode)
    return seen


def assert_scores(scores: list[TokenLogprobs], tokens: Sequence[int], rows: Any) -> None:
    """They are what these logits, one row for each token, say of the tokens that follow."""
    wide = np.asarray(rows, np.float64)[: len(tokens) - 1]
    wide -= wide.max(axis=1, keepdims=True)
    expected = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    assert [one.token for one in scores] == list(tokens[1:])
    got = np.array([one.logprob for one in scores])
    assert np.abs(got - expected[np.arange(len(tokens) - 1), tokens[1:]]).max(initial=0) < CLOSE
    for one, row in zip(scores, expected, strict=True):
        assert [logprob for _, logprob in one.top] == pytest.approx(
            np.sort(row)[::-1][: len(one.top)], abs=CLOSE
        )
        assert all(abs(row[token] - logprob) < CLOSE for token, logprob in one.top)


@pytest.mark.parametrize("count", [2, 3, 16, 17, 18, 100, 512, 513])
@pytest.mark.usefixtures("pieces")
def test_scores_are_those_of_the_logits(engine: Engine, count: int) -> None:
    tokens = random_tokens(count)
    scores = engine.score(tokens, 3)
    assert all(len(one.top) == 3 for one in scores)
    assert_scores(scores, tokens, engine.logits(tokens[:-1]))


def test_a_single_token_has_no_score_and_costs_nothing(
    engine: Engine, pieces: list[list[Piece]]
) -> None:
    assert engine.score([5]) == []
    assert pieces == []


@pytest.mark.parametrize(
    ("tokens", "error"),
    [([], EngineError), ([1, -1], EngineError), ([1, 10**9], EngineError),
     ([1] * 514, ContextFullError)],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(
    engine: Engine, tokens: list[int], error: type[Exception]
) -> None:
    with pytest.raises(error):
        engine.score(tokens)


@pytest.mark.parametrize("n_top", [-1, 1.5, None, 10**9])
def test_a_number_of_alternatives_that_is_none_is_refused(engine: Engine, n_top: Any) -> None:
    with pytest.raises(SettingError, match="n_top"):
        engine.score([1, 2], n_top)


def test_what_a_sequence_holds_is_scored_all_the_same(engine: Engine) -> None:
    tokens = random_tokens(60)
    first = engine.score(tokens)
    answer(engine, ask(engine, tokens, 5))
    assert [one.logprob for one in engine.score(tokens)] == pytest.approx(
        [one.logprob for one in first], abs=CLOSE
    )


def test_who_goes_on_with_a_scored_text_reads_only_its_last_token(engine: Engine) -> None:
    tokens = random_tokens(60, 1)
    engine.score(tokens)
    request = ask(engine, tokens, 5)
    answer(engine, request)
    assert request.reused_tokens == 59


def test_of_texts_that_begin_alike_the_beginning_is_scored_once(
    engine: Engine, pieces: list[list[Piece]]
) -> None:
    """As the choices of a question are."""
    question = random_tokens(200)
    texts = [[*question, *random_tokens(4, seed)] for seed in range(3)]
    texts += [question, [*question[:100], 3, 4, 5], texts[0]]
    expected = []
    for text in texts:
        engine.clear()
        expected.append(engine.score(text, 2))
    engine.clear()
    counts = []
    for text, scores in zip(texts, expected, strict=True):
        pieces.clear()
        found = engine.score(text, 2)
        counts.append(sum(len(piece.tokens) for batch in pieces for piece in batch))
        assert [one.token for one in found] == text[1:]
        assert [one.logprob for one in found] == pytest.approx(
            [one.logprob for one in scores], abs=CLOSE
        )
        for one, other in zip(found, scores, strict=True):
            assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=CLOSE)
    # 203 are decoded at first; then the last of the question, and what follows it but the last.
    assert counts == [203, 4, 4, 1, 3, 4]
    pieces.clear()
    engine.score(texts[0], 3)  # other alternatives are asked for
    assert sum(len(piece.tokens) for batch in pieces for piece in batch) == 203


def test_what_is_kept_of_scores_is_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_module, "_MOST_KEPT", 1000)
    for seed in range(5):
        engine.score(random_tokens(101, seed), 3)
    assert len(engine.scheduler._scores._texts) == 2
    engine.score(random_tokens(500, 9), 3)
    assert len(engine.scheduler._scores._texts) == 0


def test_several_are_scored_in_one_batch_beside_answers_that_stay_the_same(
    engine: Engine, pieces: list[list[Piece]]
) -> None:
    texts = [random_tokens(90, 2), random_tokens(130, 3)]
    prompt = random_tokens(20, 94)  # no two tokens are so likely that rounding could choose
    alone = answer(engine, ask(engine, prompt, 200, GREEDY))
    rows = [engine.logits(text) for text in texts]
    pieces.clear()
    scorings = [engine.scoring(text, 2) for text in texts]
    with paused(engine):
        beside = ask(engine, prompt, 200, GREEDY)
        for scoring in scorings:
            engine.scheduler.submit(scoring)
    for scoring, text, row in zip(scorings, texts, rows, strict=True):
        engine.scheduler.wait(scoring, lambda scoring=scoring: scoring.ended)  # type: ignore[misc]
        assert_scores(scoring.result(), text, row)
    assert answer(engine, beside) == alone
    assert [1, 7, 7] in [sorted(piece.outputs for piece in batch) for batch in pieces]


def test_scores_are_those_of_the_logits_across_the_end_of_a_chunk(tiny_path: Path) -> None:
    settings = EngineSettings(n_ctx=CHUNK + 64, n_batch=512, n_ubatch=512, n_threads=1)
    tokens = random_tokens(CHUNK + 41)
    with Engine(tiny_path, settings) as engine:
        assert_scores(engine.score(tokens, 2), tokens, engine.logits(tokens))


def test_an_aborted_batch_is_scored_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_tokens(120)
    expected = engine.score(tokens, 2)
    n_aborted = 0

    def decode(handles: Handles, pieces: Sequence[Piece]) -> bool:
        nonlocal n_aborted
        n_aborted += 1
        if n_aborted % 2:
            handles.thread.abort_graph()
        return sequence_module.decode(handles, pieces)

    monkeypatch.setattr(scheduler_module, "decode", decode)
    engine.clear()
    assert engine.score(tokens, 2) == expected
    assert n_aborted > 10


def test_a_cancelled_scoring_leaves_its_sequence_after_a_batch(engine: Engine) -> None:
    scoring = engine.scoring(random_tokens(500), 0)
    score = scoring.score

    def cancelling() -> bool:
        engine.scheduler.cancel(scoring)
        return score()

    scoring.score = cancelling  # type: ignore[method-assign]
    engine.scheduler.submit(scoring)
    engine.scheduler.wait(scoring, lambda: scoring.ended)
    assert len(scoring.logprobs) <= SETTINGS.n_outputs
    assert not engine.scheduler._running
    with pytest.raises(EngineError, match="cancelled"):
        scoring.result()


def test_nan_ends_the_scoring_and_nothing_else(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_logits = CachedSequence.last_logits

    def damaged(self: CachedSequence, before: int = 0) -> Any:
        row = last_logits(self, before)
        return np.full_like(row, np.nan) if len(self.tokens) > 50 else row

    prompt = random_tokens(10, 13)  # no two tokens are so likely that rounding could choose
    alone = answer(engine, ask(engine, prompt, 30, GREEDY))
    monkeypatch.setattr(CachedSequence, "last_logits", damaged)
    beside = ask(engine, prompt, 30, GREEDY)
    with pytest.raises(EngineError, match="NaN"):
        engine.score(random_tokens(100))
    assert answer(engine, beside) == alone


def test_no_more_than_a_batch_of_logits_is_kept(engine: Engine) -> None:
    tokens = random_tokens(400)
    engine.score(tokens)
    tracemalloc.start()
    try:
        engine.score(tokens)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400 * 1000  # of each token's logits 4 * n_vocab bytes
    assert peak < 400 * 4 * engine.n_vocab / 4


def test_one_sequence_is_enough(tiny_path: Path) -> None:
    with Engine(tiny_path, replace(SETTINGS, n_parallel=1, n_outputs=1)) as engine:
        tokens = random_tokens(20)
        assert_scores(engine.score(tokens), tokens, engine.logits(tokens))
