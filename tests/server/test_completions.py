"""``/v1/completions`` over a real socket."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from llama4_edge import Model

GREEDY = {"temperature": 0, "max_tokens": 8}

# After these, no two tokens of the tiny model are so near to each other that the order of sums,
# which is another one where others are read in the same batch, could decide.
PROMPTS = ["Hello?", "Two", "Hey"]
HELLO = PROMPTS[0]

# What was read before is not read again, and flash attention on the CPU sums in f16 where few
# tokens are decoded: of 12 tokens read in other batches 0.0004 was seen, of 100 tokens 0.005.
CLOSE = 0.01


def complete(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json={**GREEDY, **body})
    assert answer.status_code == 200, answer.text
    value: dict[str, Any] = answer.json()
    return value


def chunks_of(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    body = {**GREEDY, **body, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        lines = [line for line in answer.iter_lines() if line and not line.startswith(":")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def test_a_text_is_continued_as_by_the_api(tiny: httpx.Client, tiny_model: Model) -> None:
    answer = complete(tiny, prompt=HELLO)
    same = tiny_model.generate(HELLO, max_tokens=8, temperature=0.0)
    assert answer["object"] == "text_completion"
    assert texts(answer) == [same.text]
    assert answer["usage"]["prompt_tokens"] == same.prompt_tokens


def test_tokens_are_taken_as_they_are(tiny: httpx.Client, tiny_model: Model) -> None:
    tokens = tiny_model.text_prompt(HELLO).positions
    assert texts(complete(tiny, prompt=tokens)) == texts(complete(tiny, prompt=HELLO))


def test_several_prompts_are_answered_as_if_each_came_alone(
    tiny: httpx.Client, tiny_model: Model
) -> None:
    alone = [texts(complete(tiny, prompt=prompt))[0] for prompt in PROMPTS]
    together = complete(tiny, prompt=PROMPTS)
    assert texts(together) == alone
    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2]
    tokens = [tiny_model.text_prompt(prompt).positions for prompt in PROMPTS]
    assert texts(complete(tiny, prompt=tokens)) == alone
    assert together["usage"]["prompt_tokens"] == sum(map(len, tokens))


def test_a_stream_of_several_prompts_is_the_same_texts(tiny: httpx.Client) -> None:
    # All tokens in the order of their ids, and seeds whose draws are at the edge of none.
    every = {"temperature": 2.0, "seed": 79, "top_k": 0, "top_p": 1.0}
    body = {**every, "prompt": PROMPTS[:2], "echo": True, "n": 2}
    whole = complete(tiny, **body)
    parts = ["", "", "", ""]
    for chunk in chunks_of(tiny, **body):
        for choice in chunk["choices"]:
            parts[choice["index"]] += choice["text"]
    assert parts == texts(whole)
    assert [part.startswith("Hello") for part in parts] == [True, True, False, False]


def test_best_of_gives_the_likeliest(tiny: httpx.Client, tiny_model: Model) -> None:
    options = {"temperature": 2.0, "seed": 5, "top_k": 0, "top_p": 1.0}
    every = tiny_model.generate(HELLO, max_tokens=8, n=4, logprobs=True, **options)  # type: ignore[call-overload]

    def mean(completion: Any) -> float:
        return float(sum(one.logprob for one in completion.logprobs) / len(completion.logprobs))

    best = max(every, key=mean)
    assert texts(complete(tiny, prompt=HELLO, best_of=4, **options)) == [best.text]


def test_echo_with_logprobs_tells_how_likely_the_prompt_is(
    tiny: httpx.Client, tiny_model: Model
) -> None:
    text = "Hello the end"
    answer = complete(tiny, prompt=text, echo=True, logprobs=2, max_tokens=3)
    (choice,) = answer["choices"]
    told = choice["logprobs"]
    scores = tiny_model.score(text, top=2)
    count = len(scores) + 1
    assert told["token_logprobs"][0] is None
    alone = [one.logprob for one in scores]
    assert told["token_logprobs"][1:count] == pytest.approx(alone, abs=CLOSE)
    assert len(told["tokens"]) == len(told["top_logprobs"]) == count + 3
    assert choice["text"].startswith(text)
    assert told["text_offset"][0] == 0
    assert told["top_logprobs"][1].keys() >= {told["tokens"][1]}
    whole = complete(tiny, prompt=text, logprobs=2, max_tokens=3)["choices"][0]["logprobs"]
    assert told["token_logprobs"][count:] == pytest.approx(whole["token_logprobs"], abs=CLOSE)


def test_a_prompt_alone_can_be_weighed(tiny: httpx.Client, tiny_model: Model) -> None:
    # As lm-eval asks: token ids, one token more at most, which it drops.
    tokens = [[5, 6, 7, 8], [9, 10, 11]]
    answer = complete(tiny, prompt=tokens, echo=True, logprobs=1, max_tokens=0)
    told = [choice["logprobs"]["token_logprobs"] for choice in answer["choices"]]
    alone = [[None, *(one.logprob for one in tiny_model.score(one))] for one in tokens]
    assert told == [pytest.approx(one, abs=CLOSE) for one in alone]


def test_a_stream_has_the_same_logprobs(tiny: httpx.Client) -> None:
    body = {"prompt": HELLO, "echo": True, "logprobs": 1}
    whole = complete(tiny, **body)["choices"][0]["logprobs"]
    parts: dict[str, list[Any]] = {name: [] for name in whole}
    for chunk in chunks_of(tiny, **body):
        for name, values in (chunk["choices"][0]["logprobs"] or {}).items():
            parts[name] += values
    assert parts["tokens"] == whole["tokens"]
    assert parts["text_offset"] == whole["text_offset"]
    assert parts["token_logprobs"][1:] == pytest.approx(whole["token_logprobs"][1:], abs=CLOSE)


def test_one_prompt_that_cannot_be_continued_refuses_all(tiny: httpx.Client) -> None:
    prompts = ["Hello"] * 20 + ["x " * 1000]
    answer = tiny.post("/v1/completions", json={"prompt": prompts, "max_tokens": 50})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert texts(complete(tiny, prompt="Hello"))  # and nothing is left of the others


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"prompt": []}, "prompt", "expected a string"),
        ({"prompt": ["a", 1]}, "prompt", "found 'a' as entry 0, expected token ids alone"),
        ({"prompt": [1, -1]}, "prompt", "found -1 as entry 1, expected token ids alone"),
        ({"prompt": [True]}, "prompt", "found true as entry 0, expected a string"),
        ({"prompt": [[1], []]}, "prompt", "found a list of 0 as entry 1, expected a string"),
        ({"prompt": [2**31]}, "prompt", "token"),
        ({"prompt": [100_000]}, "prompt", "not in the model's vocabulary"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "not trained to fill in"),
        ({"prompt": "a", "best_of": 1, "n": 2}, "best_of", "best_of is less than n"),
        ({"prompt": "a", "best_of": 2, "stream": True}, "best_of", "best_of chooses"),
        ({}, "prompt", "prompt is missing"),
    ],
)
def test_what_cannot_be_continued_is_refused_by_its_field(
    tiny: httpx.Client, body: dict[str, Any], param: str | None, said: str
) -> None:
    answer = tiny.post("/v1/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert said in error["message"]
