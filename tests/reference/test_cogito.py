"""Cogito's fine-tune of Scout: its template writes what it does in transformers, and chats.

Cogito's templates think when asked to (``enable_thinking``, or the sentence that it stands for in
the system's message), show tools as JSON behind the system's message, and spell calls as a list of
JSON objects with identifiers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from demo.checkpoint import TEXT_ONLY
from llama4_edge import Model, convert
from llama4_edge.chat.call_parser import CallParser
from llama4_edge.chat.events import ToolCallEnded
from llama4_edge.chat.template import ChatTemplate
from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.fixtures import MakeCheckpoint

BOS = "<|begin_of_text|>"
THINK = "Enable deep thinking subroutine."
TEMPLATE = (
    """
{{- bos_token }}
{%- set tools = tools if tools is defined else none %}
{%- set thinking = enable_thinking if enable_thinking is defined else false %}
{%- macro text(content) %}
    {%- if content is string %}{{ content | trim }}{% else %}
        {%- for part in content if part.type == 'text' %}{{ part.text | trim }}{% endfor %}
    {%- endif %}
{%- endmacro %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = text(messages[0]['content']) %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- if thinking %}
    {%- set system = '"""
    + THINK
    + """' ~ ('\\n\\n' ~ system if system != '' else '') %}
{%- endif %}
{%- if tools is not none or system != '' %}
    {{- '<|header_start|>system<|header_end|>\\n\\n' ~ system }}
    {%- if tools is not none %}
        {{- ('\\n\\n' if system != '' else '') ~ 'Available Tools:\\n' }}
        {%- for tool in tools %}{{ tool | tojson(indent=4) }}{{ '\\n\\n' }}{% endfor %}
    {%- endif %}
    {{- '<|eot|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.tool_calls is defined and message.tool_calls is not none %}
        {{- '<|header_start|>assistant<|header_end|>\\n\\n' ~ text(message['content']) ~ '[' }}
        {%- for call in message.tool_calls %}
            {%- set out = call.function | tojson %}
            {{- out if call.id is not defined else out[:-1] + ', "id": "' + call.id + '"}' }}
            {{- ', ' if not loop.last else ']<|eot|>' }}
        {%- endfor %}
    {%- elif message.role in ['ipython', 'tool', 'tool_results'] %}
        {{- '<|header_start|>ipython<|header_end|>\\n\\n{"content": ' + message.content | tojson }}
        {%- if message.tool_call_id is defined and message.tool_call_id != '' %}
            {{- ', "call_id": "' + message.tool_call_id + '"' }}
        {%- endif %}
        {{- '}<|eot|>' }}
    {%- else %}
        {{- '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}
        {{- text(message['content']) + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}{% endif %}
"""
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'of a city | a country, "now" <|eot|>',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALLS = [
    {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": "weather", "arguments": {"city": city}},
    }
    for number, city in enumerate(("Köln", "Paris"))
]
ASKED: list[dict[str, Any]] = [{"role": "user", "content": " The weather? "}]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": ASKED,
    "system": [{"role": "system", "content": " Be brief. "}, *ASKED],
    "parts": [{"role": "user", "content": [{"type": "text", "text": " one "}]}],
    "thought": [
        *ASKED,
        {"role": "assistant", "content": "<think>\nhm\n</think>\nRain."},
        {"role": "user", "content": "And now?"},
    ],
    "calls": [
        *ASKED,
        {"role": "assistant", "content": "I look.", "tool_calls": CALLS},
        {"role": "tool", "tool_call_id": "call_0", "content": 'rain, "21"'},
        {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
    ],
}


def copied(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Theirs may change what it is given."""
    values: list[dict[str, Any]] = json.loads(json.dumps(messages))
    return values


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["", "tools"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_its_template_writes_what_it_does_in_transformers(
    name: str, tools: list[Any] | None, thinking: bool
) -> None:
    messages = CONVERSATIONS[name]
    control = [BOS, "<|eot|>", "<|header_start|>", "<|header_end|>"]
    template = ChatTemplate(TEMPLATE, control_tokens=control, bos_token=BOS)
    pieces = template.render(
        messages, tools=tools, variables={"enable_thinking": True} if thinking else None
    )
    template.close()
    (expected,), _ = render_jinja_template(
        [copied(messages)], tools, chat_template=TEMPLATE, add_generation_prompt=True,
        bos_token=BOS, **({"enable_thinking": True} if thinking else {}),
    )  # fmt: skip
    assert "".join(piece.text for piece in pieces) == expected


@pytest.fixture(scope="module")
def converted(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with that template in tokenizer_config.json, and what it became, beside it."""
    directory = tmp_path_factory.mktemp("cogito")
    checkpoint = directory / "cogito"
    shutil.copytree(make_checkpoint(TEXT_ONLY), checkpoint)
    (checkpoint / "chat_template.jinja").unlink()
    path = checkpoint / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, "chat_template": TEMPLATE}), encoding="utf-8")
    convert(checkpoint, directory / "cogito.gguf", recipe="bf16")
    return directory


def test_conversations_have_the_token_ids_that_transformers_gives_them(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted / "cogito")
    assert read_gguf(converted / "cogito.gguf").metadata["tokenizer.chat_template"] == TEMPLATE
    # What a message says stays text here, even where it names a control token.
    tool = json.loads(json.dumps(TOOL).replace(" <|eot|>", ""))
    with Model(converted / "cogito.gguf", n_ctx=1024) as model:
        for messages in CONVERSATIONS.values():
            for tools in ([], [tool]):
                expected = tokenizer.apply_chat_template(
                    copied(messages), tools=tools or None, add_generation_prompt=True,
                    tokenize=True, return_dict=False,
                )  # fmt: skip
                assert list(model.chat_prompt(messages, tools=tools).positions) == expected
                answer = model.chat(messages, tools=tools, max_tokens=4)
                assert answer.prompt_tokens == len(expected)


def test_thinking_is_asked_for_in_the_system_s_message(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted / "cogito")
    expected = tokenizer.apply_chat_template(
        copied(ASKED), enable_thinking=True, add_generation_prompt=True, tokenize=True,
        return_dict=False,
    )  # fmt: skip
    with Model(converted / "cogito.gguf", n_ctx=256) as model:
        ours = model.chat_prompt([{"role": "system", "content": THINK}, *ASKED])
    assert list(ours.positions) == expected


def test_its_calls_are_read(converted: Path) -> None:
    """As the template writes them, so that the model learned to."""
    (text,), _ = render_jinja_template(
        [copied(CONVERSATIONS["calls"][:2])], None, chat_template=TEMPLATE, bos_token=BOS
    )
    answer = text.rpartition("<|header_end|>\n\n")[2].removesuffix("<|eot|>")
    parser = CallParser({"weather": ["city"]})
    events = [*parser.push(answer), *parser.finish()]
    calls = [event.call for event in events if isinstance(event, ToolCallEnded)]
    assert [(call.name, call.arguments) for call in calls] == [
        ("weather", {"city": "Köln"}), ("weather", {"city": "Paris"}),
    ]  # fmt: skip
