"""``/v1/chat/completions`` over a real socket."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image

from llama4_edge import Model

# After this, no two tokens of the tiny model are so near to each other that the order of sums,
# which is another one where others are read in the same batch, could decide.
HELLO = [{"role": "user", "content": "Hello."}]
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


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/chat/completions", json={"messages": HELLO, **GREEDY, **body})
    assert answer.status_code == 200, answer.text
    value: dict[str, Any] = answer.json()
    return value


def test_usage_comes_in_a_last_chunk_where_it_is_asked_for(tiny: httpx.Client) -> None:
    body = {"messages": HELLO, **GREEDY}
    chunks = chunks_of(tiny, {**body, "stream_options": {"include_usage": True}})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 12
    assert {chunk["usage"] for chunk in chunks[:-1]} == {None}
    assert all("usage" not in chunk for chunk in chunks_of(tiny, body))


def test_what_is_still_held_counts_as_cached(tiny: httpx.Client) -> None:
    messages = [{"role": "user", "content": "What is cached is not read again."}]
    ask(tiny, messages=messages)
    usage = ask(tiny, messages=messages)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_several_answers_have_seeds_that_follow_one_another(
    tiny: httpx.Client, tiny_model: Model
) -> None:
    # All tokens in the order of their ids, and seeds whose draws are at the edge of none.
    every = {"temperature": 2.0, "seed": 61, "top_k": 0, "top_p": 1.0}
    body = {**every, "n": 3}
    choices = ask(tiny, **body)["choices"]
    same = tiny_model.chat(HELLO, max_tokens=12, n=3, **every)  # type: ignore[call-overload]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in choices]
    assert texts == [one.text for one in same]
    assert len(set(texts)) > 1
    chunks = chunks_of(tiny, {"messages": HELLO, **GREEDY, **body})
    parts = ["", "", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            parts[choice["index"]] += choice["delta"].get("content", "")
    assert parts == texts


def test_a_stop_string_ends_an_answer_before_it(demo: httpx.Client) -> None:
    question = [{"role": "user", "content": "What is 47 + 38?"}]
    whole = ask(demo, messages=question, max_tokens=64)["choices"][0]
    text = whole["message"]["content"]
    assert whole["finish_reason"] == "stop"
    cut = ask(demo, messages=question, max_tokens=64, stop=[",", "never"])["choices"][0]
    assert cut["message"]["content"] == text[: text.index(",")]
    assert cut["finish_reason"] == "stop"
    short = ask(demo, messages=question, max_completion_tokens=3, max_tokens=None)["choices"][0]
    assert short["finish_reason"] == "length"


def test_log_probabilities_are_those_of_the_api(demo: httpx.Client, demo_model: Model) -> None:
    question = [{"role": "user", "content": "What is 47 + 38?"}]
    body = {"messages": question, "logprobs": True, "top_logprobs": 3}
    choice = ask(demo, **body)["choices"][0]
    entries = choice["logprobs"]["content"]
    same = demo_model.chat(question, temperature=0.0, max_tokens=12, logprobs=True, top_logprobs=3)
    assert same.logprobs is not None
    assert [one["logprob"] for one in entries] == pytest.approx(
        [one.logprob for one in same.logprobs], abs=1e-4
    )
    assert "".join(bytes(one["bytes"]).decode() for one in entries) == same.text
    assert all(len(one["top_logprobs"]) == 3 for one in entries)
    # Greedily, the likeliest is the one that was chosen.
    assert all(one["top_logprobs"][0]["token"] == one["token"] for one in entries)
    chunks = chunks_of(demo, {**GREEDY, **body})
    streamed = [
        one
        for chunk in chunks
        for choice in chunk["choices"]
        for one in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert [one["token"] for one in streamed] == [one["token"] for one in entries]


def test_a_bias_keeps_a_token_from_being_chosen(demo: httpx.Client, demo_model: Model) -> None:
    question = [{"role": "user", "content": "What is 47 + 38?"}]
    first = demo_model.chat(question, temperature=0.0, max_tokens=1).tokens[0]
    for bias in ({str(first): -100}, [[first, False]]):
        answer = ask(demo, messages=question, logit_bias=bias, max_tokens=1)
        assert answer["choices"][0]["message"]["content"] != demo_model.detokenize([first])


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_follows_a_schema(demo: httpx.Client, stream: bool) -> None:
    schema = {"name": "person", "schema": SCHEMA, "strict": True}
    body = {
        "messages": HELLO, **GREEDY, "max_tokens": 60,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }  # fmt: skip
    if stream:
        text = text_of(chunks_of(demo, body))
    else:
        text = ask(demo, **body)["choices"][0]["message"]["content"]
    person = json.loads(text)
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)


def test_an_answer_follows_a_grammar_or_an_expression(demo: httpx.Client) -> None:
    answer = ask(demo, grammar='root ::= "yes" | "no"')
    assert answer["choices"][0]["message"]["content"] in ("yes", "no")
    answer = ask(demo, regex="[0-9]{3}")
    assert answer["choices"][0]["message"]["content"].isdigit()
    refused = demo.post(
        "/v1/chat/completions", json={"messages": HELLO, "grammar": "root ::= missing"}
    )
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "grammar")


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 10}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
FORCED = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 80}


def test_a_call_that_is_required_comes_as_one(demo: httpx.Client) -> None:
    answer = ask(demo, **FORCED)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call, *_) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "get_weather")
    assert set(json.loads(call["function"]["arguments"])) == {"city"}

    pieces: dict[int, dict[str, str]] = {}
    chunks = chunks_of(demo, {"messages": HELLO, **GREEDY, **FORCED})
    for chunk in chunks:
        for piece in chunk["choices"][0]["delta"].get("tool_calls", ()):
            whole = pieces.setdefault(piece["index"], {"name": "", "arguments": ""})
            for name, text in piece["function"].items():
                whole[name] += text
    assert pieces[0] == call["function"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_call_and_its_result_go_back_into_the_conversation(demo: httpx.Client) -> None:
    call = ask(demo, **FORCED)["choices"][0]["message"]
    messages = [
        *HELLO,
        call,
        {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "sunny"},
    ]
    answer = ask(demo, messages=messages, tools=[WEATHER])
    assert answer["choices"][0]["message"]["content"] is not None


def picture(colour: tuple[int, int, int]) -> dict[str, Any]:
    data = io.BytesIO()
    Image.new("RGB", (336, 336), colour).save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


def test_a_picture_is_seen(demo: httpx.Client, demo_model: Model) -> None:
    content = [picture((200, 30, 30)), {"type": "text", "text": "What do you see?"}]
    messages = [{"role": "user", "content": content}]
    answer = ask(demo, messages=messages)
    same = demo_model.chat(messages, temperature=0.0, max_tokens=12)
    assert answer["choices"][0]["message"]["content"] == same.text
    assert answer["usage"]["prompt_tokens"] == same.prompt_tokens > 144


def test_a_model_without_a_projector_refuses_pictures(tiny: httpx.Client) -> None:
    messages = [{"role": "user", "content": [picture((0, 0, 0))]}]
    answer = tiny.post("/v1/chat/completions", json={"messages": messages})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


def test_roles_and_parts_of_openai_are_those_of_the_template(
    tiny: httpx.Client, tiny_model: Model
) -> None:
    texts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages = [
        {"role": "developer", "content": "Be brief.", "name": "x"},
        {"role": "user", "content": texts},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "user", "content": "Why?"},
    ]
    plain = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Why?"},
    ]
    count = ask(tiny, messages=messages)["usage"]["prompt_tokens"]
    assert count == len(tiny_model.chat_prompt(plain))
