"""Answers in OpenAI's Responses protocol: each event and each response is one of the `openai`
package's own types."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from llama4_edge.chat.answer import Completion
from llama4_edge.chat.events import AnswerEvent, TextPiece
from llama4_edge.runtime.logprobs import TokenLogprobs
from llama4_edge.runtime.sampling import Sampling
from llama4_edge.server.body import parsed
from llama4_edge.server.errors import ApiError
from llama4_edge.server.responses_answer import ResponseWriter
from llama4_edge.server.responses_tools import callable_tools
from llama4_edge.server.schema.responses import ResponsesRequest
from tests.server.answers import CALL, call, completion, texts

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def write_logprobs(logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
    content = [
        {"token": str(one.token), "bytes": [one.token], "logprob": one.logprob, "top_logprobs": []}
        for one in logprobs
    ]
    return {"content": content}


def writer_of(**fields: Any) -> ResponseWriter:
    body = json.dumps({"model": "m", "input": "hi", **fields}).encode()
    request = parsed(body, ResponsesRequest)
    tools = callable_tools(request.tools or ())
    return ResponseWriter(request, tools, "tiny", Sampling(), write_logprobs, lambda _: None)


def written(
    events: Iterable[AnswerEvent], end: Completion, **fields: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of a stream, each checked, and the whole response of the same writer."""
    writer = writer_of(**fields)
    # Written at once: what comes later does not change what was sent.
    sent = [json.dumps(event) for event in (*writer.opened(), *writer.begun(10, 4))]
    for event in events:
        sent += [json.dumps(one) for one in writer.events(event)]
    sent += [json.dumps(one) for one in writer.ended(end)]
    all_events = [json.loads(event) for event in sent]
    for event in all_events:
        _EVENT.validate_python(event, strict=True)
    assert [event["sequence_number"] for event in all_events] == list(range(len(sent)))
    return all_events, writer.whole()


def kinds(events: Iterable[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


TEXT = ["output_item.added", "content_part.added"]
TEXT_END = ["output_text.done", "content_part.done", "output_item.done"]


def test_a_text_is_one_message() -> None:
    events, whole = written(texts("Hel", "lo"), completion())
    assert kinds(events) == [
        "created", "in_progress", *TEXT, "output_text.delta", "output_text.delta", *TEXT_END,
        "completed",
    ]  # fmt: skip
    assert Response.model_validate(whole, strict=True).output_text == "Hello"
    assert events[-1]["response"] == {**whole, "completed_at": whole["completed_at"]}
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    (item,) = whole["output"]
    assert (item["status"], item["role"], item["type"]) == ("completed", "assistant", "message")
    assert {event.get("item_id", item["id"]) for event in events} == {item["id"]}


def test_texts_and_calls_stand_in_their_order() -> None:
    answer = [
        *texts("Let me look."),
        *call(0, '{"city": ', '"Łódź"}'),
        *texts("\n"),
        *call(1, "{}"),
    ]
    events, whole = written(answer, completion(tool_calls=(CALL,)))
    delta, done = "function_call_arguments.delta", "function_call_arguments.done"
    assert kinds(events)[2:-1] == [
        *TEXT, "output_text.delta", *TEXT_END,
        "output_item.added", delta, delta, done, "output_item.done",
        "output_item.added", delta, done, "output_item.done",
    ]  # fmt: skip
    assert [item["type"] for item in whole["output"]] == ["message", *["function_call"] * 2]
    first = whole["output"][1]
    assert (first["call_id"], first["name"]) == ("call_0", "weather")
    assert json.loads(first["arguments"]) == {"city": "Łódź"}
    assert whole["status"] == "completed"


@pytest.mark.parametrize(
    "answer",
    [texts("a", "b"), [], texts("\n"), [*texts("\n", "x"), *call(0, '{"a"', ":1}")]],
)
def test_openais_client_makes_the_whole_response_of_a_stream(answer: list[AnswerEvent]) -> None:
    events, whole = written(answer, completion())
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=omit, text_format=omit)
    last: list[Any] = []
    for event in events:
        last = list(state.handle_event(_EVENT.validate_python(event)))
    output = [one.model_dump(exclude_none=True) for one in last[0].response.output]
    expected = Response.model_validate(whole).model_dump(exclude_none=True)["output"]
    assert [{k: v for k, v in one.items() if "parsed" not in k} for one in output] == expected


def test_an_answer_that_says_nothing_is_an_empty_message() -> None:
    _, whole = written([], completion(tokens=()))
    assert whole["output"][0]["content"][0]["text"] == ""


def test_an_answer_that_was_cut_is_incomplete() -> None:
    events, whole = written(texts("x"), completion(finish_reason="length"))
    assert kinds(events)[-1] == "incomplete"
    assert whole["status"] == whole["output"][0]["status"] == "incomplete"
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}


def test_what_was_asked_for_is_repeated() -> None:
    _, whole = written(
        texts("x"),
        completion(),
        instructions="Be brief.",
        metadata={"a": "b"},
        max_output_tokens=5,
        store=False,
        truncation="auto",
        tool_choice={"type": "function", "name": "f"},
        tools=[{"type": "function", "name": "f", "parameters": {}, "strict": None}],
        text={"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}},
    )
    response = Response.model_validate(whole, strict=True)
    assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})
    assert (response.max_output_tokens, response.truncation) == (5, "auto")
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"
    assert whole["tool_choice"] == {"type": "function", "name": "f"}
    assert (whole["model"], whole["temperature"], whole["top_p"]) == ("tiny", 0.6, 0.9)
    assert whole["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 13,
    }


def test_log_probabilities_go_with_their_text() -> None:
    pieces: list[AnswerEvent] = [
        TextPiece(" ", (TokenLogprobs(1, -0.5, ()),)), TextPiece("a", (TokenLogprobs(2, -1.0, ()),))
    ]  # fmt: skip
    events, whole = written(pieces, completion(), top_logprobs=0)
    (part,) = whole["output"][0]["content"]
    assert [(one["token"], one["logprob"]) for one in part["logprobs"]] == [
        ("1", -0.5),
        ("2", -1.0),
    ]
    (delta,) = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [one["token"] for one in delta["logprobs"]] == ["1", "2"]


def test_a_failure_is_an_event() -> None:
    writer = writer_of()
    events = [
        *writer.opened(),
        *writer.begun(10, 4),
        writer.failed(ApiError(500, "llama.cpp failed")),
    ]
    _EVENT.validate_python(json.loads(json.dumps(events[-1])), strict=True)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["sequence_number"] == 2
    assert events[-1]["response"]["error"] == {
        "code": "server_error", "message": "llama.cpp failed",
    }  # fmt: skip


PATCH = {"type": "custom", "name": "patch", "description": "Changes files."}
FILES = {
    "type": "namespace",
    "name": "mcp__files__",
    "description": "Files.",
    "tools": [{"type": "function", "name": "list", "strict": False}, PATCH],
}


def test_a_custom_tool_is_called_with_a_text() -> None:
    pieces = ('{"input": "*** Begin', ' \\"Patch\\""}')
    end = completion(tool_calls=(CALL,), finish_reason="tool_calls")
    events, whole = written(call(0, *pieces, name="patch"), end, tools=[PATCH])
    (item,) = whole["output"]
    text = '*** Begin "Patch"'
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", text)
    assert item["status"] == "completed"
    assert "namespace" not in item
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[2:-1] == [
        "output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done",
        "output_item.done",
    ]  # fmt: skip
    assert (events[2]["item"]["input"], events[3]["delta"], events[4]["input"]) == ("", text, text)


@pytest.mark.parametrize("arguments", ['{"input": 7}', '{"inpu'])
def test_what_is_no_text_for_a_custom_tool_is_given_as_it_was_written(arguments: str) -> None:
    end = completion(tool_calls=(CALL,), finish_reason="tool_calls")
    _, whole = written(call(0, arguments, name="patch"), end, tools=[PATCH])
    assert whole["output"][0]["input"] == arguments


def test_a_tool_of_a_namespace_is_called_by_its_own_name() -> None:
    end = completion(tool_calls=(CALL, CALL), finish_reason="tool_calls")
    calls = [
        *call(0, "{}", name="mcp__files__list"),
        *call(1, '{"input": "x"}', name="mcp__files__patch"),
    ]
    _, whole = written(calls, end, tools=[FILES])
    assert [(item["type"], item["namespace"], item["name"]) for item in whole["output"]] == [
        ("function_call", "mcp__files__", "list"),
        ("custom_tool_call", "mcp__files__", "patch"),
    ]


def test_tools_are_repeated_as_they_were_given_without_those_that_do_not_run_here() -> None:
    given = [PATCH, FILES, {"type": "web_search", "external_web_access": False}]
    _, whole = written(texts("x"), completion(), tools=given)
    assert [tool["type"] for tool in whole["tools"]] == ["custom", "namespace"]
    assert [tool["name"] for tool in whole["tools"][1]["tools"]] == ["list", "patch"]
    Response.model_validate(whole, strict=True)
