"""Answers in Anthropic's protocol: each event and each message is one of the `anthropic` package's
own types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from llama4_edge.chat.answer import Completion
from llama4_edge.chat.events import AnswerEvent
from llama4_edge.server.anthropic_answer import PING, MessageWriter
from tests.server.answers import CALL, call, completion, texts

_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def written(
    events: Iterable[AnswerEvent], end: Completion, max_tokens: int = 3
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events of a stream, each checked, and the whole message of the same writer."""
    writer = MessageWriter("tiny", max_tokens)
    all_events = [*writer.begun(10, 4)]
    for event in events:
        all_events += writer.events(event)
    all_events += writer.ended(end)
    for one in all_events:
        if one is not PING:
            _EVENT.validate_python(one)
    whole = writer.whole()
    Message.model_validate(whole, strict=True)
    return all_events, whole


def kinds(events: Iterable[dict[str, Any]]) -> list[str]:
    return [
        event["type"].removeprefix("content_block_")
        + (f" {event['index']}" if "index" in event else "")
        for event in events
    ]


def accumulated(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The message that Anthropic's own client makes of a stream."""
    snapshot = None
    buffers: dict[int, bytes] = {}
    for event in events:
        if event is not PING:
            snapshot = accumulate_event(
                event=_EVENT.validate_python(event), current_snapshot=snapshot, json_bufs=buffers
            )
    assert snapshot is not None
    return snapshot.model_dump(exclude_none=True, warnings=False)


def test_a_text_is_one_block() -> None:
    events, whole = written(texts("Hel", "lo"), completion())
    assert kinds(events) == [
        "message_start", "ping", "start 0", "delta 0", "delta 0", "stop 0", "message_delta",
        "message_stop",
    ]  # fmt: skip
    assert whole["content"] == [{"type": "text", "text": "Hello"}]
    assert events[0]["message"]["content"] == []
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_texts_and_calls_stand_in_their_order() -> None:
    answer = [
        *texts("Let me ", "look.\n"),
        *call(0, '{"city": ', '"Łódź"}'),
        *texts("\n"),
        *call(1, "{}"),
        *texts(" Done."),
    ]
    events, whole = written(answer, completion(tool_calls=(CALL,)))
    assert kinds(events)[2:-2] == [
        "start 0", "delta 0", "delta 0", "stop 0",
        "start 1", "delta 1", "delta 1", "stop 1",
        "start 2", "delta 2", "stop 2",
        "start 3", "delta 3", "stop 3",
    ]  # fmt: skip
    assert whole["content"] == [
        {"type": "text", "text": "Let me look.\n"},
        {"type": "tool_use", "id": "call_0", "name": "weather", "input": {"city": "Łódź"}},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}},
        {"type": "text", "text": " Done."},
    ]
    assert whole["stop_reason"] == "tool_use"
    assert events[6]["content_block"]["input"] == {}


@pytest.mark.parametrize(
    "answer",
    [texts("a", "b"), [], texts("\n", " "), [*texts("\n", "x"), *call(0, '{"a"', ":1}")]],
)
def test_a_stream_and_a_whole_message_are_the_same(answer: list[AnswerEvent]) -> None:
    events, whole = written(answer, completion())
    expected = Message.model_validate(whole).model_dump(exclude_none=True)
    assert accumulated(events) == expected


def test_whitespace_alone_is_no_block() -> None:
    _, whole = written([*texts("\n", "\n"), *call(0, "{}"), *texts(" ")], completion())
    assert [block["type"] for block in whole["content"]] == ["tool_use"]
    _, whole = written(texts("\n", " ", "x", " "), completion())
    assert whole["content"] == [{"type": "text", "text": "\n x "}]


def test_tokens_that_were_still_there_are_counted_apart() -> None:
    events, whole = written(texts("x"), completion())
    expected = {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 3,
    }
    assert whole["usage"] == events[-2]["usage"] == expected
    assert events[0]["message"]["usage"] == {**expected, "output_tokens": 0}


@pytest.mark.parametrize(
    ("end", "reason", "sequence"),
    [
        (completion(), "end_turn", None),
        (completion(stop_string="END"), "stop_sequence", "END"),
        (completion(finish_reason="length"), "max_tokens", None),
        (
            completion(finish_reason="length", tokens=(1,)),
            "model_context_window_exceeded",
            None,
        ),
        (completion(tool_calls=(CALL,)), "tool_use", None),
    ],
)
def test_why_an_answer_ended(end: Completion, reason: str, sequence: str | None) -> None:
    events, whole = written(texts("x"), end)
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
    assert events[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}
