"""Requests of OpenAI's Responses protocol, as what a model is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama4_edge.server.body import parsed
from llama4_edge.server.errors import ApiError
from llama4_edge.server.hosted_tools import tell_left_out
from llama4_edge.server.responses_request import Asked, asked
from llama4_edge.server.responses_store import StoredItem
from llama4_edge.server.schema.responses import ResponsesRequest

DATA = "data:image/png;base64,iVBORw0KGgo="


def request(**fields: Any) -> ResponsesRequest:
    return parsed(json.dumps({"model": "m", **fields}).encode(), ResponsesRequest)


def ask(given: Any, **fields: Any) -> Asked:
    return asked(request(input=given, **fields))


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


CALL = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "7"}
CALLED = {
    "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'},
}  # fmt: skip


def test_a_string_is_one_message_of_the_user() -> None:
    assert ask("hi").messages == ask([message("user", "hi")]).messages
    assert ask("hi", instructions="Be brief.").messages == [
        message("system", "Be brief."),
        message("user", "hi"),
    ]


def test_items_become_messages() -> None:
    said = {
        "type": "message",
        "role": "assistant",
        "id": "msg_1",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Let me ", "annotations": []},
                    {"type": "output_text", "text": "look.", "annotations": []}],
    }  # fmt: skip
    parts = [{"type": "input_text", "text": "What "}, {"type": "input_text", "text": "is it?"}]
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": []}
    items = [
        message("developer", "d"), message("user", parts), reasoning, said, CALL, OUTPUT,
        message("user", "And?"),
    ]  # fmt: skip
    assert ask(items).messages == [
        message("system", "d"),
        message("user", "What is it?"),
        {**message("assistant", "Let me look."), "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "call_1", "content": "7"},
        message("user", "And?"),
    ]


def test_calls_without_a_text_are_one_message() -> None:
    second = {**CALL, "call_id": "call_2"}
    messages = ask([message("user", "?"), CALL, second, OUTPUT]).messages
    assert messages[1] == {
        **message("assistant", ""), "tool_calls": [CALLED, {**CALLED, "id": "call_2"}],
    }  # fmt: skip


def test_pictures_stand_where_they_stood_and_those_of_results_follow_these() -> None:
    picture = {"type": "input_image", "image_url": DATA, "detail": "high"}
    shown = {"type": "image_url", "image_url": {"url": DATA}}
    parts = [picture, {"type": "input_text", "text": "What?"}]
    output = {**OUTPUT, "output": [{"type": "input_text", "text": "read"}, picture]}
    messages = ask([message("user", parts), CALL, output, message("user", "so?")]).messages
    assert messages[0]["content"] == [shown, {"type": "text", "text": "What?"}]
    assert [(one["role"], one["content"]) for one in messages[2:]] == [
        ("tool", "read"),
        ("user", [shown]),
        ("user", "so?"),
    ]


def test_what_was_said_before_is_shown_as_if_it_came_now() -> None:
    items = [message("user", "?"), CALL, OUTPUT, message("assistant", "7"), message("user", "!")]
    whole = ask(items)
    first = ask(items[:3])
    then = asked(request(input=items[3:]), first.items)
    assert then.messages == whole.messages
    assert [item["type"] for item in then.items] == [item["type"] for item in whole.items]
    assert then.items[:3] == first.items


def test_an_item_may_be_named() -> None:
    (stored,) = ask("hi").items

    def item_of(name: str) -> StoredItem | None:
        return stored if name == stored["id"] else None

    named = [{"type": "item_reference", "id": stored["id"]}]
    assert asked(request(input=named), (), item_of).items == (stored,)
    with pytest.raises(ApiError) as caught:
        asked(request(input=[{"type": "item_reference", "id": "x"}]), (), item_of)
    assert caught.value.param == "input[0].id"


def test_stored_items_are_the_types_of_openais_client() -> None:
    from openai.types.responses import ResponseItemList

    picture = {"type": "input_image", "image_url": DATA}
    items = [message("user", [picture]), message("assistant", "x"), CALL, OUTPUT]
    data = json.loads(json.dumps(ask(items).items))
    whole = {
        "object": "list", "data": data, "has_more": False, "first_id": data[0]["id"],
        "last_id": data[-1]["id"],
    }  # fmt: skip
    ResponseItemList.model_validate(whole, strict=True)


FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
GIVEN = {"name": "f", "parameters": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, "auto"),
        ("required", "required"),
        ("none", "none"),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "f"}],
            },
            "required",
        ),
    ],
)
def test_tools_and_choices_become_those_of_chats(choice: Any, expected: Any) -> None:
    other = {"type": "function", "name": "g"}
    options = ask("?", tools=[FUNCTION, other], tool_choice=choice).options
    assert options["tool_choice"] == expected
    assert options["parallel_tool_calls"] is True
    names = [tool["function"]["name"] for tool in options["tools"]]
    assert names == (["f"] if isinstance(choice, dict) and "mode" in choice else ["f", "g"])
    assert options["tools"][0] == {"type": "function", "function": GIVEN}


TEXT_TOOL = {
    "type": "custom",
    "name": "patch",
    "description": "Changes files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'},
}
FILES = {"type": "namespace", "name": "files", "description": "Files.", "tools": [FUNCTION]}
SEARCH = {"type": "web_search", "external_web_access": False}


def test_tools_of_all_kinds_are_functions_with_names_of_their_own() -> None:
    given = ask("?", tools=[FUNCTION, FILES, TEXT_TOOL])
    shown = [tool["function"] for tool in given.options["tools"]]
    assert [tool["name"] for tool in shown] == ["f", "files__f", "patch"]
    assert shown[1] == {**GIVEN, "name": "files__f"}
    assert shown[2]["description"] == (
        'Changes files.\ninput follows this lark grammar:\nstart: "x"'
    )
    assert shown[2]["parameters"]["required"] == ["input"]
    assert [tool.called for tool in given.tools] == [
        {"name": "f"}, {"name": "f", "namespace": "files"}, {"name": "patch"},
    ]  # fmt: skip


def test_calls_of_all_kinds_are_shown_under_the_names_of_their_tools() -> None:
    (message_with_calls, *results) = ask(
        [
            {**CALL, "namespace": "files"},
            {"type": "custom_tool_call", "call_id": "call_2", "name": "patch", "input": 'a "b"'},
            OUTPUT,
            {"type": "custom_tool_call_output", "call_id": "call_2", "output": "done"},
        ]
    ).messages
    functions = [one["function"] for one in message_with_calls["tool_calls"]]
    assert functions == [
        {"name": "files__f", "arguments": '{"a": 1}'},
        {"name": "patch", "arguments": '{"input": "a \\"b\\""}'},
    ]
    assert [one["content"] for one in results] == ["7", "done"]


def test_what_openai_runs_is_left_out_beside_other_tools_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tell_left_out.cache_clear()
    for _ in range(3):
        given = ask("?", tools=[FUNCTION, SEARCH])
        assert [tool["function"]["name"] for tool in given.options["tools"]] == ["f"]
    told = [one for one in caplog.records if one.name == tell_left_out.__module__]
    assert [one.getMessage() for one in told] == [
        "requests have the tool web_search, which does not run here: it is left out"
    ]


@pytest.mark.parametrize("kind", ["function", "custom"])
def test_a_tool_is_chosen_by_its_own_name(kind: str) -> None:
    tools = [TEXT_TOOL, FILES]
    for name, shown in (("patch", "patch"), ("f", "files__f"), ("files__f", "files__f")):
        options = ask("?", tools=tools, tool_choice={"type": kind, "name": name}).options
        assert options["tool_choice"] == {"type": "function", "function": {"name": shown}}


def test_settings_become_keywords() -> None:
    options = ask(
        "?",
        max_output_tokens=5,
        truncation="auto",
        include=["message.output_text.logprobs", "reasoning.encrypted_content"],
        text={"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": True}},
    ).options
    assert options == {
        "max_tokens": 5,
        "when_full": "drop",
        "logprobs": True,
        "top_logprobs": 0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {}, "strict": True},
        },
    }
    assert ask("?").options == {"max_tokens": None}


def test_what_an_agent_sends_besides_changes_nothing() -> None:
    besides = {
        "reasoning": {"effort": "high", "summary": "auto"},
        "service_tier": "auto",
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "client_metadata": {},
        "context_management": [],
        "stream_options": {"include_obfuscation": False},
        "max_tool_calls": 3,
        "background": False,
        "conversation": None,
    }
    alone, more = ask("hi"), ask("hi", **besides)
    assert (more.messages, more.options) == (alone.messages, alone.options)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({}, "input", "missing"),
        ({"input": []}, "input", "missing"),
        ({"input": 1}, "input", "list"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "'user'"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type", "computer_call"),
        (
            {"input": [message("user", [{"type": "input_file", "file_id": "f"}])]},
            "input[0].content[0].type",
            "input_file",
        ),
        (
            {"input": [message("user", [{"type": "input_image", "image_url": "http://a/b"}])]},
            "input[0].content[0].image_url",
            "this server fetches nothing",
        ),
        ({"tools": [SEARCH]}, "tools", "has no web_search tool"),
        ({"tools": [SEARCH, FUNCTION], "tool_choice": SEARCH}, "tool_choice", "'required'"),
        ({"tools": [{"type": "local_shell"}]}, "tools[0].type", "local_shell"),
        (
            {"tools": [{**FILES, "tools": [{"type": "custom"}]}]},
            "tools[0].tools[0].name",
            "missing",
        ),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "custom", "name": "h"}},
            "tool_choice.name",
            "no such tool",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        (
            {
                "tools": [FUNCTION],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "h"}],
                },
            },
            "tool_choice.tools[0].name",
            "no such tool",
        ),
        ({"background": True}, "background", "expected false"),
        ({"conversation": "conv_1"}, "conversation", "Give previous_response_id"),
        ({"prompt": {"id": "p"}}, "prompt", "not stored here"),
        ({"max_output_tokens": 0}, "max_output_tokens", "found 0, expected at least 1"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
        ({"messages": [message("user", "hi")]}, "messages", "not supported here. Give input."),
        ({"max_tokens": 5}, "max_tokens", "Give max_output_tokens."),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_field(
    fields: dict[str, Any], param: str, words: str
) -> None:
    body = {"input": "hi"} if fields and "input" not in fields else {}
    with pytest.raises(ApiError) as caught:
        asked(request(**body, **fields))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert words in caught.value.message
