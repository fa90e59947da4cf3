"""How likely each token was, as OpenAI's own client reads it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from openai import OpenAI

from tests.server.clients.openai_clients import EXPERTS, EXPERTS_ANSWER


def test_each_token_has_its_probability_and_that_of_the_likeliest(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model="any",
        messages=[{"role": "user", "content": EXPERTS}],
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    shown = b"".join(bytes(token.bytes or ()) for token in logprobs.content)
    assert shown.decode() == EXPERTS_ANSWER
    for token in logprobs.content:
        values = [other.logprob for other in token.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        # The likeliest was taken.
        assert token.logprob == values[0] <= 0.0
        assert sum(map(math.exp, values)) <= 1.0 + 1e-6


def test_a_streams_probabilities_are_those_of_the_whole_answer(openai: OpenAI) -> None:
    options: Any = {
        "model": "any",
        "messages": [{"role": "user", "content": EXPERTS}],
        "temperature": 0,
        "logprobs": True,
    }
    whole = openai.chat.completions.create(**options)
    streamed = [
        token
        for chunk in openai.chat.completions.create(**options, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content or ()
    ]
    expected = whole.choices[0].logprobs.content
    assert [token.token for token in streamed] == [token.token for token in expected]
    # Not to the last bit: of the second prompt all but the last token was read before, and where
    # few tokens are read in a batch, flash attention on the CPU sums in f16.
    assert [token.logprob for token in streamed] == pytest.approx(
        [token.logprob for token in expected], abs=1e-3
    )
