"""Requests of Anthropic's protocol, as what a model is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama4_edge.server.anthropic_request import Asked, asked
from llama4_edge.server.body import parsed
from llama4_edge.server.errors import ApiError
from llama4_edge.server.hosted_tools import tell_left_out
from llama4_edge.server.schema.anthropic import MessagesRequest

PNG = "iVBORw0KGgo="


def ask(*messages: dict[str, Any], **fields: Any) -> Asked:
    body = {"model": "m", "max_tokens": 9, "messages": list(messages), **fields}
    return asked(parsed(json.dumps(body).encode(), MessagesRequest))


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else content}


def text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}


def image(source: dict[str, Any] | None = None) -> dict[str, Any]:
    given = {"type": "base64", "media_type": "image/png", "data": PNG}
    return {"type": "image", "source": source or given}


def url(data: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data}}


def test_system_is_a_message_whether_string_or_blocks() -> None:
    asked_with_text = ask(user("hi"), system="Be brief.\nBe kind.")
    blocks = ask(user("hi"), system=[text("Be brief."), text("Be kind.")])
    assert asked_with_text.messages == blocks.messages
    assert blocks.messages == [
        {"role": "system", "content": "Be brief.\nBe kind."},
        {"role": "user", "content": "hi"},
    ]


@pytest.mark.parametrize("rest", ["You are an agent.", ""])
def test_the_line_that_counts_requests_is_not_shown(rest: str) -> None:
    header = "x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch=a5145;"
    after = [text("Be kind.")]
    (system, _) = ask(user("hi"), system=[text(header + rest), *after]).messages
    assert system["content"] == "\n".join([rest, "Be kind."] if rest else ["Be kind."])
    (system, _) = ask(user("hi"), system=f"{header}\n{rest}Be kind.").messages
    assert system["content"] == f"{rest}Be kind."


def test_the_same_words_elsewhere_are_shown() -> None:
    words = "x-anthropic-billing-header: cch=a5145;"
    asked_for = ask(user(words), system=f"Say {words}")
    assert [one["content"] for one in asked_for.messages] == [f"Say {words}", words]


def test_messages_of_one_role_are_one_message() -> None:
    messages = ask(user("a"), user(text("b"), text("c")), {"role": "system", "content": "d"})
    assert messages.messages == [
        {"role": "user", "content": "a\nb\nc"},
        {"role": "system", "content": "d"},
    ]


def test_pictures_stand_where_they_stood() -> None:
    (message,) = ask(user(text("a"), image(), text("b"), text("c"))).messages
    assert message["content"] == [
        {"type": "text", "text": "a"},
        url(f"data:image/png;base64,{PNG}"),
        {"type": "text", "text": "b\nc"},
    ]
    (message,) = ask(user(image({"type": "url", "url": "data:image/png;base64,AA"}))).messages
    assert message["content"] == [url("data:image/png;base64,AA")]


CALL = {
    "type": "tool_use",
    "id": "toolu_1",
    "name": "weather",
    "input": {"city": "Łódź", "days": [1, 2]},
}


def test_tool_calls_and_results_go_on_as_openai_has_them() -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "x"}
    messages = ask(
        user("Weather?"),
        {"role": "assistant", "content": [thinking, text("Let me look."), CALL]},
        user(
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "12 °C"},
            text("And tomorrow?"),
        ),
    ).messages
    assert messages[1:] == [
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {
                    "id": "toolu_1",
                    "type": "function",
                    "function": {
                        "name": "weather",
                        "arguments": '{"city": "Łódź", "days": [1, 2]}',
                    },
                }
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "12 °C"},
        {"role": "user", "content": "And tomorrow?"},
    ]


@pytest.mark.parametrize(
    ("content", "is_error", "shown"),
    [
        ("no such city", True, "Error: no such city"),
        (None, True, "Error"),
        (None, None, ""),
        ([text("a"), text("b")], False, "a\nb"),
        ([{"type": "tool_reference", "tool_name": "grep"}], False, "grep"),
    ],
)
def test_results_of_tools_are_text(content: Any, is_error: bool | None, shown: str) -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": is_error}
    if content is not None:
        result["content"] = content
    messages = ask(user("?"), {"role": "assistant", "content": [CALL]}, user(result)).messages
    assert messages[-1] == {"role": "tool", "tool_call_id": "toolu_1", "content": shown}


def test_pictures_of_results_follow_the_results() -> None:
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [text("read"), image()]},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": "b"},
    ]
    messages = ask(user("?"), {"role": "assistant", "content": [CALL]}, user(*results)).messages
    assert [(one["role"], one["content"]) for one in messages[-3:]] == [
        ("tool", "read"),
        ("tool", "b"),
        ("user", [url(f"data:image/png;base64,{PNG}")]),
    ]


def test_documents_and_search_results_are_shown_as_text() -> None:
    document = {
        "type": "document",
        "title": "Notes",
        "source": {"type": "text", "media_type": "text/plain", "data": "body"},
    }
    found = {
        "type": "search_result", "title": "Page", "source": "a.example", "content": [text("hit")],
    }  # fmt: skip
    (message,) = ask(user(document, found, text("Sum up."))).messages
    assert message["content"] == "Notes\nbody\nPage (a.example)\nhit\nSum up."


def test_an_assistants_last_message_is_gone_on_with() -> None:
    asked_for = ask(user("Capital?"), {"role": "assistant", "content": "It is"})
    assert asked_for.messages == [{"role": "user", "content": "Capital?"}]
    assert asked_for.prefill == "It is"


TOOL = {"name": "weather", "description": "d", "input_schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, {"tool_choice": "auto"}),
        ({"type": "auto"}, {"tool_choice": "auto", "parallel_tool_calls": True}),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"type": "tool", "name": "weather"},
            {
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
                "parallel_tool_calls": True,
            },
        ),
        ({"type": "none"}, {"tool_choice": "none"}),
    ],
)
def test_tools_and_choices_become_openais(choice: Any, expected: dict[str, Any]) -> None:
    options = ask(user("?"), tools=[TOOL], tool_choice=choice).options
    function = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
    assert options == {
        "tools": [{"type": "function", "function": function}], "max_tokens": 9, **expected,
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    ["web_search_20250305", "web_fetch_20250910", "code_execution_20250825",
     "tool_search_tool_bm25_20251119"],
)  # fmt: skip
def test_what_anthropic_runs_is_left_out_beside_other_tools(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    tell_left_out.cache_clear()
    options = ask(user("?"), tools=[{"type": kind, "name": "x", "max_uses": 5}, TOOL]).options
    assert [tool["function"]["name"] for tool in options["tools"]] == [TOOL["name"]]
    told = [one for one in caplog.records if one.name == tell_left_out.__module__]
    assert [kind in one.getMessage() for one in told] == [True]


def test_settings_become_keywords() -> None:
    schema = {"type": "object"}
    options = ask(
        user("?"),
        temperature=1,
        top_p=0.5,
        top_k=7,
        stop_sequences=["x"],
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": schema}},
    ).options
    assert options == {
        "max_tokens": 9,
        "temperature": 1,
        "top_p": 0.5,
        "top_k": 7,
        "stop": ["x"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        },
    }


def test_what_an_agent_sends_besides_changes_nothing() -> None:
    besides = {
        "metadata": {"user_id": "u"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "context_management": {"edits": []},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "betas": ["x"],
        "speed": "fast",
        "something_new": 1,
        "mcp_servers": [],
        "container": None,
    }
    assert ask(user("hi"), **besides) == ask(user("hi"))


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"max_tokens": None}, "max_tokens", "max_tokens"),
        ({"max_tokens": -1}, "max_tokens", "found -1, expected at least 0"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [user("")]}, "messages", "say nothing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'user'"),
        ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text", "missing"),
        ({"messages": [user({"type": "video"})]}, "messages[0].content[0].type", "video"),
        ({"messages": [user(CALL)]}, "messages[0].content[0]", "a message of the user"),
        (
            {"messages": [user("x"), {"role": "assistant", "content": [image()]}]},
            "messages[1].content[0]",
            "a message of the assistant cannot have a block of type image",
        ),
        (
            {"messages": [user({"type": "document", "source": {"type": "base64"}})]},
            "messages[0].content[0].source.type",
            "base64",
        ),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools",
            "this server has no web_search_20250305 tool",
        ),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema", "missing"),
        (
            {"tools": [TOOL, {"type": "bash_20250124", "name": "bash"}]},
            "tools[1]",
            "the tool bash_20250124 is Anthropic's own",
        ),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "there are no tools"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type", "some"),
        ({"mcp_servers": [{}]}, "mcp_servers", "at most 0"),
        ({"container": "c"}, "container", "container"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"stop_sequences": ["x"] * 65}, "stop_sequences", "at most 64"),
        ({"stop_sequences": [""]}, "stop_sequences[0]", "at least 1"),
        (
            {"messages": [{"role": "assistant", "content": "x"}]},
            "messages[0].content",
            "the only message",
        ),
        (
            {"messages": [user("x"), {"role": "assistant", "content": "y "}]},
            "messages[1].content",
            "whitespace",
        ),
        (
            {"messages": [user("x"), {"role": "assistant", "content": "y"}], "tools": [TOOL]},
            "messages[1].content",
            "Let the user have the last word",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_field(
    fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(ApiError) as caught:
        ask(**{"messages": [user("hi")], **fields}) if "messages" not in fields else asked(
            parsed(json.dumps({"model": "m", "max_tokens": 9, **fields}).encode(), MessagesRequest)
        )
    assert (caught.value.status, caught.value.param) == (400, param)
    assert words in caught.value.message
