"""No template, no message and no conversation file is a traceback, a hang or much memory."""

from __future__ import annotations

import datetime
import json
import resource
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from llama4_edge.chat import template_process
from llama4_edge.chat.conversation import Conversation, Message
from llama4_edge.chat.prompt import Prompts
from llama4_edge.chat.template import ChatTemplate
from llama4_edge.chat.vocabulary import Vocabulary
from llama4_edge.errors import ImageError, SessionError, SettingError, TemplateError
from llama4_edge.runtime.files.model_file import check_model_file
from tests.fuzzing import (
    HEAVY,
    ORDINARY,
    damaged_bytes,
    damaged_json,
    efforts,
    fuzz,
    hostile_values,
)

CONTROL = ("<|begin|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<think>")
MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Köln"}}}],
    },
    {"role": "tool", "content": {"celsius": 21}},
]


# ---- templates

_NUMBERS = st.sampled_from(
    [
        "0",
        "1",
        "-1",
        "2",
        "3",
        "1.5",
        "100",
        "99999",
        "10**7",
        "10**10",
        "5000000000",
        "9**99999999",
    ]
)
_STRINGS = st.sampled_from(
    ["''", "'ab'", "'%s%s'", "'%5000000000d'", "'{0}{0}'", "'<|eot|>'", "'\\n'", "'x' * 99999"]
)
_NAMES = st.sampled_from(["ns.s", "x", "messages", "messages[0].content", "tools", "range", "loop"])
_FILTERS = st.sampled_from(
    [
        *("abs", "batch", "capitalize", "center", "count", "dictsort", "escape", "first", "float"),
        *("forceescape", "format", "groupby", "indent", "int", "items", "join", "list", "lower"),
        *("map", "max", "pprint", "random", "reject", "replace", "reverse", "round", "slice"),
        *("sort", "string", "striptags", "sum", "title", "tojson", "trim", "truncate", "unique"),
        *("upper", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr", "absent"),
    ]
)
_METHODS = st.sampled_from(
    [
        *("center", "count", "encode", "expandtabs", "format", "join", "ljust", "replace", "rjust"),
        *("split", "splitlines", "strip", "translate", "zfill", "append", "items", "to_bytes"),
        *("__class__", "__init__", "mro", "format_map"),
    ]
)
_FUNCTIONS = st.sampled_from(
    ["range", "lipsum", "namespace", "cycler", "joiner", "dict", "raise_exception", "strftime_now"]
)
_OPERATORS = st.sampled_from(["~", "+", "-", "*", "**", "%", "/", "//", "==", "in", "and", "if"])


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arguments = st.lists(inner, max_size=3).map(", ".join)
    return st.one_of(
        st.builds("({} {} {})".format, inner, _OPERATORS, inner),
        st.builds("({} | {}({}))".format, inner, _FILTERS, arguments),
        st.builds("{}.{}({})".format, inner, _METHODS, arguments),
        st.builds("{}({})".format, _FUNCTIONS, arguments),
        st.builds("{}[{}:{}]".format, inner, inner, inner),
        st.builds("[{}]".format, arguments),
        st.builds("({}, {})".format, inner, inner),
        st.builds("{{'a': {}}}".format, inner),
    )


_EXPRESSIONS = st.recursive(_NUMBERS | _STRINGS | _NAMES, _compound, max_leaves=8)


def _block(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("{{% set x = {} %}}{}".format, _EXPRESSIONS, inner),
        st.builds("{{% set ns.s = {} %}}{}".format, _EXPRESSIONS, inner),
        st.builds("{{% for x in {} %}}{}{{% endfor %}}".format, _EXPRESSIONS, inner),
        st.builds("{{% for i in range(99) %}}{}{{% endfor %}}".format, inner),
        st.builds("{{% if {} %}}{}{{% endif %}}".format, _EXPRESSIONS, inner),
        st.builds(
            "{{% macro m(x) %}}{}{{{{ m(x) ~ m(x) }}}}{{% endmacro %}}{{{{ m(1) }}}}".format, inner
        ),
        st.builds("{{% filter {} %}}{}{{% endfilter %}}".format, _FILTERS, inner),
        st.builds("{}{}".format, inner, inner),
    )


TEMPLATES = st.recursive(
    st.builds("{{{{ {} }}}}".format, _EXPRESSIONS) | st.text(max_size=8), _block, max_leaves=6
).map("{{% set ns = namespace(s='ab') %}}{}".format)


def check_template(source: str) -> None:
    """It renders, or is one short error, whatever it says."""
    with suppress(TemplateError):
        chat = ChatTemplate(source, control_tokens=CONTROL)
        try:
            pieces = chat.render([{"role": "user", "content": "Hello <|eot|>"}])
            assert sum(len(piece.text) for piece in pieces) < 5 << 20
        finally:
            chat.close()


def largest_process(max_examples: int, effort: settings) -> int:
    """Try templates, each of which starts a process; the most memory that one had, in KiB."""
    template_process.SECONDS = 0.05
    template_process.MEMORY_BYTES = 96 << 20
    fuzz(check_template, TEMPLATES, settings(effort, max_examples=max_examples))
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


@efforts
def test_no_template_is_a_traceback_or_takes_long(effort: settings) -> None:
    # In a process of its own: Linux counts what the parent has as memory of a child that begins.
    arguments = (30, ORDINARY) if effort is ORDINARY else (2000, HEAVY)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(largest_process, *arguments).result() < 1 << 20


# ---- messages


@pytest.fixture(scope="module")
def vocabulary(tiny_path: Path) -> Vocabulary:
    return Vocabulary(check_model_file(tiny_path).gguf.metadata)


# What Python's own callers may hand over.
_OBJECTS = st.sampled_from(
    [b"x", {1, 2}, object(), object, datetime.date(2020, 1, 1), 1j, range(3), Message("user", "x")]
)
_ARGUMENTS = st.one_of(
    damaged_json(MESSAGES),
    damaged_json([MESSAGES[0], MESSAGES[1]]),
    hostile_values,
    st.lists(hostile_values | _OBJECTS, max_size=3),
    st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "tool", "usr", "", None]),
                "content": hostile_values | _OBJECTS,
            },
            optional={"x": hostile_values | _OBJECTS},
        ),
        min_size=1,
        max_size=3,
    ),
)


@efforts
@pytest.mark.parametrize("known", [True, False])
def test_no_messages_are_a_traceback(known: bool, effort: settings, vocabulary: Vocabulary) -> None:
    source = (ROOT / "demo" / "Llama-4-Tiny" / "chat_template.jinja").read_text(encoding="utf-8")
    prompts = Prompts(vocabulary, source if known else source + "{{ messages | tojson }}")
    headers = vocabulary.control_tokens["<|header_start|>"]

    def check(messages: Any) -> None:
        with suppress(ImageError, TemplateError, SettingError):
            tokens = prompts.of_messages(messages).token_ids
            if not isinstance(messages, str):
                assert tokens.count(headers) == len(messages) + 1

    try:
        fuzz(check, _ARGUMENTS, effort)
    finally:
        prompts.close()


_TEXT = st.lists(
    st.sampled_from([*CONTROL, *"<|>/XB \n", "eot", "think", "begin", "</", "EOT", "\U00013000"])
).map("".join)
_WRITING = (
    "{{ c }}{{ c | trim }}{{ c | replace('X', '') }}{{ c | lower }}{{ c.split('X') | join }}"
    "{{ messages }}{{ messages | tojson }}{{ c | truncate(5, true, '') }}{{ c | striptags }}"
    "{{ c | reverse }}{{ c[1:] }}{{ c[:-1] }}{{ c | wordwrap(3) }}{{ c | list | join('') }}"
    "{{ c | replace('\n', '') | replace(' ', '') }}{{ c | title }}{{ c }}{{ c | indent }}"
)


@efforts
def test_no_text_becomes_a_control_token(effort: settings) -> None:
    chat = ChatTemplate("{% set c = messages[0].content %}" + _WRITING, control_tokens=CONTROL)

    def check(text: str) -> None:
        pieces = chat.render([{"role": "user", "content": text, text: [text]}])
        assert not any(piece.control for piece in pieces)
        assert "".join(piece.text for piece in pieces).startswith(text)

    fuzz(check, _TEXT, effort)
    chat.close()


# ---- conversation files

ROOT = Path(__file__).parents[2]
CONVERSATION = {
    "format": "llama4-edge conversation",
    "version": 1,
    "model": "Scout",
    "sampling": {"temperature": 0.2, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "seed": 5},
    "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}],
}


@efforts
def test_no_conversation_file_is_a_traceback(effort: settings, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(SessionError):
            talk = Conversation.load(path)
            talk.save(path)
            assert Conversation.load(path) == talk

    values = damaged_json(CONVERSATION).map(_json)
    fuzz(check, values | damaged_bytes(json.dumps(CONVERSATION).encode()), effort)


def _json(value: object) -> bytes:
    try:
        return json.dumps(value).encode()
    except ValueError:  # an integer of more digits than Python writes
        return b'{"version": ' + b"9" * 5000 + b"}"
