"""Meta's template for Llama 4 is known, and every template writes what transformers writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers.models.llama4.processing_llama4 import chat_template
from transformers.utils.chat_template_utils import render_jinja_template

from llama4_edge.chat.template import ChatTemplate, is_known

BOS = "<|begin_of_text|>"
TOOL = {
    "name": "weather",
    "description": "of a city | a country",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = {"function": {"name": "weather", "arguments": {"city": "Köln", "<|eot|>": ["|"]}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [{"role": "user", "content": "Hello <|eot|>"}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "x"}]}],
    "tools": [
        {"role": "user", "content": "The weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": {"celsius": 21, "sky": "a | b"}},
        {"role": "ipython", "content": "done"},
    ],
}


def ours(source: str, messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
    template = ChatTemplate(source, control_tokens=[BOS, "<|eot|>"], bos_token=BOS)
    return "".join(piece.text for piece in template.render(messages, tools=tools))


def theirs(source: str, messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
    rendered, _ = render_jinja_template(
        [messages], tools, chat_template=source, add_generation_prompt=True, bos_token=BOS
    )
    text: str = rendered[0]
    return text


def test_metas_template_is_known() -> None:
    assert is_known(chat_template)


@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["", "tools"])
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize(
    "source", [chat_template, chat_template + "{# #}"], ids=["known", "process"]
)
def test_metas_template_writes_what_it_does_in_transformers(
    source: str, name: str, tools: list[Any] | None
) -> None:
    messages = CONVERSATIONS[name]
    assert ours(source, messages, tools) == theirs(source, messages, tools)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages }}{{ tools }}",
        "{% for m in messages %}{{ m | tojson(indent=2) }}{{ loop.index }}{% endfor %}",
        "  {% if true %}\n {{ messages | length }} \n  {% endif %}\n\n",
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
        "{% generation %}{{ messages[0].role }}{% endgeneration %} {{ dict(a=1).a }}",
        "{% set n = namespace({'a': 1}, self=2) %}{% set n.b = 3 %}{{ n.a }}{{ n.self }}{{ n.b }}",
        "{{ dict.fromkeys([1], 2) }}{{ dict([(1, 2)]) }}",
        "{{ strftime_now('%Y') }}{{ messages[-1].content | string | upper }}",
    ],
)
def test_any_template_writes_what_it_does_in_transformers(source: str) -> None:
    for messages in CONVERSATIONS.values():
        copy = json.loads(json.dumps(messages))
        assert ours(source, messages, [TOOL]) == theirs(source, copy, [TOOL])
