"""``/v1/chat/completions`` over a real socket."""

from __future__ import annotations

import json
from typing import Any

import httpx

from llama4_edge import Model

HELLO = [{"role": "user", "content": "Hello!"}]
GREEDY = {"temperature": 0, "max_tokens": 12}


def chunks_of(client: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream, which ends as OpenAI's do."""
    with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in answer.iter_lines() if line and not line.startswith(":")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(
        choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]
    )


def test_an_answer_is_the_one_of_the_api(tiny: httpx.Client, tiny_model: Model) -> None:
    answer = tiny.post("/v1/chat/completions", json={"messages": HELLO, **GREEDY}).json()
    same = tiny_model.chat(HELLO, max_tokens=12, temperature=0.0)
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"] == {"role": "assistant", "content": same.text, "refusal": None}
    assert choice["finish_reason"] == same.finish_reason
    assert answer["usage"]["prompt_tokens"] == same.prompt_tokens
    assert answer["usage"]["completion_tokens"] == len(same.tokens)


def test_a_stream_is_the_same_answer(tiny: httpx.Client) -> None:
    body = {"messages": HELLO, **GREEDY}
    answer = tiny.post("/v1/chat/completions", json=body).json()
    chunks = chunks_of(tiny, body)
    assert text_of(chunks) == answer["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] == answer["choices"][0]["finish_reason"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
