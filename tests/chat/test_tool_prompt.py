"""What of tools a template would lose or spell as Python does is given to it in another form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama4_edge.chat.conversation import Message
from llama4_edge.chat.tool_calls import ToolCall
from llama4_edge.chat.tool_prompt import INTRODUCTION, as_mapping, tool_prompt
from llama4_edge.chat.tools import as_tools
from llama4_edge.errors import TemplateError

META = "{{ tools_in_user_message }}{{ tools }}{{ tool_calls }}"
PLAIN = "{{ messages }}"
TOOL = {"name": "now", "parameters": {"type": "object"}}
TOOLS = as_tools([TOOL])
LISTED = INTRODUCTION + json.dumps(TOOL, indent=4) + "\n\n"


def message(role: str, content: object, **more: object) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def test_arguments_reach_a_template_as_a_mapping() -> None:
    call = {"id": "1", "function": {"name": "now", "arguments": '{"a": [1]}'}}
    (shown,) = tool_prompt(
        [message("assistant", None, tool_calls=[call])], TOOLS[:0], META
    ).messages
    assert shown["content"] == ""
    assert shown["tool_calls"] == [
        {"id": "1", "function": {"name": "now", "arguments": {"a": [1]}}}
    ]


def test_arguments_that_are_no_json_reach_it_as_they_are() -> None:
    call = ToolCall.of("1", "now", '{"a": ')
    (shown,) = tool_prompt([as_mapping(Message("assistant", "", (call,)))], (), META).messages
    assert shown["tool_calls"][0]["function"]["arguments"] == '{"a": '


def test_a_list_of_no_calls_does_not_hide_a_message() -> None:
    # Meta's template writes nothing of a message that has one.
    empties: tuple[list[object] | None, ...] = ([], None)
    for empty in empties:
        (shown,) = tool_prompt([message("assistant", "Hi", tool_calls=empty)], (), META).messages
        assert shown == message("assistant", "Hi")


def test_a_question_of_parts_is_one_text_where_tools_stand_before_it() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    shown = tool_prompt([message("user", parts)], TOOLS, META)
    assert shown.messages == [message("user", "ab")]
    assert shown.tools == [TOOL]
    assert shown.variables == {}


@pytest.mark.parametrize(
    "first", [message("user", [{"type": "image"}]), message("assistant", "Welcome.")]
)
def test_tools_go_into_the_system_message_where_the_first_is_no_text_of_the_user(
    first: dict[str, Any],
) -> None:
    shown = tool_prompt([first], TOOLS, META)
    assert shown.messages == [message("system", ""), first]
    assert shown.variables == {"tools_in_user_message": False}
    system = message("system", "Be brief.")
    assert tool_prompt([system, first], TOOLS, META).messages == [system, first]


def test_a_template_without_tools_gets_them_in_front_of_the_first_question() -> None:
    talk = [message("system", "s"), message("user", "u"), message("user", "v")]
    shown = tool_prompt(talk, TOOLS, PLAIN)
    assert shown.tools is None
    assert shown.messages == [talk[0], message("user", LISTED + "u"), talk[2]]
    picture = [message("user", [{"type": "image"}])]
    assert tool_prompt(picture, TOOLS, PLAIN).messages == [
        message("user", [{"type": "text", "text": LISTED}, {"type": "image"}])
    ]


def test_a_template_without_calls_gets_them_as_text() -> None:
    calls = (ToolCall("1", "now", {"ä": 1}), ToolCall("2", "now"))
    talk = [as_mapping(Message("assistant", "So: ", calls)), message("tool", {"x": [1]})]
    assert tool_prompt(talk, (), PLAIN).messages == [
        message(
            "assistant",
            'So: {"type": "function", "name": "now", "parameters": {"ä": 1}}'
            '{"type": "function", "name": "now", "parameters": {}}',
        ),
        message("tool", '{"x": [1]}'),
    ]


@pytest.mark.parametrize("calls", [3, "x", {"a": 1}, [3], [{}], [{"function": {"name": 3}}]])
def test_malformed_calls_are_one_error(calls: object) -> None:
    for source in (META, PLAIN):
        with pytest.raises(TemplateError, match="tool_calls of a message are malformed"):
            tool_prompt([message("assistant", "", tool_calls=calls)], (), source)
