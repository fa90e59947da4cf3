"""``/v1/completions`` through OpenAI's own client."""

from __future__ import annotations

from typing import Any

from openai import OpenAI

from llama4_edge import Model


def test_a_text_is_continued(openai: OpenAI, demo_model: Model) -> None:
    answer = openai.completions.create(
        model="any", prompt="Ana walks from the", max_tokens=8, temperature=0
    )
    assert (
        answer.choices[0].text
        == demo_model.generate("Ana walks from the", max_tokens=8, temperature=0.0).text
    )


def test_echo_gives_the_probability_of_each_token_of_a_prompt(openai: OpenAI) -> None:
    prompt = "Ana walks from the old tower to the river."
    answer = openai.completions.create(
        model="any", prompt=prompt, max_tokens=0, echo=True, logprobs=2, temperature=0
    )
    (choice,) = answer.choices
    assert choice.text == prompt
    logprobs: Any = choice.logprobs
    assert "".join(logprobs.tokens) == prompt
    # Two, and the token itself where it is none of these.
    for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True):
        assert token in top and 2 <= len(top) <= 3
    # Before the first token stands BOS, which is not shown.
    assert all(value < 0.0 for value in logprobs.token_logprobs)
    assert logprobs.text_offset == [
        len("".join(logprobs.tokens[:number])) for number in range(len(logprobs.tokens))
    ]


def test_prompts_together_are_answered_in_their_order(openai: OpenAI) -> None:
    prompts = ["Ana walks from the", "It is quiet in the"]
    together = openai.completions.create(model="any", prompt=prompts, max_tokens=6, temperature=0)
    apart = [
        openai.completions.create(model="any", prompt=prompt, max_tokens=6, temperature=0)
        for prompt in prompts
    ]
    assert [choice.text for choice in together.choices] == [one.choices[0].text for one in apart]
    assert [choice.index for choice in together.choices] == [0, 1]
