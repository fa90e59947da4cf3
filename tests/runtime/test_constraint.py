"""What may be chosen, and how likely it was: constraints and log probabilities of requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama4_edge.errors import EngineError, SettingError
from llama4_edge.runtime.constraint import Mask
from llama4_edge.runtime.drafts import Costs, Drafter
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.logprobs import TokenLogprobs
from llama4_edge.runtime.request import Request
from llama4_edge.runtime.sampling import Sampling
from llama4_edge.runtime.settings import EngineSettings
from tests.asking import WILD, answer, ask, ended, random_tokens

# (Flash attention on the CPU sums in f16 where fewer than 64 tokens are read at a time.)
SETTINGS = EngineSettings(
    n_ctx=256, n_batch=128, n_ubatch=64, n_threads=1, n_parallel=3, flash_attention="off"
)
SAMPLINGS = {
    "default": Sampling(seed=1),
    "greedy": Sampling(temperature=0.0),
    "wild": WILD,
    "mirostat": Sampling(mirostat=2, seed=2),
    "penalties": Sampling(seed=3, repeat_penalty=1.5, logit_bias=((5, 4.0),), dry_multiplier=1.0),
}


class Turns:
    """Allows the tokens of one set after the other, then nothing: it is complete."""

    def __init__(self, n_vocab: int, *turns: list[int]) -> None:
        self._n_vocab, self._turns = n_vocab, turns
        self.accepted: list[int] = []

    @property
    def is_complete(self) -> bool:
        return len(self.accepted) == len(self._turns)

    def mask(self) -> Mask | None:
        bits = np.zeros((self._n_vocab + 31) // 32 * 32, np.bool_)
        bits[self._turns[len(self.accepted)]] = True
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def accept(self, token: int) -> None:
        self.accepted.append(token)


class Anything(Turns):
    """Allows all, for as long as it takes."""

    is_complete = False

    def mask(self) -> Mask | None:
        return None


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> Iterator[Engine]:
    with Engine(tiny_path, SETTINGS) as loaded:
        yield loaded


def log_softmax(row: Any) -> Any:
    wide = np.asarray(row, np.float64)
    return wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())


# --- constraints


@pytest.mark.parametrize("name", SAMPLINGS)
def test_no_other_token_comes_than_those_allowed_and_the_answer_ends_when_it_is_complete(
    engine: Engine, name: str
) -> None:
    turns = [[7, 8, 9], [100], list(range(20, 90)), [0, engine.n_vocab - 1]] * 4
    constraint = Turns(engine.n_vocab, *turns)
    request = ask(engine, random_tokens(20), None, SAMPLINGS[name], constraint=constraint)
    tokens = answer(engine, request)
    assert len(tokens) == len(turns)
    assert all(token in allowed for token, allowed in zip(tokens, turns, strict=True))
    assert constraint.accepted == tokens
    assert request.outcome == "stop"


def test_one_that_is_complete_before_the_first_token_is_an_empty_answer(engine: Engine) -> None:
    request = ask(engine, [1, 2, 3], constraint=Turns(engine.n_vocab))
    assert answer(engine, request) == []
    assert request.outcome == "stop"


def test_one_that_allows_anything_changes_nothing(engine: Engine) -> None:
    prompt = random_tokens(30)
    constraint = Anything(engine.n_vocab)
    plain = answer(engine, ask(engine, prompt, 40))
    assert answer(engine, ask(engine, prompt, 40, constraint=constraint)) == plain
    assert constraint.accepted == plain


def test_the_token_that_ends_the_answer_is_accepted_too(engine: Engine) -> None:
    end = next(token for token in range(engine.n_vocab) if engine.is_end(token))
    constraint = Turns(engine.n_vocab, [5], [end], [6])
    request = ask(
        engine, [1, 2, 3], None, constraint=constraint, accept=lambda _token, is_end: not is_end
    )
    assert answer(engine, request) == constraint.accepted == [5, end]
    assert request.outcome == "stop"


def test_answers_beside_a_constrained_one_are_those_alone(engine: Engine) -> None:
    # (After which no two tokens are so likely that rounding could choose.)
    prompts = [random_tokens(20, seed) for seed in (11, 2, 29)]
    greedy = Sampling(temperature=0.0)
    alone = [answer(engine, ask(engine, prompt, 60, greedy)) for prompt in prompts]
    turns = [list(range(token % 7, 200, 7)) for token in range(30)]
    constrained = Turns(engine.n_vocab, *turns)
    requests = [
        ask(engine, prompts[0], 60, greedy),
        ask(engine, prompts[1], 60, constraint=constrained),
        ask(engine, prompts[2], 60, greedy),
    ]
    texts = [answer(engine, request) for request in requests]
    assert (texts[0], texts[2]) == (alone[0], alone[2])
    assert len(texts[1]) == 30
    assert all(token in turn for token, turn in zip(texts[1], turns, strict=True))


class Broken(Turns):
    """Goes wrong after two tokens."""

    def __init__(self, n_vocab: int, fault: str) -> None:
        super().__init__(n_vocab, *[[1, 2, 3]] * 10)
        self._fault = fault

    def mask(self) -> Any:
        if len(self.accepted) < 2:
            return super().mask()
        size = (self._n_vocab + 31) // 32
        masks = {"nothing": np.zeros(size, np.uint32), "short": np.ones(size - 1, np.uint32),
                 "wide": np.ones(size, np.uint64), "a list": [1] * size}  # fmt: skip
        if self._fault in masks:
            return masks[self._fault]
        if self._fault == "mask":
            raise ValueError("mask")
        return super().mask()

    def accept(self, token: int) -> None:
        super().accept(token)
        if self._fault == "accept" and len(self.accepted) == 3:
            raise ValueError("accept")


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        ("nothing", EngineError, "allows no token"),
        ("short", EngineError, "mask of a constraint"),
        ("wide", EngineError, "mask of a constraint"),
        ("a list", EngineError, "mask of a constraint"),
        ("mask", ValueError, "mask"),
        ("accept", ValueError, "accept"),
    ],
)
def test_a_fault_of_a_constraint_ends_its_answer_alone(
    engine: Engine, fault: str, error: type[Exception], text: str
) -> None:
    prompts = [random_tokens(20, seed) for seed in (11, 1)]
    greedy = Sampling(temperature=0.0)
    alone = answer(engine, ask(engine, prompts[0], 60, greedy))
    beside = ask(engine, prompts[0], 60, greedy)
    request = ask(engine, prompts[1], 60, constraint=Broken(engine.n_vocab, fault))
    with pytest.raises(error, match=text):
        ended(engine, request)
    assert request.n_chosen == 2
    assert request.sequence is None
    assert answer(engine, beside) == alone


def test_biases_that_forbid_what_a_constraint_allows_end_the_answer(engine: Engine) -> None:
    sampling = Sampling(seed=1, logit_bias=((7, -float("inf")),))
    with pytest.raises(EngineError, match="allows no token that is possible"):
        answer(engine, ask(engine, [1], 5, sampling, constraint=Turns(engine.n_vocab, [7])))


def test_a_draft_is_checked_by_the_constraint(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What repeats itself is drafted; the constraint breaks the repetition now and then."""

    def draft(self: Drafter, limit: int, *_: object) -> list[int]:
        return list(self._text[-12:-5]) if limit >= 7 else []

    prompt = random_tokens(12) * 6
    turns = [[token] for token in (prompt[:12] * 3)]
    for place in (7, 20, 21, 30):
        turns[place] = [250, 251]
    constraints = [Turns(engine.n_vocab, *turns) for _ in range(2)]
    plain = answer(engine, ask(engine, prompt, 40, constraint=constraints[0]))
    monkeypatch.setattr(Costs, "add", lambda *_: None)
    monkeypatch.setattr(Costs, "of", lambda *_: 1.0)
    monkeypatch.setattr(Drafter, "draft", draft)
    request = ask(engine, prompt, 40, constraint=constraints[1], drafts=True)
    assert answer(engine, request) == plain == constraints[1].accepted
    assert all(token in turn for token, turn in zip(plain, turns, strict=True))
    assert 15 < request.accepted_tokens < request.drafted_tokens


def test_a_cancelled_answer_is_not_asked_for_more(engine: Engine) -> None:
    constraint = Anything(engine.n_vocab)
    request: Request

    def accept(_token: int, _is_end: bool) -> bool:
        if len(constraint.accepted) == 4:
            engine.scheduler.cancel(request)
        return True

    request = engine.request([1, 2], WILD, None, accept, paced=False, constraint=constraint)
    engine.scheduler.submit(request)
    ended(engine, request)
    assert request.n_chosen == len(constraint.accepted) == 4
    assert request.outcome is None


def test_it_goes_on_where_the_answer_goes_on_after_a_shorter_prompt(engine: Engine) -> None:
    n_ctx = engine.settings.n_ctx
    turns = [[token % 200, 201] for token in range(60)]
    constraint = Turns(engine.n_vocab, *turns)
    request = ask(
        engine, random_tokens(n_ctx - 20), None, constraint=constraint, goes_on=True, logprobs=1
    )
    engine.scheduler.wait(request, lambda: request.waits_to_be_resumed)
    assert 0 < request.n_chosen < 60
    engine.resume(request, random_tokens(20))
    tokens = answer(engine, request)
    assert len(tokens) == 60
    assert all(token in turn for token, turn in zip(tokens, turns, strict=True))
    assert [one.token for one in request.logprobs] == tokens


# --- log probabilities


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("is_constrained", [False, True])
def test_log_probabilities_are_those_of_the_model_whatever_chose(
    engine: Engine, name: str, is_constrained: bool
) -> None:
    turns = [list(range(place % 5, 250, 5)) for place in range(12)]
    constraint = Turns(engine.n_vocab, *turns) if is_constrained else None
    prompt = random_tokens(9)
    request = ask(engine, prompt, 12, SAMPLINGS[name], constraint=constraint, logprobs=4)
    tokens = answer(engine, request)
    rows = engine.logits(request.text)[len(prompt) - 1 : -1]
    assert [one.token for one in request.logprobs] == tokens
    assert len(tokens) == 12
    for one, row in zip(request.logprobs, rows, strict=True):
        expected = log_softmax(row)
        assert one.logprob == pytest.approx(expected[one.token], abs=0.01)
        assert [logprob for _, logprob in one.top] == pytest.approx(
            np.sort(expected)[::-1][:4], abs=0.01
        )
        for token, logprob in one.top:
            assert logprob == pytest.approx(expected[token], abs=0.01)


def test_they_are_those_without_drafts(engine: Engine) -> None:
    prompt = random_tokens(12) * 6
    greedy = Sampling(temperature=0.0)
    plain = ended(engine, ask(engine, prompt, 30, greedy, logprobs=2))
    request = ended(engine, ask(engine, prompt, 30, greedy, logprobs=2, drafts=True))
    assert [one.token for one in request.logprobs] == [one.token for one in plain.logprobs]
    for one, other in zip(request.logprobs, plain.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=0.01)


def test_without_alternatives_there_are_those_of_the_tokens(engine: Engine) -> None:
    request = ended(engine, ask(engine, [1, 2, 3], 5, logprobs=0))
    assert all(one.top == () and one.logprob < 0.0 for one in request.logprobs)
    assert len(request.logprobs) == 5
    assert ended(engine, ask(engine, [1, 2, 3], 5)).logprobs == []


def test_the_token_is_in_the_list_before_it_is_handed_on(engine: Engine) -> None:
    seen: list[TokenLogprobs] = []
    request: Request

    def accept(token: int, _is_end: bool) -> bool:
        seen.append(request.logprobs[-1])
        return seen[-1].token == token

    request = engine.request([1, 2], WILD, 6, accept, paced=False, logprobs=0)
    engine.scheduler.submit(request)
    assert seen == ended(engine, request).logprobs
    assert len(seen) == 6


@pytest.mark.parametrize("value", [-1, 2.0, True, "3", 10**9])
def test_a_number_of_alternatives_that_is_none_is_refused(engine: Engine, value: Any) -> None:
    with pytest.raises(SettingError, match="logprobs"):
        ask(engine, [1], logprobs=value)


@pytest.mark.parametrize("value", ["root ::= x", 7, {}])
def test_what_is_no_constraint_is_refused(engine: Engine, value: Any) -> None:
    with pytest.raises(SettingError, match="constraint"):
        ask(engine, [1], constraint=value)
