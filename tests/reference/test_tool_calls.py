"""Tools are described, shown and read as Meta's own code and transformers do."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from llama_models.llama3.tool_utils import ToolUtils
from transformers.models.llama4.processing_llama4 import chat_template
from transformers.utils import get_json_schema
from transformers.utils.chat_template_utils import render_jinja_template

from llama4_edge.chat.call_parser import CallParser
from llama4_edge.chat.conversation import Message
from llama4_edge.chat.events import ToolCallEnded
from llama4_edge.chat.template import ChatTemplate
from llama4_edge.chat.tool_calls import ToolCall
from llama4_edge.chat.tool_prompt import as_mapping, tool_prompt
from llama4_edge.chat.tools import Tool, as_tools

BOS = "<|begin_of_text|>"


def get_boiling_point(
    liquid_name: str, celcius: bool = True, digits: list[int] | None = None
) -> float:
    """Where a liquid boils.

    Args:
        liquid_name: what it is called
        celcius: in which unit
        digits: how many
    """
    return 100.0


def calls_in(text: str) -> list[tuple[str, dict[str, Any]]]:
    names = ["get_boiling_point", "get_melting_point", "process_data", "initialize", "getWeather"]
    parser = CallParser({name: [] for name in names})
    events = [*parser.push(text), *parser.finish()]
    ended = [event.call for event in events if isinstance(event, ToolCallEnded)]
    return [(call.name, dict(call.arguments)) for call in ended]


# Those of Meta's tests, and what its encoder writes.
@pytest.mark.parametrize(
    "text",
    [
        '[get_boiling_point(liquid_name="water", celcius=True)]',
        '[process_data(name="sample", value=42, active=True, ratio=3.14)]',
        '[get_boiling_point(liquid={"name":"water", "color":"translucent"})]',
        "[process_data(value=[100, 101], from_unit=None)]",
        "[initialize()]",
        '<function=getWeather>{"location":"New York","date":"2023-08-05"}',
        '{"type": "function", "name": "process_data", "parameters": {"a": [1, {"b": null}]}}',
        '{"name": "initialize", "parameters": {}}',
        "process_data",
        "[get_boiling_point(liquid_name)]",
        "[]",
        "[42]",
        '[[get_boiling_point(liquid_name="water")]]',
        'get_boiling_point(liquid_name="water")',
        '{"func": 3}',
    ],
)
def test_metas_parser_finds_the_same_call(text: str) -> None:
    theirs = ToolUtils.maybe_extract_custom_tool_call(text)
    # Meta's reads one call, and a list in a list as none.
    if not text.startswith("[["):
        assert calls_in(text) == ([] if theirs is None else [theirs])


def test_pythons_own_parser_finds_the_same_calls() -> None:
    text = (
        "[get_boiling_point(liquid_name='w\\'\\x41\\N{BULLET}', celcius=False, digits=[0x1f, 1_0]),"
        ' process_data(a=("x", -1.50, {"y": None}), b="""z"""), initialize()]'
    )
    tree = ast.parse(text, mode="eval").body
    assert isinstance(tree, ast.List)
    theirs = [
        (
            ast.unparse(call.func),
            {str(word.arg): ast.literal_eval(word.value) for word in call.keywords},
        )
        for call in tree.elts
        if isinstance(call, ast.Call)
    ]
    assert calls_in(text) == [(name, json.loads(json.dumps(given))) for name, given in theirs]


def test_a_function_is_described_as_transformers_does() -> None:
    ours = json.loads(json.dumps(Tool.of(get_boiling_point).definition))
    theirs = get_json_schema(get_boiling_point)["function"]
    properties = ours["function"]["parameters"]["properties"]
    assert ours["function"]["name"] == theirs["name"]
    assert ours["function"]["description"] == theirs["description"]
    assert ours["function"]["parameters"]["required"] == theirs["parameters"]["required"]
    for name, described in theirs["parameters"]["properties"].items():
        assert properties[name]["description"] == described["description"]
    assert properties["celcius"]["type"] == theirs["parameters"]["properties"]["celcius"]["type"]


CALLS = (ToolCall("a", "f", {"city": "Köln"}), ToolCall("b", "g", {"n": [1, None]}))
CONVERSATIONS: dict[str, list[Message]] = {
    "a question": [Message("user", "Hi")],
    "a system message": [Message("system", " Be brief. "), Message("user", "Hi")],
    "calls and results": [
        Message("user", "The weather?"),
        Message("assistant", "", CALLS),
        Message("tool", "21 °C", tool_call_id="a"),
        Message("tool", '{"n": 2}', tool_call_id="b"),
        Message("assistant", "Warm."),
        Message("user", "And then?"),
    ],
    "text beside a call": [Message("user", "?"), Message("assistant", "I look.", CALLS[:1])],
}
DEFINITIONS = [get_json_schema(get_boiling_point), {"name": "bare", "parameters": {}}]


@pytest.mark.parametrize("tools", [[], DEFINITIONS], ids=["", "tools"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_is_shown_as_transformers_shows_it(
    name: str, tools: list[dict[str, Any]]
) -> None:
    messages = CONVERSATIONS[name]
    shown = tool_prompt([as_mapping(one) for one in messages], as_tools(tools), chat_template)
    template = ChatTemplate(chat_template, control_tokens=[BOS], bos_token=BOS)
    pieces = template.render(shown.messages, tools=shown.tools, variables=shown.variables)
    theirs, _ = render_jinja_template(
        [[_of_transformers(one) for one in messages]],
        tools or None,
        chat_template=chat_template,
        add_generation_prompt=True,
        bos_token=BOS,
    )
    assert "".join(piece.text for piece in pieces) == theirs[0]


def _of_transformers(message: Message) -> dict[str, Any]:
    one: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        one["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.tool_calls
        ]
    return one


def test_calls_in_a_template_without_tools_are_written_as_meta_writes_them() -> None:
    from llama_models.datatypes import ToolCall as MetaCall
    from llama_models.datatypes import ToolPromptFormat

    message = as_mapping(Message("assistant", "", CALLS[1:]))
    (shown,) = tool_prompt([message], (), "{{ messages }}").messages
    theirs = ToolUtils.encode_tool_call(
        MetaCall(call_id="b", tool_name="g", arguments={"n": [1, None]}), ToolPromptFormat.json
    )
    assert shown["content"] == theirs
