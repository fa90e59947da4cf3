"""What is too much for the model is refused early, and what is much holds up nobody else."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llama4_edge import Model
from llama4_edge.chat.vocabulary import Vocabulary
from llama4_edge.server import chunks, endpoint, pieces
from llama4_edge.server.body import Schema
from llama4_edge.server.errors import ApiError
from llama4_edge.server.schema.openai import SamplingFields
from llama4_edge.server.sizes import Counter, Limits
from tests.server.running import RunningServer, running_server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]


def counted(data: bytes, size: int) -> tuple[int, int]:
    """How many values and how many lists and objects are counted in pieces of a size."""
    counter = Counter(Limits())
    for begin in range(0, len(data), size):
        counter.add(data[begin : begin + size])
    return counter._values, counter._nested


def expected(value: Any) -> tuple[int, int]:
    inner = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(inner, list):
        return 0, 0
    counts = [expected(one) for one in inner]
    values = 1 + max(len(inner) - 1, 0) + sum(one for one, _ in counts)
    return values, 1 + sum(one for _, one in counts)


def made(rng: random.Random, depth: int) -> Any:
    """A value with strings that look like structure."""
    kind = rng.randrange(4 if depth else 2)
    if kind == 0:
        return "".join(rng.choices('"\\,[]{}:ab\n', k=rng.randrange(12)))
    if kind == 1:
        return rng.choice([1, -2.5, None, True])
    count = rng.randrange(5)
    if kind == 2:
        return [made(rng, depth - 1) for _ in range(count)]
    return {f"{at}{made(rng, 0)}": made(rng, depth - 1) for at in range(count)}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 16])
def test_values_are_counted_wherever_the_pieces_are_cut(size: int) -> None:
    rng = random.Random(size)
    for _ in range(300):
        value = [made(rng, 4)]
        assert counted(json.dumps(value).encode(), size) == expected(value)


def test_counting_takes_a_time_that_grows_with_the_text_alone() -> None:
    """A string that does not end in a piece is looked at once, however many quotes are in it."""
    assert counted(b'["' + b'\\"' * (1 << 20) + b'"]', 1 << 16) == (1, 1)
    assert counted(b'["' + b"\\\\" * (1 << 20) + b'"]', (1 << 16) - 1) == (1, 1)


@pytest.mark.parametrize(
    ("text", "most"),
    [("[" + "1," * 2_000_000, "1,000,000 values"), ("[],[" * 200_000, "100,000 lists and objects")],
)
def test_a_body_with_too_many_values_is_refused_while_it_comes(text: str, most: str) -> None:
    counter = Counter(Limits())
    with pytest.raises(ApiError, match=f"found more than {most}") as caught:
        counter.add(f'{{"messages":[{text}'.encode())
    assert caught.value.status == 413


def body(fields: dict[str, Any]) -> dict[str, Any]:
    return {"messages": HI, **fields}


@pytest.mark.parametrize(
    ("path", "fields", "param", "code"),
    [
        (COMPLETIONS, {"prompt": [5] * 257}, "prompt", "context_length_exceeded"),
        (COMPLETIONS, {"prompt": [[5], [5] * 257]}, "prompt", "context_length_exceeded"),
        (COMPLETIONS, {"prompt": [5] * 1_500_000}, "prompt", "context_length_exceeded"),
        (CHAT, {"messages": HI * 257}, "messages", "context_length_exceeded"),
        ("/v1/responses", {"input": HI * 257}, "input", "context_length_exceeded"),
        ("/v1/messages", {"messages": HI * 257, "max_tokens": 1}, None, None),
        (CHAT, body({"logit_bias": {str(at): 1 for at in range(400)}}), "logit_bias",
         "invalid_value"),
        (CHAT, body({"logit_bias": [[at, 1] for at in range(400)]}), "logit_bias",
         "invalid_value"),
        (CHAT, body({"tools": [{"type": "function", "function": {"name": f"f{at}"}}
                               for at in range(600)]}), "tools", "invalid_value"),
    ],
)  # fmt: skip
def test_what_is_more_than_the_model_takes_is_refused_before_it_is_read(
    tiny: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    fields: dict[str, Any],
    param: str | None,
    code: str | None,
) -> None:
    monkeypatch.setattr(Schema, "model_validate", lambda _: pytest.fail("it was read"))
    answer = tiny.post(path, json=fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error.get("param"), error.get("code")) == (param, code)
    assert re.search(
        r"found (more than )?[\d,]+ (tokens|entries).*expected at most", error["message"]
    )


def test_as_much_as_the_model_takes_is_taken(tiny: httpx.Client) -> None:
    bias = {str(token): 0 for token in range(200)}
    assert tiny.post(CHAT, json=body({"logit_bias": bias, "max_tokens": 1})).status_code == 200
    answer = tiny.post(COMPLETIONS, json={"prompt": [5] * 255, "max_tokens": 1})
    assert answer.status_code == 200
    texts = {"prompt": ["a"] * 300, "max_tokens": 0}
    assert tiny.post(COMPLETIONS, json=texts).status_code == 200


@pytest.fixture(scope="module")
def watched(tiny_model: Model) -> Iterator[tuple[RunningServer, list[str]]]:
    """A server for which every body is a large one, and the threads that work on bodies."""
    threads: list[str] = []

    def watch(owner: type, name: str, patch: pytest.MonkeyPatch) -> None:
        inner = getattr(owner, name)

        def watching(*args: Any, **kwargs: Any) -> Any:
            threads.append(threading.current_thread().name)
            return inner(*args, **kwargs)

        patch.setattr(owner, name, watching)

    with pytest.MonkeyPatch.context() as patch, running_server(tiny_model) as server:
        patch.setattr(endpoint, "IN_LOOP", 0)
        watch(SamplingFields, "sampling", patch)
        watch(Vocabulary, "token_bytes", patch)
        watch(Vocabulary, "encode", patch)
        yield server, threads


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 5, "max_tokens": 3}),
        (COMPLETIONS, {"prompt": "Hi", "logprobs": 5, "echo": True, "max_tokens": 3}),
        (COMPLETIONS, {"prompt": "Hi", "logprobs": 5, "echo": True, "max_tokens": 0}),
        ("/tokenize", {"content": "Hi there", "with_pieces": True}),
        ("/detokenize", {"tokens": [5, 6, 7]}),
        ("/apply-template", {"messages": HI}),
    ],
)
def test_what_takes_long_for_large_bodies_is_done_beside_the_loop(
    watched: tuple[RunningServer, list[str]], path: str, fields: dict[str, Any]
) -> None:
    server, threads = watched
    threads.clear()
    with server.client() as client:
        assert client.post(path, json=fields).status_code == 200
    loop = [one for one in threads if not one.startswith(("asyncio", "ThreadPool", "llama"))]
    assert threads and not loop, set(threads)


def test_tokens_come_in_pieces_and_are_the_same(tiny: httpx.Client, tiny_model: Model) -> None:
    text = "This is a line of words, \u00e4 and more.\n" * 3000
    tokens = tiny_model.tokenize(text, special=True)
    answer = tiny.post("/tokenize", json={"content": text})
    assert answer.json() == {"tokens": tokens}
    answer = tiny.post("/tokenize", json={"content": text, "with_pieces": True})
    written = answer.json()["tokens"]
    assert [one["id"] for one in written] == tokens
    data = [
        one["piece"].encode() if isinstance(one["piece"], str) else bytes(one["piece"])
        for one in written
    ]
    assert b"".join(data).decode() == text
    assert tiny.post("/tokenize", json={"content": ""}).json() == {"tokens": []}
    assert tiny.post("/detokenize", json={"tokens": tokens}).json()["content"] == text


@pytest.mark.parametrize(
    "value",
    [{}, [], {"a": []}, {"a": {}}, 5, "x", None, [[1], {}], [{"a": [1] * 2500}] * 250,
     {"a": list(range(12345)), "b": [{"c": at} for at in range(1234)]}],
)  # fmt: skip
def test_what_is_written_in_pieces_is_the_same_json(value: Any) -> None:
    written = list(pieces._json_pieces(value))
    assert "".join(written) == chunks.compact(value)
    assert max(map(len, written)) < 1_000_000
